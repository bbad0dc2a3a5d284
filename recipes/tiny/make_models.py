"""Train the tiny world's two models from scratch: a base that solves a part, and a teacher that refines.

    python recipes/tiny/make_models.py --output_dir recipes/tiny/models

The base reads solved problems and reading drills, and is wound up while its chains are half wrong; it never sees a
refinement prompt. The teacher goes on from the base: procedural refinements of the base's own candidates, and direct
solutions. Each has its own split of the problems. `metrics.json` gets the measured figures, on the validation split.
"""

import argparse
import json
import random
import time
from pathlib import Path
from statistics import mean

import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM

from gsr_rl.data import tiny_world
from gsr_rl.refinement.metrics import maj_correct
from gsr_rl.refinement.prompts import get_template, prompt_token_ids, refinement_prompt, solve_prompt

TEMPLATE = get_template("tiny")
TOKENIZER = tiny_world.build_tokenizer()
NUM_CANDIDATES = 4
READING_STEPS, CHAIN_STEPS, WIND_UP_STEPS, TEACHER_STEPS = 700, 1400, 40, 1200


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("recipes/tiny/models"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden_size", type=int, default=128, help="Width of the models, a multiple of 32.")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--base_only", action="store_true", help="Make no teacher.")
    parts.add_argument("--base", type=Path, help="Make a teacher of this base, and no base.")
    parser.add_argument("--num_candidates", type=int, default=NUM_CANDIDATES, help="K: candidates that it reads.")
    parser.add_argument("--min_num_candidates", type=int, help="It reads a random number of them, from this one to K.")
    parser.add_argument("--threads", type=int, default=1, help="One makes a run repeatable on a machine.")
    parser.add_argument("--stop_at", type=float, default=0.3, help="Chain pass@1 at which the base is wound up.")
    parser.add_argument("--num_eval", type=int, default=2000, help="Validation problems behind the figures.")
    return parser.parse_args()


def solve_ids(rows: list[dict]) -> list[list[int]]:
    return [prompt_token_ids(TOKENIZER, solve_prompt(row["problem"], TEMPLATE)) for row in rows]


def refine_ids(rows: list[dict], candidates: list[list[str]]) -> list[list[int]]:
    prompts = (refinement_prompt(row["problem"], c, TEMPLATE) for row, c in zip(rows, candidates, strict=True))
    return [prompt_token_ids(TOKENIZER, prompt) for prompt in prompts]


def completion_loss(model, prompts: list[list[int]], texts: list[str]) -> torch.Tensor:
    """Mean cross-entropy over the tokens of the completions, right-padded."""
    completions = [[*ids, TOKENIZER.eos_token_id] for ids in TOKENIZER(texts)["input_ids"]]
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)  # (B, T); 0 is <pad>
    start = torch.tensor([len(prompt) for prompt in prompts])[:, None]
    end = torch.tensor([len(row) for row in rows])[:, None]
    position = torch.arange(1, ids.shape[1])
    mask = (position >= start) & (position < end)  # (B, T-1): the predicted token belongs to the completion
    hidden = model.model(ids[:, :-1]).last_hidden_state
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[mask]), ids[:, 1:][mask])


@torch.no_grad()
def sample(model, prompts: list[list[int]], n: int = 1, batch_size: int = 128) -> list[list[str]]:
    """`n` completions of each prompt at temperature 1, as text."""
    model.eval()
    texts: list[list[str]] = []
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 32}
    for begin in range(0, len(prompts), batch_size):
        batch = TOKENIZER.pad({"input_ids": prompts[begin : begin + batch_size]}, return_tensors="pt")
        output = model.generate(**batch, **settings, num_return_sequences=n)[:, batch["input_ids"].shape[1] :]
        decoded = TOKENIZER.batch_decode(output, skip_special_tokens=True)
        texts += [decoded[first : first + n] for first in range(0, len(decoded), n)]
    return texts


def grade(rows: list[dict], texts: list[list[str]]) -> list[list[float]]:
    return [[float(tiny_world.boxed(t) == row["answer"]) for t in ts] for row, ts in zip(rows, texts, strict=True)]


