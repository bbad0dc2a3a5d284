"""The two-stage rollout streamed, over the same rollout with a barrier between the stages.

    python benchmarks/rollout.py [--repeats 3] [--problems 8] [--generations 4]
    python benchmarks/rollout.py --record gsm8k_train.jsonl     # sample the lengths anew

Lengths are SmolLM2-135M-Instruct's own: `smollm2_gsm8k_lengths.json` beside this script holds how many tokens each of
its answers to GSM8K problems has, and each of its refinements over four of them. vLLM decodes exactly so many tokens
for each, in the trainer's own `TwoStageRollout`, with grading, choice and prompts as in training: streamed, a
problem's refinements start when its own candidates are done; with the barrier, when all are. Both sides run in turn
with the same lengths. Ends with one line of JSON.
"""

import argparse
import importlib.util
import json
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

from gsr_rl.engines.local import set_vllm_environment

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2 = ROOT / "runs" / "SmolLM2-135M-Instruct"
LENGTHS = Path(__file__).with_suffix("").with_name("smollm2_gsm8k_lengths.json")
LIMIT, PROMPT_LIMIT, WINDOW, K = 512, 1400, 2048, 4


def load_engine(max_num_seqs: int):
    """vLLM with SmolLM2 in bfloat16; without prefix reuse between the two sides' equal prompts."""
    set_vllm_environment()
    from vllm import LLM

    return LLM(
        str(SMOLLM2),
        dtype="bfloat16",
        max_model_len=WINDOW,
        max_num_seqs=max_num_seqs,
        enforce_eager=True,
        seed=0,
        disable_log_stats=True,
    )


