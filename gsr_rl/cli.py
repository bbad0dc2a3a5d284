"""The recipes' programs: their configurations, and their checks before the heavy imports.

Importing TRL takes seconds, so `--help`, unknown keys and contradictory values are handled first
(gsr_rl/command_line.py), and a dry run of `grpo` avoids the import where it can (`_plain_configs`).
`log_in_lines` is what a training prints.
"""

import importlib
import logging
import os
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import make_dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from gsr_rl.command_line import (
    LIBRARIES,
    Key,
    asks_for_help,
    attributes_read,
    fields_of,
    fields_of_all,
    help_of,
    of_type,
    our_classes,
    read,
)
from gsr_rl.data.config import ProblemConfig, check_problems_and_held_out, check_training_problems
from gsr_rl.data.sources import from_hub
from gsr_rl.distillation.config import check_distill
from gsr_rl.evaluation.config import check_eval, check_eval_problems
from gsr_rl.keys import SHIPPED, raise_if_any, shipped
from gsr_rl.training.checks import check_grpo, check_sft

LEGEND = (
    "step, time left; right, in %; reward and length of candidates and refinements; seconds (rollout + update); "
    "trained tokens per second"
)
LONGEST_LINE = 160  # characters of a log record
OPTIMIZER = "adamw_torch_fused"  # transformers' default with torch 2.8 or newer
# By program: its configuration classes, and its checks on plain values.
PROGRAMS = {
    "distill": (("DistillProblemConfig", "DistillConfig"), (check_training_problems, check_distill)),
    "sft": (("GSRSFTConfig", "ModelConfig"), (check_sft,)),
    "grpo": (("ProblemConfig", "GSRConfig", "ModelConfig"), (check_problems_and_held_out, check_grpo)),
    "eval": (("EvalProblemConfig", "EvalConfig"), (check_eval_problems, check_eval)),
}

# Keys of a YAML file that describe its data set and do not apply to another.
OF_ITS_SET = ("dataset_config", "dataset_split", "dataset_kwargs", "row_filters", "problem_column", "answer_column")
OF_ITS_SET += ("max_problems", "expected")


@cache
def keys_of(program: str) -> dict[str, Key]:
    """All configuration keys of a program by name, ours and the inherited ones."""
    return fields_of_all(PROGRAMS[program][0])


def print_help(program: str, everything: bool) -> None:
    """Our own keys in full; with `everything`, the inherited ones of TRL and transformers too."""
    print(f"usage: python recipes/{program}_gsr.py, or gsr-{program}, [--config FILE.yaml] [--KEY VALUE ...]\n")
    print("Keys come from the YAML file; a --KEY VALUE on the command line overrides it, --KEY null unsets it.")
    ours = [key for key in keys_of(program).values() if key.owner in our_classes()]
    inherited = [key for key in keys_of(program).values() if key.owner not in our_classes()]
    print(help_of(ours + (inherited if everything else [])))
    if inherited and not everything:
        owners = dict.fromkeys(key.owner for key in inherited if not key.owner.startswith("_"))
        print(f"\n{len(inherited)} more keys come from {', '.join(owners)}: `--help all` lists them.")


def read_values(program: str, argv: list[str]) -> dict[str, object]:
    """The values that the user set, by key: `command_line.read`. Raises `ValueError` as that or for a stray word."""
    values, stray = read(argv, keys_of(program), "--help all")
    if stray:
        raise ValueError(f"stray argument {stray[0]!r}: write --key value")
    if "--config" in argv:
        at = argv.index("--config")
        stated, given = (
            read(words, keys_of(program), "")[0] for words in (argv[at : at + 2], argv[:at] + argv[at + 2 :])
        )
        if others := keys_of_another_set(stated, given):
            name = f"dataset_name={given['dataset_name']}"
            _print_once(
                f"{name}: what {argv[at + 1]} sets for {stated['dataset_name']} is left out: {', '.join(others)}"
            )
            values = {name: value for name, value in values.items() if name not in others}
    return values


