"""Curriculum designer: the order of whole classes for a learner that sees them one after another, from a teacher's features.

Paper: Singh et al. 2022, Learning to Learn: How to Continuously Teach Humans and Machines (arXiv:2211.15470, ICCV 2023).
Claim: in online class-incremental learning the order of the classes changes how much is kept, much alike for naive fine-tuning, EWC and
LwF, and for humans; orders that a score from features ranks first are among the best ones more often than orders by lot. Nothing is trained
to design an order. The claim is about ranks: no number of one data set holds for another.
Equation, with D~ the cosine distances of mean features divided by their sums over rows, V_i the variance of row i and v = V / sum V:
    S(c) = (1 - v_{c_1}) + sum_{k=1..K} [ (1 - D~(c_k, c_{N+1-k})) + D~(c_k, c_{k+1}) ],   K = ceil((N - 1) / 2),
    F = 2 A / (Phi A + 1), A the accuracy at the end, Phi how much of the first task's accuracy was lost: what S is to predict.
It is no training method. Orders are designed by `preceptor.data.class_orders`, for classes or groups of them, by any features; learners and
streams are in `preceptor.miniature.class_streams` (`run_orders`); F and agreements of rankings in `preceptor.metrics.class_streams`.
Deviations: a class's mean is over its examples, in the release over means of batches. More than 8 classes are searched by a beam, which the
paper has not. The released generator (``method="fill"``) takes even numbers of classes too; what it writes is the first class and then the
others by falling distance from it, so it seldom has the highest S. The transport distance pairs samples exactly.
"""

from __future__ import annotations

from functools import partial
from itertools import permutations

import torch
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.types import Card
from preceptor.data.class_orders import class_distance, rank_orders, score_orders
from preceptor.data.datasets import load
from preceptor.data.examples import Examples, examples_from
from preceptor.metrics.class_streams import order_quality
from preceptor.metrics.fidelity import rank_correlation
from preceptor.miniature.claim import Claim
from preceptor.miniature.class_streams import ClassStream, Replay, run_orders
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import Labels, fit, seeded
from preceptor.models.embeddings import embed
from preceptor.models.reference import MLP

CARD = Card(
    slug="curriculum-designer",
    title="Curriculum designer: orders of classes from distances between features",
    authors="Singh et al. 2022",
    arxiv="2211.15470",
    kind="curriculum",
    tasks=("continual",),
    needs=("embeddings", "labels"),
    equation="S(c) = (1 - v_{c_1}) + sum_k [(1 - D~(c_k, c_{N+1-k})) + D~(c_k, c_{k+1})], D~ cosine distances with rows of sum 1",
    cost="one pass of a teacher over a few hundred examples of each class; all orders of 8 classes in 0.2 s",
    headline="its best orders overlap with the best measured ones more than lots do, on MNIST, FashionMNIST, CIFAR-10 and novel objects",
)

LEARNERS: dict[str, Method] = {"naive": Labels(), "replay": Replay()}
"""Who learns in the experiment."""


def digit_stream(seed: int, *, classes: int, images: int, steps: int = 400) -> tuple[ClassStream, dict[str, nn.Module]]:
    """Some of scikit-learn's digits, chosen by the seed, as a stream for small MLPs, and teachers of the others.

    Args:
        seed: also of the teachers' weights.
        classes: in the stream, 2 to 8.
        images: of each class to learn from, at most 121.
        steps: updates of the teacher.
    Returns:
        The stream, classes numbered from 0; a teacher (MLP 64-64) trained on the other digits, and an untrained one.
    """
    data = load("digits")
    digits = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    stream = ClassStream(
        train=_only(data.train, digits[:classes], images),
        test=_only(data.test, digits[:classes]),
        network=lambda seed: seeded(partial(MLP, inputs=64, hidden=(48,), classes=classes), seed),
        batch_size=16,
    )
    others = _only(data.train, digits[classes:])
    make = partial(MLP, inputs=64, hidden=(64,), classes=10 - classes)
    teacher = seeded(make, seed)
    fit(Labels(), {"student": teacher}, others, steps=steps, batch_size=32, seed=seed)
    return stream, {"teacher": teacher, "untrained": seeded(make, seed + 1)}


