"""GSRTrainer: TRL's GRPOTrainer on blocks of candidates and refinements. Only what must differ.

Each override says in its first line what TRL does and what we do instead. TRL is pinned, and a contract test names
each overridden method whose signature changes.
"""

import logging
import os
import time
from collections import defaultdict
from contextlib import contextmanager, nullcontext

import torch
from accelerate.utils import gather, gather_object
from trl.extras.profiling import profiling_context
from trl.trainer.utils import RepeatSampler

from gsr_rl.run_folder import json_lines_callback
from gsr_rl.training.advantages import has_signal, set_advantages
from gsr_rl.training.checkpoints import PushesToHub, WholeCheckpoints
from gsr_rl.training.config import GSRConfig
from gsr_rl.training.launch import warn_of_lost_updates
from gsr_rl.training.packing import batching
from gsr_rl.training.packing.batching import STAGES, Batch, MicroBatch
from gsr_rl.training.packing.throughput import synchronized_seconds, unique_tokens
from gsr_rl.training.packing.trainer import Forward, PackedGRPOTrainer, replaced
from gsr_rl.training.problem_order import ProblemStream, RolloutsAhead, sampling_limit
from gsr_rl.training.rollout import Block, Plan, Rollout, TwoStageRollout
from gsr_rl.training.rollout_log import RolloutLog, evaluate_held_out
from gsr_rl.training.server_requests import ServerStream
from gsr_rl.training.vllm_colocated import RequestStream, engine_in_place

logger = logging.getLogger(__name__)

STREAM_STATE = "problem_stream.json"


