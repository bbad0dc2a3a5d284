"""Cross-checks of configurations. Each names the field, its value and the mend, before anything heavy is imported.

A check takes any object with the fields as attributes (a config, or the plain values that `gsr_rl.cli` reads before
it imports TRL) and returns a list of messages.
"""

from pathlib import Path

from gsr_rl.data.sources import from_hub
from gsr_rl.hub.config import check_hub
from gsr_rl.keys import at_least, check_context, check_model, check_shares, finite, one_of, positive
from gsr_rl.refinement.candidates import check_candidate_choice, check_random_number
from gsr_rl.refinement.settings import check_refinement, check_trained_for
from gsr_rl.training.trl_checks import (
    check_best_checkpoint,
    check_generation_kwargs,
    check_importance_sampling,
    check_quantization,
    check_resuming,
    check_rewards,
    metric_choosers,
    when,
)

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")  # TRL's
ROUTER_LOSS = "TRL's router loss is a mean over a micro-batch, so its weight would change with the micro-batches"


def _check_named_model(c) -> list[str]:
    """The model of a trainer, where its keys are checked too: a trainer's own configuration has none."""
    return check_model(c, "model_name_or_path") if hasattr(c, "model_name_or_path") else []


def check_grpo(c) -> list[str]:
    """The keys of `GSRConfig` against each other and against the engine's window and the batch."""
    if wrong := _check_ranges(c):
        return wrong
    found = check_refinement(c) + check_hub(c) + check_trained_for(c, "model_name_or_path")
    found += _check_named_model(c)
    g, k, m = c.num_generations, c.num_candidates, c.num_candidate_sets
    if k > g:
        found.append(
            f"num_candidates={k} is more than num_generations={g}: a refinement can only show candidates that were "
            f"sampled, set num_generations to at least {k} or num_candidates to at most {g}"
        )
    if g % m:
        divisors = [d for d in range(1, g // 2 + 1) if g % d == 0]
        found.append(
            f"num_generations={g} is not divisible by num_candidate_sets={m}: each candidate set gets G/M "
            f"refinements, set num_candidate_sets to one of {divisors}"
        )
    elif g // m < 2:
        found.append(
            f"num_candidate_sets={m} leaves {g // m} refinement a set with num_generations={g}: a refinement is "
            f"compared only with others over the same set, set num_candidate_sets to at most {g // 2}"
        )
    for name in ("candidate_weight", "refinement_weight"):
        if getattr(c, name) < 0:
            found.append(f"{name}={getattr(c, name)} is negative: set it to 0 to switch the stage off")
    if c.candidate_weight <= 0 and c.refinement_weight <= 0:
        found.append("candidate_weight and refinement_weight are both 0: nothing would be trained, set one above 0")
    if c.candidate_objective not in ("pass@1", "pass@k"):
        found.append(f"candidate_objective={c.candidate_objective!r}: use pass@1 or pass@k")
    best_of = k if c.objective_k is None else c.objective_k
    if c.objective_k is not None and c.objective_k < 1:
        found.append(f"objective_k={c.objective_k}: at least 1 is needed, or leave it out for num_candidates={k}")
    elif c.candidate_objective == "pass@k" and best_of >= g:
        found.append(
            f"candidate_objective=pass@k with k={best_of} needs num_generations of at least {best_of + 1}, got {g}: "
            "raise num_generations, lower objective_k or use pass@1"
        )
    if str(c.scale_rewards) == "batch":
        found.append("scale_rewards=batch would mix the statistics of both stages: use group or none")
    for name in ("candidate_scale_rewards", "refinement_scale_rewards"):
        if str(getattr(c, name)) not in ("None", "group", "none"):
            found.append(f"{name}={getattr(c, name)!r}: use group or none, or leave it out")
    found += _check_choice(c)
    if c.multi_objective_aggregation != "sum_then_normalize":
        found.append(
            f"multi_objective_aggregation={c.multi_objective_aggregation} would mix the statistics of both stages: "
            "use sum_then_normalize"
        )
    found += check_rewards(c) + check_generation_kwargs(c) + check_importance_sampling(c)
    found += check_best_checkpoint(c) + check_resuming(c) + check_quantization(c)
    found += _check_micro_batch_terms(c) + _check_token_budget(c)
    found += check_context(
        c, "vllm_max_model_length", getattr(c, "model_name_or_path", None), refines=c.refinement_weight > 0
    )
    found += _check_server_deadlines(c)
    found += _check_batch(c)
    return found


def _check_ranges(c) -> list[str]:
    """Values that nothing can be reckoned with, and those that TRL would first stumble over in a training step."""
    if unset := [name for name in ("num_generations", "max_completion_length") if getattr(c, name) is None]:
        return [f"{name}=null: a whole number is expected" for name in unset]
    if wrong := finite(c):
        return wrong
    found = at_least(c, 1, "num_generations", "num_candidate_sets", "per_device_train_batch_size")
    found += at_least(c, 1, "gradient_accumulation_steps", "steps_per_generation", "num_iterations")
    found += at_least(c, 1, "num_generations_eval", "max_eval_problems", "eval_problems_per_call")
    found += at_least(c, 0, "learning_rate", "beta", "epsilon", "max_grad_norm", "warmup_steps", "seed")
    found += positive(c, "server_request_timeout", "vllm_server_timeout")
    limits = ("max_completion_length", "max_refinement_length", "max_refinement_prompt_length")
    if small := [name for name in limits if getattr(c, name) is not None and getattr(c, name) < 1]:
        found += [f"{name}={getattr(c, name)}: a number of tokens is expected, at least 1" for name in small]
    if c.temperature <= 0:
        found.append(f"temperature={c.temperature}: a policy is trained on samples, so a positive value is needed")
    found += check_shares(c, "top_p", "vllm_gpu_memory_utilization")
    found += one_of(c, loss_type=LOSS_TYPES, vllm_mode=("colocate", "server"))
    if str(c.scale_rewards).lower() not in ("group", "none", "true", "false", "batch"):
        found.append(f"scale_rewards={c.scale_rewards!r}: use group or none")
    return found


def _check_choice(c) -> list[str]:
    """Which candidates are shown, and which problems are taken."""
    found = check_candidate_choice(c)
    if c.candidate_credit and (c.num_candidate_sets < 2 or c.candidate_choice != "uniform"):
        found.append(
            f"candidate_credit={c.candidate_credit} compares uniformly chosen candidate sets of a problem: set "
            f"num_candidate_sets to at least 2 (it is {c.num_candidate_sets}) and candidate_choice to uniform"
        )
    elif c.candidate_credit and (c.min_num_candidates or c.num_candidates) == c.num_generations:
        found.append(
            f"candidate_credit={c.candidate_credit} with num_candidates={c.num_candidates} of "
            f"num_generations={c.num_generations}: every candidate is in every set, so there is none to credit: lower "
            "num_candidates"
        )
    if c.candidate_credit and not (c.candidate_weight > 0 and c.refinement_weight > 0):
        found.append(f"candidate_credit={c.candidate_credit} needs both stages: set both weights above 0")
    if c.launch_config and not Path(c.launch_config).is_file():
        found.append(f"launch_config={c.launch_config}: there is no such file, give one of accelerate_configs/")
    if c.oversample < 1:
        found.append(f"oversample={c.oversample}: at least 1 is needed (1: no further problems)")
    if when(c.eval_strategy) != "no" and not c.eval_dataset_name:
        found.append(
            f"eval_strategy={c.eval_strategy} needs held-out problems: set eval_dataset_name, or eval_strategy to no"
        )
    if c.eval_on_start and not c.eval_dataset_name:
        found.append("eval_on_start=true needs held-out problems: set eval_dataset_name, or leave it out")
    return found


def _check_micro_batch_terms(c) -> list[str]:
    """Terms that TRL adds to the loss as means over a micro-batch, with weights that depend on the micro-batches."""
    found = []
    for name, neutral in (("entropy_coef", 0), ("use_adaptive_entropy", False)):
        if value := getattr(c, name):
            found.append(
                f"{name}={value}: TRL's entropy bonus is a mean over a micro-batch, so the two stages' weights in it "
                f"would change with the micro-batches: set {name} to {str(neutral).lower()} or leave it out"
            )
    if c.router_aux_loss_coef:
        found.append(f"router_aux_loss_coef={c.router_aux_loss_coef}: {ROUTER_LOSS}: set router_aux_loss_coef to 0")
    return found


def _check_token_budget(c) -> list[str]:
    """max_tokens_per_micro_batch against what it cannot be combined with."""
    budget = c.max_tokens_per_micro_batch
    if budget is None:
        return []
    name = f"max_tokens_per_micro_batch={budget}"
    found = []
    if budget < 1:
        found.append(f"{name} is below 1: give a number of tokens, or leave it out for micro-batches of rows")
    if not c.shared_prefix:
        found.append(f"{name} needs shared_prefix: true, which makes the packed passes that it counts")
    if c.top_entropy_quantile < 1.0:
        found.append(
            f"{name} cannot be used with top_entropy_quantile={c.top_entropy_quantile}: the quantile is taken over a "
            "micro-batch on all ranks, leave one of the two out"
        )
    return found


def _check_server_deadlines(c) -> list[str]:
    """The main process alone waits for a vLLM server, and the other ranks for the main process."""
    if not (c.use_vllm and c.vllm_mode == "server"):
        return []
    return [
        f"{name}={getattr(c, name):g} is not below ddp_timeout={c.ddp_timeout:g}: the other ranks would give up "
        f"before the main process can say what is wrong with the server: set {name} to {c.ddp_timeout / 2:g}, or "
        "raise ddp_timeout"
        for name in ("server_request_timeout", "vllm_server_timeout")
        if getattr(c, name) >= c.ddp_timeout
    ]


def _check_batch(c) -> list[str]:
    """Every optimizer window holds whole blocks of all trained stages, on each rank."""
    stages = int(c.candidate_weight > 0) + int(c.refinement_weight > 0)
    block = stages * c.num_generations
    batch, accumulate = c.per_device_train_batch_size, c.gradient_accumulation_steps
    per_generation = c.steps_per_generation
    found = []
    if block and (batch * accumulate) % block:
        fitting = next(b for b in range(batch, batch + block + 1) if (b * accumulate) % block == 0)
        found.append(
            f"per_device_train_batch_size={batch} x gradient_accumulation_steps={accumulate} is {batch * accumulate} "
            f"rows a rank and optimizer step, which does not hold whole blocks of {block} rows ({stages} stages x "
            f"num_generations={c.num_generations}): set per_device_train_batch_size to {fitting}"
        )
    if c.generation_batch_size is not None:
        found.append(
            f"generation_batch_size={c.generation_batch_size}: say it as steps_per_generation, a multiple of "
            f"gradient_accumulation_steps={accumulate}"
        )
    if per_generation is not None and per_generation % accumulate:
        up = (per_generation // accumulate + 1) * accumulate
        found.append(
            f"steps_per_generation={per_generation} is not a multiple of gradient_accumulation_steps={accumulate}, so "
            f"an optimizer step would mix two generations: set steps_per_generation to {up}"
        )
    used_for = c.num_iterations * (per_generation or accumulate) // accumulate
    if when(c.save_strategy) == "steps" and c.save_steps >= 1 and used_for > 1 and c.save_steps % used_for:
        found.append(
            f"save_steps={c.save_steps} would cut a generation, which is used for {used_for} optimizer steps: set "
            f"save_steps to a multiple of {used_for}"
        )
    return found


def check_sft(c) -> list[str]:
    """The keys of `GSRSFTConfig`."""
    if wrong := finite(c):
        return wrong
    found = check_refinement(c) + check_hub(c) + check_trained_for(c, "model_name_or_path") + check_random_number(c)
    found += _check_named_model(c) + at_least(c, 0, "learning_rate", "warmup_steps", "seed")
    found += at_least(c, 1, "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "max_rows")
    name = c.dataset_name
    if not name:
        found.append("dataset_name is not set: give the rows that distill_gsr.py wrote, or a Hub data set")
    elif not from_hub(name) and not Path(name).is_file():
        found.append(f"dataset_name={name}: there is no such file, run distill_gsr.py first or give another file")
    stages = [c.stages] if isinstance(c.stages, str) else c.stages
    if not stages or set(stages) - {"candidate", "refinement"}:
        found.append(f"stages={stages}: use candidate or refinement, or both: [candidate, refinement]")
    mend = "the warm start evaluates nothing, leave it out and measure with eval_gsr.py"
    found += [f"{one}: {mend}" for one in metric_choosers(c)]
    if when(c.eval_strategy) != "no" or c.eval_on_start:
        name = "eval_on_start" if c.eval_on_start else "eval_strategy"
        found.append(f"{name}={getattr(c, name)}: {mend}")
    return found + check_resuming(c) + check_quantization(c)
