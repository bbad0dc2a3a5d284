"""Experiments in the tiny world over several seeds: train the arms of arms.yaml, evaluate each, make their tables.

    python recipes/tiny/paper.py --tables demo stages --seeds 0 1 2
    python recipes/tiny/paper.py --report            # the tables again, from results/paper alone

Resumable: what has ended is not run again. Models and logs are kept in runs/paper/seedN; what each arm's figures are
made from goes to results/paper/seedN as soon as the arm ends. README's table is one of those (paper_tables.py).
"""

import argparse
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import chain
import pandas as pd
import paper_tables
import yaml

ARMS = Path(__file__).with_name("arms.yaml")


def parse_args(config: dict) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    tables = list(config["tables"])
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables, help="Default: all.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="test", help="Problems of the evaluation: test, or validation for tuning.")
    parser.add_argument("--num_problems", type=int, default=2000, help="Problems of the evaluation.")
    parser.add_argument("--state_dir", type=Path, default=Path("runs/paper"), help="Models and logs.")
    parser.add_argument("--results_dir", type=Path, default=Path("results/paper"), help="Figures and tables.")
    parser.add_argument("--report", action="store_true", help="Only make the tables of what has been run.")
    return parser.parse_args()


def needed(arms: dict, wanted: list[str]) -> list[str]:
    """The wanted arms and those that they start from, in an order in which they can be run."""
    found: list[str] = []
    for name in wanted:
        start = [arms[name]["from"]] if "from" in arms[name] else []
        found += [arm for arm in [*needed(arms, start), name] if arm not in found]
    return found


def words(keys: dict) -> list[str]:
    return [word for key, value in keys.items() for word in (f"--{key}", str(value))]


@dataclass
class Seed:
    """All arms of one seed: where their models are, and what runs them."""

    number: int
    config: dict
    args: argparse.Namespace

    @property
    def out(self) -> Path:
        return self.args.state_dir / f"seed{self.number}"

    def model(self, name: str) -> str:
        """The folder of an arm's model."""
        arm = self.config["arms"][name]
        if "program" not in arm:
            return arm["model"] if "model" in arm else self.model(arm["from"])
        return f"{self.args.state_dir / name}/base" if arm["program"] == "base" else str(self.out / name)

    def rows(self, name: str) -> str:
        """The SFT rows of this name, made now if they are not there."""
        spec = self.config["rows"][name]
        if "of" in spec:
            folder = self.out / f"{spec['of']}_steps"
            command = ["python", "recipes/tiny/known_steps.py", "--rows", self.rows(spec["of"])]
            chain.run(folder.name, [*command, "--output_dir", str(folder), "--seed", str(self.number)], self.out, 2)
            return f"{folder}/{spec['part']}.jsonl"
        keys = dict(spec)
        if "student" in keys:
            keys["student_model"] = self.model(keys.pop("student"))
        chain.run(name, chain.distill(self.out / name, self.number, *words(keys)), self.out, 2)
        return f"{self.out}/{name}/sft_rows.jsonl"

    def train(self, name: str) -> tuple[list[str], float]:
        """Make an arm's model: the command and its seconds."""
        arm = self.config["arms"][name]
        program, folder, keys = arm.get("program"), self.out / name, words(arm.get("keys", {}))
        if program is None:
            return [], 0.0
        if program == "base":  # one for all seeds
            folder = self.args.state_dir / name
            command = ["python", "recipes/tiny/make_models.py", "--base_only", "--output_dir", str(folder), *keys]
            return command, chain.run(name, command, self.args.state_dir, 1)
        start = self.model(arm["from"])
        if program == "sft":
            command = chain.sft(folder, self.number, start, self.rows(arm.get("rows", "distill")), *keys)
        else:
            command = chain.grpo(folder, self.number, start, *keys)
        return command, chain.run(name, command, self.out, 1)

    def run(self, name: str) -> None:
        """Train an arm, evaluate it, and put what its figures are made from into the results."""
        target = self.args.results_dir / f"seed{self.number}" / f"{name}.json"
        if target.is_file():
            return
        keys = self.config["arms"][name].get("eval", {})
        command, seconds = self.train(name)
        folder = self.out / f"eval_{name}"
        unlike = {"dataset_name", "dataset_kwargs", "num_candidates"} & set(keys)
        frozen = None if name == "base" or unlike else self.out / "eval_base"
        asked = (self.args.split, self.args.num_problems, frozen, *words(keys))
        evaluation = chain.evaluate(folder, self.number, self.model(name), *asked)
        costs = {"train": seconds, "eval": chain.run(folder.name, evaluation, self.out, 2)}
        commands = [shlex.join(one) for one in (command, evaluation) if one]
        keep(target, folder, self.out / name, self.model(name), commands, costs)


def keep(target: Path, evaluation: Path, training: Path, model: str, commands: list[str], seconds: dict) -> None:
    """Write TARGET.json (settings, cost, table by num_correct) and TARGET.parquet (figures a problem)."""
    from safetensors import safe_open

    from gsr_rl.run_folder import atomic_path, atomic_write
    from gsr_rl.tables import metrics_from_samples

    parts = metrics_from_samples(evaluation).problems["lenient"]
    whole = next(iter(parts))
    tables = []
    for part, one in parts.items():
        if part != whole or len(parts) == 1:
            named = {column: one.values.get(paper_tables.metric(column, one.k)) for column in paper_tables.COLUMNS}
            named = {column: values or [float("nan")] * len(one.ids) for column, values in named.items()}
            tables.append(pd.DataFrame({"problem_id": one.ids, "part": part} | named))
    figures = pd.concat(tables).astype(dict.fromkeys(paper_tables.COLUMNS, "float32"))
    summary = json.loads((evaluation / "eval.json").read_text())
    logs = training / "metrics.jsonl"
    steps = [json.loads(line) for line in logs.read_text().splitlines()] if logs.is_file() else []
    with safe_open(f"{model}/model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    content = {key: summary[key] for key in ("k", "num_problems", "num_samples", "seed", "sampling", "versions")}
    content |= {"commands": commands, "seconds": seconds, "by_num_correct": summary["by_num_correct"]}
    content["parameters"] = sum(rows * (columns[0] if columns else 1) for rows, *columns in shapes)
    content["optimizer_steps"] = int(max((log.get("step", 0) for log in steps), default=0))
    content["training_tokens"] = int(max((log.get("num_tokens", 0) for log in steps), default=0))
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target.with_suffix(".parquet")) as temporary:
        figures.to_parquet(temporary, index=False, compression="zstd")
    atomic_write(target, json.dumps(content, indent=1) + "\n")


def main() -> None:
    config = yaml.safe_load(ARMS.read_text())
    args = parse_args(config)
    if not args.report:
        wanted = [arm for name in args.tables for arm in config["tables"][name]["arms"]]
        for number in args.seeds:
            seed = Seed(number, config, args)
            for name in needed(config["arms"], ["base", *wanted]):
                seed.run(name)

    paper_tables.write(config["tables"], args.results_dir, args.seeds)


if __name__ == "__main__":
    main()
