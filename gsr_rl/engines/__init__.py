"""Engines: prompts in, completions out, for every program but the trainers, which sample by TRL's vLLM.

In: `Request`s of token ids, with `Sampling`. Out: `Result`s of `Completion`s, as they finish.

Start with `Engine` in base.py, the one seam; open.py opens what an `EngineConfig` (config.py) asks for: vLLM or
transformers in this process (local.py), copies of these in processes of their own, or
OpenAI-compatible endpoints (endpoints.py). jobs.py drives an engine through the units of a job that survives kills.
`RewardModel` in local.py scores solutions instead of sampling them.
"""
