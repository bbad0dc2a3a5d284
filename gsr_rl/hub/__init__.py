"""The Hugging Face Hub: pushes of models, data sets and results, and the cards that say how they were made.

In: the folder of a run (model, config.yaml, provenance.json, versions.json, evaluations/), or a set of SFT rows. Out:
one commit per push, and README.md as a card. What failed is retried by `python -m gsr_rl.hub push`.

Start with push.py. model_card.py and dataset_card.py make the cards, config.py has the keys and their checks.
"""