class Trainer:
    """What `TwoStageRollout` asks of a trainer, over an engine that decodes given numbers of tokens.

    Args:
        lengths: For each problem text {"candidate": [...], "refinement": [...]} tokens.
    """

    chat_template_kwargs: dict = {}  # noqa: RUF012
    context_length = WINDOW

    def __init__(self, llm, lengths: dict[str, dict[str, list[int]]]):
        self.llm, self.engine, self.lengths = llm, llm.llm_engine, lengths
        self.processing_class = llm.get_tokenizer()
        self.eos_token_ids = [self.processing_class.eos_token_id]
        self.state, self.weights_step = SimpleNamespace(global_step=0), 0
        self.args = SimpleNamespace(
            prompt_template="gsr",
            max_completion_length=LIMIT,
            max_refinement_length=LIMIT - 1,  # told apart from a candidate by it
            max_refinement_prompt_length=PROMPT_LIMIT,
            unfinished_candidates="cut",
            generation_kwargs=None,
            seed=0,
        )
        self.streamed = True
        self._open: dict[str, dict[int, list[int]]] = {}
        self._wanted: dict[str, int] = {}

    def stream(self):
        return self if self.streamed else None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        assert not self._open

    def add(self, prompt_ids: list[int], n: int, max_tokens: int) -> str:
        """n completions of recorded lengths: a request each, because one request has one limit."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        stage = "candidate" if max_tokens == LIMIT else "refinement"
        text = self.processing_class.decode(prompt_ids)
        problem = next(problem for problem in self.lengths if problem in text)
        name = f"{len(self._wanted)}"
        self._open[name], self._wanted[name] = {}, n
        for place, length in enumerate(self.lengths[problem][stage][:n]):
            sampling = SamplingParams(
                max_tokens=length,
                min_tokens=length,
                ignore_eos=True,
                logprobs=0,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self.engine.add_request(f"{name}-{place}", {"prompt_token_ids": prompt_ids}, sampling)
        return name

    def wake(self) -> None:
        """A step of this engine returns by itself."""

    def step(self) -> list[tuple[str, list[list[int]], None]]:
        found = []
        for output in self.engine.step():
            if not output.finished:
                continue
            name, place = output.request_id.split("-")[:2]
            ids = list(output.outputs[0].token_ids)
            self._open[name][int(place)] = ids[:-1] + self.eos_token_ids
            if len(self._open[name]) == self._wanted[name]:
                done = self._open.pop(name)
                found.append((name, [done[place] for place in sorted(done)], None))
        return found

    def sample(self, prompts: list[list[int]], n: int, max_tokens: int) -> tuple[list, None]:
        """All requests at once, until all are done."""
        names = [self.add(prompt, n, max_tokens) for prompt in prompts]
        done = {}
        while len(done) < len(names):
            done |= {name: completions for name, completions, _ in self.step()}
        return [ids for name in names for ids in done[name]], None


def roll_out(trainer: Trainer, rows: list[dict], generations: int, streamed: bool) -> float:
    """Seconds of one rollout."""
    from gsr_rl.training.rollout import Plan, TwoStageRollout

    trainer.streamed = streamed
    trainer.llm.reset_prefix_cache()
    start = time.perf_counter()
    blocks = TwoStageRollout(trainer).run(rows, Plan(generations=generations, num_candidates=K))
    seconds = time.perf_counter() - start
    assert all(len(block.candidates) == len(block.refinements) == generations for block in blocks)
    return seconds


def record(path: Path, problems: int, generations: int) -> None:
    """Sample answers and refinements of real problems with SmolLM2 and keep how long they are."""
    from vllm import SamplingParams

    from gsr_rl.data.problems import read_local
    from gsr_rl.refinement.prompts import (
        candidate_text,
        fit_refinement_prompt,
        get_template,
        prompt_token_ids,
        solve_prompt,
    )

    rows = [row.get("problem") or row["question"] for row in read_local(path)[:problems]]
    llm, template = load_engine(64), get_template("gsr")
    tokenizer = llm.get_tokenizer()

    def sample(prompts: list[list[int]]) -> list[list[tuple[int, str]]]:
        how = SamplingParams(n=generations, temperature=1.0, max_tokens=LIMIT)
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], how)
        return [[(len(one.token_ids), one.text) for one in output.outputs] for output in outputs]

    answers = sample([prompt_token_ids(tokenizer, solve_prompt(problem, template)) for problem in rows])
    shown = [[candidate_text(text) for _, text in group[:K]] for group in answers]
    fitted = [
        fit_refinement_prompt(tokenizer, problem, texts, template, PROMPT_LIMIT)
        for problem, texts in zip(rows, shown, strict=True)
    ]
    refinements = sample([prompt.token_ids for prompt in fitted])
    table = [
        {"problem_tokens": len(tokenizer(problem)["input_ids"])}
        | {"candidate": [length for length, _ in answer], "refinement": [length for length, _ in refined]}
        for problem, answer, refined in zip(rows, answers, refinements, strict=True)
    ]
    content = {"model": "SmolLM2-135M-Instruct", "temperature": 1.0, "limit": LIMIT, "problems": table}
    LENGTHS.write_text(json.dumps(content) + "\n")
    print(f"{LENGTHS.name}: {len(table)} problems of {generations} answers and refinements")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="rollouts of each side; the table has medians")
    parser.add_argument("--problems", type=int, default=8, help="problems a rollout")
    parser.add_argument("--generations", type=int, default=4, help="G, candidates and refinements a problem")
    parser.add_argument("--max_num_seqs", type=int, default=64, help="sequences that vLLM decodes at once")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="sample the lengths anew, on problems of this file"
    )
    args = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        parser.error("vLLM is not installed, and the rollouts compared here are its own: pip install vllm")
    if not SMOLLM2.is_dir():
        parser.error(f"{SMOLLM2} is missing: run `make smollm2`")
    if args.record:
        record(args.record, 24, 8)
        return

    recorded = json.loads(LENGTHS.read_text())["problems"]
    engine = load_engine(args.max_num_seqs)
    print(f"{'rollout':>8} {'tokens':>8} {'barrier s':>10} {'streamed s':>11} {'ratio':>7}")
    ratios = []
    for number in range(args.repeats + 1):  # the first warms up and is not counted
        chosen = [recorded[(number * args.problems + i) % len(recorded)] for i in range(args.problems)]
        texts = [f"Problem {number}-{i}: " + "one " * (one["problem_tokens"] - 6) for i, one in enumerate(chosen)]
        rows = [{"problem": text, "problem_id": text, "answer": "1"} for text in texts]
        trainer = Trainer(engine, dict(zip(texts, chosen, strict=True)))
        order = (False, True) if number % 2 else (True, False)
        seconds = {streamed: roll_out(trainer, rows, args.generations, streamed) for streamed in order}
        tokens = sum(sum(one[stage][: args.generations]) for one in chosen for stage in ("candidate", "refinement"))
        ratio = seconds[True] / seconds[False]
        mark = "" if number else "  (warm-up)"
        print(f"{number:8} {tokens:8,} {seconds[False]:10.1f} {seconds[True]:11.1f} {ratio:7.3f}{mark}", flush=True)
        ratios += [ratio] if number else []
    print(
        f"SmolLM2-135M-Instruct, {args.problems} problems, G={args.generations}, at most {args.max_num_seqs} at once"
    )
    print(json.dumps({"streamed_over_barrier": round(statistics.median(ratios), 4)}))


if __name__ == "__main__":
    main()
