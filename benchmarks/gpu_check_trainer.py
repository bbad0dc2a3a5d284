"""Part A of gpu_check.py, its second half: the trainer on random weights. TRL is imported inside the checks."""

import json
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch
from gpu_check import Check, run_python, tell
from gpu_check_attention import DEVICE, HALF, ON_GPU, G

K = 4  # candidates that a refinement's prompt holds


def trainer_of(name: str, longest: int, checkpointing: bool = True, stock: bool = False):
    """GSRTrainer, or stock TRL's, on random weights of this shape, the same for both."""
    from step_time import load_model, make_trainer
    from trl import GRPOTrainer

    from gsr_rl.training.trainer import GSRTrainer

    model = load_model(name, HALF if ON_GPU else torch.float32)
    trainer = make_trainer(GRPOTrainer if stock else GSRTrainer, model, G, longest)
    trainer.model.config.use_cache = False
    if checkpointing:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    return trainer


def peak_bytes(step) -> float:
    """Memory that a step takes at most beyond what is held before it."""
    if ON_GPU:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from process_memory import give_freed_memory_back, resident

    give_freed_memory_back()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def step(name: str, problem: int, longest: int, small: bool) -> None:
    """Forward, loss and backward with checkpointing, on ragged lengths drawn anew each step, the sides in turn.

    Args:
        name: Of step_time.py's `SHAPES`.
        problem: Tokens of a problem; a refinement's prompt holds K candidates of `longest` / 2 beside it.
        longest: Tokens of a completion at most.
    """
    from step_time import fastest_size, one_pass_a_part, our_step, ragged_rows, timed, trl_step

    from gsr_rl.training.packing.rows import pack_rows
    from gsr_rl.training.packing.throughput import StepAccount, unique_tokens

    ours, stock = trainer_of(name, longest), trainer_of(name, longest, stock=True)
    vocabulary, account = ours.model.config.vocab_size, StepAccount()
    account.start(ours.model, DEVICE, ours.model.dtype)

    def draw(seed: int) -> list[dict]:
        prompts = (problem, problem + K * longest // 2)
        return [
            ragged_rows(prompt, longest, G, vocabulary, stage, 2 * seed + stage)
            for stage, prompt in enumerate(prompts)
        ]

    def both(parts) -> tuple:
        return partial(trl_step, stock, parts, size), partial(our_step, ours, one_pass_a_part(parts))

    size, _ = fastest_size(stock, draw(0), (2, G), 1 if small else 2)
    seconds = []
    for seed in range(1, 3 if small else 8):
        parts = draw(seed)
        seconds.append([timed(side) for side in both(parts)])
        if seed > 1:  # the first warms up
            unique = sum(unique_tokens(part) for part in parts)
            for part in parts:
                ids, mask = (
                    torch.cat([part[f"{of}_{key}"] for of in ("prompt", "completion")], 1) for key in ("ids", "mask")
                )
                account.add_packed(pack_rows(ids, mask, part["completion_ids"].shape[1]), with_gradient=True)
    theirs, mine = map(list, zip(*seconds[1:], strict=True))
    ratio = statistics.median(stock_s / our_s for stock_s, our_s in zip(theirs, mine, strict=True))
    tell(f"stock TRL, s ({size} rows a micro-batch, a stage apart)", statistics.median(theirs))
    tell("GSRTrainer, s", statistics.median(mine))
    tell("slowest of new lengths over the median", max(mine) / statistics.median(mine))
    tell("stock TRL's time over ours", ratio, (">=", 2.3), judged=ON_GPU)
    tell("tokens/s", account.trained_tokens / sum(mine))
    tell("tokens a step", int(unique))
    tell("share of the matrix product's rate (without recomputation)", account.operations / sum(mine) / account.rate)
    peaks = []
    for trainer, side in zip((stock, ours), both(parts), strict=True):
        trainer.model.zero_grad()
        peaks.append(peak_bytes(side) / 2**30)
    tell("peak memory of stock TRL beyond the model, GiB", peaks[0])
    tell("our peak memory over it", peaks[1] / max(peaks[0], 1e-9), ("<=", 0.6), judged=ON_GPU)


def step_small_model(small: bool) -> None:
    """Of 0.5 billion parameters."""
    step(*(("small", 16, 24) if small else ("qwen2-0.5b", 256, 1024)), small)


def step_large_model(small: bool) -> None:
    """Of 1.5 billion parameters; in small, another load."""
    step(*(("small", 8, 32) if small else ("qwen2-1.5b", 256, 1024)), small)


def memory(small: bool) -> None:
    """Activations of a pass at its limits, over what the dry run's account says they take at most."""
    from step_time import make_rows, one_pass_a_part, our_step

    from gsr_rl.training import dry_run
    from gsr_rl.training.config import GSRConfig
    from gsr_rl.training.launch import Launch, read_shape

    name = "small" if small else "qwen2-0.5b"
    for prompt, longest, checkpointing in (
        [(32, 16, True), (64, 32, True), (32, 16, False)]
        if small
        else [(512, 512, True), (8192, 2048, True), (512, 256, False)]
    ):
        with tempfile.TemporaryDirectory() as folder:
            args = GSRConfig(
                output_dir=folder, num_generations=G, per_device_train_batch_size=2 * G, max_completion_length=longest,
                max_refinement_length=longest, max_refinement_prompt_length=prompt, bf16=ON_GPU, use_cpu=not ON_GPU,
                gradient_checkpointing=checkpointing, report_to="none",
            )  # fmt: skip
            ours = trainer_of(name, longest, checkpointing)  # after other arguments, which reset accelerate's state
            ours.model.config.save_pretrained(folder)
            shape = read_shape(folder, None)
        largest, estimated = dry_run._activations(shape, Launch(on_cpu=not ON_GPU), args, None)
        batch = one_pass_a_part([make_rows(prompt, longest, G, ours.model.config.vocab_size)])
        our_step(ours, batch)  # leaves gradients, which the account counts apart
        measured = peak_bytes(partial(our_step, ours, batch))
        how = f"{largest.tokens:,} tokens, {'with' if checkpointing else 'without'} checkpointing"
        tell(f"{how}: activations, GiB", measured / 2**30)
        tell(f"{how}: over the dry run's", measured / estimated, ("<=", 1.0), judged=ON_GPU)


def break_even(small: bool) -> None:
    """From how many prompt tokens on it pays to share a prompt."""
    from cost_of_length import G, measure_break_even

    figures = measure_break_even("small" if small else "qwen2-0.5b", 1 if small else 3)
    tell(f"a shared prompt pays from, tokens (of {G} completions)", figures["break_even_saving"] / (G - 1))
    tell("as operations of a layer (SHARING_COST)", figures["sharing_cost"])


LOGGED = {"loss": 1e-3, "grad_norm": 0.1, "candidate/entropy": 0.05, "refinement/entropy": 0.05}


def launch_fixed(folder: Path, name: str, launcher: list[str], keys: dict, environment: dict) -> list[dict]:
    """Three steps of tests/programs/train_fixed.py, whose rollouts are the same everywhere: their logs."""
    out, model = folder / f"{name}.pt", "recipes/tiny/models/base"
    keys = {"max_steps": 3, "learning_rate": 0.1} | keys
    run_python(*launcher, "tests/programs/train_fixed.py", out, model, json.dumps(keys), **environment)
    return torch.load(out, weights_only=False)["logs"]


def zero(small: bool) -> None:
    """Three steps of the tiny world in bf16 under ZeRO-2 and ZeRO-3 with checkpointing, against a CPU in float32."""
    processes = 2 if not ON_GPU or torch.cuda.device_count() > 1 else 1
    accelerate = ["-m", "accelerate.commands.launch", "--main_process_port", "0", "--num_processes", str(processes)]
    keys = {"bf16": True, "gradient_checkpointing": True, "use_cpu": not ON_GPU}
    keys |= {"gradient_accumulation_steps": 2 // processes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = launch_fixed(folder, "reference", [], {}, {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "4"})
        for sharding in ("zero2", "zero3"):
            config = f"accelerate_configs/{sharding}{'' if ON_GPU else '_cpu'}.yaml"
            logs = launch_fixed(
                folder, sharding, [*accelerate, "--config_file", config], keys, {"OMP_NUM_THREADS": "1"}
            )
            for what, limit in LOGGED.items():
                pairs = [(mine[what], theirs[what]) for mine, theirs in zip(logs, reference, strict=True)]
                worst = max(abs(x - y) / (1.0 if what == "loss" else abs(y)) for x, y in pairs)
                tell(f"{sharding}: {what} of three steps, from the CPU's", worst, ("<=", limit), must=True)


OF_TRL = ("transformers", "trl", "datasets", "accelerate", "peft")
CHECKS = [
    Check("step 0.5B", step_small_model, 120, OF_TRL),
    Check("step 1.5B", step_large_model, 150, OF_TRL),
    Check("ZeRO", zero, 180, (*OF_TRL, "deepspeed")),
    Check("memory", memory, 90, OF_TRL),
    Check("break-even", break_even, 60, OF_TRL),
]
