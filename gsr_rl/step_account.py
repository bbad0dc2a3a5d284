"""What an optimizer step computed, in tokens and operations, beside what this machine's matrix product reaches."""

import time

import torch

from gsr_rl.packed_rows import Group, PackedRows
from gsr_rl.rollout import Block

MATMUL_SIZE = 1024


class StepAccount:
    """Counts a rank's passes. `start` looks at the model and measures the machine; then each pass is added.

    Operations are the multiplications and additions of the model's linear layers, its output head and attention's two
    products; norms, activations and the optimizer are not counted. A backward counts twice its forward, and gradient
    checkpointing's second forward does not count: it is not useful.
    """

    def __init__(self):
        self.layer_weights = self.head_weights = self.attention_width = 0
        self.rate = 0.0
        self.reset()

    def reset(self) -> None:
        self.tokens = self.operations = 0.0

    def start(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        """Read the sizes of a causal language model, and measure operations a second of a matrix product."""
        config = model.config.get_text_config()
        head = model.get_output_embeddings()
        linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
        sizes = {id(weight): getattr(weight, "ds_numel", weight.numel()) for weight in linear}
        self.head_weights = sizes.pop(id(head.weight), 0) if head is not None else 0
        self.layer_weights = sum(sizes.values())
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.attention_width = config.num_hidden_layers * config.num_attention_heads * head_dim
        self.rate = matmul_rate(next(model.parameters()).device, dtype)

    def add_packed(self, packed: PackedRows, with_gradient: bool) -> None:
        """Count a packed pass."""
        tokens = packed.input_ids.shape[1]
        pairs = sum(attended_pairs(group) for group in packed.groups)
        self._add(tokens, len(packed.scored), pairs, with_gradient)

    def add_padded(self, rows: int, width: int, scored: int, with_gradient: bool) -> None:
        """Count a pass of padded rows, of which `scored` positions a row reach the head."""
        self._add(rows * width, rows * scored, rows * width * (width + 1) / 2, with_gradient)

    def _add(self, tokens: float, scored: float, pairs: float, with_gradient: bool) -> None:
        forward = 2 * (tokens * self.layer_weights + scored * self.head_weights) + 4 * pairs * self.attention_width
        self.tokens += tokens
        self.operations += forward * (3 if with_gradient else 1)

    def metrics(self, seconds: float, useful: float, accelerator) -> dict[str, float]:
        """Of the step that took `seconds` of update, over all ranks; the count starts anew.

        Returns:
            `tokens/useful` and `tokens/computed` (all ranks), `tokens/per_second` of update, and
            `speed/matmul_share`: operations a second over those of the matrix product, the mean of the ranks.
        """
        share = self.operations / seconds / self.rate if seconds and self.rate else 0.0
        mine = torch.tensor([useful, self.tokens, share], device=accelerator.device, dtype=torch.float32)
        useful, computed, share = accelerator.reduce(mine, reduction="sum").tolist()
        self.reset()
        return {
            "tokens/useful": useful,
            "tokens/computed": computed,
            "tokens/per_second": computed / seconds if seconds else 0.0,
            "speed/matmul_share": share / accelerator.num_processes,
        }


def unique_tokens(blocks: list[Block], stages: list[str]) -> int:
    """Tokens that training on these stages must at least compute: each prompt once, each completion once."""
    total = 0
    for block in blocks:
        groups = [block.candidates] if "candidate" in stages else []
        groups += [one.refinements for one in block.sets] if "refinement" in stages else []
        for group in groups:
            used = [rollout for rollout in group if rollout.scored and not rollout.dropped]
            if used:
                total += len(used[0].prompt_ids) + sum(len(rollout.completion_ids) for rollout in used)
    return total


def attended_pairs(group: Group) -> float:
    """(query, key) pairs that attention looks at: a prompt's own, and each completion's over prompt and itself.

    Completions of one bucket, which are of about one length, count as so many of their mean length.
    """
    prompt = group.stop - group.start
    pairs = prompt * (prompt + 1) / 2
    for bucket in group.buckets:
        tokens = bucket.stop - bucket.start
        mean = tokens / bucket.rows
        pairs += tokens * (prompt + (mean + 1) / 2)
    return pairs


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square matrix product here and now: the best of three, after a warm-up."""
    a = torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=device, dtype=dtype)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        (a @ a).sum().item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * MATMUL_SIZE**3 / min(seconds[1:])
