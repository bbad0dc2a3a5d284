"""Training: the joint step of candidates and refinements on TRL's GRPOTrainer, and the SFT warm start.

In: a `GSRConfig` or `GSRSFTConfig` (config.py; checked by checks.py before anything heavy is imported), rows of
problems, reward functions, a model. Out: a run folder with checkpoints, metrics and the rollout table.

Start with `GSRTrainer` in trainer.py, which says of each method of TRL's what is done instead. Then, in the order of a
step: rollout.py samples and grades both stages and keeps them as blocks, advantages.py turns rewards into
advantages, packing/batching.py forms micro-batches, and packing/trainer.py runs the model. Beside the step:
problem_order.py (which problems come next, and sampling them ahead), vllm_colocated.py and vllm_server.py (TRL's
engines, changed), server_requests.py (a rank's requests to servers), rollout_log.py (what is shown), checkpoints.py
(what is kept and pushed to the Hub), launch.py (processes, sizes), and dry_run.py (amounts and memory, estimated).
sft_trainer.py is the warm start.
"""
