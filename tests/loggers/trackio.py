"""Stands for trackio, as transformers' TrackioCallback calls it."""

from contextvars import ContextVar
from types import SimpleNamespace

from recorder import Config, write

__version__ = "0.21.1"
context_vars = SimpleNamespace(current_space_id=ContextVar("space", default=None))
config = Config()


def init(**settings):
    write("trackio", run=settings["name"])


def log(values, step=None):
    write("trackio", values=values, step=values.get("train/global_step"))


def finish():
    write("trackio", closed=True)
