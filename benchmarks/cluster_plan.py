"""Simulated seconds of a joint step on 8, 64 and 512 GPUs: colocated engines, servers, rollouts ahead.

    python benchmarks/cluster_plan.py [--gpus 8 64 512] [--samples runs/MINE/samples.parquet] [--mean_tokens 1000]

What goes in is stated, not measured, and is printed above the tables: throughputs of an engine, of an update and of a
push. Only the completions' lengths are measured: those of an evaluation's samples, a problem's candidates together,
scaled to another mean. What is simulated is the queue, as docs/training.md describes it: requests of n completions to
the least busy engine, a problem refined as soon as its candidates are done, pushes for which a server stands still,
`rollout_ahead`. The seconds are of steps once the start has been left behind. Ends with one line of JSON: the best
split of the largest number of GPUs.
"""

import argparse
import heapq
import json
import random
import statistics
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARES = (0.25, 0.375, 0.5, 0.625, 0.75)  # of the GPUs that are tried for the servers
WARM_UP, AHEAD = 3, (0, 1, 2)  # steps


@dataclass
class Request:
    """n completions of one prompt; `then` is called with the time when all are done."""

    prompt_tokens: int
    lengths: list[int]
    then: object
    left: int = 0


@dataclass
class Engine:
    """One copy of the model: every running sequence gets a token in `base + sequences * each` seconds.

    `progress` counts the tokens that a sequence which had run from the start would have; a sequence ends when that
    reaches what it was at its own start plus its length. Until `busy` prompts are computed or weights are taken.
    """

    args: argparse.Namespace
    progress: float = 0.0
    time: float = 0.0
    busy: float = 0.0
    in_flight: int = 0
    version: int = 0  # of its next event: older ones are void
    running: list = field(default_factory=list)  # heap of (progress at the end, number, request)
    waiting: deque = field(default_factory=deque)

    def seconds_a_token(self) -> float:
        base = self.args.token_ms / 1000
        full = self.args.sequences / self.args.engine_tokens_per_second
        return base + len(self.running) * max(0.0, full - base) / self.args.sequences

    def advance(self, now: float) -> None:
        since = max(self.time, self.busy)
        if self.running and now > since:
            self.progress += (now - since) / self.seconds_a_token()
        self.time = now

    def next_end(self) -> float | None:
        if not self.running:
            return None
        return max(self.time, self.busy) + max(0.0, self.running[0][0] - self.progress) * self.seconds_a_token()

    def stand_still(self, now: float, seconds: float) -> None:
        self.busy = max(self.busy, now) + seconds

    def fill(self, number) -> None:
        """Start what waits while there is room."""
        while self.waiting and len(self.running) < self.args.sequences:
            length, request = self.waiting.popleft()
            heapq.heappush(self.running, (self.progress + length, next(number), request))


class Engines:
    """All engines and the time: requests go to the least busy one, or to one that is named."""

    def __init__(self, count: int, args):
        self.all = [Engine(args) for _ in range(count)]
        self.now, self.numbers = 0.0, iter(range(10**12))
        self.events: list = []  # heap of (time, number, engine, version)
        self.loads = [(0, place) for place in range(count)]  # heap; an entry that is no longer true is dropped

    def changed(self, place: int) -> None:
        engine = self.all[place]
        engine.fill(self.numbers)
        engine.version += 1
        if (end := engine.next_end()) is not None:
            heapq.heappush(self.events, (end, next(self.numbers), place, engine.version))
        heapq.heappush(self.loads, (engine.in_flight, place))

    def least_busy(self) -> int:
        while self.loads[0][0] != self.all[self.loads[0][1]].in_flight:
            heapq.heappop(self.loads)
        return self.loads[0][1]

    def add(self, request: Request, place: int | None = None) -> int:
        place = self.least_busy() if place is None else place
        engine = self.all[place]
        engine.advance(self.now)
        request.left = len(request.lengths)
        engine.in_flight += request.left
        engine.stand_still(self.now, request.prompt_tokens / engine.args.prompt_tokens_per_second)
        engine.waiting.extend((length, request) for length in request.lengths)
        self.changed(place)
        return place

    def push(self, places, seconds: float) -> None:
        """New weights: these engines stand still, and go on with what is in flight and its caches."""
        for place in places:
            self.all[place].advance(self.now)
            self.all[place].stand_still(self.now, seconds)
            self.changed(place)

    def run(self, until: float = float("inf"), done=lambda: False) -> None:
        """Let the time pass, until then or until something is done."""
        while not done() and self.events and self.events[0][0] <= until:
            time, _, place, version = heapq.heappop(self.events)
            engine = self.all[place]
            if version != engine.version:
                continue
            self.now = time
            engine.advance(time)
            _, _, request = heapq.heappop(engine.running)
            engine.in_flight -= 1
            request.left -= 1
            self.changed(place)
            if not request.left:
                request.then()
        if until < float("inf"):
            self.now = until


