"""Files that are whole or not there, and on the disk when a call returns."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any


def write_whole(path: Path, content: str | bytes, *, shared: bool = False) -> Path:
    """Write a file aside, bring it to the disk and rename it: a kill or a full disk leaves the old file or the new one.

    Args:
        path: the file; folders are made when missing.
        content: text is written as UTF-8.
        shared: several processes may write this file at the same time, as those of one run do; the last one stays. A killed one then leaves
            a hidden file behind, which otherwise the next call overwrites.
    Returns:
        ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name.lstrip('.')}{f'.{os.getpid()}' if shared else ''}.partial")
    with aside.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        sync(file)
    aside.replace(path)
    sync_folder(path.parent)
    return path


def sync(file: IO[Any]) -> None:
    """Bring what was written to an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
