"""Distillation: candidates of a student -> refinements of a teacher -> verified, balanced rows for SFT.

In: problems (gsr_rl/data) and a `DistillConfig`. Out: a folder of shards, which a killed job resumes from, and from
all of them sft_rows.jsonl and a report.

Start with `distill` (the two stages as a resumable job), then `rows` (balance, mixing, duplicates), `report` (what a
run will take, and what it took) and `config` (keys and their checks).
"""
