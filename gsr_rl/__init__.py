"""Generative self-refinement: models that refine their own parallel attempts (arXiv 2509.00084)."""

__version__ = "0.1.0.dev0"
