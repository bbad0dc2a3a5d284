"""On a CPU a training process keeps what it has freed, unless the environment says otherwise."""

import os
import platform
import subprocess
import sys

import pytest
import torch

FREES_400_MB = """
import torch
from gsr_rl.cpu_memory import keep_freed_memory
done = keep_freed_memory()
block = torch.ones(100_000_000)
del block
resident = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
print(done, int(resident.split()[1]) // 1024)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or torch.cuda.is_available(), reason="glibc without a GPU")
def test_freed_memory_stays_unless_the_environment_decides():
    found = {}
    for name, more in (("default", {}), ("own choice", {"MALLOC_MMAP_MAX_": "65536"})):
        done = subprocess.run(
            [sys.executable, "-c", FREES_400_MB], env=os.environ | more, capture_output=True, text=True, timeout=120
        )
        kept, megabytes = done.stdout.split()
        found[name] = kept, int(megabytes)
    assert found["default"][0] == "True" and found["own choice"][0] == "False"
    assert found["default"][1] > found["own choice"][1] + 300
