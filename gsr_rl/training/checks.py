"""Cross-checks of the trainers' configurations, before anything heavy is imported.

A check takes any object with the fields as attributes (a config, or the plain values that `gsr_rl.cli` reads before
it imports TRL) and returns a list of messages, each with the field, its value and the fix.
"""

from pathlib import Path

from gsr_rl.data.sources import as_list, from_hub, is_still_to_come
from gsr_rl.hub.config import check_hub
from gsr_rl.keys import at_least, check_address, check_context, check_model, check_shares, finite, one_of, positive
from gsr_rl.refinement.candidates import check_candidate_choice, check_random_number
from gsr_rl.refinement.settings import check_chat_template, check_refinement, check_trained_for

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")  # TRL's
RATIO_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")  # TRL's
ROUTER_LOSS = "TRL's router loss is a mean over a micro-batch, so its weight would change with the micro-batches"
REPORTED = ("maj", "selfref", "pass")  # of the held-out problems, at K
LENGTHS = "max_completion_length and max_refinement_length"
SET_BY = {  # keys of generation_kwargs that the rollout sets itself, by the key of ours that says it
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


def metric_names(num_candidates: int) -> list[str]:
    """The held-out accuracies and the gap of an evaluation while training, by which a checkpoint can be chosen."""
    return ["pass@1", *(f"{name}@{num_candidates}" for name in REPORTED), "refinement_gap"]


def when(strategy) -> str:
    """transformers' `eval_strategy` or `save_strategy` as a word; YAML reads an unquoted `no` as False."""
    return "no" if strategy is False else str(getattr(strategy, "value", strategy))


def check_grpo(c) -> list[str]:
    """The keys of `GSRConfig` against each other and against the engine's context length and the batch."""
    if messages := _check_ranges(c):
        return messages
    messages = check_refinement(c) + check_hub(c) + check_trained_for(c, "model_name_or_path") + _check_named_model(c)
    messages += _check_groups(c) + _check_objectives(c) + _check_choice(c) + check_rewards(c)
    messages += check_generation_kwargs(c) + check_importance_sampling(c) + check_best_checkpoint(c)
    messages += (
        check_resuming(c) + check_adapter_and_quantization(c) + _check_micro_batch_terms(c) + _check_token_budget(c)
    )
    model, refines = getattr(c, "model_name_or_path", None), c.refinement_weight > 0
    messages += check_context(c, "vllm_max_model_length", model, refines=refines)
    return messages + _check_servers(c) + _check_batch(c)


def check_sft(c) -> list[str]:
    """The keys of `GSRSFTConfig`."""
    if messages := finite(c):
        return messages
    messages = check_refinement(c) + check_hub(c) + check_trained_for(c, "model_name_or_path") + check_random_number(c)
    messages += _check_named_model(c) + at_least(c, 0, "learning_rate", "warmup_steps", "seed")
    messages += one_of(c, log_console=("line", "all"))
    messages += at_least(c, 1, "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "max_rows")
    name = c.dataset_name
    if not name:
        messages.append("dataset_name is not set: give the rows that distill_gsr.py wrote, or a Hub data set")
    elif not from_hub(name) and not Path(name).is_file() and not (c.dry_run and is_still_to_come(name)):
        messages.append(f"dataset_name={name}: there is no such file, run distill_gsr.py first or give another file")
    stages = [c.stages] if isinstance(c.stages, str) else c.stages
    if not stages or set(stages) - {"candidate", "refinement"}:
        messages.append(f"stages={stages}: use candidate or refinement, or both: [candidate, refinement]")
    fix = "the warm start evaluates nothing, leave it out and measure with eval_gsr.py"
    messages += [f"{message}: {fix}" for message in metric_choosers(c)]
    if when(c.eval_strategy) != "no" or c.eval_on_start:
        name = "eval_on_start" if c.eval_on_start else "eval_strategy"
        messages.append(f"{name}={getattr(c, name)}: {fix}")
    return messages + check_resuming(c) + check_adapter_and_quantization(c)


def _check_named_model(c) -> list[str]:
    """The model of a trainer, where its keys are checked too: a trainer's own configuration has none."""
    if not hasattr(c, "model_name_or_path"):
        return []
    if getattr(c, "chat_template_path", None):  # TRL's, of the warm start: another model's too
        both = "chat_template and chat_template_path are both set: leave one out"
        return check_model(c, "model_name_or_path") + ([both] if c.chat_template else [])
    return check_model(c, "model_name_or_path") + check_chat_template(c, "model_name_or_path")


def _check_ranges(c) -> list[str]:
    """Values that nothing can be computed with, and those that TRL would first stumble over in a training step."""
    if unset := [name for name in ("num_generations", "max_completion_length") if getattr(c, name) is None]:
        return [f"{name}=null: a whole number is expected" for name in unset]
    if messages := finite(c):
        return messages
    messages = at_least(c, 1, "num_generations", "num_candidate_sets", "per_device_train_batch_size")
    messages += at_least(c, 1, "gradient_accumulation_steps", "steps_per_generation", "num_iterations")
    messages += at_least(c, 1, "num_generations_eval", "max_eval_problems", "eval_problems_per_call")
    messages += at_least(c, 0, "learning_rate", "beta", "epsilon", "max_grad_norm", "warmup_steps", "seed")
    messages += positive(c, "server_request_timeout", "vllm_server_timeout") + at_least(c, 0, "rollout_ahead")
    limits = ("max_completion_length", "max_refinement_length", "max_refinement_prompt_length")
    if small := [name for name in limits if getattr(c, name) is not None and getattr(c, name) < 1]:
        messages += [f"{name}={getattr(c, name)}: a number of tokens is expected, at least 1" for name in small]
    if c.temperature <= 0:
        messages.append(f"temperature={c.temperature}: a policy is trained on samples, so a positive value is needed")
    messages += check_shares(c, "top_p", "vllm_gpu_memory_utilization")
    messages += one_of(c, loss_type=LOSS_TYPES, vllm_mode=("colocate", "server"), log_console=("line", "all"))
    if str(c.scale_rewards).lower() not in ("group", "none", "true", "false", "batch"):
        messages.append(f"scale_rewards={c.scale_rewards!r}: use group or none")
    return messages


def _check_groups(c) -> list[str]:
    """G, K and M: candidates to show, and refinements to compare over each candidate set."""
    messages = []
    g, k, m = c.num_generations, c.num_candidates, c.num_candidate_sets
    if g < 2:
        return [f"num_generations={g}: rewards are compared among the completions of a prompt, set it to at least 2"]
    if k > g:
        messages.append(
            f"num_candidates={k} is more than num_generations={g}: a refinement can only show candidates that were "
            f"sampled, set num_generations to at least {k} or num_candidates to at most {g}"
        )
    if g % m:
        divisors = [d for d in range(1, g // 2 + 1) if g % d == 0]
        messages.append(
            f"num_generations={g} is not divisible by num_candidate_sets={m}: each candidate set gets G/M "
            f"refinements, set num_candidate_sets to one of {divisors}"
        )
    elif g // m < 2:
        messages.append(
            f"num_candidate_sets={m} leaves {g // m} refinement a set with num_generations={g}: a refinement is "
            f"compared only with others over the same set, set num_candidate_sets to at most {g // 2}"
        )
    return messages


def _check_objectives(c) -> list[str]:
    """Weights, the candidates' objective, and how rewards are scaled."""
    messages = [
        f"{name}={getattr(c, name)} is negative: set it to 0 to switch the stage off"
        for name in ("candidate_weight", "refinement_weight")
        if getattr(c, name) < 0
    ]
    if c.candidate_weight <= 0 and c.refinement_weight <= 0:
        messages.append("candidate_weight and refinement_weight are both 0: nothing would be trained, set one above 0")
    if c.candidate_objective not in ("pass@1", "pass@k"):
        messages.append(f"candidate_objective={c.candidate_objective!r}: use pass@1 or pass@k")
    best_of = c.num_candidates if c.objective_k is None else c.objective_k
    if best_of < 1 and c.objective_k is not None:
        messages.append(
            f"objective_k={c.objective_k}: at least 1 is needed, or leave it out for num_candidates={c.num_candidates}"
        )
    elif c.candidate_objective == "pass@k" and best_of >= c.num_generations:
        messages.append(
            f"candidate_objective=pass@k with k={best_of} needs num_generations of at least {best_of + 1}, got "
            f"{c.num_generations}: raise num_generations, lower objective_k or use pass@1"
        )
    mixed = "would mix the statistics of both stages"
    if str(c.scale_rewards) == "batch":
        messages.append(f"scale_rewards=batch {mixed}: use group or none")
    for name in ("candidate_scale_rewards", "refinement_scale_rewards"):
        if str(getattr(c, name)) not in ("None", "group", "none"):
            messages.append(f"{name}={getattr(c, name)!r}: use group or none, or leave it out")
    if c.multi_objective_aggregation != "sum_then_normalize":
        name = f"multi_objective_aggregation={c.multi_objective_aggregation}"
        messages.append(f"{name} {mixed}: use sum_then_normalize")
    return messages


def _check_choice(c) -> list[str]:
    """Which candidates are shown, and which problems are taken."""
    messages = check_candidate_choice(c)
    if c.candidate_credit and (c.num_candidate_sets < 2 or c.candidate_choice != "uniform"):
        messages.append(
            f"candidate_credit={c.candidate_credit} compares uniformly chosen candidate sets of a problem: set "
            f"num_candidate_sets to at least 2 (it is {c.num_candidate_sets}) and candidate_choice to uniform"
        )
    elif c.candidate_credit and (c.min_num_candidates or c.num_candidates) == c.num_generations:
        messages.append(
            f"candidate_credit={c.candidate_credit} with num_candidates={c.num_candidates} of "
            f"num_generations={c.num_generations}: every candidate is in every set, so there is none to credit: lower "
            "num_candidates"
        )
    if c.candidate_credit and not (c.candidate_weight > 0 and c.refinement_weight > 0):
        messages.append(f"candidate_credit={c.candidate_credit} needs both stages: set both weights above 0")
    if c.launch_config and not Path(c.launch_config).is_file():
        messages.append(f"launch_config={c.launch_config}: there is no such file, give one of accelerate_configs/")
    if c.oversample < 1:
        messages.append(f"oversample={c.oversample}: at least 1 is needed (1: no further problems)")
    if when(c.eval_strategy) != "no" and not c.eval_dataset_name:
        messages.append(
            f"eval_strategy={c.eval_strategy} needs held-out problems: set eval_dataset_name, or eval_strategy to no"
        )
    if c.eval_on_start and not c.eval_dataset_name:
        messages.append("eval_on_start=true needs held-out problems: set eval_dataset_name, or leave it out")
    return messages


def _check_micro_batch_terms(c) -> list[str]:
    """Terms that TRL adds to the loss as means over a micro-batch, with weights that depend on the micro-batches."""
    messages = []
    for name, neutral in (("entropy_coef", 0), ("use_adaptive_entropy", False)):
        if value := getattr(c, name):
            messages.append(
                f"{name}={value}: TRL's entropy bonus is a mean over a micro-batch, so the two stages' weights in it "
                f"would change with the micro-batches: set {name} to {str(neutral).lower()} or leave it out"
            )
    if c.router_aux_loss_coef:
        messages.append(f"router_aux_loss_coef={c.router_aux_loss_coef}: {ROUTER_LOSS}: set router_aux_loss_coef to 0")
    return messages


def _check_token_budget(c) -> list[str]:
    """max_tokens_per_micro_batch against what it cannot be combined with."""
    budget = c.max_tokens_per_micro_batch
    if budget is None:
        return []
    name = f"max_tokens_per_micro_batch={budget}"
    messages = []
    if budget < 1:
        messages.append(f"{name} is below 1: give a number of tokens, or leave it out for micro-batches of rows")
    if not c.shared_prefix:
        messages.append(f"{name} needs shared_prefix: true, which makes the packed passes that it counts")
    if c.top_entropy_quantile < 1.0:
        messages.append(
            f"{name} cannot be used with top_entropy_quantile={c.top_entropy_quantile}: the quantile is taken over a "
            "micro-batch on all ranks, leave one of the two out"
        )
    return messages


def _check_servers(c) -> list[str]:
    """What sampling ahead needs; the addresses of vLLM servers, and how long a rank waits for one."""
    needed = {"use_vllm": "true", "vllm_mode": "server", "streamed_rollout": "true"}
    needed |= {"vllm_importance_sampling_correction": "true"}
    messages = [
        f"rollout_ahead={c.rollout_ahead} with {name}={getattr(c, name)}: set {name} to {value}, or rollout_ahead to 0"
        for name, value in needed.items()
        if c.rollout_ahead and str(getattr(c, name)).lower() != value
    ]
    if not (c.use_vllm and c.vllm_mode == "server"):
        return messages
    urls = as_list(c.vllm_server_base_url)
    messages += [message for url in urls for message in check_address("vllm_server_base_url", url, "http://HOST:PORT")]
    messages += [f"vllm_server_base_url={urls}: an address stands there twice"] * (len({*urls}) < len(urls))
    return messages + [
        f"{name}={getattr(c, name):g} is not below ddp_timeout={c.ddp_timeout:g}: the other ranks would give up "
        f"before the one that waits can say what is wrong: set {name} to {c.ddp_timeout / 2:g}, or raise ddp_timeout"
        for name in ("server_request_timeout", "vllm_server_timeout")
        if getattr(c, name) >= c.ddp_timeout
    ]


def _check_batch(c) -> list[str]:
    """Every optimizer window holds whole blocks of all trained stages, on each rank."""
    stages = int(c.candidate_weight > 0) + int(c.refinement_weight > 0)
    block = stages * c.num_generations
    batch, accumulate = c.per_device_train_batch_size, c.gradient_accumulation_steps
    per_generation = c.steps_per_generation
    messages = []
    if block and (batch * accumulate) % block:
        fitting = next(b for b in range(batch, batch + block + 1) if (b * accumulate) % block == 0)
        messages.append(
            f"per_device_train_batch_size={batch} x gradient_accumulation_steps={accumulate} is {batch * accumulate} "
            f"rows per rank and optimizer step, which does not hold whole blocks of {block} rows ({stages} stages x "
            f"num_generations={c.num_generations}): set per_device_train_batch_size to {fitting}"
        )
    if c.generation_batch_size is not None:
        messages.append(
            f"generation_batch_size={c.generation_batch_size}: say it as steps_per_generation, a multiple of "
            f"gradient_accumulation_steps={accumulate}"
        )
    if per_generation is not None and per_generation % accumulate:
        up = (per_generation // accumulate + 1) * accumulate
        messages.append(
            f"steps_per_generation={per_generation} is not a multiple of gradient_accumulation_steps={accumulate}, so "
            f"an optimizer step would mix two generations: set steps_per_generation to {up}"
        )
    used_for = c.num_iterations * (per_generation or accumulate) // accumulate
    if when(c.save_strategy) == "steps" and c.save_steps >= 1 and used_for > 1 and c.save_steps % used_for:
        messages.append(
            f"save_steps={c.save_steps} would cut a generation, which is used for {used_for} optimizer steps: set "
            f"save_steps to a multiple of {used_for}"
        )
    return messages


def check_rewards(c) -> list[str]:
    """Every stage that is trained has a reward, and every reward a weight if there are any."""
    rewards = [c.reward_funcs] if isinstance(c.reward_funcs, str) else list(map(str, c.reward_funcs))
    messages = []
    if c.reward_weights is not None and len(c.reward_weights) != len(rewards):
        messages.append(
            f"reward_weights={c.reward_weights} has {len(c.reward_weights)} numbers for {len(rewards)} reward_funcs "
            f"({', '.join(rewards)}): give one a reward"
        )
    for stage, other in (("candidate", "refinement"), ("refinement", "candidate")):
        weight = getattr(c, f"{stage}_weight")
        if weight > 0 and rewards and all(name.startswith(f"{other}/") for name in rewards):
            messages.append(
                f"reward_funcs={rewards} leaves the {stage} stage without a reward, with {stage}_weight={weight}: "
                f"add a reward, such as {stage}/accuracy, or set {stage}_weight to 0"
            )
    return messages


# Keys that TRL and transformers take as they are, to fail once the model has loaded, in the first evaluation, or never


def check_best_checkpoint(c) -> list[str]:
    """What is chosen by a held-out metric has an evaluation that gives this metric."""
    choosers = metric_choosers(c)
    if choosers and when(c.eval_strategy) == "no":
        return [f"{chooser}: set eval_strategy (and eval_dataset_name), or leave it out" for chooser in choosers]
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


def check_adapter_and_quantization(c) -> list[str]:
    """The recipes build no quantized model, and merge LoRA alone; a trainer's own configuration lacks these keys."""
    if c.merge_adapter and not getattr(c, "use_peft", True):
        return ["merge_adapter=true needs an adapter: set use_peft to true, or leave merge_adapter out"]
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
        + (f": set {SET_BY[name]} instead" if SET_BY[name] else ": leave it out")
        for name, value in given.items()
        if name in SET_BY
    ]


def check_importance_sampling(c) -> list[str]:
    """The ratio between trainer and engine, and what `vespo` asks of it."""
    messages = one_of(c, importance_sampling_level=("token", "sequence"), vllm_importance_sampling_mode=RATIO_MODES)
    if messages or c.loss_type != "vespo":
        return messages
    if c.importance_sampling_level != "token":
        messages.append("importance_sampling_level=sequence: loss_type=vespo needs token")
    mode = c.vllm_importance_sampling_mode
    if c.use_vllm and c.vllm_importance_sampling_correction and not mode.startswith("token"):
        messages.append(
            f"vllm_importance_sampling_mode={mode}: loss_type=vespo needs token_mask or token_truncate, set one"
        )
    return messages


def check_reporting(c) -> list[str]:
    """Every name in report_to is an integration of transformers' whose package is installed. Imports transformers."""
    names = c.report_to if isinstance(c.report_to, list) else [c.report_to or "none"]
    if names in ([], ["none"], ["all"]):
        return []
    from transformers.integrations import integration_utils

    known, messages = integration_utils.INTEGRATION_TO_CALLBACK, []
    for name in names:
        if name not in known:
            messages.append(f"report_to={name}: use none, all, or some of {', '.join(sorted(known))}")
        elif not getattr(integration_utils, f"is_{AVAILABLE_AS.get(name, name)}_available")():
            fix = f"pip install {PACKAGES.get(name, name)}"
            if name == "kubeflow":
                fix = "start the run by Kubeflow's trainer, which sets KUBEFLOW_TRAINER_SERVER_URL"
            messages.append(f"report_to={name} is not there: {fix}, or set report_to to none")
    return messages
