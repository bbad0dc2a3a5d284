"""Memory figures of a dry run, against sizes that are known."""

from types import SimpleNamespace

import pytest

from gsr_rl.batch_arithmetic import batch_arithmetic
from gsr_rl.configs import GSRConfig
from gsr_rl.memory import GIB, Launch, ModelShape, memory_arithmetic, read_launch, read_shape

QWEN7B = ModelShape(3584, 18944, 28, 28, 152064, 4, 128)
ARGS = dict(max_refinement_prompt_length=8192, max_refinement_length=4096, max_completion_length=4096,
            per_device_train_batch_size=1, gradient_checkpointing=True, use_vllm=True, vllm_mode="colocate",
            vllm_gpu_memory_utilization=0.4, gpu_memory_gib=80.0, vllm_tensor_parallel_size=1,
            vllm_enable_sleep_mode=True)  # fmt: skip


def figure(text: str) -> float:
    return float(text.split()[0])


def test_parameters_and_cache_of_known_models():
    assert QWEN7B.parameters == pytest.approx(7.616e9, rel=1e-3)
    smollm2 = ModelShape(576, 1536, 30, 9, 49152, 3, 64, True)
    assert smollm2.parameters == pytest.approx(134.5e6, rel=1e-3)
    assert QWEN7B.cache_bytes == 57344  # 2 x 28 layers x 4 heads x 128 x 2 bytes


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(0, 2, 2, 12), (1, 2, 2, 1.5), (2, 2, 0.25, 1.5), (3, 0.25, 0.25, 1.5)],
)
def test_each_zero_stage_shards_its_part_over_eight_processes(stage, weights, gradients, optimizer):
    found = memory_arithmetic(QWEN7B, Launch(8, stage), SimpleNamespace(**ARGS))
    for name, share in (("weights", weights), ("gradients", gradients), ("optimizer", optimizer)):
        assert figure(found[f"GPU memory: {name}"]) == pytest.approx(QWEN7B.parameters * share / GIB, abs=0.06), name


def test_lora_and_offload_take_the_optimizer_off_the_gpu():
    small = memory_arithmetic(QWEN7B, Launch(1, 2), SimpleNamespace(**ARGS), trained=40_000_000)
    assert figure(small["GPU memory: optimizer"]) < 0.5
    offloaded = memory_arithmetic(QWEN7B, Launch(8, 3, True), SimpleNamespace(**ARGS))
    assert figure(offloaded["GPU memory: optimizer"]) == 0
    assert figure(offloaded["CPU memory: optimizer"]) == pytest.approx(10.6, abs=0.1)


def test_a_configuration_that_does_not_fit_says_so():
    assert memory_arithmetic(QWEN7B, Launch(8, 3), SimpleNamespace(**ARGS))["GPU memory: peak"].endswith("fits")
    awake = SimpleNamespace(**ARGS | {"vllm_enable_sleep_mode": False})
    assert "DOES NOT FIT" in memory_arithmetic(QWEN7B, Launch(1, 0), awake)["GPU memory: peak"]


def test_on_a_cpu_nothing_is_said_of_a_gpu():
    found = memory_arithmetic(QWEN7B, Launch(2, 2, True, on_cpu=True), SimpleNamespace(**ARGS))
    assert figure(found["CPU memory: optimizer"]) == pytest.approx(QWEN7B.parameters * 6 / GIB, abs=0.06)
    assert "VLLM_CPU_KVCACHE_SPACE" in found["CPU memory: vLLM"]
    said = " ".join(f"{name} {text}" for name, text in found.items() if name != "GPU memory")
    assert "fit" not in said.lower() and "GPU" not in said and "80" not in said
    assert found["GPU memory"] == "none is used: use_cpu is true"


def test_a_dry_run_for_gpus_needs_none_and_counts_the_tokens_of_a_step(tmp_path):
    config = dict(output_dir=str(tmp_path), num_generations=8, per_device_train_batch_size=16, steps_per_generation=2,
                  max_completion_length=100, max_refinement_length=200, max_refinement_prompt_length=1000,
                  gradient_accumulation_steps=1, vllm_max_model_length=1500, bf16=False, report_to="none",
                  model_shape=dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
                                   vocab_size=100))  # fmt: skip
    args = GSRConfig(**config)
    found = batch_arithmetic(args)
    assert "GPU memory: weights" in found and "CPU memory: weights" not in found
    # One problem a step, two a generation; each has 8 candidates, 8 refinements, a solve prompt, a refinement prompt.
    assert found["new tokens a generation, at most"] == 2 * (800 + 1600)
    assert found["new tokens an optimizer step, at most"] == 800 + 1600
    assert found["solve prompt tokens an optimizer step, at most"] == 1400
    assert found["refinement prompt tokens an optimizer step, at most"] == 1000
    assert found["solve prompt tokens a generation, at most"] == 2 * 1400
    only = batch_arithmetic(GSRConfig(**config | {"candidate_weight": 0, "oversample": 2, "use_cpu": True}))
    assert only["problems an optimizer step"] == 2 and "CPU memory: weights" in only
    assert only["new tokens an optimizer step, at most"] == 2 * 1600  # candidates are sampled, not trained on
    assert only["solve prompt tokens an optimizer step, at most"] == 0
    assert only["new tokens a generation, at most"] == 2 * 4 * (800 + 1600)  # up to twice the batch's 4 problems
    unlimited = batch_arithmetic(GSRConfig(**config | {"vllm_max_model_length": None}))
    assert unlimited["solve prompt tokens a generation, at most"].startswith("no limit but the model's window")


def test_sizes_and_launch_are_read_from_files(tmp_path):
    shape = read_shape("recipes/tiny/models/base", None)
    assert shape.hidden_size == 128 and shape.tie_word_embeddings
    assert read_shape("someone/model", None) is None
    assert read_launch("accelerate_configs/zero3.yaml", 1) == Launch(8, 3)
    assert read_launch("accelerate_configs/ddp_cpu.yaml", 1) == Launch(2, 0, on_cpu=True)
    assert read_launch(None, 4) == Launch(4)
