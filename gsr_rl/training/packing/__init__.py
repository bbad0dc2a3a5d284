"""Packing: a generation batch in passes without padding, each prompt computed once for all its completions.

In: TRL's generation batch, dictionaries of padded tensors, with the stage of each row. Out: micro-batches of passes,
and the log-probabilities, metrics and gradients that TRL's loss makes of them.

Start with batching.py: which rows are computed together, and how losses are scaled to add up. Then rows.py (a pass as
one packed sequence), shared_prefix.py (attention over it), trainer.py (where TRL calls them) and throughput.py (what
was computed, and how fast).
"""
