"""How good an encoder is: what simple classifiers make of its embeddings, or, to compare with, of the raw inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import evaluating
from preceptor.core.types import Batch
from preceptor.losses.checks import check_counts


def embeddings(encoder: nn.Module | None, batches: Iterable[Batch], read: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Run an encoder over finitely many batches, in eval mode and without gradient.

    Args:
        encoder: set to eval mode for a moment; None: nothing is.
        batches: with ``x`` and ``y``.
        read: of inputs (N, ...) makes vectors (N, ...); ``lambda x: x`` probes the raw inputs.
    Returns:
        Vectors (N, D), flattened, and labels (N,).
    """
    with torch.no_grad(), evaluating(encoder or nn.Identity()):
        pairs = [(read(batch["x"]).flatten(1), batch["y"]) for batch in batches]
    return torch.cat([vectors for vectors, _ in pairs]), torch.cat([labels for _, labels in pairs])


def linear_probe(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    epochs: int = 10,
    learning_rate: float = 1e-3,
    batch_size: int = 256,
    seed: int = 0,
) -> Tensor:
    """Accuracy of a linear layer trained on embeddings by cross-entropy, with AdamW and without standardising them.

    Sarnthein et al. 2023 (arXiv:2302.12091): the defaults.

    Args:
        train: embeddings (N, D) and labels (N,); the test part must not be among them.
        test: the same of the test part.
        epochs, learning_rate, batch_size: of the layer, which starts as torch draws it.
        seed: of the layer and of the order; torch's global random state is restored.
    Returns:
        Shape (N of test,), 0 or 1.
    Raises:
        ValueError: widths differ, or a part is empty.
    """
    (vectors, labels), (probes, truth) = train, test
    _check(vectors, probes)
    classes = int(labels.max()) + 1
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        layer = nn.Linear(vectors.shape[1], classes).to(vectors)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=learning_rate, weight_decay=0.0)
        for _ in range(epochs):
            for indices in torch.randperm(len(vectors)).to(vectors.device).split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(layer(vectors[indices]), labels[indices]).backward()
                optimizer.step()
    return (layer(probes).argmax(dim=1) == truth).to(vectors.dtype).detach()


def nearest_neighbours(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, k: int = 20) -> Tensor:
    """Accuracy of the class that most of the k nearest embeddings have, in Euclidean distance; of equal counts the lowest class wins.

    Args:
        train: embeddings (N, D) and labels (N,); the test part must not be among them.
        test: the same of the test part.
        k: from 1 to N.
    Returns:
        Shape (N of test,), 0 or 1.
    Raises:
        ValueError: widths differ, a part is empty, or k is out of range.
    """
    (vectors, labels), (probes, truth) = train, test
    _check(vectors, probes)
    check_counts(k=k)
    if k > len(vectors):
        raise ValueError(f"k: expected at most the {len(vectors)} embeddings, got {k}")
    near = torch.cdist(probes, vectors).topk(k, largest=False).indices
    votes = F.one_hot(labels[near], int(labels.max()) + 1).sum(dim=1)
    return (votes.argmax(dim=1) == truth).to(vectors.dtype)


def _check(train: Tensor, test: Tensor) -> None:
    for name, vectors in (("train", train), ("test", test)):
        if vectors.ndim != 2 or not len(vectors):
            raise ValueError(f"{name}: expected embeddings (N, D) of at least one example, got {tuple(vectors.shape)}")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"test: expected {train.shape[1]} numbers per embedding like train, got {test.shape[1]}")
