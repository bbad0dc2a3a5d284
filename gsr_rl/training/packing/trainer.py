"""GRPOTrainer with the shared-prefix forward, and with several passes in one training step.

`_get_per_token_logps_and_entropies` is where TRL runs the model: here it packs rows. The rest is what passes need
around TRL's loss: backward without a step, metrics added up over passes, and the ratio to the engine's probabilities.
"""

import logging
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import isnan, nan
from typing import NamedTuple

import torch
from accelerate.utils import DistributedType
from peft import PeftModel
from trl import GRPOTrainer

from gsr_rl.training.checks import ROUTER_LOSS
from gsr_rl.training.packing.batching import STAGES, Batch, token_passes
from gsr_rl.training.packing.rows import pack_rows, prompt_groups
from gsr_rl.training.packing.shared_prefix import log_probs_and_entropies, share_prefixes, unsupported
from gsr_rl.training.packing.throughput import StepAccount, least_saving

logger = logging.getLogger(__name__)

# Rows without padding are packed where that saves more operations of the linear layers than each of these:
LEAST_PACKING_SAVING = 0.05  # times those of the pass as it is
PACKING_COST = 1 / 8  # times those of the tokens that sharing a prompt must save (`least_saving`)

DRIFT = "sampling_logp_difference"


class Forward(NamedTuple):
    """What TRL's loss takes from a forward."""

    logps: torch.Tensor  # (B, T) log-probabilities of the completions' tokens
    entropies: torch.Tensor | None  # (B, T)
    aux_loss: None = None  # the router loss of a mixture of experts, which is refused


