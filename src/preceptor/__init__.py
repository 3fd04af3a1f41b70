"""Teach models from models: knowledge distillation and everything around it.

The public names are resolved when they are first used, so importing the package loads neither torch nor any extra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from preceptor.catalog import list_methods, load
    from preceptor.core.run import train
    from preceptor.distillation import distill
    from preceptor.studies.study import compare

__all__ = ["__version__", "compare", "distill", "list_methods", "load", "train"]

_HOMES = {
    "compare": "preceptor.studies.study",
    "distill": "preceptor.distillation",
    "list_methods": "preceptor.catalog",
    "load": "preceptor.catalog",
    "train": "preceptor.core.run",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'preceptor' has no attribute {name!r}")
    return vars(importlib.import_module(_HOMES[name]))[name]