class GSRTrainer(PushesToHub, WholeCheckpoints, PackedGRPOTrainer):
    """Joint GRPO: one policy samples candidates, refines over them, and learns from both in one update.

    Takes what `GRPOTrainer` takes, with a `GSRConfig`. The data sets' rows have `prompt` (the solve chat), `problem`,
    `problem_id` and `answer`; rewards get their other columns too. `blocks` holds the problems of the last rollout.

    Raises:
        ValueError: No `GSRConfig`, a missing column, or what would change the two-stage rollout: `rollout_func`,
            `tools` or `environment_factory`.
    """

    _tag_names = ["trl", "grpo", "gsr"]  # noqa: RUF012 - TRL's own form
    _name = "GSR"

    def __init__(self, model, reward_funcs=None, args: GSRConfig | None = None, train_dataset=None, **kwargs):
        if not isinstance(args, GSRConfig):
            raise ValueError(f"args must be a GSRConfig, got {type(args).__name__}")
        for dataset in filter(None, (train_dataset, kwargs.get("eval_dataset"))):
            if missing := {"prompt", "problem", "problem_id", "answer"} - set(dataset.column_names):
                raise ValueError(f"a data set lacks the columns {sorted(missing)}: see gsr_rl.data.problems")
        for name in ("rollout_func", "tools", "environment_factory"):
            if kwargs.get(name):
                raise ValueError(f"{name} cannot be set: GSRTrainer brings its own two-stage rollout, leave it out")
        self.blocks: list[Block] = []
        self.driver = TwoStageRollout(self)
        self.problem_stream = ProblemStream(len(train_dataset), args.seed, args.shuffle_dataset, args.curriculum)
        self.rollout_log = RolloutLog(self)
        self._seconds: dict[str, float] = defaultdict(float)
        self._useful_tokens: list[int] = []  # of each optimizer window of the generation batch
        callbacks = [*(kwargs.pop("callbacks", None) or []), json_lines_callback(args.output_dir)]
        with engine_in_place(args):
            kwargs |= {"train_dataset": train_dataset, "callbacks": callbacks, "rollout_func": _batch_of_blocks}
            super().__init__(model, reward_funcs, args=args, **kwargs)
        self.ahead = RolloutsAhead(self) if args.rollout_ahead else None
        warn_of_lost_updates(self)

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its completion may have together, in the engine and in the model."""
        model_length = getattr(self.model.config.get_text_config(), "max_position_embeddings", 1 << 30)
        server = self.vllm_generation.context_length if self.use_vllm and self.vllm_mode == "server" else None
        return min(self.args.vllm_max_model_length or model_length, server or model_length, model_length)

    @property
    def weights_step(self) -> int:
        """The optimizer step whose weights the engine has."""
        return self._last_loaded_step if self.use_vllm else self.state.global_step

    def sample(self, prompt_ids: list[list[int]], n: int, max_tokens: int) -> tuple[list[list[int]], list | None]:
        """n completions of each prompt from TRL's engine, whichever it is, with this stage's limit.

        Returns:
            len(prompt_ids) * n lists of token ids, a prompt's n one after the other, and as many lists of
            log-probabilities (None without vLLM).
        """
        engine = self.vllm_generation if self.use_vllm else self.generation_config
        limit = "max_completion_length" if self.use_vllm else "max_new_tokens"
        with replaced(engine, **{limit: max_tokens}):
            return self._generate_single_turn([ids for ids in prompt_ids for _ in range(n)], None, {}, n)

    def stream(self) -> RequestStream | ServerStream | None:
        """The engine, request by request, or None where it takes whole lists or that is not wanted."""
        return self.vllm_generation.stream() if self.use_vllm and self.args.streamed_rollout else None

    @contextmanager
    def engine_ready(self):
        """Weights pushed if a step has changed them, and an engine with sleep mode awake, once for all inside."""
        if self.use_vllm and self.state.global_step != self._last_loaded_step:
            with profiling_context(self, "sync_weights"):
                self.vllm_generation.sync_weights()
            self._last_loaded_step = self.state.global_step
        with self.vllm_generation.awake() if self.use_vllm else nullcontext():
            yield

    def roll_out(self, rows: list[dict], plan: Plan, indices: list[int] | None = None) -> list[Block]:
        """Roll out these problems (every rank equally many) with the newest weights."""
        with self.engine_ready():
            if not (self.use_vllm and self.vllm_mode == "server"):
                return self.driver.run(rows, plan, indices)
            return self.vllm_generation.on_all_ranks("sampling", lambda: self.driver.run(rows, plan, indices))

    def _get_train_sampler(self, dataset=None):
        """TRL's order of problems comes from here; ours from `problem_stream`.

        The indices of this sampler are not used: only their number is, by which TRL counts generations and epochs.
        """
        rows = self.args.generation_batch_size
        problems, wanted = len(self.train_dataset if dataset is None else dataset), rows // self.args.block_size
        if problems < wanted and self.accelerator.is_main_process:
            text = "%d problems are fewer than the %d of one generation, which holds some of them more than once"
            logger.warning(text, problems, wanted)
        return RepeatSampler(
            data_source=range(max(1, problems // wanted)),
            mini_repeat_count=rows,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=False,
        )

    def can_save_here(self) -> bool:
        """Only where the next step samples anew: a checkpoint holds no rollouts."""
        return self._step % (self.args.steps_per_generation * self.num_iterations) == 0

    def save_extra_state(self, folder: str) -> None:
        """A checkpoint also says which problems come next."""
        self.problem_stream.save(os.path.join(folder, STREAM_STATE))

    def _load_optimizer_and_scheduler(self, checkpoint):
        """TRL restores what it saved; we also restore where the problems stand."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.ahead is not None:
            self.ahead.start_anew()
        if checkpoint is not None:
            self.problem_stream.load(os.path.join(checkpoint, STREAM_STATE))

    def training_step(self, model, inputs, num_items_in_batch):
        """TRL times the whole step; we also time the update apart from the rollout inside it.

        TRL's `_step` counts training steps, of which an optimizer window has `gradient_accumulation_steps`.
        """
        device, window = self.accelerator.device, self._step // self.args.gradient_accumulation_steps
        start, before = synchronized_seconds(device), self._seconds["generation"]
        output = super().training_step(model, inputs, num_items_in_batch)
        generation = self._seconds["generation"] - before
        self._seconds["update"] += synchronized_seconds(device) - start - generation
        if self.accelerator.sync_gradients:
            update = self.rollout_log.slowest({"update": self._seconds.pop("update")})["time/update"]
            useful = self._useful_tokens[window % self.args.num_windows]
            self._metrics["train"]["time/update"].append(update)
            for name, value in self.account.metrics(update, useful, self.accelerator).items():
                self._metrics["train"][name].append(value)
        return output

    def _prepare_inputs(self, generation_batch) -> MicroBatch:
        """TRL shuffles rows over micro-batches; we keep whole blocks in every optimizer window, stage by stage."""
        per_generation = self.args.steps_per_generation
        used_up = self._step % (per_generation * self.num_iterations) == 0 or self._buffered_inputs is None
        step_begins = self._step % self.args.gradient_accumulation_steps == 0
        if used_up or (self.ahead is not None and step_begins):
            start = synchronized_seconds(self.accelerator.device)
            if self.ahead is not None:
                self.ahead.order()
            if used_up:
                batch = self._generate_and_score_completions(generation_batch)
                self._buffered_inputs = self._micro_batches(batch)
            self._seconds["generation"] += synchronized_seconds(self.accelerator.device) - start
        return self._buffered_inputs[self._step % per_generation]

    def _micro_batches(self, batch: Batch) -> list[MicroBatch]:
        """The generation batch's `steps_per_generation` micro-batches, in the order of training."""
        num_windows, accumulation = self.args.num_windows, self.args.gradient_accumulation_steps
        order = batching.window_order(len(batch["stage"]), self.args.block_size, len(self.args.stages), num_windows)
        batch = batching.take_rows(batch, order.to(batch["stage"].device))
        counts = batching.stage_counts(batch["stage"], batch["completion_mask"], num_windows)  # (windows, 2 stages, 2)
        counts = self.accelerator.reduce(counts, reduction="sum")
        rows = torch.arange(len(order), device=batch["stage"].device)
        windows = [batching.take_rows(batch, part) for part in rows.chunk(num_windows)]
        self._useful_tokens = [unique_tokens(window) for window in windows]
        if self.token_budget is None:
            parts = rows.chunk(num_windows * accumulation)
            steps = [batching.stage_parts(batching.take_rows(batch, part)) for part in parts]
        else:
            steps = self._token_passes(windows)
        return [MicroBatch(passes, counts[step // accumulation]) for step, passes in enumerate(steps)]

    def _token_passes(self, windows: list[Batch]) -> list[list[Batch]]:
        """Passes within the token budget for each step of each window, equally many on every rank and at least one."""
        accumulation = self.args.gradient_accumulation_steps
        columns = ("prompt_ids", "prompt_mask", "completion_mask", "stage")
        limits = (self.token_budget, self.least_saving)
        plans = [batching.token_passes(*(window[key] for key in columns), *limits) for window in windows]
        numbers = self._largest_over_ranks([len(plan) for plan in plans])
        steps = []
        for window, plan, number in zip(windows, plans, numbers, strict=True):
            passes = [batching.stage_parts(batching.take_rows(window, torch.tensor(rows)))[0] for rows in plan]
            passes += [batching.without_tokens(passes[-1])] * (max(number, accumulation) - len(plan))
            steps += batching.share_out(passes, accumulation)
        return steps

    def _generate_and_score_completions(self, inputs):
        """TRL rolls out its rows, a prompt's being one advantage group; ours are by stage and candidate set.

        TRL's own method then pads the rolled-out rows, and computes the log-probabilities that the loss needs.
        """
        with self.engine_ready() if self.args.oversample > 1 else nullcontext():  # awake from round to round
            self.blocks = self._collect(len(inputs) // self.args.block_size)
        inputs = [{"prompt": block.row["prompt"]} for block in self.blocks for _ in range(self.args.block_size)]
        with self._ratio_formed_in_loss():
            output = super()._generate_and_score_completions(inputs)
        rows = self._batch_rows(self.blocks)
        device = output["advantages"].device
        output["advantages"] = torch.tensor([rollout.advantage for rollout, _ in rows], device=device)  # (B,)
        output["stage"] = torch.tensor([STAGES.index(stage) for _, stage in rows], device=device)  # (B,)
        counted = torch.tensor([rollout.counted for rollout, _ in rows], device=device)
        output["completion_mask"] = output["completion_mask"] * counted.unsqueeze(1)  # (B, T)
        del output["num_items_in_batch"]  # counted for each stage and window instead
        self._log_sampling_drift(output)
        if self.log_completions:  # TRL has each row's solve prompt and an advantage over both stages
            prompts = self.processing_class.batch_decode([rollout.prompt_ids for rollout, _ in rows])
            self._logs["prompt"].extend(gather_object(prompts))
            self._logs["advantages"].extend(gather_object([rollout.advantage for rollout, _ in rows]))
        self.rollout_log.training(self.blocks)
        return output

    def _collect(self, wanted: int) -> list[Block]:
        """This rank's `wanted` rolled-out, rewarded problems: with `oversample` those with signal first.

        Further problems are sampled while any rank lacks some with signal, up to `oversample` times as many; every
        rank takes part in every round with equally many.
        """
        args, world, rank = self.args, self.accelerator.num_processes, self.accelerator.process_index
        limit = sampling_limit(wanted, args.oversample)
        sampled: list[Block] = []
        seconds: dict[str, float] = defaultdict(float)
        with_signal, number = 0, wanted  # number: of problems per rank in this round
        while number:
            if self.ahead is not None and not sampled:
                blocks = self.ahead.take()
            else:
                indices = self.problem_stream.take(number * world)[rank * number : (rank + 1) * number]
                blocks = self.roll_out([self.train_dataset[index] for index in indices], args.plan, indices)
            start = time.perf_counter()
            self._reward(blocks)
            seconds["reward"] += time.perf_counter() - start
            for name, value in self.driver.seconds.items():
                seconds[name] += value
            self._report_pass_rates(blocks)
            self.rollout_log.count(blocks, set_advantages(blocks, args))
            sampled += blocks
            with_signal += sum(has_signal(block, args.stages) for block in blocks)
            missing = torch.tensor([wanted - with_signal], device=self.accelerator.device)
            missing = int(self.accelerator.gather(missing).max().item())
            number = max(0, min(missing, limit - len(sampled)))
        self.driver.seconds = dict(seconds)
        self.rollout_log.count_problems(len(sampled), min(with_signal, wanted), wanted)
        if args.oversample > 1:
            sampled.sort(key=lambda block: not has_signal(block, args.stages))  # stable: otherwise as they were drawn
        return sampled[:wanted]

    def _report_pass_rates(self, blocks: list[Block]) -> None:
        """Tell the curriculum of all ranks how the candidates of all ranks did."""
        if not self.args.curriculum:
            return
        pairs = []
        for block in blocks:
            scored = [candidate.correct for candidate in block.candidates if candidate.scored]
            pairs.append([float(block.index), sum(scored) / len(scored) if scored else float("nan")])
        everyone = self.accelerator.gather(torch.tensor(pairs, device=self.accelerator.device)).tolist()  # all ranks'
        self.problem_stream.report([int(index) for index, _ in everyone], [rate for _, rate in everyone])

    def _batch_rows(self, blocks: list[Block]) -> list[tuple[Rollout, str]]:
        """The batch's rows, each a rollout and its stage: problem after problem, in each the stages in turn."""
        return [row for block in blocks for row in block.rows(self.args.stages)]

    def _reward(self, blocks: list[Block]) -> None:
        """TRL's reward functions on these blocks; a row without a grade is unscored, whatever the others say."""
        rows = self._batch_rows(blocks)
        inputs = [dict(block.row) | {"stage": stage} for block in blocks for _, stage in block.rows(self.args.stages)]
        completions = [[{"role": "assistant", "content": rollout.text}] for rollout, _ in rows]
        ids = [rollout.completion_ids for rollout, _ in rows]
        prompts = [row["prompt"] for row in inputs]
        gathered = super()._calculate_rewards(inputs, prompts, completions, ids)  # (all ranks' rows, reward functions)
        first = self.accelerator.process_index * len(rows)
        values = gathered[first : first + len(rows)]
        values[torch.tensor([not rollout.scored for rollout, _ in rows], device=values.device)] = torch.nan
        totals = (values * self.reward_weights.to(values.device)).nansum(dim=1)
        totals = totals.masked_fill(values.isnan().all(dim=1), torch.nan)
        for (rollout, _), rewards, total in zip(rows, values.tolist(), totals.tolist(), strict=True):
            rollout.reward_values, rollout.reward = rewards, total

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        """TRL calls the reward functions here; ours have been called when the problems were rolled out."""
        values = torch.tensor([rollout.reward_values for rollout, _ in self._batch_rows(self.blocks)])
        return gather(values.to(self.accelerator.device))

    def _compute_loss(self, model, inputs: MicroBatch):
        """TRL's loss over all rows at once; ours is its loss on each pass's rows, (w_c L_c + w_r L_r) / (w_c + w_r).

        Each pass but the last has its backward here, so that one pass's activations stand in memory.
        """
        counts = inputs.window_counts
        weights = {"candidate": self.args.candidate_weight, "refinement": self.args.refinement_weight}
        present = {stage: weights[stage] for index, stage in enumerate(STAGES) if counts[index, 0] > 0}
        total = sum(present.values()) or 1.0
        loss = torch.zeros((), device=counts.device, requires_grad=torch.is_grad_enabled())
        for number, rows in enumerate(inputs.passes, 1):
            stage = STAGES[int(rows["stage"][0])]
            early = torch.is_grad_enabled() and number < len(inputs.passes)
            with self._unsynced(model) if early else nullcontext():
                with self._pass_metrics(stage, rows["completion_mask"].sum().item(), len(rows["stage"])):
                    part = self._stage_loss(model, dict(rows), stage, counts[STAGES.index(stage)])
                part = part * (present.get(stage, 0.0) / total)
                loss = loss.detach() + (self._early_backward(part) if early else part)
        if self.accelerator.sync_gradients:
            self._log_loss_metrics()
        return loss

    def _stage_loss(self, model, rows: Batch, stage: str, count: torch.Tensor) -> torch.Tensor:
        """TRL's loss on one stage's rows of a micro-batch, its part of the stage's loss over the window.

        `count` (2,): the stage's trained rows and tokens in the window, over all processes.
        """
        args, accumulation = self.args, self.current_gradient_accumulation_steps
        ids = torch.cat([rows["prompt_ids"], rows["completion_ids"]], dim=1)  # (B, P + T)
        mask = torch.cat([rows["prompt_mask"], rows["completion_mask"]], dim=1)
        length = rows["completion_ids"].size(1)
        forward = Forward(*self._get_per_token_logps_and_entropies(model, ids, mask, length, compute_entropy=True))
        self._compare_with_engine(forward.logps.detach(), rows)
        # TRL's losses by token divide by num_items_in_batch / processes * accumulation / steps_per_generation, as its
        # number is of the whole generation batch. Ours is of the window already, so that is undone.
        rows["num_items_in_batch"] = count[1] * (args.steps_per_generation / accumulation)
        limit = args.max_completion_length if stage == "candidate" else args.max_refinement_length
        with replaced(self, _forward_made=forward, max_completion_length=limit):
            loss = super()._compute_loss(model, rows)
        processes = self.accelerator.num_processes
        return loss * batching.loss_scale(self.loss_type, rows["completion_mask"], count, accumulation, processes)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """TRL computes a loss on held-out prompts; we roll out both stages and report accuracies and the gap."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("there is no evaluation data set: set eval_dataset_name, or eval_strategy to no")
        was_training = self.model.training
        self.model.eval()
        try:
            metrics = evaluate_held_out(self, dataset, metric_key_prefix)
            self.log(dict(metrics))  # in training mode TRL would add and clear the step's metrics
        finally:
            self.model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _batch_of_blocks(prompts: list, trainer) -> dict[str, list]:
    """TRL's `rollout_func`: the rows of the problems that have been rolled out already."""
    rollouts = [rollout for rollout, _ in trainer._batch_rows(trainer.blocks)]
    has_logprobs = all(rollout.logprobs is not None for rollout in rollouts)
    return {
        "prompt_ids": [rollout.prompt_ids for rollout in rollouts],
        "completion_ids": [rollout.completion_ids for rollout in rollouts],
        "logprobs": [rollout.logprobs for rollout in rollouts] if has_logprobs else None,
    }
