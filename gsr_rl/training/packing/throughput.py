"""What an optimizer step computed, in tokens and operations, beside what this machine's matrix product reaches."""

import time

import torch

from gsr_rl.training.packing.batching import Batch, packed_tokens
from gsr_rl.training.packing.rows import Group, PackedRows, prompt_groups

# Floating-point operations of a layer, forward and backward, that take as long as the further calls of sharing, by
# device. CPU: measured on one core (`benchmarks/cost_of_length.py --break_even`). GPU: estimated, 0.1 ms (25 further
# kernels of 4 microseconds, forward twice for gradient checkpointing) at 400 TFLOP/s of an H100's matrix product.
SHARING_COST = {"cpu": 100_000_000, "cuda": 40_000_000_000}


class StepAccount:
    """Counts a rank's passes. `start` looks at the model and measures the machine; then each pass is added.

    Operations are the multiplications and additions of the model's linear layers, its output head and attention's two
    products; norms, activations and the optimizer are not counted. A backward counts twice its forward, and once where
    a layer's weights are frozen. Gradient checkpointing's second forward does not count: it is not useful. Nor do the
    operations of passes without gradient, whose time is not the update's.
    """

    def __init__(self):
        self.layer_weights = self.trained_layer_weights = self.head_weights = self.trained_head_weights = 0
        self.attention_width, self.rate = 0, 0.0
        self.reset()

    def reset(self) -> None:
        self.tokens = self.trained_tokens = self.operations = 0.0

    def start(self, model: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        """Read the sizes of a causal language model, and measure operations per second of a matrix product."""
        config = model.config.get_text_config()
        head = model.get_output_embeddings()
        weights = {id(m.weight): m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)}
        head = [weights.pop(id(head.weight))] if head is not None and id(head.weight) in weights else []
        self.layer_weights, self.trained_layer_weights = _sizes(weights.values())
        self.head_weights, self.trained_head_weights = _sizes(head)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.attention_width = config.num_hidden_layers * config.num_attention_heads * head_dim
        self.rate = matmul_rate(device, dtype)

    def add_packed(self, packed: PackedRows, with_gradient: bool) -> None:
        """Count a packed pass."""
        tokens = packed.input_ids.shape[1]
        pairs = sum(attended_pairs(group) for group in packed.groups)
        self._add(tokens, len(packed.scored), pairs, with_gradient)

    def add_padded(self, rows: int, width: int, scored: int, with_gradient: bool) -> None:
        """Count a pass of padded rows, of which `scored` positions per row reach the head."""
        self._add(rows * width, rows * scored, rows * width * (width + 1) / 2, with_gradient)

    def linear_operations(self, tokens: float, scored: int) -> float:
        """Of the linear layers, forward and backward, for tokens of which so many positions reach the head."""
        return 6 * (tokens * self.layer_weights + scored * self.head_weights)

    def _add(self, tokens: float, scored: float, pairs: float, with_gradient: bool) -> None:
        self.tokens += tokens
        if with_gradient:
            self.trained_tokens += tokens
            layers = 2 * self.layer_weights + self.trained_layer_weights  # forward, and backward to inputs and weights
            head = 2 * self.head_weights + self.trained_head_weights
            self.operations += 2 * (tokens * layers + scored * head) + 12 * pairs * self.attention_width

    def metrics(self, seconds: float, useful: float, accelerator) -> dict[str, float]:
        """Of the step that took `seconds` of update, over all ranks; the count starts anew.

        Returns:
            `tokens/useful` and `tokens/computed` (all passes), `tokens/per_second` (passes with gradient) of update,
            and `speed/matmul_share`: operations per second over those of the matrix product, the mean of the ranks.
        """
        share = self.operations / seconds / self.rate if seconds and self.rate else 0.0
        mine = [useful, self.tokens, self.trained_tokens, share]
        mine = torch.tensor(mine, device=accelerator.device, dtype=torch.float32)
        useful, computed, trained, share = accelerator.reduce(mine, reduction="sum").tolist()
        self.reset()
        return {
            "tokens/useful": useful,
            "tokens/computed": computed,
            "tokens/per_second": trained / seconds if seconds else 0.0,
            "speed/matmul_share": share / accelerator.num_processes,
        }


def _sizes(weights) -> tuple[int, int]:
    """Numbers in all weights, also those that ZeRO-3 keeps elsewhere, and in the trained ones."""
    sizes = [(getattr(weight, "ds_numel", weight.numel()), weight.requires_grad) for weight in weights]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def unique_tokens(batch: Batch) -> int:
    """Tokens that a pass over these rows must at least compute: each stage's prompts once, and each completion.

    A completion's last token predicts nothing, and a row that is masked out needs nothing.
    """
    total, prompts, lengths = 0, *(batch[f"{part}_mask"].sum(dim=1).tolist() for part in ("prompt", "completion"))
    for stage in batch["stage"].unique():
        rows = (batch["stage"] == stage).nonzero()[:, 0]
        for group in prompt_groups(batch["prompt_ids"][rows], batch["prompt_mask"][rows]):
            members = rows[group].tolist()
            total += packed_tokens(prompts[members[0]], [lengths[row] for row in members])
    return total


def least_saving(model, device: str) -> int:
    """Tokens that sharing a prompt must save to pay for the further attention calls of a layer.

    On a CPU 78 tokens of a model with 0.2 M parameters a layer, 4 of SmolLM2-135M, none of a 7B model; on a GPU 447 of
    Qwen2.5-0.5B, 28 of a 7B model.

    Args:
        device: Its type; any but the CPU counts as a GPU.
    """
    return SHARING_COST["cpu" if device == "cpu" else "cuda"] // layer_operations(model)


def layer_operations(model) -> int:
    """Floating-point operations of a layer's products for a token: per weight 2 in the forward, 4 in the backward."""
    config = model.config.get_text_config()
    heads, hidden = config.num_attention_heads, config.hidden_size
    width = getattr(config, "head_dim", None) or hidden // heads
    return 6 * hidden * (2 * width * (heads + config.num_key_value_heads) + 3 * config.intermediate_size)


def attended_pairs(group: Group) -> float:
    """(query, key) pairs that attention looks at: a prompt's own, and each completion's over prompt and itself."""
    prompt = group.stop - group.start
    pairs = prompt * (prompt + 1) / 2
    return pairs + sum(length * (prompt + (length + 1) / 2) for length in group.lengths)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a square matrix product here and now: the best of three, after a warm-up.

    Off the CPU the products are large and several are timed at once, or it would be the time of starting them.
    """
    size, products = (1024, 1) if device.type == "cpu" else (8192, 5)
    a = torch.randn(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(4):
        start = synchronized_seconds(device)
        for _ in range(products):
            a @ a
        seconds.append(synchronized_seconds(device) - start)
    return products * 2 * size**3 / min(seconds[1:])


def synchronized_seconds(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
