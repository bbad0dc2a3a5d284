"""From the stored samples of an evaluation to its figures and reports. No model, no engine, no verifier.

In: samples.parquet, which the evaluation writes (samples.py holds its columns). Out: eval.json, seeds.json and
compare.json (tables.py), made into report.md (markdown.py), report.html (html.py) and plots (plots.py).

Start with problem_values.py: the table of all metrics with their formulas. intervals.py has every interval and the
power note. In Python: `gsr_rl.report.tables.compare(RUN_A, RUN_B)`. watch.py draws the curves of a training from its
metrics.jsonl while it goes.
"""
