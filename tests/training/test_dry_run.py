"""Memory figures of a dry run, against sizes that are known."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import Qwen2Config, Qwen2Model

from gsr_rl import cli
from gsr_rl.run_folder import resolved_yaml
from gsr_rl.training.config import GSRConfig
from gsr_rl.training.dry_run import (
    GIB,
    Pass,
    batch_arithmetic,
    largest_pass,
    layer_bytes,
    memory_arithmetic,
    pass_bytes,
    problems_read,
)
from gsr_rl.training.launch import (
    LEAST_LORA_RATE,
    Launch,
    ModelShape,
    adapter_parameters,
    check_named_size,
    read_launch,
    read_shape,
)
from tests.support.paths import ROOT

QWEN7B = ModelShape(3584, 18944, 28, 28, 152064, 4, 128)
SMALL = ModelShape(64, 160, 2, 4, 128, 2)  # 64 wide: queries 64, keys 32
ARGS = dict(max_refinement_prompt_length=8192, max_refinement_length=4096, max_completion_length=4096,
            num_generations=8, num_candidate_sets=1, stages=["candidate", "refinement"], shared_prefix=True,
            per_device_train_batch_size=8, gradient_accumulation_steps=16, steps_per_generation=16,
            max_tokens_per_micro_batch=None, gradient_checkpointing=True, bf16=True, fp16=False, beta=0.0,
            use_vllm=True, vllm_mode="colocate", vllm_gpu_memory_utilization=0.4, gpu_memory_gib=80.0,
            vllm_tensor_parallel_size=1, vllm_enable_sleep_mode=True, vllm_max_model_length=12288,
            vllm_dtype="auto", vllm_enforce_eager=None)  # fmt: skip
MODEL = dict(dtype="bfloat16", attn_implementation="sdpa", use_peft=False, lora_r=16, lora_target_modules=None,
             lora_modules_to_save=None)  # fmt: skip


def training(**more) -> SimpleNamespace:
    return SimpleNamespace(**ARGS | more)


def model(**more) -> SimpleNamespace:
    return SimpleNamespace(**MODEL | more)


def figure(text: str) -> float:
    return float(text.split()[0])


def test_parameters_and_cache_of_known_models():
    assert QWEN7B.parameters == pytest.approx(7.616e9, rel=1e-3)
    smollm2 = ModelShape(576, 1536, 30, 9, 49152, 3, 64, True)
    assert smollm2.parameters == pytest.approx(134.5e6, rel=1e-3)
    assert QWEN7B.cache_bytes == 57344  # 2 x 28 layers x 4 heads x 128 x 2 bytes


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(0, 2, 2, 4), (1, 2, 2, 1.5), (2, 2, 0.25, 1.5), (3, 0.25, 0.25, 1.5)],  # without DeepSpeed no float32 copy
)
def test_each_zero_stage_shards_its_part_over_eight_processes(stage, weights, gradients, optimizer):
    found = memory_arithmetic(QWEN7B, Launch(8, stage), training(), model())
    for name, share in (("weights", weights), ("gradients", gradients), ("optimizer", optimizer)):
        assert figure(found[f"GPU memory: {name}"]) == pytest.approx(QWEN7B.parameters * share / GIB, abs=0.06), name


def test_fsdp2_shards_as_stage_3_does():
    launch = read_launch("accelerate_configs/fsdp2.yaml", 1)
    assert launch == Launch(8, 3, fsdp=True)
    found = memory_arithmetic(QWEN7B, launch, training(beta=0.04), model())
    # float32 in mixed precision: 4 + 4 + two moments of 4 bytes, as many together as DeepSpeed's 2 + 2 + 12
    shares = {"weights": 0.5, "gradients": 0.5, "optimizer": 1, "reference model": 0.25}
    for name, share in shares.items():
        assert figure(found[f"GPU memory: {name}"]) == pytest.approx(QWEN7B.parameters * share / GIB, abs=0.06), name
    # embedding, head and two layers in bfloat16: 2 x (2 x 152064 x 3584 + 2 x 233,046,016) bytes
    assert figure(found["GPU memory: weights gathered for use, at most"]) == pytest.approx(2.9, abs=0.06)
    assert "FSDP2, 8 processes" in found["GPU memory: training together"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 2 * 4 * ((64 + 64) + (64 + 32))),  # PEFT's own: q_proj and v_proj
        ({"lora_target_modules": ["q_proj", "mlp.down_proj"]}, 2 * 4 * ((64 + 64) + (160 + 64))),
        ({"lora_target_modules": r".*\.k_proj"}, 2 * 4 * (64 + 32)),
        ({"lora_target_modules": "all-linear"}, 2 * 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 160))),
        ({"lora_modules_to_save": ["lm_head"]}, 2 * 4 * ((64 + 64) + (64 + 32)) + 64 * 128),
    ],
)
def test_an_adapter_has_the_parameters_that_peft_gives_it(options, expected):
    assert adapter_parameters(SMALL, model(lora_r=4, **options)) == expected


def test_lora_trains_its_adapter_alone_and_needs_no_reference_model():
    lora = model(use_peft=True, lora_target_modules="all-linear")
    found = memory_arithmetic(QWEN7B, Launch(8, 2), training(beta=0.04), lora)
    assert found["trained parameters (LoRA)"] == "40.37 million"  # 28 x 16 x 90,112 inputs and outputs
    assert figure(found["GPU memory: gradients"]) == 0.0  # 10 MB a GPU
    assert figure(found["GPU memory: optimizer"]) == pytest.approx(40_370_176 * 12 / 8 / GIB, abs=0.06)
    assert figure(found["GPU memory: weights"]) == pytest.approx((QWEN7B.parameters + 40_370_176) * 2 / GIB, abs=0.06)
    assert not any("reference" in name for name in found)
    # Frozen weights stay as they are loaded, but where DeepSpeed casts them; PEFT makes adapters float32.
    plain = memory_arithmetic(QWEN7B, Launch(1), training(), model(use_peft=True, dtype="float32"))
    assert figure(plain["GPU memory: weights"]) == pytest.approx(QWEN7B.parameters * 4 / GIB, abs=0.06)


@pytest.mark.parametrize(("stage", "share"), [(0, 2), (2, 2), (3, 0.25)])
def test_a_reference_model_is_whole_below_stage_3(stage, share):
    found = memory_arithmetic(QWEN7B, Launch(8, stage), training(beta=0.04), model())
    assert figure(found["GPU memory: reference model"]) == pytest.approx(QWEN7B.parameters * share / GIB, abs=0.06)
    assert "GPU memory: reference model" not in memory_arithmetic(QWEN7B, Launch(8, stage), training(), model())


def test_what_is_offloaded_is_in_cpu_memory_and_what_stays_is_said():
    launch = read_launch("accelerate_configs/zero3_offload.yaml", 1)
    found = memory_arithmetic(QWEN7B, launch, training(beta=0.04), model())
    bytes_of = {"weights": 2, "gradients": 2, "optimizer": 12, "reference model": 2}
    for name, width in bytes_of.items():
        assert found[f"GPU memory: {name}"] == "0.0 GiB, in CPU memory"
        each = QWEN7B.parameters * width / 8 / GIB
        assert figure(found[f"CPU memory: {name}"]) == pytest.approx(each, abs=0.06), name
    # DeepSpeed gathers at most a billion parameters: 2e9 bytes
    assert figure(found["GPU memory: weights gathered for use, at most"]) == pytest.approx(2e9 / GIB, abs=0.06)
    optimizer_alone = memory_arithmetic(QWEN7B, Launch(8, 2, True), training(), model())
    assert figure(optimizer_alone["GPU memory: weights"]) == pytest.approx(14.2, abs=0.06)
    assert figure(optimizer_alone["GPU memory: optimizer"]) == 0


def test_the_peak_counts_what_stays_on_the_gpu_while_vllm_is_awake():
    # 32 GiB of vLLM and 2 + 2 + 12 = 16 bytes a parameter over 8 processes: 32 + 14.2, more than the update's 37
    asleep = memory_arithmetic(QWEN7B, Launch(8, 3), training(), model())
    assert figure(asleep["GPU memory: sampling together"]) == pytest.approx(32 + 14.2, abs=0.1)
    assert figure(asleep["GPU memory: peak"]) == pytest.approx(32 + 14.2, abs=0.1)
    assert asleep["GPU memory: peak"].endswith("fits")
    update = figure(asleep["GPU memory: training together"])
    awake = memory_arithmetic(QWEN7B, Launch(8, 3), training(vllm_enable_sleep_mode=False), model())
    assert figure(awake["GPU memory: peak"]) == pytest.approx(32 + update, abs=0.1)
    # Under ZeRO-1 over two, 2 + 2 + 6 bytes a parameter stay, 71 GiB, and 32 come: more than 80, though an update on
    # short rows is less, and so are the weights and the engine alone.
    short = {"max_refinement_prompt_length": 64, "max_refinement_length": 64, "max_completion_length": 64}
    tight = memory_arithmetic(QWEN7B, Launch(2, 1), training(**short), model())
    assert figure(tight["GPU memory: training together"]) < 76
    assert figure(tight["GPU memory: peak"]) == pytest.approx(32 + 7.615 * 10 / 1.0737, abs=0.2)
    assert "DOES NOT FIT" in tight["GPU memory: peak"]


def test_every_mode_has_a_verdict():
    server = memory_arithmetic(QWEN7B, Launch(8, 3), training(vllm_mode="server"), model())
    assert server["GPU memory: peak"].startswith(server["GPU memory: training together"].split()[0])
    assert server["GPU memory: peak"].endswith("(vLLM on GPUs of its own): fits")
    # transformers: 14.2 GiB stay, 14.2 of whole weights, and 8 problems' 64 rows x 12288 tokens x 57344 bytes = 42
    own = memory_arithmetic(QWEN7B, Launch(8, 3), training(use_vllm=False), model())
    assert figure(own["GPU memory: peak"]) == pytest.approx(14.2 + 14.2 + 42, abs=0.1)
    small = memory_arithmetic(QWEN7B, Launch(8, 3), training(use_vllm=False, gpu_memory_gib=40), model())
    assert "DOES NOT FIT" in small["GPU memory: peak"]
    no_room = memory_arithmetic(QWEN7B, Launch(8, 3), training(vllm_gpu_memory_utilization=0.1), model())
    assert "DOES NOT FIT" in no_room["GPU memory: peak"]  # 8 GiB do not hold the engine's 14.2 GiB of weights


def test_a_pass_computes_a_prompt_once_and_keeps_to_its_budget():
    whole = largest_pass(training(), "refinement")
    assert whole == Pass(8192 + 8 * 4095, 8 * 4096, 8 * 12288)
    half = largest_pass(training(per_device_train_batch_size=4, gradient_accumulation_steps=32), "refinement")
    assert half.tokens == 8192 + 4 * 4095  # the other half computes the prompt again
    astride = largest_pass(training(per_device_train_batch_size=6), "candidate")  # rows 6 to 11: of two problems
    assert astride.tokens == 2 * 8192 + 6 * 4095
    sets = largest_pass(training(num_candidate_sets=2), "refinement")  # prompts of 4 refinements each
    assert sets.tokens == 2 * 8192 + 8 * 4095
    padded = largest_pass(training(), "candidate", shares=False)
    assert padded == Pass(8 * 12288, 8 * 4096, 8 * 12288)
    budget = largest_pass(training(max_tokens_per_micro_batch=20000), "refinement")
    assert budget == Pass(20000, 2 * 4096, 2 * 12288)  # 8192 + 2 x 4095 fit, a third row does not; shorter ones may
    row = largest_pass(training(max_tokens_per_micro_batch=8192), "refinement")
    assert row.tokens == 8192 + 4095  # a row beyond the budget is a pass of its own


@pytest.mark.parametrize(("dtype", "width"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_a_layer_keeps_what_autograd_keeps(dtype, width):
    """The difference that two layers make to what the backward pass would find, beside the weights."""
    kept = []
    for layers in (2, 4):
        config = Qwen2Config(hidden_size=64, intermediate_size=160, num_hidden_layers=layers, num_attention_heads=4,
                             num_key_value_heads=2, vocab_size=128)  # fmt: skip
        backbone = Qwen2Model(config).to(dtype)
        weights = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
        found = {}

        def keep(tensor, weights=weights, found=found):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, or its place would be given again
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = backbone(torch.zeros(1, 512, dtype=torch.long), use_cache=False)
        kept.append(sum(size for size, _ in found.values()))
        del output
    # By hand: 2 norms x (4 + 2 w) x 64, w x (3 x 64 + 2 x 32 + 4 x 160); the kernel's result is here no second time.
    assert layer_bytes(SMALL, width) == 2 * (4 + 2 * width) * 64 + width * (192 + 64 + 640)
    assert (kept[1] - kept[0]) / 2 / 512 == pytest.approx(layer_bytes(SMALL, width) - width * 64, rel=0.02)


def test_activations_of_the_7b_recipe_by_hand():
    tokens, scored = 8192 + 8 * 4095, 8 * 4096
    inputs = tokens * 28 * 3584 * 2  # what checkpointing keeps
    layer = tokens * (2 * 8 * 3584 + 2 * (3 * 3584 + 2 * 512 + 4 * 18944))
    backward = tokens * 2 * 2 * 18944
    name = "GPU memory: activations of a micro-batch, at most"
    found = memory_arithmetic(QWEN7B, Launch(8, 3), training(), model())[name]
    assert figure(found) == pytest.approx((inputs + layer + backward) / GIB, abs=0.06)
    assert "40,952 tokens, with gradient checkpointing" in found
    without = memory_arithmetic(QWEN7B, Launch(8, 3), training(gradient_checkpointing=False), model())[name]
    head = tokens * 8 * 3584 + scored * 3584 * (2 + 4 + 2) + 4096 * 32768 * 2 + 152064 * 3584 * (4 + 2)  # > backward
    assert figure(without) == pytest.approx((28 * layer + head) / GIB, abs=0.1)
    less = memory_arithmetic(QWEN7B, Launch(8, 3), training(max_tokens_per_micro_batch=8192), model())[name]
    assert figure(less) < 0.4 * figure(found)
    # With few tokens the head is the larger: its gradient in float32 and in bfloat16, a tile, and the scored states.
    one = Pass(100, 50, 100)
    head = 100 * 8 * 3584 + 50 * 3584 * (2 + 4 + 2) + 50 * 32768 * 2 + 152064 * 3584 * (4 + 2)
    assert pass_bytes(QWEN7B, one, 2, True, True, True) == 100 * 28 * 3584 * 2 + head
    assert head < 0.1 * scored * 152064 * 10  # no logits, which 10 bytes each were estimated for


def test_keys_stand_side_by_side_in_float32_and_in_padded_rows_and_so_do_their_gradients():
    size, tokens, keys = Pass(1000, 10, 9000), 1000, 9000 * 2 * 4 * 3584  # keys and values of every query head
    layer = tokens * (2 * 12 * 3584 + 4 * (3 * 3584 + 2 * 512 + 4 * 18944))
    assert tokens * 2 * 4 * 18944 < keys
    assert pass_bytes(QWEN7B, size, 4, True, False, True) == tokens * 28 * 3584 * 4 + layer + keys + keys
    wide = ModelShape(3584, 3584, 28, 28, 152064, 4, 128)  # an MLP so narrow that attention's backward is the larger
    kept = tokens * (2 * 8 * 3584 + 2 * (3 * 3584 + 2 * 512 + 4 * 3584))
    assert pass_bytes(wide, size, 2, True, False, False) == tokens * 28 * 3584 * 2 + kept + tokens * 8 * 3584
    name = "GPU memory: activations of a micro-batch, at most"

    def activations(attention="sdpa", **more):
        return figure(
            memory_arithmetic(QWEN7B, Launch(8, 3), training(**more), model(attn_implementation=attention))[name]
        )

    assert activations() == activations("flash_attention_2") == activations("kernels-community/flash-attn2")
    padded = activations(shared_prefix=False)  # 98,304 tokens instead of 40,952
    assert padded > activations("flash_attention_2", shared_prefix=False) > 2 * activations()
    assert activations(bf16=False) > 2 * activations()


def test_what_vllm_keeps_asleep_is_counted_and_what_is_not_counted_is_said():
    graphs = memory_arithmetic(QWEN7B, Launch(8, 3), training(vllm_gpu_memory_utilization=0.2), model())
    eager = training(vllm_gpu_memory_utilization=0.2, vllm_enforce_eager=True)
    without = memory_arithmetic(QWEN7B, Launch(8, 3), eager, model())
    assert graphs["GPU memory: vLLM asleep"] == "2.0 GiB, its CUDA graphs"
    assert figure(graphs["GPU memory: peak"]) == pytest.approx(figure(without["GPU memory: peak"]) + 2, abs=0.11)
    assert graphs["GPU memory: not counted"].endswith("5% of the GPU are left for them")
    awake = memory_arithmetic(QWEN7B, Launch(8, 3), training(vllm_enable_sleep_mode=False), model())
    assert "GPU memory: vLLM asleep" not in awake


SIZES = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, vocab_size=100)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ('{"hidden_size": 3584}', "intermediate_size, num_hidden_layers, num_attention_heads, vocab_size missing"),
        ("{hidden_size: 3584}", "model_shape={hidden_size: 3584}: intermediate_size"),
        ("foo", "model_shape=foo: a mapping of sizes"),
        ("{a: [", "a mapping of sizes"),
        (SIZES | {"num_attention_heads": 0}, "num_attention_heads=0: give a whole number, at least 1"),
        (SIZES | {"vocab_size": "many"}, "vocab_size=many: give a whole number"),
    ],
)
def test_a_shape_that_cannot_be_is_named(said, message):
    with pytest.raises(ValueError, match="model_shape=") as error:
        read_shape(None, said)
    assert message in str(error.value)


def test_a_local_model_without_llamas_names_needs_model_shape(tmp_path):
    (tmp_path / "config.json").write_text('{"n_embd": 768, "vocab_size": 50257}')
    with pytest.raises(ValueError, match="model_name_or_path=") as error:
        read_shape(str(tmp_path), None)
    assert f"model_name_or_path={tmp_path}: hidden_size" in str(error.value) and "set model_shape" in str(error.value)
    assert read_shape(str(tmp_path), SIZES).hidden_size == 128
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"its config\.json is no JSON"):
        read_shape(str(tmp_path), None)


@pytest.mark.parametrize("path", ["README.md", "requirements/cpu.txt", "recipes/tiny/grpo.yaml"])
def test_another_file_is_no_launch(path):
    with pytest.raises(ValueError, match=f"launch_config={path}: not an accelerate configuration, give one of"):
        read_launch(path, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("num_processes: 0", "num_processes=0: give a whole number, at least 1"),
        ("deepspeed_config: {zero_stage: 4}", "zero_stage=4: give a whole number, from 0 to 3"),
        ("deepspeed_config: {deepspeed_config_file: x.json}", "state zero_stage in its place"),
        ("deepspeed_config: 3", "not an accelerate configuration"),
    ],
)
def test_a_launch_that_cannot_be_is_named(tmp_path, content, message):
    (tmp_path / "launch.yaml").write_text(f"distributed_type: DEEPSPEED\n{content}\n")
    with pytest.raises(ValueError, match="launch_config=") as error:
        read_launch(str(tmp_path / "launch.yaml"), 1)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ({"vllm_tensor_parallel_size": 0}, {}, "vllm_tensor_parallel_size=0: give a whole number, at least 1"),
        ({"gpu_memory_gib": 0}, {}, "gpu_memory_gib=0: "),
        ({}, {"lora_r": 0}, "lora_r=0: "),
        ({}, {"lora_target_modules": "q_proj"}, "lora_target_modules='q_proj' is no module"),
        ({}, {"lora_target_modules": "*_proj"}, "lora_target_modules='[*]_proj' is no module"),
    ],
)
def test_a_number_that_nothing_can_be_computed_with_is_named(args, options, message):
    with pytest.raises(ValueError, match=message):
        memory_arithmetic(QWEN7B, Launch(8, 3), training(**args), model(use_peft=True, **options))


def test_a_dry_run_says_what_is_wrong_without_a_traceback(monkeypatch, capsys):
    path = "recipes/Qwen2.5-7B-Instruct/grpo.yaml"
    words = ["--config", path, "--dry_run", "true", "--launch_config", "README.md"]
    monkeypatch.setattr("sys.argv", ["grpo_gsr.py", *words])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path("recipes/grpo_gsr.py", run_name="__main__")
    printed = capsys.readouterr()
    assert printed.err.strip().splitlines()[-1].startswith("grpo_gsr.py: error: launch_config=README.md: ")
    assert "GPU memory" not in printed.out


def test_the_7b_recipe_computes_a_prompt_once():
    recipe = yaml.safe_load(Path("recipes/Qwen2.5-7B-Instruct/grpo.yaml").read_text())
    assert recipe["per_device_train_batch_size"] % recipe["num_generations"] == 0
    assert recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] * 8 == 64 * 16


def test_on_a_cpu_nothing_is_said_of_a_gpu():
    found = memory_arithmetic(QWEN7B, Launch(2, 2, True, on_cpu=True), training(), model())
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
    assert found["new tokens per generation, at most"] == 2 * (800 + 1600)
    assert found["new tokens per optimizer step, at most"] == 800 + 1600
    assert found["solve prompt tokens per optimizer step, at most"] == 1400
    assert found["refinement prompt tokens per optimizer step, at most"] == 1000
    assert found["solve prompt tokens per generation, at most"] == 2 * 1400
    assert problems_read([{}] * 2, found) == {"problems read": "2"}
    assert problems_read([{}], found)["problems read"].startswith("1, fewer than the 2 of one generation")
    only = batch_arithmetic(GSRConfig(**config | {"candidate_weight": 0, "oversample": 2, "use_cpu": True}))
    assert only["problems per optimizer step"] == 2 and "CPU memory: weights" in only
    assert only["new tokens per optimizer step, at most"] == 2 * 1600  # candidates are sampled, not trained on
    assert only["solve prompt tokens per optimizer step, at most"] == 0
    assert only["new tokens per generation, at most"] == 2 * 4 * (800 + 1600)  # up to twice the batch's 4 problems
    unlimited = batch_arithmetic(GSRConfig(**config | {"vllm_max_model_length": None}))
    stated = batch_arithmetic(args, model(model_name_or_path="somebody/unsized"))["model parameters"]
    assert stated.endswith("by model_shape: there is no config.json of somebody/unsized here")
    own = batch_arithmetic(args, model(model_name_or_path="recipes/tiny/models/base"))["model parameters"]
    assert own == "0.00 billion"
    assert unlimited["solve prompt tokens per generation, at most"].startswith("no limit but the model's context")


def test_the_processes_that_were_started_count_and_not_the_files(tmp_path, monkeypatch):
    launch = "accelerate_configs/zero3.yaml"
    shape = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, vocab_size=100)
    args = GSRConfig(output_dir=str(tmp_path), num_generations=8, per_device_train_batch_size=16, bf16=False,
                     report_to="none", launch_config=launch, model_shape=shape)  # fmt: skip
    assert batch_arithmetic(args)["processes"] == 8
    monkeypatch.setenv("WORLD_SIZE", "2")  # as accelerate launch --num_processes 2 sets it
    found = batch_arithmetic(args)
    assert found["processes"] == 2
    assert found["problems per optimizer step"] == 2 * args.gradient_accumulation_steps


def test_sizes_and_launch_are_read_from_files(tmp_path):
    shape = read_shape("recipes/tiny/models/base", None)
    assert shape.hidden_size == 128 and shape.tie_word_embeddings
    assert read_shape("someone/model", None) is None
    assert read_launch("accelerate_configs/zero3.yaml", 1) == Launch(8, 3)
    assert read_launch("accelerate_configs/ddp_cpu.yaml", 1) == Launch(2, 0, on_cpu=True)
    assert read_launch(None, 4) == Launch(4)


ZERO2_OFFLOAD = {"USE_DEEPSPEED": "true", "DEEPSPEED_ZERO_STAGE": "2", "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
                 "DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none"}  # fmt: skip


@pytest.mark.parametrize(
    "environment, launch",
    [
        (ZERO2_OFFLOAD, Launch(2, 2, offload_optimizer=True)),
        (ZERO2_OFFLOAD | {"DEEPSPEED_ZERO_STAGE": "3", "DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"},
         Launch(2, 3, offload_optimizer=True, offload_weights=True)),
        ({"USE_FSDP": "true"}, Launch(2, 3, fsdp=True)),
        ({}, Launch(2)),
    ],
)  # fmt: skip
def test_a_dry_run_counts_on_what_accelerate_launch_has_started(monkeypatch, environment, launch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name, value in ({"MIXED_PRECISION": "bf16"} | environment).items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    assert read_launch("accelerate_configs/zero3.yaml", 1) == launch
    assert read_launch(None, 1) == launch


def test_fsdp_of_the_launcher_may_keep_weights_whole_or_in_cpu_memory(monkeypatch):
    for name in ("ACCELERATE_USE_FSDP", "FSDP_OFFLOAD_PARAMS"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    assert read_launch(None, 1) == Launch(1, 2, offload_optimizer=True, offload_weights=True, fsdp=True)


@pytest.mark.distributed
def test_the_real_launchers_environment_is_read(launch, tmp_path):
    script = tmp_path / "stage.py"
    script.write_text("from gsr_rl.training.launch import read_launch\n"
                      "print(read_launch('accelerate_configs/zero3.yaml', 1))\n")  # fmt: skip
    told = launch(str(script), accelerate="zero2_offload", two_on_cpu=True)
    assert told.count(str(Launch(2, 2, offload_optimizer=True))) == 2
    told = launch(str(script), accelerate="fsdp2", two_on_cpu=True)
    assert told.count(str(Launch(2, 3, fsdp=True))) == 2


def test_the_lora_recipe_is_the_full_one_with_what_lora_needs_and_fits_one_gpu(tmp_path):
    folder = Path("recipes/Qwen2.5-7B-Instruct")
    full, lora = (yaml.safe_load((folder / name).read_text()) for name in ("grpo.yaml", "grpo_lora.yaml"))
    changed = {key for key in full.keys() | lora.keys() if full.get(key) != lora.get(key)}
    adapter = {key for key in lora if key.startswith("lora_")} | {"use_peft", "merge_adapter"}
    assert changed == adapter | {"learning_rate", "output_dir", "launch_config"}
    assert float(lora["learning_rate"]) == pytest.approx(10 * float(full["learning_rate"]))
    assert float(lora["learning_rate"]) >= LEAST_LORA_RATE > float(full["learning_rate"])
    keys = {key: lora[key] for key in ("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps",
            "max_completion_length", "max_refinement_prompt_length", "vllm_gpu_memory_utilization", "use_vllm",
            "vllm_max_model_length", "vllm_enable_sleep_mode", "gradient_checkpointing", "gpu_memory_gib",
            "model_shape")}  # fmt: skip
    args = GSRConfig(output_dir=str(tmp_path), report_to="none", bf16=True, **keys)
    options = {key: lora[key] for key in adapter - {"lora_dropout", "merge_adapter"}}
    figures = batch_arithmetic(args, model(model_name_or_path=None, **options))
    assert figures["problems per optimizer step"] == 8
    assert figures["GPU memory: peak"].endswith("fits")


DRY = {"dry_run": "true", "use_cpu": "true"}


def dry_configs(monkeypatch, file: str, **keys) -> tuple:
    """The configurations that a dry run's command line makes, in a process that nothing has launched."""
    for name in [name for name in os.environ if name.startswith(cli.LAUNCHED)]:
        monkeypatch.delenv(name)
    words = [word for name, value in keys.items() for word in (f"--{name}", value)]
    return cli.parse("grpo", ["--config", str(ROOT / "recipes" / file), *words])[1:]


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("tiny/grpo.yaml", {}),
        ("tiny/grpo.yaml", {"lora_target_modules": "all-linear", "use_peft": "true", "output_dir": "~/runs"}),
        (
            "tiny/grpo.yaml",
            {"save_strategy": "steps", "save_steps": "10.0", "scale_rewards": "none", "report_to": "null"},
        ),
        (
            "tiny/grpo.yaml",
            {"gradient_accumulation_steps": "2", "steps_per_generation": "4", "num_generations_eval": "2"},
        ),
        ("tiny/grpo.yaml", {"reward_options": "{length: {max_length: 9}}", "bf16": "true", "eval_strategy": "no"}),
        ("SmolLM2-135M-Instruct/grpo.yaml", {"model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}),
        ("SmolLM2-135M-Instruct/chain_sum/grpo.yaml", {"model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}),
        ("Qwen2.5-7B-Instruct/grpo.yaml", {}),
        ("Qwen2.5-7B-Instruct/grpo_lora.yaml", {"use_cpu": "false"}),
    ],
)
def test_a_dry_run_without_trl_has_what_its_classes_make(monkeypatch, file, keys):
    if keys.get("use_cpu") == "false" and torch.accelerator.is_available():
        pytest.skip("the classes then look for what the accelerator can do")
    keys = DRY | keys
    args, model = dry_configs(monkeypatch, file, **keys)
    monkeypatch.setattr(cli, "_is_plain", lambda _: False)
    theirs, their_model = dry_configs(monkeypatch, file, **keys)
    assert isinstance(theirs, GSRConfig) and not isinstance(args, GSRConfig)
    assert resolved_yaml({"args": args, "model": model}) == resolved_yaml({"args": theirs, "model": their_model})
    assert batch_arithmetic(args, model) == batch_arithmetic(theirs, their_model)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tf32": "true"}, "tf32 requires Ampere"),
        ({"lr_scheduler_type": "nosuch"}, "nosuch is not a valid SchedulerType"),
        ({"save_steps": "2.5"}, "save_steps must be an integer if bigger than 1"),
        ({"log_completions_hub_repo": "me/rows"}, "log_completions is False"),
        ({"report_to": "nosuch"}, "report_to=nosuch: use none, all, or some of"),
        ({"generation_kwargs": "many"}, "generation_kwargs='many': a mapping is expected"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_dry_run_asks_trl_where_its_classes_judge_a_key(monkeypatch, capsys, keys, message):
    with pytest.raises(SystemExit):
        dry_configs(monkeypatch, "tiny/grpo.yaml", **DRY | {"save_strategy": "steps"} | keys)
    assert message in capsys.readouterr().err


def test_a_dry_run_under_a_launcher_asks_trl(monkeypatch):
    values = {"use_cpu": True, "num_generations": 8}
    assert cli._is_plain(values)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not cli._is_plain(values)


def test_the_dry_run_of_the_tiny_world_imports_no_library():
    code = (
        "import runpy, sys; sys.argv = ['grpo_gsr.py', '--config', 'recipes/tiny/grpo.yaml', '--dry_run', 'true',"
        " '--model_name_or_path', 'recipes/tiny/models/base']\n"
        "runpy.run_path('recipes/grpo_gsr.py', run_name='__main__')\n"
        "assert not {'torch', 'trl', 'transformers', 'accelerate', 'vllm'} & set(sys.modules), 'heavy import'"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(cli.LAUNCHED)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "problems per optimizer step" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2.5-7B-Instruct", "runs/Qwen2.5-7B-Instruct-sft", "mine", "a/b7b", "x/v1.5"]
)
def test_a_shape_that_the_models_name_does_not_contradict_is_taken(name):
    check_named_size(name, QWEN7B)


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2.5-1.5B-Instruct", "runs/Qwen2.5-14B", "HuggingFaceTB/SmolLM2-135M-Instruct"]
)
def test_a_shape_of_another_model_is_refused(name):
    with pytest.raises(
        ValueError, match=f"model_shape has 7.62 billion parameters, .* model_name_or_path={name}: set"
    ):
        check_named_size(name, QWEN7B)


def test_sizes_are_those_of_the_model_in_the_hubs_cache_before_the_configurations(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    cache = tmp_path / "models--me--mine-70B"
    (cache / "snapshots/abc").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("abc")
    Qwen2Config(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, vocab_size=100,
                num_key_value_heads=1, tie_word_embeddings=True).save_pretrained(cache / "snapshots/abc")  # fmt: skip
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    shape = read_shape("me/mine-70B", vars(QWEN7B))
    assert (shape.hidden_size, shape.vocab_size, shape.tie_word_embeddings) == (64, 100, True)
    check_named_size("me/mine-70B", shape)  # it is the model's own
    assert read_shape("me/other", vars(QWEN7B)) == QWEN7B


def test_the_peak_is_told_for_gpus_of_other_sizes():
    figures = memory_arithmetic(QWEN7B, Launch(8, 3), training(), model())
    others = dict(text.split(" of ")[::-1] for text in figures["GPU memory: peak on other GPUs"].split("; "))
    for gib in (24.0, 48.0):
        alone = memory_arithmetic(QWEN7B, Launch(8, 3), training(gpu_memory_gib=gib), model())
        name = next(name for name in others if name.startswith(f"{gib:g} GiB"))
        assert alone["GPU memory: peak"].startswith(f"{others[name]} of {gib:g} GiB")
        assert alone["GPU memory: peak"].endswith(name.split(": ")[1])
    assert "DOES NOT FIT" in figures["GPU memory: peak on other GPUs"]