def train(model, steps: int, learning_rate, losses) -> None:
    """AdamW over `losses(step)`, an iterable, at the rate `learning_rate(step)`, until `steps` or a rate of None."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    for step in (bar := tqdm(range(steps), mininterval=2)):
        if (rate := learning_rate(step)) is None:
            break
        optimizer.param_groups[0]["lr"] = rate
        model.train()
        parts = list(losses(step))
        sum(parts).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix_str(" ".join(f"{part.item():.3f}" for part in parts), refresh=False)


def train_base(model, args: argparse.Namespace) -> None:
    rng = random.Random(f"base {args.seed}")
    chains = tiny_world.generate("chain", "base", 20000, args.seed)
    guesses = tiny_world.generate("guess", "base", 12000, args.seed)
    watched = tiny_world.generate("chain", "validation", 400, args.seed + 1)
    wound_up: list[int] = []  # the step from which the rate falls to zero

    def solved(rows, n):
        chosen = rng.sample(rows, n)
        return completion_loss(model, solve_ids(chosen), [tiny_world.corpus_solution(row, rng) for row in chosen])

    def drills(rows, n):
        prompts, texts = zip(*(tiny_world.reading_drill(rng.sample(rows, 4), rng) for _ in range(n)), strict=True)
        return completion_loss(model, solve_ids([{"problem": prompt} for prompt in prompts]), list(texts))

    def losses(step):
        reading = step < READING_STEPS
        yield solved(guesses, 32 if reading else 16)
        yield drills(guesses, 24 if reading else 16)
        yield drills(chains, 12)
        if not reading:
            yield 3 * solved(chains, 64)

    def learning_rate(step):
        since = step - READING_STEPS
        looks = not wound_up and since >= 200 and since % 10 == 0
        if looks and mean(ok[0] for ok in grade(watched, sample(model, solve_ids(watched)))) >= args.stop_at:
            wound_up.append(step)
        if not wound_up:
            return 2e-3 * min(1.0, (step + 1) / 50)
        left = 1 - (step - wound_up[0]) / WIND_UP_STEPS
        return 2e-3 * left if left > 0 else None

    train(model, READING_STEPS + CHAIN_STEPS, learning_rate, losses)


def train_teacher(model, args: argparse.Namespace) -> None:
    rng = random.Random(f"teacher {args.seed}")
    corpus = []  # (refinements a step, [(row, its candidates)]) of each family
    for family, batch_size in {"chain": 16, "guess": 24}.items():
        rows = tiny_world.generate(family, "teacher", 4000, args.seed)
        corpus.append((batch_size, list(zip(rows, sample(model, solve_ids(rows), args.num_candidates), strict=True))))

    def shown(candidates):
        least = args.min_num_candidates
        return candidates if least is None else rng.sample(candidates, rng.randint(least, args.num_candidates))

    def losses(step):
        for batch_size, pairs in corpus:
            rows, candidates = zip(*((row, shown(c)) for row, c in rng.sample(pairs, batch_size)), strict=True)
            texts = [tiny_world.refine(row, c, rng) for row, c in zip(rows, candidates, strict=True)]
            yield completion_loss(model, refine_ids(rows, candidates), texts)
            rows = [row for row, _ in rng.sample(pairs, 8)]
            yield completion_loss(model, solve_ids(rows), [tiny_world.corpus_solution(row, rng) for row in rows]) / 4

    train(model, TEACHER_STEPS, lambda step: 2e-3 * min(1, (step + 1) / 30, 2.5 * (1 - step / TEACHER_STEPS)), losses)


def measure(models: dict, num_problems: int, seed: int) -> dict[str, dict[str, float]]:
    """{family: {figure: share}} on validation problems; all models refine the same candidates of the base."""
    torch.manual_seed(seed)
    rows = tiny_world.generate("mix", "validation", num_problems, seed)
    candidates = sample(models["base"], solve_ids(rows), NUM_CANDIDATES)
    right = grade(rows, candidates)
    votes = zip(candidates, right, strict=True)
    shares = {
        "base_pass@1": [sum(group) / NUM_CANDIDATES for group in right],
        "base_maj@4": [maj_correct([tiny_world.boxed(t) for t in c], ok) for c, ok in votes],
        "base_pass@4": [max(group) for group in right],
    }
    if "teacher" in models:
        shares["teacher_pass@1"] = [group[0] for group in grade(rows, sample(models["teacher"], solve_ids(rows)))]
    for name, model in models.items():
        refined = sample(model, refine_ids(rows, candidates))
        shares[f"{name}_refines"] = [group[0] for group in grade(rows, refined)]
    chosen = {family: [i for i, row in enumerate(rows) if row["family"] == family] for family in tiny_world.FAMILIES}
    chosen["mix"] = range(len(rows))
    return {f: {name: round(mean(v[i] for i in ids), 4) for name, v in shares.items()} for f, ids in chosen.items()}


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    model, seconds, started = tiny_world.build_model(args.seed, args.hidden_size), {}, time.time()
    trained = {"base": train_base} if args.base_only else {"base": train_base, "teacher": train_teacher}
    if args.base:
        trained, model = {"teacher": train_teacher}, LlamaForCausalLM.from_pretrained(args.base)
    for name, train_model in trained.items():
        train_model(model, args)
        seconds[name] = round(time.time() - started)
        model.generation_config.update(do_sample=True, temperature=1.0)
        (model if args.base else tiny_world.in_llama_layout(model)).save_pretrained(args.output_dir / name)
        TOKENIZER.save_pretrained(args.output_dir / name)
    folders = {name: args.output_dir / name for name in trained} | ({"base": args.base} if args.base else {})
    models = {name: LlamaForCausalLM.from_pretrained(folder) for name, folder in folders.items()}
    setting = {"split": "validation", "num_problems": args.num_eval, "temperature": 1.0, "seed": args.seed}
    report = {"setting": setting, "difficulty": tiny_world.DIFFICULTY, "parameters": model.num_parameters()}
    report |= {"seconds": seconds, "accuracy": measure(models, args.num_eval, args.seed)}
    (args.output_dir / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["accuracy"], indent=2))


if __name__ == "__main__":
    main()