class Batch:
    """The problems of one step: their lengths, and how many are still to be refined."""

    def __init__(self, lengths: list[tuple[list[int], list[int]]], args):
        self.lengths, self.args, self.left, self.version = lengths, args, len(lengths), 0

    def refinement_prompt(self, candidates: list[int]) -> int:
        return self.args.problem_tokens + sum(candidates[: self.args.num_candidates])

    def order(self, engines: Engines, version: int, place=lambda number: None) -> None:
        """Ask for all candidates now, and for a problem's refinements when they are done."""
        self.version = version
        for number, (candidates, refinements) in enumerate(self.lengths):

            def refine(number=number, candidates=candidates, refinements=refinements):
                engines.add(Request(self.refinement_prompt(candidates), refinements, self._one_less), place(number))

            engines.add(Request(self.args.problem_tokens, candidates, refine), place(number))

    def _one_less(self) -> None:
        self.left -= 1

    @property
    def trained_tokens(self) -> int:
        """Each prompt once, as `shared_prefix` computes them, and all completions."""
        prompts = sum(self.args.problem_tokens + self.refinement_prompt(first) for first, _ in self.lengths)
        return prompts + sum(sum(first) + sum(second) for first, second in self.lengths)


@dataclass
class Plan:
    """What a way of using the GPUs comes to: means over steps, in seconds; staleness in steps."""

    name: str
    servers: int
    rollout: float
    update: float
    push: float
    formula: float
    step: float
    staleness: float = 0.0


def colocated(batches: list[Batch], gpus: int, args) -> Plan:
    """All GPUs sample, each its own problems, then all update."""
    count, rollouts, updates = gpus // args.tensor_parallel, [], []
    for batch in batches:
        engines = Engines(count, args)
        batch.left = len(batch.lengths)
        batch.order(engines, 0, lambda number: number % count)
        engines.run(done=lambda batch=batch: not batch.left)
        rollouts.append(engines.now)
        updates.append(batch.trained_tokens / args.trained_tokens_per_second / gpus)
    rollout, update = statistics.mean(rollouts), statistics.mean(updates)
    step = statistics.mean(a + b for a, b in zip(rollouts, updates, strict=True)) + args.wake_seconds
    return Plan("colocated", gpus, rollout, update, args.wake_seconds, args.wake_seconds + rollout + update, step)