@dataclass
class WeightedMean:
    """A loss metric's mean over a step's passes and the ranks, each pass weighed by its tokens or rows."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float) -> None:
        if weight:  # a pass without tokens has no value
            self.total, self.weight = self.total + value * weight, self.weight + weight

    def add_rank(self, total: float, weight: float) -> None:
        self.total, self.weight = self.total + total, self.weight + weight

    @property
    def numbers(self) -> tuple[float, float]:
        """What ranks exchange: the arguments of `add_rank`."""
        return self.total, self.weight

    @property
    def value(self) -> float | None:
        """None where nothing was counted."""
        return self.total / self.weight if self.weight else None


@dataclass
class Extreme:
    """A loss metric's smallest or largest value over a step's passes and the ranks; NaN is left out."""

    choose: Callable  # min or max
    value: float = nan

    def add(self, value: float, weight: float = 1.0) -> None:
        if not isnan(value):
            self.value = value if isnan(self.value) else self.choose(self.value, value)

    add_rank = add

    @property
    def numbers(self) -> tuple[float, float]:
        return self.value, 1.0


class ThisRankOnly:
    """An accelerator whose reductions and gathers see this rank alone."""

    def __init__(self, accelerator):
        self._accelerator = accelerator

    def __getattr__(self, name):
        return getattr(self._accelerator, name)

    def gather(self, tensor):
        return tensor

    gather_for_metrics = gather

    def reduce(self, tensor, reduction="sum"):
        return tensor


@contextmanager
def replaced(target, **attributes):
    """These attributes of an object have other values inside: TRL reads them in the middle of its methods."""
    before = {name: getattr(target, name) for name in attributes}
    for name, value in attributes.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


class PackedGRPOTrainer(GRPOTrainer):
    """TRL's trainer with two more abilities, for `GSRTrainer` to build on.

    `shares_prefixes` says whether log-probabilities come from packed rows; `token_budget` is the limit of computed
    tokens per pass, or None for micro-batches of rows.
    """

    def __init__(self, model, reward_funcs=None, args=None, **kwargs):
        self.shares_prefixes = False
        self.account = StepAccount()
        self._forward_made: Forward | None = None  # inside TRL's loss: the forward that has been made for it
        self._loss_metrics: dict[str, WeightedMean | Extreme] = {}  # of the step so far
        self.drift: dict[str, float] = {}  # each stage's last distance of the engine's log-probabilities, by metric
        super().__init__(model, reward_funcs, args=args, **kwargs)
        if self.aux_loss_enabled:
            name = f"router_aux_loss_coef={self.router_aux_loss_coef} of {type(self.model).__name__}'s own config"
            raise ValueError(f"{name}: {ROUTER_LOSS}: set router_aux_loss_coef to 0")
        self.shares_prefixes = args.shared_prefix and self._share_prefixes()
        unwrapped = self.accelerator.unwrap_model(self.model)
        self.account.start(unwrapped, self.accelerator.device, torch.bfloat16 if args.bf16 else unwrapped.dtype)
        self.token_budget = args.max_tokens_per_micro_batch if self.shares_prefixes else None
        self.least_saving = least_saving(self.model, self.accelerator.device.type) if self.shares_prefixes else 0

    def _share_prefixes(self) -> bool:
        """Prepare the policy and the reference model, or say why it cannot be done.

        Raises:
            ValueError: It cannot be done and there is a token budget, which padded rows could not keep.
        """
        models = [self.accelerator.unwrap_model(model) for model in (self.model, self.ref_model) if model is not None]
        for model in models:
            if (reason := _cannot_share(model)) is None:
                continue
            name, budget = type(model).__name__, self.args.max_tokens_per_micro_batch
            if budget is not None:
                raise ValueError(
                    f"max_tokens_per_micro_batch={budget} limits packed rows, which {name} cannot run on: {reason}. "
                    "Otherwise set shared_prefix to false, leave max_tokens_per_micro_batch out, and lower "
                    f"per_device_train_batch_size={self.args.per_device_train_batch_size} to padded rows that fit, "
                    "with gradient_accumulation_steps as many times higher"
                )
            what = "shared_prefix: %s computes a prompt anew for each completion, in micro-batches of rows: %s"
            logger.warning(what, name, reason)
            return False
        for model in models:
            share_prefixes(model.get_base_model() if isinstance(model, PeftModel) else model)
        return True

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ) -> Forward:
        """TRL runs padded rows; we run packed rows, or hand over the forward that our loss has made already.

        Args:
            input_ids, attention_mask: (B, P + T).
            logits_to_keep: T.
            batch_size: Rows at once where no gradient is needed; with a token budget as many as fit instead.
        """
        if self._forward_made is not None:
            return self._forward_made
        if not self.shares_prefixes:
            self.account.add_padded(*_padded_size(input_ids, logits_to_keep), torch.is_grad_enabled())
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
        passes = [torch.arange(len(input_ids), device=input_ids.device)]  # row indices of each
        if not torch.is_grad_enabled() and batch_size is not None:
            if self.token_budget is None:
                passes = passes[0].split(batch_size)
            else:
                passes = self._plan_passes(input_ids, attention_mask, logits_to_keep)
        forwards = [self._packed_pass(model, input_ids, attention_mask, logits_to_keep, rows) for rows in passes]
        logps, entropies, _ = forwards[0] if len(passes) == 1 else _in_batch_order(forwards, passes)
        return Forward(logps, entropies if compute_entropy else None)

    def _packed_pass(self, model, input_ids, attention_mask, logits_to_keep, rows: torch.Tensor) -> Forward:
        """The forward of these rows of (B, P + T); where there is none, of one row without a completion."""
        if len(rows) == len(input_ids):
            mask = attention_mask
        elif len(rows):
            input_ids, mask = input_ids[rows], attention_mask[rows]
        else:  # a dummy pass: all ranks make equally many, and another has more rows
            input_ids, mask = input_ids[:1], attention_mask[:1].clone()
            mask[:, -logits_to_keep:] = 0
        if mask.all() and not self._packing_pays(input_ids, mask, logits_to_keep):
            self.account.add_padded(*_padded_size(input_ids, logits_to_keep), torch.is_grad_enabled())
            logps, entropies, _ = super()._get_per_token_logps_and_entropies(
                model, input_ids, mask, logits_to_keep, compute_entropy=True
            )
            return Forward(logps, entropies)
        packed = pack_rows(input_ids, mask, logits_to_keep, self.least_saving)
        self.account.add_packed(packed, torch.is_grad_enabled())
        with self.accelerator.autocast():
            return Forward(*log_probs_and_entropies(model, packed))

    def _packing_pays(self, input_ids, mask, logits_to_keep) -> bool:
        """Whether packing rows without padding saves enough: prompts, last tokens, further positions of the head."""
        rows, width, padded_scored = _padded_size(input_ids, logits_to_keep)
        prompt = width - logits_to_keep
        sharing = [(len(group) - 1) * prompt for group in prompt_groups(input_ids[:, :prompt], mask[:, :prompt])]
        shared = sum(tokens for tokens in sharing if tokens >= self.least_saving)
        padded = self.account.linear_operations(rows * width, rows * padded_scored)
        packed = self.account.linear_operations(rows * (width - 1) - shared, rows * logits_to_keep)
        cost = self.account.linear_operations(PACKING_COST * self.least_saving, 0)
        return padded - packed > max(LEAST_PACKING_SAVING * padded, cost)

    def _plan_passes(self, input_ids, attention_mask, logits_to_keep) -> list[torch.Tensor]:
        """Rows of each pass within the token budget, as many passes on every rank (empty ones at the end)."""
        plan = token_passes(
            input_ids[:, :-logits_to_keep],
            attention_mask[:, :-logits_to_keep],
            attention_mask[:, -logits_to_keep:],
            torch.zeros(len(input_ids)),
            self.token_budget,
            self.least_saving,
        )
        plan += [[]] * (self._largest_over_ranks([len(plan)])[0] - len(plan))
        return [torch.tensor(rows, dtype=torch.long, device=input_ids.device) for rows in plan]

    def _largest_over_ranks(self, numbers: list[int]) -> list[int]:
        """The largest of each number over all ranks."""
        numbers = torch.tensor([numbers], device=self.accelerator.device)
        return self.accelerator.gather(numbers).max(dim=0).values.tolist()

    def _early_backward(self, loss: torch.Tensor) -> torch.Tensor:
        """Backward of a pass before its step's last, without a step of DeepSpeed's. Returns the loss, detached."""
        on_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        state, before = self.accelerator.gradient_state, self.accelerator.sync_gradients
        state._set_sync_gradients(False)
        try:
            self.accelerator.backward(loss, **({"scale_wrt_gas": False} if on_deepspeed else {}))
        finally:
            state._set_sync_gradients(before)
        return loss.detach()

    def _unsynced(self, model):
        """Around forward and backward of a pass that is not its step's last."""
        on_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        return nullcontext() if on_deepspeed else self.accelerator.no_sync(model)

    @contextmanager
    def _pass_metrics(self, stage: str, tokens: float, rows: int):
        """TRL reduces the loss's metrics over ranks in every pass, by shapes that must agree; we keep them here.

        With a token budget ranks hold different rows, so TRL's collectives see this rank alone. `_log_loss_metrics`
        reduces what was kept, weighed by the passes' tokens or rows, once per step.
        """
        mode = "train" if self.model.training else "eval"
        metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        alone = self.token_budget is not None or self.accelerator.num_processes == 1
        accelerator = ThisRankOnly(self.accelerator) if alone else self.accelerator
        with replaced(self, _metrics=metrics, accelerator=accelerator):
            yield
        by_row = self.importance_sampling_level == "sequence"
        for name, values in metrics[mode].items():
            total = self._loss_metrics.setdefault(f"{stage}/{name}", _accumulator(name))
            for value in values:
                total.add(value, float(rows if by_row and "clip" in name else tokens))

    def _log_loss_metrics(self) -> None:
        """One value per metric for the passes since the last call, over all ranks."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        totals, self._loss_metrics = dict(sorted(self._loss_metrics.items())), {}
        if self.accelerator.num_processes > 1 and totals:
            numbers = torch.tensor([[total.numbers for total in totals.values()]], device=self.accelerator.device)
            totals = {name: _accumulator(name) for name in totals}
            for rank in self.accelerator.gather(numbers).tolist():
                for total, values in zip(totals.values(), rank, strict=True):
                    total.add_rank(*values)
        for name, total in totals.items():
            if total.value is not None:
                metrics[name].append(total.value)
            if DRIFT in name and metrics.get(name):
                self.drift[name] = metrics[name][-1]

    def _ratio_formed_in_loss(self):
        """TRL runs a forward for the importance ratio against vLLM; in aligned steps the loss's own forward serves."""
        generate_every = self.args.steps_per_generation * self.num_iterations
        aligned = self.args.gradient_accumulation_steps % generate_every == 0
        correction = self.vllm_importance_sampling_correction and not aligned
        return replaced(self, vllm_importance_sampling_correction=correction)

    def _compare_with_engine(self, logps: torch.Tensor, rows: Batch) -> None:
        """Where nothing compared the sampled tokens' log-probabilities so far: log the drift, add the ratio."""
        known = {"importance_sampling_ratio", "old_per_token_logps"} & rows.keys()
        if self.use_vllm and "sampling_per_token_logps" in rows and not known:
            ratio = self._importance_ratio(logps, rows)
            if self.vllm_importance_sampling_correction:
                rows["importance_sampling_ratio"] = ratio

    def _importance_ratio(self, logps: torch.Tensor, rows: Batch) -> torch.Tensor:
        """Probability of each sampled token (or sequence), trainer's over engine's, truncated or masked as TRL does.

        Logs the drift between the two. `logps` are the trainer's, (B, T); the ratio of a sequence is (B, 1).
        """
        difference = _difference(logps, rows)
        self._log_drift(difference, rows["completion_mask"])
        ratio, outside = self._ratio(difference)
        if self.vllm_importance_sampling_mode.endswith("truncate"):
            return ratio.clamp(min=self.vllm_importance_sampling_clip_min, max=self.vllm_importance_sampling_clip_max)
        return ratio.masked_fill(outside, 0.0)

    def _ratio(self, difference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The ratios of tokens (B, T), or of sequences (B, 1), and which of them are outside TRL's limits."""
        if self.vllm_importance_sampling_mode.startswith("sequence"):
            difference = difference.sum(dim=-1, keepdim=True)
        ratio = difference.exp()
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        return ratio, (ratio < (low if low is not None else 0.0)) | (ratio > (high if high is not None else torch.inf))

    def _log_sampling_drift(self, batch: Batch) -> None:
        """The drift, stage by stage, of a batch whose log-probabilities are known before its loss."""
        if {"old_per_token_logps", "sampling_per_token_logps"} <= batch.keys():
            difference = _difference(batch["old_per_token_logps"], batch)
            for index, stage in enumerate(STAGES):
                in_stage = (batch["stage"] == index).unsqueeze(1)  # (B, 1)
                if stage in self.args.stages:
                    self._log_drift(difference * in_stage, batch["completion_mask"] * in_stage, f"{stage}/")

    def _log_drift(self, difference: torch.Tensor, mask: torch.Tensor, prefix: str = "") -> None:
        """How far the engine's log-probabilities are from the trainer's, over all ranks, and what that clips."""
        size, counted = difference.abs(), mask.to(difference.dtype)
        clipped = self._ratio(difference)[1] * counted  # (B, T): tokens whose ratio is truncated or masked
        sums = self.accelerator.reduce(torch.stack([size.sum(), clipped.sum(), counted.sum()]), reduction="sum")
        metrics, tokens = self._metrics["train"], sums[2].clamp(min=1)
        metrics[f"{prefix}{DRIFT}/mean"].append((sums[0] / tokens).item())
        metrics[f"{prefix}{DRIFT}/max"].append(self.accelerator.gather(size.max()).max().item())
        if self.vllm_importance_sampling_correction:
            metrics[f"{prefix}importance_sampling_ratio/clipped"].append((sums[1] / tokens).item())


def _difference(logps: torch.Tensor, rows: Batch) -> torch.Tensor:
    """The trainer's log-probabilities minus the engine's, (B, T), 0 where a token is masked or the engine has none."""
    return ((logps - rows["sampling_per_token_logps"]) * rows["completion_mask"]).nan_to_num(nan=0.0)


def _in_batch_order(forwards: list[Forward], passes: list[torch.Tensor]) -> Forward:
    """The passes' rows in the batch's order, without those of dummy passes."""
    order = torch.cat(passes).argsort()

    def joined(values: list[torch.Tensor | None]) -> torch.Tensor | None:
        if values[0] is None:
            return None
        return torch.cat([value[: len(rows)] for value, rows in zip(values, passes, strict=True)])[order]

    return Forward(joined([each.logps for each in forwards]), joined([each.entropies for each in forwards]))


def _padded_size(input_ids: torch.Tensor, logits_to_keep: int) -> tuple[int, int, int]:
    """Rows, width, and positions per row that reach TRL's head: off CUDA the prompt's too."""
    rows, width = input_ids.shape
    return rows, width, logits_to_keep if input_ids.is_cuda else width - 1


def _cannot_share(model) -> str | None:
    """Why a model, wrapped by PEFT or not, cannot share prefixes, or None if it can."""
    if not isinstance(model, PeftModel):
        return unsupported(model)
    if model.active_peft_config.is_prompt_learning:
        return f"its adapter ({model.active_peft_config.peft_type.value}) puts tokens of its own before each row"
    return unsupported(model.get_base_model())


def _accumulator(name: str) -> WeightedMean | Extreme:
    """What a loss metric is added up in, by how TRL names its extremes: `clip_ratio/low_min`, `.../max`."""
    choose = {"min": min, "max": max}.get(name.rsplit("/", 1)[-1].rsplit("_", 1)[-1])
    return WeightedMean() if choose is None else Extreme(choose)
