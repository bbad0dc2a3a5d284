"""GRPOTrainer with the shared-prefix forward, and with several passes in one training step."""

import logging
from collections import defaultdict
from contextlib import contextmanager, nullcontext

import torch
from accelerate.utils import DistributedType
from peft import PeftModel
from trl import GRPOTrainer

from gsr_rl.training.checks import ROUTER_LOSS
from gsr_rl.training.packing.batching import STAGES, Batch, token_passes
from gsr_rl.training.packing.rows import pack_rows, prompt_groups
from gsr_rl.training.packing.shared_prefix import least_saving, log_probs_and_entropies, share_prefixes, unsupported
from gsr_rl.training.packing.throughput import StepAccount

logger = logging.getLogger(__name__)

LEAST_PACKING_SAVING = 0.05  # of a pass's operations in linear layers, and
PACKING_COST = 1 / 8  # of what sharing a prompt must save

DRIFT = "sampling_logp_difference"


class PackedGRPOTrainer(GRPOTrainer):
    """TRL's trainer with two more abilities, for `GSRTrainer` to build on.

    `shares_prefixes` says whether log-probabilities come from packed rows; `token_budget` is the limit of computed
    tokens a pass, or None for micro-batches of rows.
    """

    def __init__(self, model, reward_funcs=None, args=None, **kwargs):
        self.shares_prefixes = False
        self.account = StepAccount()
        self._forward = None  # a forward's result, waiting for TRL's loss to take it
        self._loss_metrics: dict[str, list[tuple[float, float]]] = defaultdict(list)  # name -> (value, weight) a pass
        self.drift: dict[str, float] = {}  # each stage's last distance of the engine's log-probabilities, by metric
        super().__init__(model, reward_funcs, args=args, **kwargs)
        if self.aux_loss_enabled:
            name = f"router_aux_loss_coef={self.router_aux_loss_coef} of {type(self.model).__name__}'s own config"
            raise ValueError(f"{name}: {ROUTER_LOSS}: set router_aux_loss_coef to 0")
        self.shares_prefixes = args.shared_prefix and self._share_prefixes()
        unwrapped = self.accelerator.unwrap_model(self.model)
        self.account.start(unwrapped, self.accelerator.device, torch.bfloat16 if args.bf16 else unwrapped.dtype)
        self.token_budget = args.max_tokens_per_micro_batch if self.shares_prefixes else None
        self.least_saving = least_saving(self.model) if self.shares_prefixes else 0

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
    ):
        """TRL runs padded rows; we run packed rows, or hand over the forward that our loss has made already."""
        if self._forward is not None:
            result, self._forward = self._forward, None
            return result
        if not self.shares_prefixes:
            self.account.add_padded(*_padded_size(input_ids, logits_to_keep), torch.is_grad_enabled())
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
        every = torch.arange(len(input_ids), device=input_ids.device)
        if torch.is_grad_enabled() or batch_size is None:
            passes = [every]
        elif self.token_budget is None:
            passes = every.split(batch_size)
        else:
            passes = self._planned(input_ids, attention_mask, logits_to_keep)
        found = [self._packed_pass(model, input_ids, attention_mask, logits_to_keep, rows) for rows in passes]
        if len(passes) > 1:  # back to the batch's order, without the passes that only keep step
            order = torch.cat(passes).argsort()
            found = [
                [None if part is None else part[: len(rows)] for part in one]
                for one, rows in zip(found, passes, strict=True)
            ]
            logps, entropies = (
                None if parts[0] is None else torch.cat(parts)[order] for parts in zip(*found, strict=True)
            )
        else:
            logps, entropies = found[0]
        return logps, entropies if compute_entropy else None, None

    def _packed_pass(self, model, input_ids, attention_mask, logits_to_keep, rows):
        """Log-probabilities and entropies of some rows, (rows, T); if there is none, of one without a completion."""
        if len(rows) == len(input_ids):
            mask = attention_mask
        elif len(rows):
            input_ids, mask = input_ids[rows], attention_mask[rows]
        else:  # another rank has more passes
            input_ids, mask = input_ids[:1], attention_mask[:1].clone()
            mask[:, -logits_to_keep:] = 0
        if mask.all() and not self._packing_pays(input_ids, mask, logits_to_keep):
            self.account.add_padded(*_padded_size(input_ids, logits_to_keep), torch.is_grad_enabled())
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, mask, logits_to_keep, compute_entropy=True
            )[:2]
        packed = pack_rows(input_ids, mask, logits_to_keep, self.least_saving)
        self.account.add_packed(packed, torch.is_grad_enabled())
        with self.accelerator.autocast():
            return log_probs_and_entropies(model, packed)

    def _packing_pays(self, input_ids, mask, logits_to_keep) -> bool:
        """Whether packing rows without padding saves enough: prompts, last tokens, further positions of the head."""
        rows, width, padded_scored = _padded_size(input_ids, logits_to_keep)
        prompt = width - logits_to_keep
        sharing = [(len(group) - 1) * prompt for group in prompt_groups(input_ids[:, :prompt], mask[:, :prompt])]
        shared = sum(tokens for tokens in sharing if tokens >= self.least_saving)
        padded = self.account.linear_operations(rows * width, rows * padded_scored)
        saved = padded - self.account.linear_operations(rows * (width - 1) - shared, rows * logits_to_keep)
        least = self.account.linear_operations(PACKING_COST * self.least_saving, 0)
        return saved > max(LEAST_PACKING_SAVING * padded, least)

    def _planned(self, input_ids, attention_mask, logits_to_keep) -> list[torch.Tensor]:
        """Rows of each pass within the token budget, as many passes on every rank (empty ones at the end)."""
        plan = token_passes(
            input_ids[:, :-logits_to_keep],
            attention_mask[:, :-logits_to_keep],
            attention_mask[:, -logits_to_keep:],
            torch.zeros(len(input_ids)),
            self.token_budget,
            self.least_saving,
        )
        plan += [[]] * (self._most([len(plan)])[0] - len(plan))
        return [torch.tensor(rows, dtype=torch.long, device=input_ids.device) for rows in plan]

    def _most(self, numbers: list[int]) -> list[int]:
        """The largest of each number over all ranks."""
        numbers = torch.tensor([numbers], device=self.accelerator.device)
        return self.accelerator.gather(numbers).max(dim=0).values.tolist()

    def _early_backward(self, loss: torch.Tensor) -> torch.Tensor:
        """Backward of a pass that is not its step's last: gradients stay here, and DeepSpeed takes no step.

        Returns:
            The loss, detached.
        """
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
    def _pass_metrics(self, prefix: str, tokens: float, rows: int):
        """TRL reduces the loss's metrics over ranks in every pass, by shapes that must agree; we keep them here.

        With a token budget ranks hold different rows, so TRL's collectives see this rank alone. `_log_loss_metrics`
        reduces what is kept, once a step.
        """
        mode = "train" if self.model.training else "eval"
        outer, self._metrics[mode] = self._metrics[mode], defaultdict(list)
        whole = self.accelerator
        if self.token_budget is not None or whole.num_processes == 1:
            self.accelerator = _ThisRank(whole)
        try:
            yield
        finally:
            self.accelerator = whole
            inner, self._metrics[mode] = self._metrics[mode], outer
            by_row = self.importance_sampling_level == "sequence"
            for name, values in inner.items():
                weight = float(rows if by_row and "clip" in name else tokens)
                self._loss_metrics[f"{prefix}/{name}"] += [(value, weight) for value in values]

    def _log_loss_metrics(self) -> None:
        """One value a metric for the passes since the last call, over all ranks: a mean by weight, or an extreme."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        kept, self._loss_metrics = sorted(self._loss_metrics.items()), defaultdict(list)
        extremes = [_extreme(name) for name, _ in kept]
        sums = [
            (sum(value * weight for value, weight in pairs if weight), sum(weight for _, weight in pairs))
            if extreme is None
            else (extreme([value for value, _ in pairs if value == value], default=float("nan")), 1.0)
            for (_, pairs), extreme in zip(kept, extremes, strict=True)
        ]
        ranks = [sums]
        if self.accelerator.num_processes > 1 and sums:
            ranks = self.accelerator.gather(torch.tensor([sums], device=self.accelerator.device)).tolist()
        for (name, _), extreme, *pairs in zip(kept, extremes, *ranks, strict=True):
            weight = sum(weight for _, weight in pairs)
            if extreme is not None:
                values = [value for value, _ in pairs if value == value]
                metrics[name].append(extreme(values, default=float("nan")))
            elif weight > 0:
                metrics[name].append(sum(value for value, _ in pairs) / weight)
            if DRIFT in name and metrics.get(name):
                self.drift[name] = metrics[name][-1]

    @contextmanager
    def _ratio_formed_in_loss(self):
        """TRL runs a forward for the importance ratio against vLLM; in aligned steps the loss's own forward serves."""
        correction = self.vllm_importance_sampling_correction
        generate_every = self.args.steps_per_generation * self.num_iterations
        aligned = self.args.gradient_accumulation_steps % generate_every == 0
        self.vllm_importance_sampling_correction = correction and not aligned
        try:
            yield
        finally:
            self.vllm_importance_sampling_correction = correction

    def _compare_with_engine(self, logps: torch.Tensor, rows: Batch) -> None:
        """Where nothing compared the sampled tokens' log-probabilities so far: log the drift, add the ratio."""
        known = {"importance_sampling_ratio", "old_per_token_logps"} & rows.keys()
        if self.use_vllm and "sampling_per_token_logps" in rows and not known:
            ratio = self._importance_ratio(logps, rows)
            if self.vllm_importance_sampling_correction:
                rows["importance_sampling_ratio"] = ratio

    def _importance_ratio(self, logps: torch.Tensor, rows: Batch) -> torch.Tensor:
        """Trainer's over engine's probability of each sampled token (or sequence), truncated or masked as TRL does.

        Logs the drift between the two.

        Returns:
            (B, T) for the token modes, (B, 1) for the sequence modes.
        """
        difference = _difference(logps, rows)
        self._log_drift(difference, rows["completion_mask"])
        mode = self.vllm_importance_sampling_mode
        if mode.startswith("sequence"):
            difference = difference.sum(dim=-1, keepdim=True)
        ratio = difference.exp()
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        if mode.endswith("truncate"):
            return ratio.clamp(min=low, max=high)
        outside = (ratio < (low if low is not None else 0.0)) | (ratio > (high if high is not None else torch.inf))
        return ratio.masked_fill(outside, 0.0)

    def _log_sampling_drift(self, batch: Batch) -> None:
        """The drift, stage by stage, of a batch whose log-probabilities are known before its loss."""
        if {"old_per_token_logps", "sampling_per_token_logps"} <= batch.keys():
            difference = _difference(batch["old_per_token_logps"], batch)
            for index, stage in enumerate(STAGES):
                own = (batch["stage"] == index).unsqueeze(1)
                if stage in self.args.stages:
                    self._log_drift(difference * own, batch["completion_mask"] * own, f"{stage}/")

    def _log_drift(self, difference: torch.Tensor, mask: torch.Tensor, prefix: str = "") -> None:
        """How far the engine's log-probabilities are from the trainer's, over all ranks."""
        size = difference.abs()
        sums = self.accelerator.reduce(torch.stack([size.sum(), mask.sum().to(size.dtype)]), reduction="sum")
        metrics = self._metrics["train"]
        metrics[f"{prefix}{DRIFT}/mean"].append((sums[0] / sums[1].clamp(min=1)).item())
        metrics[f"{prefix}{DRIFT}/max"].append(self.accelerator.gather(size.max()).max().item())


def _difference(logps: torch.Tensor, rows: Batch) -> torch.Tensor:
    """The trainer's log-probabilities minus the engine's, (B, T), 0 where a token is masked or the engine has none."""
    return ((logps - rows["sampling_per_token_logps"]) * rows["completion_mask"]).nan_to_num(nan=0.0)


def _padded_size(input_ids: torch.Tensor, logits_to_keep: int) -> tuple[int, int, int]:
    """Rows, width, and positions a row that reach TRL's head: off CUDA the prompt's too."""
    rows, width = input_ids.shape
    return rows, width, logits_to_keep if input_ids.is_cuda else width - 1


def _cannot_share(model) -> str | None:
    """Why a model, wrapped by PEFT or not, cannot share prefixes, or None if it can."""
    if not isinstance(model, PeftModel):
        return unsupported(model)
    if model.active_peft_config.is_prompt_learning:
        return f"its adapter ({model.active_peft_config.peft_type.value}) puts tokens of its own before each row"
    return unsupported(model.get_base_model())


def _extreme(name: str):
    """`min` or `max` for a metric that is one, else None."""
    return {"min": min, "max": max}.get(name.rsplit("/", 1)[-1].rsplit("_", 1)[-1])


class _ThisRank:
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