def keys_of_another_set(stated: dict[str, object], given: dict[str, object]) -> list[str]:
    """Keys of a file (`stated`) that describe its Hub data set, if the command line (`given`) names another set."""
    name = stated.get("dataset_name")
    if not name or given.get("dataset_name", name) == name or not from_hub(str(name)):
        return []
    return [key for key in stated if key in OF_ITS_SET and key not in given]


def _print_once(line: str) -> None:
    """Print a line on stderr, in the first of several processes only."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


def print_config_paths(argv: list[str] | None = None) -> None:
    """`gsr-config`: the names of the package's configurations; `gsr-config NAME`: the path of this one."""
    names = sys.argv[1:] if argv is None else argv
    if asks_for_help(names):
        return print(
            "usage: gsr-config [NAME ...]\n\nLists the package's configurations, or prints the path of each NAME."
        )
    if not names:
        folders = [Path(shipped(folder)) for folder in SHIPPED]
        return print("\n".join(str(x.relative_to(at)) for at in folders for x in sorted(at.rglob("*.yaml"))))
    for name in names:
        if not Path(shipped(name)).is_file():
            raise SystemExit(f"gsr-config: error: {name}: there is no such configuration, `gsr-config` lists them")
        print(shipped(name))


def check_values(program: str, values: dict[str, object]) -> dict[str, object]:
    """The values converted to their keys' types, after the program's checks on them and the defaults.

    Raises `ValueError` with all messages of the checks.
    """
    keys = keys_of(program)
    typed = of_type(values, keys)  # by itself: the checks calculate with the values
    merged = SimpleNamespace(**{name: key.default for name, key in keys.items()} | typed)
    raise_if_any([message for check in PROGRAMS[program][1] for message in check(merged)])
    return typed


