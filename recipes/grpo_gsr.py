r"""Joint GRPO: one policy samples candidates, refines over them, and both stages' rewards update one set of weights.

    accelerate launch --config_file accelerate_configs/zero2_cpu.yaml \
        recipes/grpo_gsr.py --config recipes/tiny/grpo.yaml

How it differs from textbook GRPO:
1. A problem is a block of 2G rows: G candidates, then G refinements of a prompt that shows K of those candidates.
2. A stage is never pooled with the other, and a refinement is compared only with others over the same candidates.
3. Candidates can be rewarded for pass@k, which keeps the diversity that refinement lives on.
4. Each optimizer step sees whole blocks of both stages, each stage's loss with its own counts.
"""

from gsr_rl.cli import clear_errors, log_in_lines, parse


def load_rows(problem_args, args) -> tuple[list[dict], list[dict] | None]:
    """Problems to train on and held-out ones (or None): prompt, problem, problem_id, answer."""
    import dataclasses

    from gsr_rl.data.config import held_out_keys
    from gsr_rl.data.problems import load_problems, training_rows, without_held_out

    problems = load_problems(problem_args)
    if not args.eval_dataset_name:
        return training_rows(problems, args.prompt_template), None
    held_out = load_problems(dataclasses.replace(problem_args, **held_out_keys(problem_args, args)))
    training = without_held_out(problems, held_out)
    return training_rows(training, args.prompt_template), training_rows(held_out, args.prompt_template)


def main() -> None:
    problem_args, args, model_args = parse("grpo")
    configs = {"problems": problem_args, "training": args, "model": model_args}

    from rewards import load_reward_funcs

    with clear_errors("grpo"):
        reward_funcs = load_reward_funcs(args.reward_funcs, args.reward_options)
    if args.dry_run:
        from gsr_rl.data.sources import from_hub
        from gsr_rl.run_folder import print_dry_run
        from gsr_rl.training.dry_run import batch_arithmetic, problems_read

        with clear_errors("grpo"):
            arithmetic = batch_arithmetic(args, model_args)
            if not from_hub(problem_args.dataset_name):
                arithmetic |= problems_read(load_rows(problem_args, args)[0], arithmetic)
        return print_dry_run(configs, arithmetic)

    # Problems first: they are cheap, and what is wrong with them should show before any weight is loaded.
    from gsr_rl.run_folder import end_with_launcher, take_folder
    from gsr_rl.training.checkpoints import STOPPED, resume_point

    end_with_launcher()
    with clear_errors("grpo"):
        take_folder(args.output_dir)
        training, held_out = load_rows(problem_args, args)
        checkpoint = resume_point(args)

    from datasets import Dataset
    from transformers import AutoTokenizer, set_seed
    from trl import get_peft_config

    from gsr_rl.hub.model_card import write_provenance
    from gsr_rl.refinement.settings import with_chat_template
    from gsr_rl.run_folder import write_run_info
    from gsr_rl.training.launch import launched_as

    set_seed(args.seed)
    with clear_errors("grpo"):
        tokenizer = AutoTokenizer.from_pretrained(
            model_args.model_name_or_path, revision=model_args.model_revision, padding_side="left"
        )
        with_chat_template(tokenizer, args.chat_template, model_args.model_name_or_path)
    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(args.model_init_kwargs or {}),
    }

    from gsr_rl.training.trainer import GSRTrainer

    trainer = GSRTrainer(
        model_args.model_name_or_path,
        reward_funcs=reward_funcs,
        args=args,
        train_dataset=Dataset.from_list(training),
        eval_dataset=Dataset.from_list(held_out) if held_out is not None else None,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    if args.log_console == "line":
        log_in_lines(trainer)
    if trainer.accelerator.is_main_process:
        launch = launched_as(trainer.accelerator)
        print("Training with", ", ".join(f"{key}: {value}" for key, value in launch.items()), flush=True)
        print(f"Resuming from {checkpoint}" if checkpoint else "Starting at step 0", flush=True)
        write_run_info(args.output_dir, configs, launch)
        write_provenance(args.output_dir, model_args.model_name_or_path, problem_args.dataset_name)

    # The same command after an interruption goes on where it was, with resume_from_checkpoint true.
    trainer.add_stop_signals()
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.stopped:
        raise SystemExit(STOPPED)

    # The model as one would load it: weights gathered, tokenizer, chat template, refinement settings, card.
    trainer.save_model(args.output_dir)
    trainer.merge_or_not()
    trainer.create_model_card()
    if args.push_to_hub:
        trainer.push_or_exit()


if __name__ == "__main__":
    main()
