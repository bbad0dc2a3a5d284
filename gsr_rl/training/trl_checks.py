"""Checks of keys that TRL and transformers take as they are, to stumble over them when the model has loaded, in the
first evaluation, or never. See gsr_rl/training/checks.py."""

import logging

from gsr_rl.keys import one_of

logger = logging.getLogger(__name__)

RATIO_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")  # TRL's
LENGTHS = "max_completion_length and max_refinement_length"
OWN_SAMPLING = {  # of generation_kwargs, by the keys that set it
    "n": "num_generations",
    "num_return_sequences": "num_generations",
    "max_tokens": LENGTHS,
    "max_new_tokens": LENGTHS,
    "temperature": "temperature",
    "seed": "seed",
    "logprobs": None,
}
# Integrations of report_to that are called otherwise in transformers' `is_..._available`, and by pip.
AVAILABLE_AS = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}
PACKAGES = {"azure_ml": "azureml-sdk", "comet_ml": "comet-ml", "dagshub": "dagshub mlflow", "flyte": "flytekit"}


def when(strategy) -> str:
    """transformers' `eval_strategy` or `save_strategy` as a word; YAML reads an unquoted `no` as False."""
    return "no" if strategy is False else str(getattr(strategy, "value", strategy))


def check_reporting(c) -> list[str]:
    """Every name in report_to is an integration of transformers' whose package is installed. Imports transformers."""
    from transformers.integrations import integration_utils

    names = c.report_to if isinstance(c.report_to, list) else [c.report_to or "none"]
    if names in ([], ["none"], ["all"]):
        return []
    known, found = integration_utils.INTEGRATION_TO_CALLBACK, []
    for name in names:
        if name not in known:
            found.append(f"report_to={name}: use none, all, or some of {', '.join(sorted(known))}")
        elif not getattr(integration_utils, f"is_{AVAILABLE_AS.get(name, name)}_available")():
            mend = f"pip install {PACKAGES.get(name, name)}"
            if name == "kubeflow":
                mend = "start the run by Kubeflow's trainer, which sets KUBEFLOW_TRAINER_SERVER_URL"
            found.append(f"report_to={name} is not there: {mend}, or set report_to to none")
    return found


def check_best_checkpoint(c) -> list[str]:
    """What is chosen by a held-out metric has an evaluation that gives this metric."""
    from gsr_rl.training.rollout_metrics import metric_names

    choosers = metric_choosers(c)
    if choosers and when(c.eval_strategy) == "no":
        return [f"{one}: set eval_strategy (and eval_dataset_name), or leave it out" for one in choosers]
    known, metric = metric_names(c.num_candidates), c.metric_for_best_model
    if metric is None and choosers:
        return [f"{choosers[0]}: set metric_for_best_model to one of {', '.join(known)}"]
    if metric is not None and str(metric).removeprefix("eval_") not in known:
        return [f"metric_for_best_model={metric} is not evaluated: use one of {', '.join(known)}"]
    return []


def metric_choosers(c) -> list[str]:
    """The keys that let a held-out metric choose, each as the start of a message."""
    choosing = {
        "load_best_model_at_end": c.load_best_model_at_end is True,
        "save_strategy": when(c.save_strategy) == "best",
        "lr_scheduler_type": when(c.lr_scheduler_type) in ("reduce_lr_on_plateau", "greedy"),
    }
    return [f"{name}={getattr(c, name)} needs a held-out metric" for name, on in choosing.items() if on]


def check_resuming(c) -> list[str]:
    """A run that is to go on after an interruption saves what it needs for that."""
    if not (c.save_only_model and str(c.resume_from_checkpoint).lower() == "true"):
        return []
    return [
        "save_only_model=true with resume_from_checkpoint=true: such a checkpoint holds no optimizer to go on with: "
        "leave one of the two out"
    ]


def check_quantization(c) -> list[str]:
    """The recipes build no quantized model; a trainer's own configuration does not have these keys."""
    return [
        f"{name}=true: quantized weights are not supported, the model would be loaded whole: leave {name} out"
        for name in ("load_in_4bit", "load_in_8bit")
        if getattr(c, name, False)
    ]


def check_generation_kwargs(c) -> list[str]:
    """Further arguments of the engine do not set what keys of ours set."""
    given = c.generation_kwargs if isinstance(c.generation_kwargs, dict) else {}
    return [
        f"generation_kwargs: {name}={value} would override what the rollout sets"
        + (f": set {OWN_SAMPLING[name]} instead" if OWN_SAMPLING[name] else ": leave it out")
        for name, value in given.items()
        if name in OWN_SAMPLING
    ]


def check_importance_sampling(c) -> list[str]:
    """The ratio between trainer and engine, and what `vespo` asks of it."""
    found = one_of(c, importance_sampling_level=("token", "sequence"), vllm_importance_sampling_mode=RATIO_MODES)
    if found or c.loss_type != "vespo":
        return found
    if c.importance_sampling_level != "token":
        found.append("importance_sampling_level=sequence: loss_type=vespo needs token")
    mode = c.vllm_importance_sampling_mode
    if c.use_vllm and c.vllm_importance_sampling_correction and not mode.startswith("token"):
        found.append(
            f"vllm_importance_sampling_mode={mode}: loss_type=vespo needs token_mask or token_truncate, set one"
        )
    return found


def check_rewards(c) -> list[str]:
    """Every stage that is trained has a reward, and every reward a weight if there are any."""
    rewards = [c.reward_funcs] if isinstance(c.reward_funcs, str) else list(map(str, c.reward_funcs))
    found = []
    if c.reward_weights is not None and len(c.reward_weights) != len(rewards):
        found.append(
            f"reward_weights={c.reward_weights} has {len(c.reward_weights)} numbers for {len(rewards)} reward_funcs "
            f"({', '.join(rewards)}): give one a reward"
        )
    for stage, other in (("candidate", "refinement"), ("refinement", "candidate")):
        weight = getattr(c, f"{stage}_weight")
        if weight > 0 and rewards and all(name.startswith(f"{other}/") for name in rewards):
            found.append(
                f"reward_funcs={rewards} leaves the {stage} stage without a reward, with {stage}_weight={weight}: "
                f"add a reward, such as {stage}/accuracy, or set {stage}_weight to 0"
            )
    return found
