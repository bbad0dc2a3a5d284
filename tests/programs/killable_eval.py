"""recipes/eval_gsr.py with the fixed engine, slowed down, for a test that kills it. Takes the recipe's arguments."""

import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gsr_rl.engines import open as opening  # noqa: E402
from gsr_rl.engines.base import Completion  # noqa: E402
from tests.support.fixed_engine import FixedEngine  # noqa: E402


class SlowEngine(FixedEngine):
    """A thousandth of a second a completion."""

    def complete(self, ids, place):
        time.sleep(0.001)
        prompt = self.tokenizer.decode(ids, skip_special_tokens=True)
        if prompt.endswith("\n#"):
            text = "\\boxed{02}"
            return Completion(text, self.tokenizer.encode(text), True)
        return super().complete(ids, place)


opening.open_engine = SlowEngine
sys.argv[0] = str(ROOT / "recipes" / "eval_gsr.py")
runpy.run_path(sys.argv[0])["main"]()
