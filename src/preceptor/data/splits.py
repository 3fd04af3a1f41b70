"""Deterministic parts of a data set: stratified splits, nested subsets, and the checks that parts do not overlap."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import combinations

import torch
from torch import Tensor

from preceptor.data.examples import Examples
from preceptor.data.hashing import generator


def stratified_counts(class_counts: Tensor, total: int) -> Tensor:
    """Share ``total`` among classes in proportion to their sizes, by largest remainders (ties: the lower class first).

    Args:
        class_counts: int64 (C,), examples of each class.
        total: number to share, in [0, sum of class_counts].
    Returns:
        int64 (C,), sums to ``total``; each entry differs from the exact share by less than 1.
    """
    size = int(class_counts.sum())
    shares = class_counts * total // max(size, 1)
    remainders = class_counts * total - shares * size
    extra = (-remainders).argsort(stable=True)[: total - int(shares.sum())]
    shares[extra] += 1
    return shares


def stratified_order(labels: Tensor, *, seed: int = 0) -> Tensor:
    """A shuffled order of which every beginning is stratified, so that subsets of growing size are nested.

    The j-th example of a class of n (shuffled by seed) stands at (j + u) / n of the order, u in (0, 1) a fixed number of its class.
    A beginning of m examples therefore holds m n / N examples of a class, to within one or two.

    Args:
        labels: int64 (N,).
        seed: of the shuffling.
    Returns:
        int64 (N,), positions.
    """
    shuffled = torch.randperm(len(labels), generator=generator(seed, 0))
    rank = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique().tolist():
        members = shuffled[labels[shuffled] == label]
        offset = float(torch.rand((), generator=generator(seed, 1, label), dtype=torch.float64))
        rank[members] = (torch.arange(len(members), dtype=torch.float64) + offset) / len(members)
    return shuffled[rank[shuffled].argsort(stable=True)]


def holdout(examples: Examples, *, rate: float = 0.1, seed: int = 0, name: str = "valid") -> tuple[Examples, Examples]:
    """Split a stratified part off, by seed: by default the validation part of a training set.

    Args:
        examples: what to split; ids stay those of its whole set.
        rate: part that is held out, in (0, 1); rounded to a whole number of examples, stratified to within one per class.
        seed: which examples.
        name: of the part held out.
    Returns:
        What remains and the part held out, each in the order of ``examples``.
    Raises:
        ValueError: rate outside (0, 1), or one of the two parts would be empty.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate: expected a number in (0, 1), got {rate}")
    total = round(rate * len(examples))
    if not 0 < total < len(examples):
        raise ValueError(f"rate: expected two parts with examples, got {total} of {len(examples)} of {examples.name} for {rate}")
    counts = torch.bincount(examples.labels, minlength=examples.num_classes)
    shuffled = torch.randperm(len(examples), generator=generator(seed))
    held = torch.zeros(len(examples), dtype=torch.bool)
    for label, count in enumerate(stratified_counts(counts, total).tolist()):
        held[shuffled[examples.labels[shuffled] == label][:count]] = True
    return examples.subset((~held).nonzero()[:, 0]), examples.subset(held.nonzero()[:, 0], name=name)


def take(examples: Examples, count: int, *, seed: int | None = 0, name: str | None = None) -> Examples:
    """A part of ``count`` examples; parts of one seed are nested: the smaller lies in the larger.

    Args:
        examples: what to take from.
        count: in [1, len(examples)].
        seed: of a stratified choice; None takes the first ones as they stand.
        name: of the part, by default that of ``examples``.
    Raises:
        ValueError: count outside its range.
    """
    if not 1 <= count <= len(examples):
        raise ValueError(f"count: expected a number in [1, {len(examples)}] of {examples.name}, got {count}")
    order = torch.arange(len(examples)) if seed is None else stratified_order(examples.labels, seed=seed)
    return examples.subset(order[:count], name=name)


def check_disjoint(parts: Mapping[str, Examples]) -> None:
    """Refuse parts of one whole set that share an id; equal inputs are the business of `shared_inputs`.

    Args:
        parts: named parts, such as train, valid and test.
    Raises:
        ValueError: names the two parts, how many examples they share and one of them.
    """
    for (name_a, a), (name_b, b) in combinations(parts.items(), 2):
        shared = b.ids[torch.isin(b.ids, a.ids)] if a.all_labels is b.all_labels else b.ids[:0]
        if len(shared):
            raise ValueError(f"{name_b}: expected no example of {name_a}, got {len(shared)} shared, the first with id {int(shared[0])}")


def shared_inputs(parts: Mapping[str, Examples]) -> list[str]:
    """Look for inputs that stand in more than one part, byte for byte.

    Well-known data sets hold a few such duplicates, so these are told and not refused. A part all of whose inputs stand in earlier parts is
    refused, unless most inputs of those occur several times: data of a few categories repeat themselves in every part.

    Args:
        parts: named parts, such as train, valid and test, each compared with all before it; what is not in memory is not read.
    Returns:
        One line for each part that shares inputs with earlier ones, and one that names parts not in memory.
    Raises:
        ValueError: all inputs of a part stand in earlier ones.
    """
    lines: list[str] = []
    known: set[bytes] = set()
    earlier: dict[str, int] = {}
    for name, part in parts.items():
        if not part.in_memory:
            lines.append(f"{name}: not in memory, so its inputs were not looked for in the other parts")
            continue
        digests = list(_digests(part))
        shared = sum(digest in known for digest in digests)
        where = " or ".join(earlier)
        if shared == len(part) and 2 * len(known) > sum(earlier.values()):
            raise ValueError(f"{name}: expected examples other than those of {where}, got {shared} whose inputs all stand there")
        if shared:
            lines.append(f"{name}: {shared} of {len(part)} inputs stand in {where} too, byte for byte")
        known.update(digests)
        earlier[name] = len(part)
    return lines


def _digests(examples: Examples) -> Iterator[bytes]:
    """One digest of the inputs of each example, in order."""
    for indices in torch.arange(len(examples)).split(256):
        x = examples.batch(indices)["x"]
        tensors = [x[key] for key in sorted(x)] if isinstance(x, dict) else [x]
        arrays = [_bytes(t).reshape(len(indices), -1).numpy() for t in tensors]
        for i in range(len(indices)):
            yield hashlib.sha256(b"".join(array[i].tobytes() for array in arrays)).digest()


def _bytes(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().view(torch.uint8)


def fingerprint(examples: Examples) -> str:
    """SHA-256 in hex of what a run was given: ids and labels, and the inputs where they are in memory (else their number).

    Equal for equal contents in equal order; the types of the inputs count, their device does not.
    """
    digest = hashlib.sha256(f"{len(examples)} {examples.num_classes}".encode())
    digest.update(examples.ids.numpy().tobytes())
    digest.update(examples.labels.numpy().tobytes())
    if examples.in_memory:
        inputs = examples.batch(torch.arange(len(examples)))["x"]
        named = sorted(inputs.items()) if isinstance(inputs, dict) else [("x", inputs)]
        for key, value in named:
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(_bytes(value).numpy().tobytes())
    return digest.hexdigest()
