"""Small data sets with teachers whose answers are known, and folders compared byte for byte."""

import torch

from preceptor.teachers.build import build
from preceptor.teachers.cache import Spec

CLASSES = 23
WHOSE = {"teacher": "t", "data": "d"}


def texts(rows=12, length=9, batch_size=3, classes=CLASSES):
    """Batches of texts of which some positions count, one row without any, and their logits under ``z``."""
    generator = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(rows, length, classes, generator=generator)
    mask = torch.rand(rows, length, generator=generator) < 0.7
    mask[1] = False
    ids = torch.randperm(rows, generator=generator) + 100
    whole = {"id": ids, "y": torch.zeros(rows, length, dtype=torch.int64), "mask": mask, "z": z}
    return [{key: value[start : start + batch_size] for key, value in whole.items()} for start in range(0, rows, batch_size)]


def examples(rows=20, batch_size=6, classes=CLASSES):
    """Batches of examples and their logits under ``z``."""
    z = 2 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(0))
    whole = {"id": torch.arange(rows) * 7, "y": torch.zeros(rows, dtype=torch.int64), "z": z}
    return [{key: value[start : start + batch_size] for key, value in whole.items()} for start in range(0, rows, batch_size)]


def said(batch):
    return batch["z"]


def whole(batches):
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0] if key != "epoch"}


def made(folder, batches, *, answer=said, progress=None, shard_bytes=1 << 28, **spec):
    return build(folder, batches, answer, Spec(**{**WHOSE, **spec}), progress=progress, shard_bytes=shard_bytes)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
