"""How many problems, rollouts, tokens and bytes one step of joint GRPO takes, from its configuration alone."""

import math
from dataclasses import dataclass, replace

from gsr_rl.training.launch import (
    Launch,
    ModelShape,
    adapter_parameters,
    check_named_size,
    check_numbers,
    config_of,
    read_launch,
    read_shape,
)
from gsr_rl.training.problem_order import sampling_limit

GIB = 2**30
USUAL_GIB = (24, 48, 80)  # of GPUs
USABLE = 0.95  # of a GPU's memory
TILE_TOKENS, TILE_ENTRIES = 4096, 32768  # of the fused head: trl/kernels/chunked_logprob.py, trl/trainer/utils.py
LIVE_PARAMETERS = 1_000_000_000  # gathered at once under ZeRO-3: DeepSpeed's stage3_max_live_parameters
SHARING = (None, "sdpa", "flex_attention")  # of attn_implementation, beside flash kernels: these share prompts
CUDA_GRAPHS = 2 * GIB  # vLLM's, which sleep mode leaves on the GPU: 1 to 3 GiB by its own earlier warning


def trained_stages(args) -> list[str]:
    """The stages that are trained, in the order of their rows inside a problem's block."""
    return [stage for stage in ("candidate", "refinement") if getattr(args, f"{stage}_weight") > 0]


def block_size(args) -> int:
    """Rows of one problem: `num_generations` for each trained stage."""
    return len(trained_stages(args)) * args.num_generations


def num_windows(args) -> int:
    """Optimizer steps that a generation batch is cut into."""
    return args.steps_per_generation // args.gradient_accumulation_steps


# Of a `GSRConfig`.
BATCH = {"stages": property(trained_stages), "block_size": property(block_size), "num_windows": property(num_windows)}


@dataclass(frozen=True)
class Pass:
    """The largest forward and backward of a stage, with every prompt and completion at its limit.

    `tokens` are computed, of them `scored` reach the head; `attended` keys are laid side by side for attention.
    """

    tokens: int
    scored: int
    attended: int


def batch_arithmetic(args, model=None) -> dict[str, int | str]:
    """Figures of one optimizer step and one generation, over all ranks. Token figures are upper bounds.

    Args:
        args: A `GSRConfig`.
        model: TRL's `ModelConfig`: LoRA, and the model, whose sizes are its local folder's or else those of
            `model_shape`.

    Returns:
        Name to number or text, in the order in which `--dry_run true` prints them.

    Raises:
        ValueError: Sizes, a launch or numbers that nothing can be computed with.
    """
    launch = read_launch(args.launch_config, args.world_size)
    launch = replace(launch, on_cpu=launch.on_cpu or args.is_for_cpu)
    figures = _amounts(args, launch.processes)
    shape = read_shape(model and model.model_name_or_path, args.model_shape)
    if shape is None:
        return figures | {"GPU memory": "not estimated: the model is not a local folder, set model_shape"}
    name = model and model.model_name_or_path
    check_named_size(name, shape)
    figures |= memory_arithmetic(shape, launch, args, model)
    if name and not config_of(name).is_file():
        figures["model parameters"] += f", by model_shape: there is no config.json of {name} here"
    return figures


def problems_read(rows: list[dict], figures: dict) -> dict[str, str]:
    """How many problems were read, and whether they are enough for one generation of `batch_arithmetic`'s figures."""
    wanted = figures["problems per generation"]
    too_few = f", fewer than the {wanted:,} of one generation, which holds some of them more than once"
    return {"problems read": f"{len(rows):,}" + (too_few if len(rows) < wanted else "")}


