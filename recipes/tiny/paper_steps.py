"""The arms of arms.yaml on one seed as steps: commands in the order in which they can be run, and which are left."""

import argparse
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import chain
from chain import Step

STATE = Path("runs/paper")
BASE = 100  # seeds 100 to 199 start from a base made with seed 1, and so on; those below from the shipped one


def needed(arms: dict, wanted: list[str]) -> list[str]:
    """The wanted arms and those that they start from, in an order in which they can be run."""
    order: list[str] = []
    for name in wanted:
        start = [arms[name]["from"]] if "from" in arms[name] else []
        order += [arm for arm in [*needed(arms, start), name] if arm not in order]
    return order


def words(keys: dict) -> list[str]:
    """Keys as options of a command; one with a list has several words."""
    lists = {key: value if isinstance(value, list) else [value] for key, value in keys.items()}
    return [word for key, values in lists.items() for word in (f"--{key}", *map(str, values))]


@dataclass
class Seed:
    """All arms of one seed: where their models are, and the steps that make them."""

    number: int
    config: dict
    args: argparse.Namespace

    @property
    def out(self) -> Path:
        return self.args.state_dir / f"seed{self.number}"

    @property
    def base_seed(self) -> int:
        """The seed of the base that this seed starts from; 0: the shipped one."""
        return self.number // BASE

    def arm(self, name: str) -> dict:
        """An arm of arms.yaml; the base is made for seeds that have one of their own."""
        return {"program": "base"} if name == "base" and self.base_seed else self.config["arms"][name]

    def made(self, name: str) -> Path:
        """Where a base, or a teacher of one, is made: one for all seeds that start from the same base."""
        return self.args.state_dir / (f"{name}_{self.base_seed}" if self.base_seed else name)

    def target(self, name: str) -> Path:
        """Where an arm's figures go."""
        return self.args.results_dir / f"seed{self.number}" / f"{name}.json"

    def model(self, name: str) -> str:
        """The folder of an arm's model."""
        arm = self.arm(name)
        if "program" not in arm:
            return arm["model"] if "model" in arm else self.model(arm["from"])
        made = arm["program"] in ("base", "teacher")
        return f"{self.made(name)}/{arm['program']}" if made else str(self.out / name)

    def rows(self, name: str) -> str:
        """The file of the SFT rows of this name."""
        part = self.config["rows"][name].get("part")
        return f"{self.selected(name)}/{part}.jsonl" if part else f"{self.out}/{name}/sft_rows.jsonl"

    def selected(self, name: str) -> Path:
        """The folder of what select_rows.py makes for these rows."""
        spec = self.config["rows"][name]
        return self.out / f"{spec.get('right', spec['of'])}_rows"

    def row_steps(self, name: str) -> list[Step]:
        """What makes these SFT rows, from the start."""
        spec, before = dict(self.config["rows"][name]), []
        if "of" in spec:
            folder, sources = self.selected(name), {"rows": spec["of"]}
            sources |= {"right": spec["right"]} if "right" in spec else {}
            keys = {"output_dir": folder, "seed": self.number} | {key: self.rows(of) for key, of in sources.items()}
            command = ["python", "recipes/tiny/select_rows.py", *words(keys)]
            before = [step for source in sources.values() for step in self.row_steps(source)]
            return [*before, Step(folder.name, "rows", command, self.out)]
        if self.base_seed:
            spec.setdefault("student", "base")
        for role in ("student", "teacher"):
            if role in spec:
                arm = spec.pop(role)
                before, spec[f"{role}_model"] = [*before, *self.model_steps(arm)], self.model(arm)
        command = chain.distill(self.out / name, self.number, *words(spec))
        return [*before, Step(name, "distill", command, self.out)]

    def model_steps(self, name: str) -> list[Step]:
        """What makes an arm's model, from the start; the last one is the arm's own training if it has one."""
        arm = self.arm(name)
        program, keys = arm.get("program"), words(arm.get("keys", {}))
        before = self.model_steps(arm["from"]) if "from" in arm else []
        if program is None:
            return before
        if program in ("base", "teacher"):
            folder = self.made(name)
            part = ["--base_only"] if program == "base" else ["--base", self.model(arm["from"])]
            part += ["--seed", str(self.base_seed)] if self.base_seed else []
            command = ["python", "recipes/tiny/make_models.py", *part, "--output_dir", str(folder), *keys]
            return [*before, Step(folder.name, program, command, self.args.state_dir)]
        start = self.model(arm["from"])
        if program == "sft":
            rows = arm.get("rows", "distill")
            before = [*before, *self.row_steps(rows)]
            command = chain.sft(self.out / name, self.number, start, self.rows(rows), *keys)
        else:
            command = getattr(chain, program)(self.out / name, self.number, start, *keys)  # grpo or served
        return [*before, Step(name, program, command, self.out)]

    def steps(self, name: str) -> list[Step]:
        """All that an arm's figures come from, its evaluation last."""
        keys = self.arm(name).get("eval", {})
        alone = name == "base" or {"dataset_name", "dataset_kwargs", "num_candidates"} & set(keys)
        frozen = [] if alone else self.steps("base")
        folder = self.out / f"eval_{name}"
        problems = (self.args.split, self.args.num_problems, None if alone else self.out / "eval_base", *words(keys))
        command = chain.evaluate(folder, self.number, self.model(name), *problems)
        kind = "pools" if "pool_sizes" in keys else "eval"
        return [*self.model_steps(name), *frozen, Step(folder.name, kind, command, self.out)]

    def commands(self, name: str) -> list[str]:
        """An arm's steps as they are kept with its figures: as if its models were where they are by default."""
        state = str(self.args.state_dir)
        return [shlex.join(step.command).replace(state, str(STATE)) for step in self.steps(name)]

    def left(self, name: str) -> list[Step]:
        """The steps of an arm that are to be run: none if its figures are there.

        Raises:
            SystemExit: Its figures, or a step, were made with other arguments.
        """
        target = self.target(name)
        if not target.is_file():
            return [step for step in self.steps(name) if step.seconds is None]
        commands = self.commands(name)
        for command in json.loads(target.read_text())["commands"]:
            if command not in commands:
                out = command.split(" --output_dir ")[1].split()[0]
                now = next((other for other in commands if f" --output_dir {out} " in f"{other} "), "nothing")
                raise SystemExit(
                    f"{target} was made with other arguments: {chain.changes(command, now)}. Give another "
                    f"--results_dir and --state_dir, or delete it, {out} and its mark in {self.out}/done"
                )
        return []
