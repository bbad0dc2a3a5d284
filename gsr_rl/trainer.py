"""GSRTrainer: TRL's GRPOTrainer on blocks of candidates and refinements. Only what must differ.

Each override says in its first line what TRL does and what we do instead. TRL is pinned, and a contract test names
each overridden method whose signature changes.
"""

import os
import time
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from functools import partial

import pandas as pd
import torch
from accelerate.utils import gather
from trl.trainer import grpo_trainer
from trl.trainer.utils import RepeatSampler

from gsr_rl import windows
from gsr_rl.advantages import candidate_advantages, refinement_advantages, without_signal
from gsr_rl.configs import GSRConfig
from gsr_rl.micro_batches import share_out, token_passes
from gsr_rl.packed_trainer import PackedGRPOTrainer
from gsr_rl.rollout import TwoStageRollout
from gsr_rl.rollout_metrics import rollout_rows, rollout_sums
from gsr_rl.run_folder import atomic_path, json_lines_callback
from gsr_rl.windows import STAGES


class GSRTrainer(PackedGRPOTrainer):
    """Joint GRPO: one policy samples candidates, refines over them, and learns from both in one update.

    Takes what `GRPOTrainer` takes, with a `GSRConfig`. The data set's rows have `prompt` (the solve chat), `problem`,
    `problem_id` and `answer`. `last_rollout` holds the blocks of the last rollout.

    Raises:
        ValueError: No `GSRConfig`, a missing column, or a `rollout_func` (the two-stage rollout is ours).
    """

    _tag_names = ["trl", "grpo", "gsr"]  # noqa: RUF012 - TRL's own form
    _name = "GSR"

    def __init__(self, model, reward_funcs=None, args: GSRConfig | None = None, train_dataset=None, **kwargs):
        if not isinstance(args, GSRConfig):
            raise ValueError(f"args must be a GSRConfig, got {type(args).__name__}")
        missing = {"prompt", "problem", "problem_id", "answer"} - set(train_dataset.column_names)
        if missing:
            raise ValueError(f"the training data set lacks the columns {sorted(missing)}: see gsr_rl.problems")
        if kwargs.get("rollout_func") is not None:
            raise ValueError("rollout_func cannot be set: GSRTrainer brings its own two-stage rollout")
        self.last_rollout = TwoStageRollout()
        self.rollout_rows: list[dict] = []
        self._silent: dict[str, list[float]] = {}  # stage -> [groups without signal, groups]
        self._seconds: dict[str, float] = defaultdict(float)
        callbacks = [*(kwargs.pop("callbacks", None) or []), json_lines_callback(args.output_dir)]
        with _engine_in_place(args):
            super().__init__(
                model,
                reward_funcs,
                args=args,
                train_dataset=train_dataset,
                rollout_func=self.last_rollout,
                callbacks=callbacks,
                **kwargs,
            )

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its completion may have together, in the engine and in the model."""
        model_length = getattr(self.model.config.get_text_config(), "max_position_embeddings", 1 << 30)
        return min(self.args.vllm_max_model_length or model_length, model_length)

    def sample(self, prompt_ids: list[list[int]], n: int, max_tokens: int) -> tuple[list, list | None]:
        """n completions of each prompt from TRL's engine, whichever it is, with this stage's limit.

        Returns:
            Token ids and log-probabilities (None without vLLM), each one list a completion, a prompt's n in a row.
        """
        engine = self.vllm_generation if self.use_vllm else self.generation_config
        limit = "max_completion_length" if self.use_vllm else "max_new_tokens"
        previous = getattr(engine, limit)
        setattr(engine, limit, max_tokens)
        try:
            rows = [ids for ids in prompt_ids for _ in range(n)]
            return self._generate_single_turn(rows, None, {}, n)
        finally:
            setattr(engine, limit, previous)

    def _get_train_sampler(self, dataset=None):
        """TRL repeats a problem G times; a block repeats it once for each of its rows."""
        block = self.args.block_size
        return RepeatSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=block,
            batch_size=self.args.generation_batch_size // block,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    def _get_eval_sampler(self, eval_dataset):
        """TRL repeats a problem G times; an evaluation block holds both stages."""
        return RepeatSampler(
            data_source=eval_dataset, mini_repeat_count=2 * self.num_generations_eval, seed=self.args.seed
        )

    def training_step(self, model, inputs, num_items_in_batch):
        """TRL times the whole step; we also time the update apart from the rollout inside it."""
        start, before = time.perf_counter(), self._seconds["generation"]
        output = super().training_step(model, inputs, num_items_in_batch)
        generation = self._seconds["generation"] - before
        self._seconds["update"] += time.perf_counter() - start - generation
        if self.accelerator.sync_gradients:
            self._metrics["train"]["time/update"].append(self._seconds.pop("update"))
        return output

    def _prepare_inputs(self, generation_batch):
        """TRL shuffles rows over micro-batches; we keep whole blocks in every optimizer window, stage by stage."""
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        per_generation = self.args.steps_per_generation
        if self._step % (per_generation * self.num_iterations) == 0 or self._buffered_inputs is None:
            start = time.perf_counter()
            batch = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = self._split(batch)
            self._seconds["generation"] += time.perf_counter() - start
        return self._buffered_inputs[self._step % per_generation]

    def _split(self, batch: windows.Batch) -> list[windows.Batch]:
        """Micro-batches in the order of training: each its passes, and its window's counts over all ranks."""
        accumulation, block = self.args.gradient_accumulation_steps, self.args.block_size
        num_windows = self.args.steps_per_generation // accumulation
        order = windows.window_order(len(batch["stage"]), block, len(self.args.stages), num_windows)
        batch = windows.take_rows(batch, order.to(batch["stage"].device))
        counts = windows.stage_counts(batch["stage"], batch["completion_mask"], num_windows)
        counts = self.accelerator.reduce(counts, reduction="sum")
        rows = torch.arange(len(order), device=batch["stage"].device)
        if self.token_budget is None:
            passes = [
                windows.stage_parts(windows.take_rows(batch, part)) for part in rows.chunk(len(counts) * accumulation)
            ]
        else:
            passes = self._token_passes([windows.take_rows(batch, part) for part in rows.chunk(num_windows)])
        return [
            {"passes": part, "window_counts": counts[number // accumulation]} for number, part in enumerate(passes)
        ]

    def _token_passes(self, parts: list[windows.Batch]) -> list[list[windows.Batch]]:
        """Passes within the token budget for each step of each window, equally many on every rank."""
        columns = ("prompt_ids", "prompt_mask", "completion_mask", "stage")
        limits = (self.token_budget, self.least_saving)
        plans = [token_passes(*(part[key] for key in columns), *limits) for part in parts]
        steps = []
        for part, plan, most in zip(parts, plans, self._most([len(plan) for plan in plans]), strict=True):
            passes = [windows.stage_parts(windows.take_rows(part, torch.tensor(rows)))[0] for rows in plan]
            passes += [windows.without_tokens(passes[-1])] * (most - len(plan))
            steps += share_out(passes, self.args.gradient_accumulation_steps)
        return steps

    def _generate_and_score_completions(self, inputs):
        """TRL pools a prompt's rollouts into one advantage group; ours are by problem, stage and candidate set."""
        self.rollout_rows = inputs
        with self._ratio_formed_in_loss():
            output = super()._generate_and_score_completions(inputs)
        mode = "train" if self.model.training else "eval"
        flat = [row for block in self.last_rollout.blocks for row in block.rows(list(STAGES))]
        if mode == "train":
            flat = [(rollout, stage) for rollout, stage in flat if stage in self.args.stages]
        device = output["advantages"].device
        output["advantages"] = torch.tensor([rollout.advantage for rollout, _ in flat], device=device)
        output["stage"] = torch.tensor([STAGES.index(stage) for _, stage in flat], device=device)
        scored = torch.tensor([rollout.scored for rollout, _ in flat], device=device)
        output["completion_mask"] = output["completion_mask"] * scored.unsqueeze(1)
        del output["num_items_in_batch"]  # counted for each stage and window instead
        self._log_rollout(mode)
        return output

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        """TRL sums the rewards that are numbers; a row without a grade is unscored here, whatever the others say."""
        start = time.perf_counter()
        gathered = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        stages = self.args.stages if self.model.training else STAGES
        flat = [rollout for block in self.last_rollout.blocks for rollout, _ in block.rows(stages)]
        unscored = torch.tensor([not rollout.scored for rollout in flat], device=gathered.device)
        gathered[gather(unscored)] = torch.nan
        first = self.accelerator.process_index * len(flat)
        weighted = gathered * self.reward_weights.to(gathered.device)
        totals = weighted.nansum(dim=1).masked_fill(gathered.isnan().all(dim=1), torch.nan)
        for rollout, total in zip(flat, totals[first : first + len(flat)].tolist(), strict=True):
            rollout.reward = total
        self._set_advantages(stages)
        self.last_rollout.seconds["reward"] += time.perf_counter() - start
        return gathered

    def _set_advantages(self, stages) -> None:
        """Advantages of this rank's blocks. Blocks are whole on a rank, so no other rank is asked."""
        blocks, args = self.last_rollout.blocks, self.args
        scale = args.scale_rewards == "group"
        for stage in stages:
            groups = [block.candidates if stage == "candidate" else block.refinements for block in blocks]
            rewards = torch.tensor([[rollout.reward for rollout in group] for group in groups])
            if stage == "candidate":
                values = candidate_advantages(rewards, args.candidate_objective, args.num_candidates, scale)
                silent = without_signal(values, 1)
            else:
                num_sets = len(blocks[0].sets)
                values = refinement_advantages(rewards, num_sets, scale)
                silent = without_signal(values, num_sets)
            self._silent[stage] = [float(silent.sum()), float(len(silent))]
            for group, row in zip(groups, values.tolist(), strict=True):
                for rollout, advantage in zip(group, row, strict=True):
                    rollout.advantage = advantage

    def _compute_loss(self, model, inputs):
        """TRL's loss over all rows at once; ours is its loss on each pass's rows, (w_c L_c + w_r L_r) / (w_c + w_r).

        In training each pass but the last has its backward here, so that one pass's activations stand in memory.
        """
        counts = inputs.get("window_counts")
        if counts is None:  # evaluation: the batch is its own window
            counts = windows.stage_counts(inputs["stage"], inputs["completion_mask"], 1)[0]
            counts = self.accelerator.reduce(counts, reduction="sum")
        weights = {"candidate": self.args.candidate_weight, "refinement": self.args.refinement_weight}
        present = {stage: weights[stage] for index, stage in enumerate(STAGES) if counts[index, 0] > 0}
        total = sum(present.values()) or 1.0
        passes = inputs["passes"] if "passes" in inputs else windows.stage_parts(inputs)
        loss = torch.zeros((), device=counts.device, requires_grad=torch.is_grad_enabled())
        for number, rows in enumerate(passes):
            stage = STAGES[int(rows["stage"][0])]
            early = torch.is_grad_enabled() and number + 1 < len(passes)
            with self._unsynced(model) if early else nullcontext():
                with self._pass_metrics(stage, rows["completion_mask"].sum().item(), len(rows["stage"])):
                    part = self._stage_loss(model, dict(rows), stage, counts[STAGES.index(stage)])
                part = part * (present.get(stage, 0.0) / total)
                loss = loss.detach() + (self._early_backward(part) if early else part)
        if self.accelerator.sync_gradients:
            self._log_loss_metrics()
        return loss

    def _stage_loss(self, model, rows: windows.Batch, stage: str, count: torch.Tensor) -> torch.Tensor:
        """TRL's loss on one stage's rows of a micro-batch, its part of the stage's loss over the window."""
        training = self.model.training
        accumulation = self.current_gradient_accumulation_steps if training else 1
        ids = torch.cat([rows["prompt_ids"], rows["completion_ids"]], dim=1)
        mask = torch.cat([rows["prompt_mask"], rows["completion_mask"]], dim=1)
        forward = self._get_per_token_logps_and_entropies(
            model,
            ids,
            mask,
            rows["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
        )
        if self.use_vllm and self.vllm_importance_sampling_correction and "importance_sampling_ratio" not in rows:
            rows["importance_sampling_ratio"] = self._importance_ratio(forward[0].detach(), rows)
        window = self.args.steps_per_generation / accumulation if training else 1.0
        rows["num_items_in_batch"] = count[1] * window
        self._forward = forward
        limit, self.max_completion_length = self.max_completion_length, self._limit(stage)
        try:
            loss = super()._compute_loss(model, rows)
        finally:
            self.max_completion_length, self._forward = limit, None
        return loss * windows.loss_scale(
            self.loss_type, rows["completion_mask"], count, accumulation, self.accelerator.num_processes
        )

    def _limit(self, stage: str) -> int:
        return self.args.max_completion_length if stage == "candidate" else self.args.max_refinement_length

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

    def _importance_ratio(self, logps: torch.Tensor, rows: windows.Batch) -> torch.Tensor:
        """Trainer's over engine's probability of each sampled token (or sequence), truncated or masked as TRL does.

        Returns:
            (B, T) for the token modes, (B, 1) for the sequence modes.
        """
        mask = rows["completion_mask"]
        difference = ((logps - rows["sampling_per_token_logps"]) * mask).nan_to_num(nan=0.0)
        self._log_drift(difference, mask)
        mode = self.vllm_importance_sampling_mode
        if mode.startswith("sequence"):
            difference = difference.sum(dim=-1, keepdim=True)
        ratio = difference.exp()
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        if mode.endswith("truncate"):
            return ratio.clamp(min=low, max=high)
        outside = (ratio < (low if low is not None else 0.0)) | (ratio > (high if high is not None else torch.inf))
        return ratio.masked_fill(outside, 0.0)

    def _log_drift(self, difference: torch.Tensor, mask: torch.Tensor) -> None:
        """How far the engine's log-probabilities are from the trainer's, over all ranks."""
        size = difference.abs()
        sums = self.accelerator.reduce(torch.stack([size.sum(), mask.sum().to(size.dtype)]), reduction="sum")
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["sampling_logp_difference/mean"].append((sums[0] / sums[1].clamp(min=1)).item())
        metrics["sampling_logp_difference/max"].append(self.accelerator.gather(size.max()).max().item())

    def _log_rollout(self, mode: str) -> None:
        """Rollout metrics over all ranks, seconds of the slowest rank, and the rollout table."""
        blocks, step = self.last_rollout.blocks, self.state.global_step
        sums = rollout_sums(blocks, self.args.num_candidates)
        sums |= {f"{stage}/no_signal": self._silent.get(stage, [0.0, 0.0]) for stage in STAGES}
        device = self.accelerator.device
        pairs = self.accelerator.reduce(torch.tensor(list(sums.values()), device=device), reduction="sum").tolist()
        for name, (total, count) in zip(sums, pairs, strict=True):
            if count > 0:
                self._metrics[mode][name].append(total / count)
        seconds = dict(self.last_rollout.seconds)
        seconds["sync"] = getattr(getattr(self, "vllm_generation", None), "sync_seconds", 0.0)
        if self.use_vllm:
            self.vllm_generation.sync_seconds = 0.0
        slowest = self.accelerator.gather(torch.tensor([list(seconds.values())], device=device)).max(dim=0).values
        for name, value in zip(seconds, slowest.tolist(), strict=True):
            self._metrics[mode][f"time/{name}"].append(value)
        if mode == "train":
            self._write_rollouts(step)

    def _write_rollouts(self, step: int) -> None:
        """This rank's rollouts of a step as parquet, by atomic rename."""
        folder = os.path.join(self.args.output_dir, "rollouts")
        path = os.path.join(folder, f"step_{step:06d}_rank_{self.accelerator.process_index}.parquet")
        rows = rollout_rows(self.last_rollout.blocks, step, self.processing_class)
        with atomic_path(path) as temporary:
            pd.DataFrame(rows).to_parquet(temporary)


@contextmanager
def _engine_in_place(args: GSRConfig):
    """TRL's __init__ names its engine class as a module global; ours stands there while it runs."""
    original = grpo_trainer.VLLMGeneration
    if args.use_vllm and args.vllm_mode == "colocate":
        from gsr_rl.colocated import ColocatedVLLM
        from gsr_rl.generation import cpu_environment

        on_cpu = not torch.cuda.is_available()
        if on_cpu:
            cpu_environment()
        eager = on_cpu if args.vllm_enforce_eager is None else args.vllm_enforce_eager
        options = {"dtype": args.vllm_dtype, "enforce_eager": eager}
        grpo_trainer.VLLMGeneration = partial(ColocatedVLLM, seed=args.seed, engine_options=options)
    try:
        yield
    finally:
        grpo_trainer.VLLMGeneration = original