@contextmanager
def clear_errors(program: str, *more: type[Exception]):
    """End the program with exit code 2 and one message, without a traceback, on errors that the user can fix.

    These are `ValueError`, `OSError` (a missing model, data set or file) and `more`, for steps that use the network.
    """
    try:
        yield
    except (ValueError, OSError, *more) as error:
        print(f"{program}_gsr.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def parse(program: str, argv: list[str] | None = None) -> tuple:
    """The configurations of a recipe (see `PROGRAMS`) from its command line.

    Exits with 0 after `--help`, and with 2 and one message on bad input, before TRL or an engine is imported. A
    dry run of `grpo` gets objects with the classes' fields, and instances only where TRL has to resolve them.
    """
    argv = sys.argv[1:] if argv is None else argv
    if asks_for_help(argv):
        print_help(program, everything="all" in argv)
        raise SystemExit(0)
    with clear_errors(program):
        values = check_values(program, read_values(program, argv))
        quiet_libraries()
        from gsr_rl.training.launch import shard_on_cpu

        shard_on_cpu(bool(values.get("use_cpu")))
        names = PROGRAMS[program][0]
        given = [{key: value for key, value in values.items() if key in fields_of(name)} for name in names]
        if program == "grpo" and values.get("dry_run") and _is_plain(values):
            return ProblemConfig(**given[0]), *_plain_configs(*given[1:])
        return tuple(_import_class(name)(**keys) for name, keys in zip(names, given, strict=True))


def _import_class(class_name: str) -> type:
    """The class itself. Imports its module, and with it TRL and torch for the trainers' configurations."""
    if path := our_classes().get(class_name):
        module = ".".join(path.relative_to(Path(__file__).parent.parent).with_suffix("").parts)
    else:
        module = LIBRARIES[class_name][0]
    return getattr(importlib.import_module(module), class_name)


# Variables that `accelerate launch`, MPI, SageMaker and Kubeflow set, and the one that switches progress bars off.
LAUNCHED = ("ACCELERATE_", "WORLD_SIZE", "PMI_SIZE", "OMPI_", "MV2_", "SM_", "KUBEFLOW_", "TRANSFORMERS_VERBOSITY")
# Keys that the classes' `__post_init__` reads and `_plain_configs` resolves as they do: with any value that passes our
# checks (RESOLVED), with a whole number (WHOLE), or with one of the listed values (PLAIN).
RESOLVED = {
    *("output_dir", "use_cpu", "bf16", "gradient_checkpointing", "warmup_steps", "scale_rewards", "num_generations"),
    *("num_generations_eval", "per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation"),
    "lora_target_modules",
}
WHOLE = {"logging_steps", "save_steps"}
PLAIN = {
    "lr_scheduler_type": ("linear", "cosine", "constant", "constant_with_warmup"),
    "save_strategy": ("no", False, "steps", "epoch"),
    "eval_strategy": ("no", False),
    "report_to": (None, "none", [], ["none"]),
}


def _is_plain(values: dict[str, object]) -> bool:
    """Whether `_plain_configs` resolves these values, which have passed `check_grpo`, as the classes would.

    True for a single process without an accelerator, if no other key is set that a class reads in `__post_init__`;
    which keys these are is taken from the installed versions' source.
    """
    keys, looked_at = keys_of("grpo"), attributes_read("GRPOConfig") | attributes_read("ModelConfig")
    for name, value in values.items():
        if name in WHOLE:
            is_settled = value >= 1 and value == int(value)
        else:
            is_settled = name in RESOLVED or name not in looked_at or value in PLAIN.get(name, ())
        is_text_of_mapping = "dict" in keys[name].type and isinstance(value, str)
        if value != keys[name].default and (is_text_of_mapping or not is_settled):
            return False
    if any(variable.startswith(LAUNCHED) for variable in os.environ):
        return False
    if values.get("use_cpu"):
        return True
    import torch

    return not torch.accelerator.is_available()


def _plain_configs(given: dict[str, object], given_model: dict[str, object]) -> tuple:
    """What a dry run needs from `GSRConfig` and `ModelConfig`: their resolved fields and the shape of the batch."""
    from gsr_rl.training.dry_run import BATCH

    args = _with_defaults("GSRConfig", given, BATCH | {"world_size": 1, "is_for_cpu": given.get("use_cpu", False)})
    args.output_dir = os.path.expanduser(args.output_dir or "trainer_output")
    args.optim, args.disable_tqdm, args.report_to, args.debug, args.pad_to_multiple_of = OPTIMIZER, False, [], [], None
    args.use_cpu, args.dataloader_pin_memory = True, False
    args.bf16 = not args.fp16 if args.bf16 is None else args.bf16
    args.save_strategy, args.eval_strategy = args.save_strategy or "no", "no"
    args.logging_steps, args.save_steps = int(args.logging_steps), int(args.save_steps)
    args.accelerator_config = {name: key.default for name, key in fields_of("AcceleratorConfig").items()}
    args.scale_rewards = {"True": "group", "False": "none"}.get(str(args.scale_rewards), args.scale_rewards)
    args.steps_per_generation = args.steps_per_generation or args.gradient_accumulation_steps
    args.generation_batch_size = args.per_device_train_batch_size * args.steps_per_generation
    args.per_device_eval_batch_size = args.num_generations_eval or args.num_generations
    args.max_refinement_length = args.max_refinement_length or args.max_completion_length
    model = _with_defaults("ModelConfig", given_model, {})
    if model.lora_target_modules and len(model.lora_target_modules) == 1:
        (model.lora_target_modules,) = model.lora_target_modules
    return args, model


def _with_defaults(class_name: str, given: dict[str, object], more: dict[str, object]):
    """An object with the fields and defaults of a class that is not imported, `given` values and `more` attributes."""
    values = {name: key.default for name, key in fields_of(class_name).items()} | given
    return make_dataclass(class_name, values, namespace=more)(**values)


def quiet_libraries() -> None:
    """Silence library messages that a user cannot act on, in this process and its children."""
    quiet = {
        "TRL_EXPERIMENTAL_SILENCE": "1",  # that a trainer uses `rollout_func`
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # where memory is bound
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TQDM_DELAY": "5",  # seconds before a progress bar is shown
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    for category in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
    logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)  # no Triton on a CPU
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in str(record.msg))


