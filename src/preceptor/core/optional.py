"""Optional packages: one clear line when one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(name: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Args:
        name: module to import, dots allowed.
        extra: preceptor's extra that brings it.
        purpose: what it is needed for, ends the sentence "NAME is needed for ...".
    Raises:
        ImportError: one line that says what to install.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name.split(".")[0]):
            raise
        raise ImportError(f"{name} is needed for {purpose}: pip install 'preceptor[{extra}]'") from error
