"""Evaluation: problems -> candidates and what each method makes of them -> samples.parquet.

In: benchmarks (gsr_rl/data) and an `EvalConfig`. Out: every sample, graded, in shards that a killed run resumes from
and then as rows of samples.parquet. Figures, tables and pages are made of that file alone, in gsr_rl/report.

Start with `evaluate` (sampling and grading, kind by kind), then `methods` (what each method shows the model),
`stores` (which settings tie a shard, and another run's candidates) and `config` (keys and their checks).
"""
