"""Problems: where they come from, and which of them are read.

In: a `ProblemConfig` (config.py), or a benchmark's name. Out: rows `{"id", "problem", "answer", ...}`, all three
non-empty strings, without duplicates, their answers such as the verifier can grade.

Start with `read_problems` in problems.py: it reads a local file, a set of the Hub (sources.py holds the layouts of
known ones), a task of reasoning-gym (gym_tasks.py, with Knights and Knaves) or the tiny world (tiny_world.py;
tiny_model.py has its tokenizer and network), and removes what evaluation sets hold (decontamination.py). benchmarks.py
reads sets to evaluate on by name, and checks each against its manifest: another benchmark is an entry there.
"""