def with_servers(batches: list[Batch], gpus: int, servers: int, ahead: int, args) -> Plan:
    """`servers` GPUs sample, the others update, `ahead` steps apart."""
    engines = Engines(servers // args.tensor_parallel, args)
    a_server = max(1, args.gpus_per_server // args.tensor_parallel)
    groups = [range(first, min(first + a_server, len(engines.all))) for first in range(0, len(engines.all), a_server)]
    ordered, starts, stale = 0, [], []
    updates = [batch.trained_tokens / args.trained_tokens_per_second / (gpus - servers) for batch in batches]
    for step, batch in enumerate(batches):
        starts.append(engines.now)
        for group in groups:
            engines.push(group, args.push_seconds)
            engines.run(until=engines.now + args.push_seconds)
        while ordered < min(step + ahead + 1, len(batches)):
            batches[ordered].left = len(batches[ordered].lengths)
            batches[ordered].order(engines, step)
            ordered += 1
        engines.run(done=lambda batch=batch: not batch.left)
        stale.append(step - batch.version)
        engines.run(until=engines.now + updates[step])
    counted = slice(WARM_UP, WARM_UP + args.steps)  # the last ones have less beside them
    seconds = [end - start for start, end in zip(starts, [*starts[1:], engines.now], strict=True)][counted]
    rollout, update = rollout_alone(batches, servers, args), statistics.mean(updates)
    push = args.push_seconds * len(groups)
    formula = push + (max(rollout, update) if ahead else rollout + update)
    name = f"servers, rollout_ahead {ahead}"
    return Plan(
        name, servers, rollout, update, push, formula, statistics.mean(seconds), statistics.mean(stale[counted])
    )


def rollout_alone(batches: list[Batch], servers: int, args) -> float:
    """Seconds of a batch that has all the servers to itself."""
    engines = Engines(servers // args.tensor_parallel, args)
    batch = Batch(batches[WARM_UP].lengths, args)
    batch.order(engines, 0)
    engines.run(done=lambda: not batch.left)
    return engines.now


def measured(path: Path) -> tuple[list[list[int]], list[int]]:
    """Tokens of completions in an evaluation's samples: each problem's candidates, and all refinements."""
    import pandas as pd

    rows = pd.read_parquet(path, columns=["problem_id", "stage", "method", "tokens"])
    candidates = rows[(rows.stage == "candidate") & (rows.method == "direct")]
    refinements = rows[(rows.stage == "refinement") & (rows.method == "selfref")]
    return [group.tolist() for _, group in candidates.groupby("problem_id").tokens], refinements.tokens.tolist()


def draw(problems: int, steps: int, args) -> list[Batch]:
    """The batches of so many steps: a measured problem's candidates, any measured refinements, scaled."""
    candidates, refinements = measured(ROOT / args.samples)
    scale = args.mean_tokens / statistics.mean(length for group in candidates for length in group)
    rng, batches = random.Random(args.seed), []
    pick = lambda lengths: [max(1, round(scale * rng.choice(lengths))) for _ in range(args.num_generations)]  # noqa: E731
    for _ in range(steps):
        batches.append(Batch([(pick(rng.choice(candidates)), pick(refinements)) for _ in range(problems)], args))
    return batches


def plans(gpus: int, args) -> tuple[list[Plan], list[Plan]]:
    """The best split of each way, and every split of one step ahead."""
    batches = draw(args.problems_per_gpu * gpus, WARM_UP + args.steps + max(AHEAD), args)
    unit = args.tensor_parallel
    most = (gpus - 1) // unit * unit  # a GPU is left for the update
    splits = [min(most, max(unit, round(share * gpus / unit) * unit)) for share in SHARES]
    tried = {ahead: [with_servers(batches, gpus, servers, ahead, args) for servers in splits] for ahead in AHEAD}
    best = [min(tried[ahead], key=lambda plan: plan.step) for ahead in tried]
    return [colocated(batches[WARM_UP:][: args.steps], gpus, args), *best], tried[1]


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--gpus", type=int, nargs="+", default=[8, 64, 512])
    add("--samples", default="results/smollm2/knights_grpo.parquet", help="lengths are of these samples")
    add("--mean_tokens", type=float, default=1000, help="of a candidate, to which all lengths are scaled")
    add("--problem_tokens", type=int, default=200, help="of a prompt without candidates")
    add("--problems_per_gpu", type=int, default=8, help="problems a step, for each GPU")
    add("--num_generations", type=int, default=8, help="candidates, and refinements, of a problem")
    add("--num_candidates", type=int, default=4, help="candidates in a refinement prompt")
    add("--tensor_parallel", type=int, default=1, help="GPUs of an engine")
    add("--gpus_per_server", type=int, default=8, help="GPUs behind one address, which take weights together")
    add("--token_ms", type=float, default=8, help="milliseconds of a token of a single sequence")
    add("--sequences", type=int, default=256, help="sequences that an engine runs at once")
    add("--engine_tokens_per_second", type=float, default=8000, help="of an engine with that many sequences")
    add("--prompt_tokens_per_second", type=float, default=40000, help="of an engine")
    add("--trained_tokens_per_second", type=float, default=7000, help="of one GPU's part of an update")
    add("--push_seconds", type=float, default=1.5, help="of new weights to one server; they go to one after another")
    add("--wake_seconds", type=float, default=3, help="of weights and wake-up of engines in the trainer's processes")
    add("--steps", type=int, default=6, help="counted steps")
    add("--seed", type=int, default=0)
    args = parser.parse_args(words)
    if min(args.gpus) <= args.tensor_parallel:
        parser.error(f"--gpus {min(args.gpus)}: an engine takes {args.tensor_parallel}, give at least one more")
    return args


def main() -> None:
    args = parse_args()
    print("Assumptions (stated, not measured; each is an option):")
    print("  " + ", ".join(f"{key} {value}" for key, value in vars(args).items()))
    print(f"  lengths: measured in {args.samples}, multiplied so that a candidate has {args.mean_tokens:g} on average")
    print("  grading takes no time, all GPUs are equal, no server is lost\n")
    columns = ("GPUs", "way", "server GPUs", "rollout", "update", "push", "formula", "step", "problems/s", "staleness")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    splits = {}
    for gpus in args.gpus:
        ways, splits[gpus] = plans(gpus, args)
        for way in ways:
            seconds = [f"{value:.1f}" for value in (way.rollout, way.update, way.push, way.formula, way.step)]
            rate = f"{args.problems_per_gpu * gpus / way.step:.2f}"
            print(
                "| "
                + " | ".join([str(gpus), way.name, str(way.servers), *seconds, rate, f"{way.staleness:.1f}"])
                + " |"
            )
    print("\nSeconds of a step with rollout_ahead 1, by the GPUs that serve:\n\n| GPUs |", end="")
    print("".join(f" {share:.0%} |" for share in SHARES) + "\n|" + "---|" * (1 + len(SHARES)))
    for gpus, tried in splits.items():
        print(f"| {gpus} |" + "".join(f" {plan.step:.1f} |" for plan in tried))
    best = min(splits[max(args.gpus)], key=lambda plan: plan.step)
    print(json.dumps({"gpus": max(args.gpus), "server_gpus": best.servers, "step_seconds": round(best.step, 2)}))


if __name__ == "__main__":
    main()
