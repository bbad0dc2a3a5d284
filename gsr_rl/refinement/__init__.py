"""The method, pure: what a model is asked in both stages, which candidates a refinement sees, votes and metrics.

In: problems and completions as text, a tokenizer, settings and seeds. Out: prompts, candidate sets, grades, figures.
No engine, no trainer, no file but a model's gsr_config.json.

Start with `stages` (the steps of one problem, which training, distillation, evaluation and solving share), then
`prompts` (wording and token budget), `candidates` (choice of sets), `metrics` (pass@k, maj@k, gap, fix and break
rates) and `settings` (what a model was trained to be shown).
"""
