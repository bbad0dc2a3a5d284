"""What a distillation will take, before it starts: sizes of the funnel, tokens, requests, disk, time and cost."""

BYTES_A_TOKEN = 4.5  # of stored text, its JSON included; an estimate for mathematical English


def stated_problems(problem_config, config) -> int | None:
    """How many problems the configuration says that there are, so that a dry run need not read them."""
    stated = (config.expected or {}).get("problems")
    if stated is None:
        return None
    return min(int(stated), problem_config.max_problems or int(stated))


def plan(num_problems: int, config) -> dict[str, str]:
    """The figures of a dry run, each as expected and at most; with `shard`, those of the part.

    `config.expected` gives what is known beforehand. Where it does not, a mean length is taken as half its limit, a
    solve prompt as 150 tokens, no prompt as too long, and every refinement as kept by the balance, so the figure is an
    upper one.

    Args:
        num_problems: Problems of the whole job.
        config: A `DistillConfig`.
    """
    known = config.expected or {}
    if config.shard:
        number, of = map(int, config.shard.split("/"))
        num_problems = len(range(number - 1, num_problems, of))
    sets = config.num_candidate_sets
    fitting = num_problems * known.get("fitting", 1.0)
    candidates, most_candidates = (n * config.num_generations for n in (num_problems, num_problems))
    refinements, most_refinements = (n * sets * config.refinements_per_set for n in (fitting, num_problems))
    direct = num_problems * config.direct_generations if config.direct_source == "teacher" else 0
    mean = known.get("candidate_tokens", config.max_completion_length / 2)
    mean_refinement = known.get("refinement_tokens", config.max_refinement_length / 2)
    mean_prompt = known.get("refinement_prompt_tokens", config.max_refinement_prompt_length / 2)
    most_prompt = config.max_refinement_prompt_length
    solving = known.get("solve_prompt_tokens", 150)
    per_problem = known.get("refinement_rows", sets * config.refinements_per_set)
    ratio = config.direct_ratio if config.direct_source != "none" else 0.0
    rows, most_rows = fitting * per_problem * (1 + ratio), most_refinements * (1 + ratio)

    student = (candidates * mean, most_candidates * config.max_completion_length)
    teacher = (refinements + direct) * mean_refinement, (most_refinements + direct) * config.max_refinement_length
    prompts = fitting * sets * mean_prompt, num_problems * sets * most_prompt
    stored = [s + t + 2 * p for s, t, p in zip(student, teacher, prompts, strict=True)]
    written = [
        whole / (1 + ratio) * (2 * p + t + ratio * t)  # a refinement row holds its candidates twice
        for whole, p, t in (
            (rows, mean_prompt, mean_refinement),
            (most_rows, most_prompt, config.max_refinement_length),
        )
    ]
    disk = [BYTES_A_TOKEN * (one + other) for one, other in zip(stored, written, strict=True)]
    found = {"problems": _both(num_problems, num_problems)}
    found["candidates"] = _both(candidates, most_candidates)
    found["candidate sets within the prompt's budget"] = _both(fitting * sets, num_problems * sets)
    found["refinements"] = _both(refinements, most_refinements)
    found["direct solutions of the teacher"] = _both(direct, direct)
    found["refinement rows"] = _both(fitting * per_problem, most_refinements)
    found["rows"] = _both(rows, most_rows)
    teacher_requests = [n * sets + (num_problems if direct else 0) for n in (fitting, num_problems)]
    found["requests to the student"] = _both(num_problems, num_problems)
    found["requests to the teacher"] = _both(*teacher_requests)
    found["student, completion tokens"] = _both(*student)
    found["teacher, completion tokens"] = _both(*teacher)
    found["teacher, tokens of refinement prompts"] = _both(*prompts)
    found["tokens of solve prompts"] = _both(*(2 * [num_problems * solving * (2 if direct else 1)]))
    found["disk, MB"] = _both(*(size / 1e6 for size in disk))
    read_by_student = 2 * [num_problems * solving]
    read_by_teacher = [tokens + (num_problems * solving if direct else 0) for tokens in prompts]
    for who, completions, read in (("student", student, read_by_student), ("teacher", teacher, read_by_teacher)):
        price, speed = getattr(config, f"{who}_price"), getattr(config, f"{who}_tokens_per_second")
        if price:
            cost = [(p * price[0] + c * price[1]) / 1e6 for p, c in zip(read, completions, strict=True)]
            found[f"{who}, cost"] = _both(*cost, digits=2)
        if speed:
            found[f"{who}, hours"] = _both(*(tokens / speed / 3600 for tokens in completions), digits=1)
    return found


def _both(expected: float, most: float, digits: int = 0) -> str:
    return f"{expected:>18,.{digits}f} expected  {most:>18,.{digits}f} at most"
