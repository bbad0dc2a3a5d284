"""Warm start: supervised fine-tuning on solve rows and refine rows, loss on completions only.

    python recipes/sft_gsr.py --config recipes/tiny/sft.yaml --dataset_name runs/demo/distill/sft_rows.jsonl
    accelerate launch --config_file accelerate_configs/zero3.yaml recipes/sft_gsr.py --config ...

1. The rows are those of distill_gsr.py: direct solutions and refinements in one data set, shuffled.
2. `--stages candidate` or `--stages refinement` trains on one half alone; `--max_rows` makes arms of equal size.
3. TRL's SFTTrainer does the rest; gsr_config.json beside the model says how candidates must be shown to it.
"""

from gsr_rl.cli import clear_errors, log_in_lines, parse
from gsr_rl.data.sources import is_still_to_come


def arithmetic(rows: list[dict], args) -> dict[str, object]:
    """How much is trained on, where the rows are there."""
    if not rows:
        return {"rows": f"{args.dataset_name} is not there yet: distill_gsr.py writes it"}
    refine = sum(row["stage"] == "refinement" for row in rows)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps_an_epoch = -(-len(rows) // batch)
    steps = args.max_steps if args.max_steps > 0 else round(args.num_train_epochs * steps_an_epoch)
    completions = sum(len(message["content"]) for row in rows for message in row["completion"])
    return {
        "rows": len(rows),
        "solve rows": len(rows) - refine,
        "refine rows": refine,
        "characters in completions": completions,
        "processes": args.world_size,
        "rows a step": batch,
        "steps an epoch": steps_an_epoch,
        "optimizer steps": steps,
        "tokens a step at most": batch * (args.max_length or 0) or "max_length is not set",
    }


def save(trainer, tokenizer, args) -> None:
    """The model as one would load it: weights gathered, tokenizer, end of sequence, refinement settings, card."""
    from gsr_rl.hub.__main__ import add_end_of_sequence

    add_end_of_sequence(trainer.model, tokenizer)
    trainer.save_model(args.output_dir)
    trainer.merge_or_not()
    trainer.create_model_card()


def main() -> None:
    args, model_args = parse("sft")
    configs = {"training": args, "model": model_args}

    # Rows first: they are cheap, and what is wrong with them should show before any weight is loaded.
    from gsr_rl.training.sft_trainer import load_sft_rows

    with clear_errors("sft"):
        rows = [] if args.dry_run and is_still_to_come(args.dataset_name) else load_sft_rows(args)
    if args.dry_run:
        from gsr_rl.run_folder import print_dry_run

        return print_dry_run(configs, arithmetic(rows, args))

    from gsr_rl.run_folder import end_with_launcher, take_folder
    from gsr_rl.training.checkpoints import STOPPED, resume_point

    end_with_launcher()
    with clear_errors("sft"):
        take_folder(args.output_dir)
        checkpoint = resume_point(args)

    from datasets import Dataset
    from transformers import AutoTokenizer, set_seed
    from trl import get_peft_config

    from gsr_rl.hub.model_card import write_provenance
    from gsr_rl.refinement.settings import with_chat_template
    from gsr_rl.run_folder import json_lines_callback, write_run_info
    from gsr_rl.training.launch import launched_as
    from gsr_rl.training.sft_trainer import GSRSFTTrainer

    set_seed(args.seed)
    with clear_errors("sft"):
        tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, revision=model_args.model_revision)
        if not args.chat_template_path:  # TRL's trainer reads it, another model's too
            with_chat_template(tokenizer, args.chat_template, model_args.model_name_or_path)
    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(args.model_init_kwargs or {}),
    }
    trainer = GSRSFTTrainer(
        model_args.model_name_or_path,
        args=args,
        train_dataset=Dataset.from_list([{key: row[key] for key in ("prompt", "completion")} for row in rows]),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        callbacks=[json_lines_callback(args.output_dir)],
    )
    if args.log_console == "line":
        log_in_lines(trainer)
    if trainer.accelerator.is_main_process:
        launch = launched_as(trainer.accelerator)
        print("Training with", ", ".join(f"{key}: {value}" for key, value in launch.items()), flush=True)
        print(f"Resuming from {checkpoint}" if checkpoint else "Starting at step 0", flush=True)
        write_run_info(args.output_dir, configs, launch)
        write_provenance(args.output_dir, model_args.model_name_or_path, args.dataset_name)

    # The same command after an interruption goes on where it was, with resume_from_checkpoint true.
    trainer.add_stop_signals()
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.stopped:
        raise SystemExit(STOPPED)
    save(trainer, tokenizer, args)
    if args.push_to_hub:
        trainer.push_or_exit()


if __name__ == "__main__":
    main()
