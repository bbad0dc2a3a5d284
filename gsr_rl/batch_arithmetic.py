"""How many problems, rollouts and tokens one step of joint GRPO takes, from its configuration alone."""

from gsr_rl.configs import GSRConfig


def batch_arithmetic(args: GSRConfig) -> dict[str, int | str]:
    """Figures of one optimizer step and one generation, over all ranks. Token figures are upper bounds.

    Returns:
        Name to number, in the order in which `--dry_run true` prints them.
    """
    ranks = args.world_size
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * ranks
    problems = rows // args.block_size
    generated_problems = problems * (args.steps_per_generation // args.gradient_accumulation_steps)
    g = args.num_generations
    refining = "refinement" in args.stages
    tokens = g * (args.max_completion_length + (args.max_refinement_length if refining else 0))
    return {
        "processes": ranks,
        "trained stages": ", ".join(args.stages),
        "problems an optimizer step": problems,
        "rows an optimizer step": rows,
        "rows of a problem (block)": args.block_size,
        "micro-batches a rank and optimizer step": args.gradient_accumulation_steps,
        "problems a generation": generated_problems,
        "candidates a generation": generated_problems * g,
        "candidate sets a generation": generated_problems * args.num_candidate_sets if refining else 0,
        "refinements a generation": generated_problems * g if refining else 0,
        "updates on a generation": args.num_iterations * args.steps_per_generation // args.gradient_accumulation_steps,
        "new tokens a generation, at most": generated_problems * tokens,
        "refinement prompt tokens a generation, at most": (
            generated_problems * args.num_candidate_sets * args.max_refinement_prompt_length if refining else 0
        ),
    }