def _only(part: Examples, classes: Tensor, images: int | None = None) -> Examples:
    """The examples of some classes, numbered by their place in ``classes``, at most so many of each."""
    rows = torch.cat([(part.labels == label).nonzero()[:images, 0] for label in classes])
    batch = part.batch(rows)
    return examples_from((batch["x"], (batch["y"][:, None] == classes).int().argmax(dim=1)), len(classes), part.name)


def features_of(model: nn.Module, part: Examples) -> Tensor:
    """What the class head of a model is called with, for all examples of a part, (n, D)."""
    with torch.no_grad():
        return embed(model, part.batch(torch.arange(len(part)))["x"])[1]


def top(scores: Tensor) -> Tensor:
    """The sixth of the orders with the highest scores: 20 of 120."""
    return scores.argsort(descending=True, stable=True)[: len(scores) // 6]


def judged(scores: Tensor, chosen: Tensor, quality: Tensor) -> dict[str, float]:
    """What a ranking of orders is worth: mean F and its deviation over the orders chosen, rank correlation with F over all.

    Args:
        scores: of all orders, (n,).
        chosen: positions of the chosen ones.
        quality: F of all orders, (n,).
    """
    found = quality[chosen]
    return {
        "f": found.mean().item(),
        "spread": found.std(correction=0).item(),
        "spearman": rank_correlation(scores.double()[None], quality[None]).item(),
    }


def from_other_seeds(quality: Tensor) -> dict[str, float]:
    """The noise ceiling: F of one seed, ranked by the mean F of the other seeds; means over seeds.

    Args:
        quality: (seeds, orders), at least two seeds.
    """
    parts = []
    for i, own in enumerate(quality):
        others = torch.cat([quality[:i], quality[i + 1 :]]).mean(dim=0)
        parts.append(judged(others, top(others), own))
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def miniature(seed: int, size: Size) -> Miniature:
    """Five digits in all 120 orders, learned in one pass by small networks, three seeds each; a teacher knows the other five.

    An arm is a way to choose orders, which costs the learner nothing: by S from the teacher's features (of distances or of ranks) or from
    an untrained network's, by the released generator, by measured F of other seeds (the ceiling), or none ("all-orders", what lots give).
    """
    classes, images, seeds, steps = (5, 121, 3, 400) if size == "full" else (4, 16, 2, 40)
    stream, teachers = digit_stream(seed, classes=classes, images=images, steps=steps)
    orders = torch.tensor(list(permutations(range(classes))))
    labels = stream.train.labels
    distances = {name: class_distance(features_of(model, stream.train), labels) for name, model in teachers.items()}
    scores = {
        "untrained-teacher": score_orders(distances["untrained"], orders),
        "curriculum-designer": score_orders(distances["teacher"], orders),
        "of-ranks": score_orders(distances["teacher"], orders, variant="rank"),
        "fill": (orders[:, None] == rank_orders(distances["teacher"], method="fill").orders).all(dim=2).any(dim=1).double(),
        "all-orders": torch.zeros(len(orders)),
    }
    chosen = {name: top(values) for name, values in scores.items()}
    chosen |= {"fill": scores["fill"].nonzero()[:, 0], "all-orders": torch.arange(len(orders))}
    arms: dict[str, dict[str, float]] = {name: {} for name in (*scores, "other-seeds")}
    for learner, method in LEARNERS.items():
        quality = torch.stack(
            [
                torch.stack([order_quality(accuracy, order) for accuracy, order in zip(found, orders, strict=True)])
                for found in (run_orders(orders.tolist(), method, stream, 1000 * seed + i) for i in range(seeds))
            ]
        )
        measured = {name: judged(scores[name], chosen[name], quality.mean(dim=0)) for name in scores}
        measured["other-seeds"] = from_other_seeds(quality)
        for name, values in measured.items():
            arms[name] |= {f"{learner}_{metric}": value for metric, value in values.items()}
    claims = (
        ("naive: the best sixth by S beats orders by lot", "naive_f"),
        ("naive: S and F rank orders alike", "naive_spearman"),
        ("replay: the best sixth by S beats orders by lot", "replay_f"),
        ("replay: S and F rank orders alike", "replay_spearman"),
    )
    return Miniature(
        arms=arms,
        claims=tuple(Claim(name=name, method="curriculum-designer", baseline="all-orders", metric=metric) for name, metric in claims),
        notes=(f"{len(orders)} orders of {classes} classes of {images} images, {seeds} seeds of the learner",),
    )
