"""How many problems, rollouts, tokens and bytes one step of joint GRPO takes, from its configuration alone."""

import os
from dataclasses import replace

from trl import ModelConfig

from gsr_rl.configs import GSRConfig
from gsr_rl.memory import memory_arithmetic
from gsr_rl.memory_inputs import read_launch, read_shape
from gsr_rl.problem_stream import sampling_limit


def batch_arithmetic(args: GSRConfig, model: ModelConfig | None = None) -> dict[str, int | str]:
    """Figures of one optimizer step and one generation, over all ranks. Token figures are upper bounds.

    Args:
        model: The model, whose sizes are read from a local folder or else from `model_shape`, and LoRA.

    Returns:
        Name to number or text, in the order in which `--dry_run true` prints them.

    Raises:
        ValueError: Sizes, a launch or numbers that nothing can be reckoned with.
    """
    launch = read_launch(args.launch_config, args.world_size)
    started = int(os.environ.get("WORLD_SIZE", launch.processes))  # by accelerate launch, whatever the file says
    launch = replace(launch, processes=started, on_cpu=launch.on_cpu or args.is_for_cpu)
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * launch.processes
    problems = rows // args.block_size
    generated_problems = problems * args.num_windows
    a_rank = generated_problems // launch.processes
    g = args.num_generations
    sampled_problems = launch.processes * sampling_limit(a_rank, args.oversample)
    refining = "refinement" in args.stages
    found = {
        "processes": launch.processes,
        "trained stages": ", ".join(args.stages),
        "problems an optimizer step": problems,
        "rows an optimizer step": rows,
        "rows of a problem (block)": args.block_size,
        "micro-batches a rank and optimizer step": args.gradient_accumulation_steps,
        "problems a generation": generated_problems,
        "problems sampled a generation, at most": sampled_problems,
        "candidates a generation": generated_problems * g,
        "candidate sets a generation": generated_problems * args.num_candidate_sets if refining else 0,
        "refinements a generation": generated_problems * g if refining else 0,
        "updates on a generation": args.num_iterations * args.num_windows,
        **_tokens(args, "a generation", sampled_problems, ["candidate", *(["refinement"] if refining else [])]),
        **_tokens(args, "an optimizer step", problems, args.stages),
    }
    shape = read_shape(model and model.model_name_or_path, args.model_shape)
    if shape is None:
        return found | {"GPU memory": "not reckoned: the model is not a local folder, set model_shape"}
    return found | memory_arithmetic(shape, launch, args, model)


def _tokens(args: GSRConfig, when: str, problems: int, stages: list[str]) -> dict[str, int | str]:
    """Tokens of these stages: new ones, and prompts, each counted once for all its completions."""
    limits = {"candidate": args.max_completion_length, "refinement": args.max_refinement_length}
    solve: int | str = 0
    if "candidate" in stages:
        window = args.vllm_max_model_length
        room = (window or 0) - args.max_completion_length
        solve = problems * room if window else "no limit but the model's window less max_completion_length, a problem"
    refinement = args.num_candidate_sets * args.max_refinement_prompt_length if "refinement" in stages else 0
    return {
        f"new tokens {when}, at most": problems * args.num_generations * sum(limits[stage] for stage in stages),
        f"solve prompt tokens {when}, at most": solve,
        f"refinement prompt tokens {when}, at most": problems * refinement,
    }
