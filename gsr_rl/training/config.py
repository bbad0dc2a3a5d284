"""Configuration dataclasses: our own keys on top of TRL's. The YAML files in `recipes/` hold these keys."""

from dataclasses import dataclass
from typing import Any

import torch
from trl import GRPOConfig, SFTConfig

from gsr_rl.keys import key, mapping, raise_if_any
from gsr_rl.refinement.settings import ChatTemplateConfig, RefinementConfig
from gsr_rl.training.checks import check_grpo, check_reporting, check_sft
from gsr_rl.training.dry_run import block_size, num_windows, trained_stages
from gsr_rl.training.rollout import Plan

MAY_BE_FILES = ("accelerator_config", "deepspeed", "fsdp_config")


def _read_as_yaml(config, *mappings: str) -> None:
    """An unquoted `no`, which YAML reads as False, and an empty `report_to` in transformers' words; text as mappings.

    Some of transformers' may also be a file's name. `mappings` are our own.
    """
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if getattr(config, name) is False:
            setattr(config, name, "no")
    config.report_to = config.report_to or "none"
    for name in (*config._VALID_DICT_FIELDS, *mappings):
        value = getattr(config, name)
        if name not in MAY_BE_FILES or str(value).startswith("{"):
            setattr(config, name, mapping(name, value))


@dataclass
class AdapterConfig:
    """What becomes of a LoRA adapter."""

    merge_adapter: bool = key(
        False, "With use_peft: at the end add the adapter to its base model, so that output_dir holds a whole model."
    )