def _amounts(args, processes: int) -> dict[str, int | str]:
    """Problems, rows, rollouts and tokens."""
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    problems = rows // args.block_size
    generated = problems * args.num_windows
    sampled = processes * sampling_limit(generated // processes, args.oversample)
    refining = "refinement" in args.stages
    return {
        "processes": processes,
        "trained stages": ", ".join(args.stages),
        "problems per optimizer step": problems,
        "rows per optimizer step": rows,
        "rows per problem (block)": args.block_size,
        "micro-batches per rank and optimizer step": args.gradient_accumulation_steps,
        "problems per generation": generated,
        "problems sampled per generation, at most": sampled,
        "candidates per generation": generated * args.num_generations,
        "candidate sets per generation": generated * args.num_candidate_sets if refining else 0,
        "refinements per generation": generated * args.num_generations if refining else 0,
        "updates on a generation": args.num_iterations * args.num_windows,
        **_tokens(args, "per generation", sampled, ["candidate", *(["refinement"] if refining else [])]),
        **_tokens(args, "per optimizer step", problems, args.stages),
    }


def _tokens(args, when: str, problems: int, stages: list[str]) -> dict[str, int | str]:
    """Tokens of these stages: new ones, and prompts, each counted once for all its completions."""
    limits = {"candidate": args.max_completion_length, "refinement": args.max_refinement_length}
    solve: int | str = 0
    if "candidate" in stages:
        context_length = args.vllm_max_model_length
        solve = "no limit but the model's context less max_completion_length, per problem"
        if context_length:
            solve = problems * (context_length - args.max_completion_length)
    refinement = args.num_candidate_sets * args.max_refinement_prompt_length if "refinement" in stages else 0
    return {
        f"new tokens {when}, at most": problems * args.num_generations * sum(limits[stage] for stage in stages),
        f"solve prompt tokens {when}, at most": solve,
        f"refinement prompt tokens {when}, at most": problems * refinement,
    }


def memory_arithmetic(shape: ModelShape, launch: Launch, args, model=None) -> dict[str, str]:
    """GiB per GPU for each part of a joint step; on a CPU, GiB per process, and no word on whether they fit.

    Args:
        args: A `GSRConfig`.
        model: TRL's `ModelConfig`: LoRA, number format and attention. None: all weights are trained, in bfloat16.

    Returns:
        Name to text, in the order in which `--dry_run true` prints them.

    Raises:
        ValueError: A number that nothing can be computed with, or LoRA on no module of the model.
    """
    check_numbers(args, model)
    held = _held(shape, launch, args, model)
    moved = {name: held.pop(name) for name in list(held) if name in launch.offloaded}
    largest, layers = _activations(shape, launch, args, model)
    more = {"weights gathered for use, at most": gathered} if (gathered := _gathered(shape, launch, args)) else {}
    update = sum(held.values()) + sum(more.values()) + layers
    kind, each = ("CPU", "GiB per process") if launch.on_cpu else ("GPU", "GiB")
    recomputed = "with" if args.gradient_checkpointing else "without"
    text = {"model parameters": f"{shape.parameters / 1e9:.2f} billion"}
    if model is not None and model.use_peft:
        text["trained parameters (LoRA)"] = f"{adapter_parameters(shape, model) / 1e6:.2f} million"
    text |= {f"{kind} memory: {name}": f"{value / GIB:.1f} {each}" for name, value in (held | more).items()}
    text |= {f"GPU memory: {name}": "0.0 GiB, in CPU memory" for name in moved}
    text |= {f"CPU memory: {name}": f"{value / GIB:.1f} GiB per process" for name, value in moved.items()}
    text[f"{kind} memory: activations of a micro-batch, at most"] = (
        f"{layers / GIB:.1f} {each} ({largest.tokens:,} tokens, {recomputed} gradient checkpointing)"
    )
    text[f"{kind} memory: training together"] = (
        f"{update / GIB:.1f} {each} ({launch.name}, {launch.processes} processes)"
    )
    if not launch.on_cpu:
        return text | _verdict(shape, launch, args, sum(held.values()), update)
    if args.use_vllm and args.vllm_mode == "colocate":
        text["CPU memory: vLLM"] = "the weights again and VLLM_CPU_KVCACHE_SPACE (2 GiB unless set), per process"
    return text | {"GPU memory": "none is used: use_cpu is true"}


def _width(args) -> int:
    """Bytes of a number in the layers' products."""
    return 2 if args.bf16 or args.fp16 else 4


def _held(shape: ModelShape, launch: Launch, args, model) -> dict[str, float]:
    """Bytes per process of what stays from step to step, under Adam.

    DeepSpeed casts all weights and keeps a float32 copy and two moments of each trained one (engine.py,
    `_configure_distributed_model`). Without it there are two moments alone, in the weight's own format: float32 for
    adapters (PEFT's autocast_adapter_dtype) and for FSDP2 in mixed precision (accelerate's `fsdp2_prepare_model`).
    """
    n, stage, width = launch.processes, launch.zero_stage, _width(args)
    lora = model is not None and model.use_peft
    trained = adapter_parameters(shape, model) if lora else shape.parameters
    loaded = 4 if model is not None and model.dtype in (None, "float32") else 2  # `auto`: as on the Hub
    if stage and not launch.fsdp:
        loaded, trained_width, states = width, width, 12
    else:
        trained_width = 4 if lora or (launch.fsdp and width == 2) else loaded
        states = 2 * trained_width
    weights = trained * trained_width + (shape.parameters * loaded if lora else 0)
    held = {
        "weights": weights / (n if stage == 3 else 1),
        "gradients": trained * trained_width / (n if stage >= 2 else 1),
        "optimizer": trained * states / (n if stage >= 1 else 1),
    }
    if args.beta and not lora:  # with LoRA the adapter is switched off instead; below stage 3 it is whole (TRL's
        held["reference model"] = shape.parameters * loaded / (n if stage == 3 else 1)  # prepare_deepspeed)
    return held


def _gathered(shape: ModelShape, launch: Launch, args) -> float:
    """Bytes of the weights that are whole on the device while they are used, where all are sharded or elsewhere.

    FSDP2: the tables and two layers, one of them fetched ahead.
    """
    if launch.zero_stage != 3:
        return 0.0
    live = shape.table_parameters + 2 * shape.layer_parameters if launch.fsdp else LIVE_PARAMETERS
    return min(shape.parameters, live) * _width(args)


def _limits(args, stage: str) -> tuple[int, int]:
    """Tokens of a prompt and of a completion, at most. A refinement's prompt holds the candidates' and more."""
    if stage == "refinement":
        return args.max_refinement_prompt_length, args.max_refinement_length
    context_length, completion = args.vllm_max_model_length, args.max_completion_length
    prompt = args.max_refinement_prompt_length
    return (min(prompt, context_length - completion) if context_length else prompt), completion


def largest_pass(args, stage: str, shares: bool = True) -> Pass:
    """The largest pass that packing (rows.py, batching.py) makes of the rows: each prompt once, with `shares`.

    Args:
        args: A `GSRConfig`.
        shares: Whether prompts are shared; otherwise rows are padded, and there is no token budget.
    """
    prompt, completion = _limits(args, stage)
    batch, budget = args.per_device_train_batch_size, args.max_tokens_per_micro_batch
    group = args.num_generations // (args.num_candidate_sets if stage == "refinement" else 1)  # rows of a prompt
    window = batch * args.gradient_accumulation_steps // len(args.stages)  # a stage's rows of an optimizer step
    rows = min(batch, window)
    if not shares:
        return Pass(rows * (prompt + completion), rows * completion, rows * (prompt + completion))

    def packed(rows: int, first: int = 0) -> int:  # a completion's last token predicts nothing and is not computed
        return math.ceil((first + rows) / group) * prompt + rows * (completion - 1)

    if budget is None:  # micro-batches begin at multiples of their rows, in the worst case late in a prompt's group
        tokens = packed(rows, group - math.gcd(rows, group))
    else:  # a row that exceeds it is computed alone
        rows = max((n for n in range(1, window + 1) if packed(n) <= budget), default=1)
        tokens = max(packed(1), min(budget, packed(window)))
    return Pass(tokens, min(rows * completion, tokens), rows * (prompt + completion))


def _activations(shape: ModelShape, launch: Launch, args, model) -> tuple[Pass, float]:
    """The largest pass of the trained stages, and the bytes that its forward and backward take."""
    attention = None if model is None else model.attn_implementation
    flash = "flash" in (attention or "")
    shares = args.shared_prefix and (flash or attention in SHARING)
    passes = [largest_pass(args, stage, shares) for stage in args.stages]
    trains_head = model is None or not model.use_peft or "lm_head" in (model.lora_modules_to_save or [])
    # SDPA of padded rows, and of packed ones in float32 (shared_prefix.py, `_joined_attention`)
    side_by_side = not (launch.on_cpu or flash or attention == "flex_attention" or (shares and _width(args) == 2))
    sizes = [
        pass_bytes(shape, largest, _width(args), args.gradient_checkpointing, trains_head, side_by_side)
        for largest in passes
    ]
    return max(zip(passes, sizes, strict=True), key=lambda pair: pair[1])


def layer_bytes(shape: ModelShape, width: int) -> int:
    """Bytes per token that autograd keeps of one Llama or Qwen layer, of `width` bytes per number.

    As in transformers' modeling files: a norm keeps its float32 input, the normalized one and its result. Attention:
    queries and keys behind the rotary embedding, values, its result as the kernel and as the next product have it.
    SwiGLU: gate, its activation, up and their product.
    """
    attention = 3 * shape.query_width + 2 * shape.key_width
    return 2 * norm_bytes(shape, width) + width * (attention + 4 * shape.intermediate_size)


def norm_bytes(shape: ModelShape, width: int) -> int:
    """Bytes per token that autograd keeps of one norm."""
    return (4 + 2 * width) * shape.hidden_size


def pass_bytes(
    shape: ModelShape, size: Pass, width: int, checkpointing: bool, trains_head: bool, side_by_side: bool
) -> float:
    """Bytes of a pass: what its layers keep, and the larger of the head's backward and a layer's.

    TRL's fused head (`ChunkedLogProbFunction`) makes no logits: it holds one tile of them, and for its backward the
    gradients of its weights and of the scored states in float32 before they are rounded. In a layer's backward two
    gradients of the intermediate size stand beside what the layer keeps, which checkpointing computes again; or, where
    that is more, what attention's backward holds: gradients of keys and values for every query head, as the kernels
    have them before the heads of a group are added, and of queries in float32.
    """
    hidden, rounded = shape.hidden_size, width if width < 4 else 0
    layer_keeps = size.tokens * layer_bytes(shape, width)
    attention = size.tokens * (4 + 2 * width) * shape.query_width
    if side_by_side:  # keys and values, of all query heads, and their gradients
        attention = size.attended * 2 * width * shape.query_width
        layer_keeps += attention
    saved = shape.num_hidden_layers * (size.tokens * hidden * width if checkpointing else layer_keeps)
    layer = max(size.tokens * 2 * width * shape.intermediate_size, attention) + (layer_keeps if checkpointing else 0)
    head = size.tokens * norm_bytes(shape, width) + size.scored * hidden * (width + 4 + rounded)
    head += min(size.scored, TILE_TOKENS) * TILE_ENTRIES * width
    head += shape.vocab_size * hidden * (4 + rounded) if trains_head else 0
    return saved + max(layer, head)


def _verdict(shape: ModelShape, launch: Launch, args, held: float, update: float) -> dict[str, str]:
    """The engine's share of a GPU, and whether the larger of sampling and update fits, on GPUs of other sizes too.

    Args:
        held: Bytes that stay on the GPU from step to step: nothing takes them away while the engine samples.
        update: Bytes of the update.
    """
    text = _peak(shape, launch, args, held, update, args.gpu_memory_gib)
    others = [gib for gib in USUAL_GIB if gib != args.gpu_memory_gib]
    peaks = [_peak(shape, launch, args, held, update, gib)["GPU memory: peak"] for gib in others]
    fits = [f"{peak.split(' (')[0]}: {peak.rsplit(': ', 1)[1]}" for peak in peaks]
    text["GPU memory: peak on other GPUs"] = "; ".join(fits)
    left = f"{1 - USABLE:.0%} of the GPU are left for them"
    return text | {"GPU memory: not counted": f"CUDA's context, NCCL's buffers, what is free in pieces: {left}"}


def _peak(shape: ModelShape, launch: Launch, args, held: float, update: float, gib: float) -> dict[str, str]:
    """What `_verdict` says of a GPU with so many `gib`."""
    stages = ["candidate", *(["refinement"] if "refinement" in args.stages else [])]
    longest = max(sum(_limits(args, stage)) for stage in stages)
    memory, text, room = gib * GIB, {}, True
    if not args.use_vllm:  # transformers: all completions of a rank at once, sharded weights gathered
        rows = args.per_device_train_batch_size * args.steps_per_generation // len(args.stages)
        gathered = shape.parameters * _width(args) if launch.zero_stage == 3 else 0
        sampling = held + gathered + rows * longest * shape.cache_bytes * _width(args) / 2
        when = "transformers' generation, then the update"
    elif args.vllm_mode == "server":
        sampling, when = held, "vLLM on GPUs of its own"
    else:
        engine, width = args.vllm_gpu_memory_utilization * memory, 4 if args.vllm_dtype == "float32" else 2
        weights = shape.parameters * width / args.vllm_tensor_parallel_size
        tokens = max(0.0, engine - weights) * args.vllm_tensor_parallel_size / (shape.cache_bytes * width / 2)
        text["GPU memory: vLLM"] = f"{engine / GIB:.1f} GiB, of it {weights / GIB:.1f} weights"
        text["vLLM cache"] = f"{tokens:,.0f} tokens, {tokens // longest:,.0f} longest sequences at once"
        room = tokens >= longest
        sampling = held + engine
        asleep = 0 if args.vllm_enforce_eager else CUDA_GRAPHS
        if args.vllm_enable_sleep_mode:
            text["GPU memory: vLLM asleep"] = f"{asleep / GIB:.1f} GiB, its CUDA graphs"
        update += asleep if args.vllm_enable_sleep_mode else engine
        when = f"vLLM {'asleep' if args.vllm_enable_sleep_mode else 'awake'} during the update"
    text["GPU memory: sampling together"] = f"{sampling / GIB:.1f} GiB"
    peak = max(sampling, update)
    fits = "fits" if room and peak < USABLE * memory else "DOES NOT FIT"
    return text | {"GPU memory: peak": f"{peak / GIB:.1f} of {gib:g} GiB ({when}): {fits}"}
