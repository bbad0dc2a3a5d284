"""Generative self-refinement: models that refine their own parallel attempts (arXiv 2509.00084)."""

from importlib import metadata

__version__ = metadata.version("gsr-rl")
__all__ = ["Solver", "__version__"]


def __getattr__(name: str):
    """`Solver` is imported when it is first used: `import gsr_rl` alone costs nothing."""
    if name == "Solver":
        from gsr_rl.serving.solver import Solver

        return Solver
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