def log_in_lines(trainer) -> None:
    """Print a line for each log record, by `log_line`, in place of transformers' bar and dictionary."""
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback

    class Lines(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.start, self.first_step = time.monotonic(), state.global_step
            self.last = (self.start, self.first_step, None)  # time, step and tokens at the last line
            if state.is_world_process_zero:
                print(f"{LEGEND}; all metrics: {args.output_dir}/metrics.jsonl", flush=True)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if not state.is_world_process_zero:
                return
            seconds, steps = time.monotonic() - self.start, state.global_step - self.first_step
            if "train_runtime" in logs:
                return print(f"{steps} steps in {clock(seconds)}", flush=True)
            left = seconds / steps * (state.max_steps - state.global_step) if steps else None
            logs = self.with_speed(dict(logs), state.global_step)
            print(log_line(state.global_step, state.max_steps, left, logs), flush=True)

        def with_speed(self, logs: dict, step: int) -> dict:
            """Adds seconds per step and tokens per second where the trainer itself does not log them."""
            if "num_tokens" not in logs:
                return logs
            (before, last_step, tokens), now = self.last, time.monotonic()
            self.last = (now, step, logs["num_tokens"])
            speed = {"step_time": (now - before) / max(1, step - last_step)}
            if tokens is not None:
                speed["tokens/per_second"] = (logs["num_tokens"] - tokens) / (now - before)
            return speed | logs

    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(Lines())


def log_line(step: int, steps: int, left: float | None, logs: dict[str, float]) -> str:
    """A log record of training or of held-out problems (`eval_`), in at most `LONGEST_LINE` characters.

    Rewards and lengths are those of candidates and refinements, in this order; accuracies are percent.

    Args:
        left: Seconds until the last step, estimated; None: unknown.
    """
    held_out = any(name.startswith("eval_") for name in logs)
    named = {name.removeprefix("eval_"): value for name, value in logs.items()}
    parts = [f"{step:>{len(str(steps))}}/{steps}" + (f" {clock(left)} left" if left is not None else "")]
    parts.append(("held out: " if held_out else "") + " ".join(_accuracies(named)))
    stages = ("candidate", "refinement")
    for label, name, form in (("reward", "reward", ".2f"), ("length", "completion_length", ".0f")):
        pair = [format(named[f"{stage}/{name}"], form) for stage in stages if f"{stage}/{name}" in named]
        parts.append(" ".join([label, *pair]) if pair else "")
    if "mean_token_accuracy" in named:
        parts.append(f"loss {named['loss']:.4f} tokens right {100 * named['mean_token_accuracy']:.1f}")
    if (seconds := named.get("step_time", named.get("seconds"))) is not None:
        halves = [_seconds(named[f"time/{name}"]) for name in ("rollout", "update") if f"time/{name}" in named]
        parts.append(f"{_seconds(seconds)} s" + (f" ({' + '.join(halves)})" if halves else ""))
    if "tokens/per_second" in named:
        parts.append(f"{named['tokens/per_second']:,.0f} tok/s")
    parts = list(filter(None, parts))
    while len(line := "  ".join(parts)) > LONGEST_LINE:  # figures of unusual sizes
        parts.pop()
    return line


def _accuracies(logs: dict[str, float]) -> list[str]:
    """`pass@1 46.1 maj@4 48.7 selfref@4 84.4 gap +35.7` of what is there, sets of any choice if none is uniform."""
    shown = {}
    for name, value in logs.items():
        prefix, _, short = name.rpartition("/")
        if name in ("candidate/accuracy", "pass@1"):
            shown["pass@1"] = f"{100 * value:.1f}"
        elif prefix in ("gap", "chosen", "") and short.startswith(("maj@", "selfref@")):
            shown.setdefault(short, f"{100 * value:.1f}")
        elif prefix in ("gap", "chosen", "") and short == "refinement_gap":
            shown.setdefault("gap", f"{100 * value:+.1f}")
    order = sorted(shown, key=lambda name: ("pass", "maj@", "self", "gap").index(name[:4]))
    return [f"{name} {shown[name]}" for name in order]


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"


def clock(seconds: float) -> str:
    """`8:31`, or `1:02:03` from an hour on."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