@dataclass
class GSRConfig(RefinementConfig, ChatTemplateConfig, AdapterConfig, GRPOConfig):
    """Joint GRPO on candidates and refinements. Every key of TRL's GRPOConfig keeps its meaning.

    `num_generations` is G, the rollouts per problem and stage; `max_completion_length` limits candidates.
    """

    num_candidate_sets: int = key(1, "M: candidate sets per problem. Each gets G/M refinements; M divides G.")
    max_refinement_length: int | None = key(None, "Limit of a refinement in tokens. Default: max_completion_length.")
    candidate_weight: float = key(1.0, "Weight of the candidates' loss. 0: candidates are sampled, not trained.")
    refinement_weight: float = key(1.0, "Weight of the refinements' loss. 0: no refinement is sampled.")
    candidate_objective: str = key(
        "pass@1",
        "Advantage of candidates: `pass@1` (plain) or `pass@k` (a candidate's part in the expected best of K; meant "
        "to keep the diversity that refinement lives on).",
    )
    objective_k: int | None = key(None, "The k of pass@k; needs num_generations of at least k + 1. Default: K.")
    candidate_credit: float = key(
        0.0,
        "Added to a candidate's advantage, times: how much better refinements over sets that hold it do than over the "
        "others. Needs num_candidate_sets of at least 2 and uniform choice.",
    )
    candidate_scale_rewards: str | None = key(
        None, "Divide candidates' advantages by their deviation: group or none. Default: scale_rewards."
    )
    refinement_scale_rewards: str | None = key(None, "The same for refinements. Default: scale_rewards.")
    candidate_choice: str = key(
        "uniform",
        "Which candidates a refinement is shown: uniform, balanced (right and wrong ones), hard (fewer right ones "
        "than wrong ones), paper (all right ones, filled up with wrong ones).",
    )
    uniform_share: float = key(0.5, "Share of candidate sets, in [0, 1], chosen uniformly whatever candidate_choice.")
    min_num_candidates: int | None = key(
        None, "Show a random number of candidates, from this one to num_candidates, drawn for each problem."
    )
    oversample: float = key(1.0, "Sample up to this many times the batch's problems, until all have signal.")
    drop_from_denominator: bool = key(False, "Leave groups without signal out of the loss's counts.")
    curriculum: bool = key(False, "Draw problems by their running pass rate, those solved half the time most often.")
    streamed_rollout: bool = key(True, "With vLLM: refine a problem as soon as its own candidates are done.")
    vllm_server_base_url: list[str] | None = key(
        None,
        "With vllm_mode server: http://HOST:PORT of one server or several, which share the requests by load. Default: "
        "vllm_server_host and vllm_server_port.",
    )
    rollout_ahead: int = key(
        0,
        "With vllm_mode server: sample the next problems while an update runs, with weights at most so many optimizer "
        "steps old. 0: sampling and update take turns.",
    )
    server_request_timeout: float = key(
        900.0,
        "With vllm_mode server: seconds that one answer of a server, or its taking new weights, may last before it is "
        "given up; the run ends when none is left. Below ddp_timeout, after which the ranks that wait give up.",
    )
    num_examples: int = key(0, "Problems to print at each logging step, candidates beside their refinement.")
    log_console: str = key(
        "line",
        "What the console shows of a log record: `line`, the main figures; `all`, every metric as a dictionary.",
    )
    eval_dataset_name: str | None = key(None, "Held-out problems to evaluate on (eval_strategy, eval_steps).")
    eval_dataset_split: str = key("validation", "Their split.")
    max_eval_problems: int | None = key(200, "How many of them; null: all.")
    eval_problems_per_call: int = key(64, "Held-out problems that a rank gives to its engine at once.")
    reward_funcs: list[str] = key(
        ["accuracy"],
        "Rewards by name (accuracy, format, length) or as module:function; with candidate/ or refinement/ before it a "
        "reward counts in that stage only.",
    )
    reward_options: dict[str, Any] | str | None = key(
        None, "Arguments of rewards by name, such as {length: {max_length: 4096, buffer: 1024}}."
    )
    vllm_dtype: str = key("auto", "Number format of the colocated engine: auto, float32, bfloat16.")
    vllm_enforce_eager: bool | None = key(None, "Do not compile the engine's model. Default: compiled on GPU only.")
    model_shape: dict[str, Any] | str | None = key(
        None, "For the memory figures of a dry run: sizes by config.json's names, if the model is not local."
    )
    launch_config: str | None = key(
        None,
        "For a dry run: the accelerate configuration whose processes and ZeRO stage it counts on. Under `accelerate "
        "launch` it counts on what that has started: processes, sharding and offload.",
    )
    gpu_memory_gib: float = key(80.0, "For a dry run: memory of one GPU in GiB.")
    shared_prefix: bool = key(
        True,
        "Compute a prompt once for all its completions and no padding (Llama, Qwen2, Qwen3 types; others fall back to "
        "TRL's padded rows with a warning).",
    )
    max_tokens_per_micro_batch: int | None = key(
        None,
        "Tokens that one forward and backward computes at most: an optimizer step's rows are packed into as few "
        "passes of whole prompt groups as fit. Default: micro-batches of per_device_train_batch_size rows.",
    )
    dry_run: bool = key(False, "Check everything, print configuration, batch and memory, load no weights.")

    def __post_init__(self):
        _read_as_yaml(self, "reward_options", "model_shape")
        if isinstance(self.vllm_server_base_url, str):
            self.vllm_server_base_url = [self.vllm_server_base_url]
        raise_if_any(check_grpo(self) + check_reporting(self))
        # TRL wants to divide it into groups; held-out problems come eval_problems_per_call at a time instead
        self.per_device_eval_batch_size = self.num_generations_eval or self.num_generations
        if self.max_refinement_length is None:
            self.max_refinement_length = self.max_completion_length
        self.is_for_cpu = self.use_cpu  # as stated: a dry run for GPUs needs none
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # DeepSpeed on a CPU needs it said
        GRPOConfig.__post_init__(self)

    stages = property(trained_stages)
    block_size = property(block_size)
    num_windows = property(num_windows)

    @property
    def plan(self) -> Plan:
        """How problems are rolled out in training."""
        return Plan(
            generations=self.num_generations,
            num_candidates=self.num_candidates,
            min_num_candidates=self.min_num_candidates,
            num_sets=self.num_candidate_sets,
            policy=self.candidate_choice,
            uniform_share=self.uniform_share,
            refine="refinement" in self.stages,
        )


@dataclass
class GSRSFTConfig(RefinementConfig, ChatTemplateConfig, AdapterConfig, SFTConfig):
    """Supervised warm start on solve rows and refine rows. Every key of TRL's SFTConfig keeps its meaning."""

    min_num_candidates: int | None = key(
        None,
        "The fewest candidates that a row shows, where distillation drew their number, up to num_candidates. Default: "
        "every row shows num_candidates.",
    )

    dataset_name: str | None = key(None, "SFT rows: a .jsonl, .json or .parquet file, or a data set on the Hub.")
    dataset_config: str | None = key(None, "Configuration name of a Hub data set.")
    dataset_split: str = key("train", "Split of a Hub data set.")
    stages: list[str] = key(["candidate", "refinement"], "Rows to train on: candidate (direct), refinement, or both.")
    max_rows: int | None = key(None, "Train on N rows only, chosen by the seed.")
    log_console: str = key(
        "line",
        "What the console shows of a log record: `line`, the main figures; `all`, every metric as a dictionary.",
    )
    dry_run: bool = key(False, "Check everything, print the resolved configuration and the amounts, load no weights.")

    def __post_init__(self):
        _read_as_yaml(self)
        raise_if_any(check_sft(self) + check_reporting(self))
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        SFTConfig.__post_init__(self)
