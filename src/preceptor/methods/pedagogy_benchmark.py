"""Pedagogy benchmark: a multiple-choice test of teaching knowledge, and the frontier of cost and accuracy.

Paper: Lelievre et al. 2025, Benchmarking the Pedagogical Knowledge of Large Language Models (arXiv:2506.18710).
Claim: a few hundred multiple-choice items rank models by what they know about teaching, and with prices they say which model to take; here:
turning the options through every position takes away what a habit of position adds to an accuracy, and so does counting every letter alike.
Equation: accuracy = 100 mean(prediction = answer), an answer without a letter counts as wrong; Wilson's interval; exact McNemar;
    model i is on the frontier unless some j has cost_j <= cost_i and acc_j >= acc_i, one of them strictly;
    V(c) = max{acc : cost <= c}.
The work is done by `preceptor.education`: `multiple_choice`, `scoring`, `prices` and `frontier`; ``preceptor pedagogy`` runs it.
Deviations from the released code (AI-for-Education/pedagogy-benchmark): items of the few solved examples, and near copies of them, are not
scored; an item with two right letters stays and matches none; options can be asked in every cyclic order, a prior of the letters taken off,
and accuracies balanced over letters. The items are not published outside a gated data set, and none is here: the miniature makes its own,
and no score of a real model is claimed.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from preceptor.core.types import Card
from preceptor.education.frontier import steps
from preceptor.education.multiple_choice import LETTERS, Item, Order, Sitting, right, shifts
from preceptor.education.scoring import OVERALL, score
from preceptor.miniature.claim import Claim
from preceptor.miniature.pupils import network, word_overlap
from preceptor.miniature.run import Miniature, Size

CARD = Card(
    slug="pedagogy-benchmark",
    title="Multiple-choice test of teaching knowledge, cost-accuracy frontier",
    authors="Lelievre et al. 2025",
    arxiv="2506.18710",
    kind="benchmark",
    tasks=("education", "language"),
    needs=("generation",),
    equation="acc = 100 mean(pred = answer); V(c) = max{acc : cost <= c}",
    cost="one short answer per item, once more for each further order of the options",
    headline="97 models: 28 % to 89 % on 920 items; at $0.10 per million tokens 50 % (Apr 2024) to 82 % (Jun 2025)",
)

_OPTIONS, _MODELS, _TEACHER = 4, 12, 0.95


def fraction_items(generator: np.random.Generator, count: int, *, first_share: float = 0.25) -> list[Item]:
    """Items "which fraction equals a/b" with four options; the right one stands first with a probability, else anywhere behind.

    Args:
        generator: of the draws.
        count: N.
        first_share: probability of the answer A; 1/4 gives every letter its share.
    """
    items = []
    for number in range(count):
        bottom = int(generator.integers(3, 12))
        top = int(generator.integers(1, bottom))
        times = int(generator.integers(2, 6))
        answer = f"{top * times}/{bottom * times}"
        near = [(top * times + step, bottom * times + turn) for step in (-1, 0, 1) for turn in (-1, 0, 1)]
        wrong = [f"{a}/{b}" for a, b in near if a > 0 and Fraction(a, b) != Fraction(top, bottom)]
        place = 0 if generator.random() < first_share else int(generator.integers(1, _OPTIONS))
        options = generator.choice(wrong, _OPTIONS - 1, replace=False).tolist()
        options.insert(place, answer)
        items.append(Item(id=str(number), question=f"Which fraction equals {top}/{bottom}?", options=tuple(options), answer=LETTERS[place]))
    return items


def simulated(
    items: list[Item], generator: np.random.Generator, *, knowledge: float, habit: float, order: Order, name: str = "simulated"
) -> Sitting:
    """A model that says "A" out of habit, else knows the answer, else guesses among the wrong ones.

    Args:
        items: N.
        generator: of the draws.
        knowledge: probability of the right answer without the habit.
        habit: probability of "A" whatever is asked.
        order: of the options.
        name: of the model.
    """
    chosen, places = [], []
    for item in items:
        row = []
        for shift in shifts(item, order):
            options = len(item.options)
            correct = (right(item) - shift) % options
            other = (correct + int(generator.integers(1, options))) % options
            place = 0 if generator.random() < habit else correct if generator.random() < knowledge else other
            row.append(place)
        places.append(tuple(row))
        chosen.append(tuple((place + shift) % len(item.options) for place, shift in zip(row, shifts(item, order), strict=True)))
    return Sitting(model=name, chosen=tuple(chosen), places=tuple(places), answers=tuple(() for _ in items))


def miniature(seed: int, size: Size) -> Miniature:
    """Twelve simulated models, dearer ones knowing more, each with a habit of saying "A", sit a test whose answer is often "A".

    ``untrained`` guesses instead of each model; ``single-order`` asks each item once, four times over with fresh draws so that the budget
    is the same; ``balanced`` counts every letter of the same answers alike; ``pedagogy-benchmark`` asks once for every cyclic order.
    ``error`` is the mean distance, in points, from what a model gets on average over positions; ``order`` the share of pairs of models that
    are put in the right order; ``value`` the true accuracy of the model to take by the frontier for at most the median price.

    Then a teacher answers the items of half of the questions, and is asked the others together with two students who learned from its
    answers. ``word_overlap``, ``network`` and ``teacher`` are their accuracies, expected to rise in this order from 25 on.
    """
    generator = np.random.default_rng(seed)
    count = 400 if size == "full" else 40
    items = fraction_items(generator, count, first_share=0.5)
    cost = np.sort(np.exp(generator.normal(0, 1.5, _MODELS)))
    knowledge = np.clip(0.55 + 0.08 * np.log(cost) + generator.normal(0, 0.06, _MODELS), 0.25, 0.95)
    habit = generator.uniform(0, 0.4, _MODELS)
    truth = 100 * (habit / _OPTIONS + (1 - habit) * knowledge)
    arms = {}
    for arm in ("untrained", "single-order", "balanced", "pedagogy-benchmark"):
        measured = np.empty(_MODELS)
        for m in range(_MODELS):
            draws = np.random.default_rng((seed, m))
            knows, says = (0.25, 0.0) if arm == "untrained" else (knowledge[m], habit[m])
            if arm == "pedagogy-benchmark":
                sittings = [simulated(items, draws, knowledge=knows, habit=says, order="cyclic")]
            else:
                sittings = [simulated(items, draws, knowledge=knows, habit=says, order="given") for _ in range(_OPTIONS)]
            scores = [score(items, sitting)[OVERALL] for sitting in sittings]
            measured[m] = np.mean([one.balanced if arm == "balanced" else one.accuracy for one in scores])
        arms[arm] = _measured(cost, measured, truth) | _students(arm, seed, count, 300 if size == "full" else 30)
    claims = (
        ("turning the options takes habits of position out of the accuracy", "single-order", "error", "lower"),
        ("it puts more models in the right order", "single-order", "order", "higher"),
        ("what the frontier recommends is better", "single-order", "value", "higher"),
        ("the test tells models from guessing", "untrained", "error", "lower"),
        ("a network learns from the teacher's answers", "untrained", "network", "higher"),
    )
    return Miniature(
        arms=arms,
        claims=tuple(
            Claim(name=name, method=CARD.slug, baseline=baseline, metric=metric, direction=direction)  # pyright: ignore[reportArgumentType]
            for name, baseline, metric, direction in claims
        ),
        notes=(
            f"{count} items made here, half with the answer A; {_OPTIONS} questions per item and model in every arm",
            f"students learn from a teacher who is right in {_TEACHER:.0%} of the items, and are asked about other fractions",
        ),
    )


def _measured(cost: np.ndarray, measured: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The metrics of one arm."""
    found = steps(cost.tolist(), measured.tolist())
    budget = float(np.median(cost))
    taken = max((price for price in found.cost if price <= budget), default=found.cost[0])
    first, second = np.triu_indices(len(cost), 1)
    return {
        "error": float(np.abs(measured - truth).mean()),
        "order": float(np.mean((measured[first] - measured[second]) * (truth[first] - truth[second]) > 0)),
        "value": float(truth[np.flatnonzero(cost == taken)[0]]),
    }


def _students(arm: str, seed: int, count: int, updates: int) -> dict[str, float]:
    """Accuracies on half of the questions of a bank, of a teacher and of students who learned from its answers to the other half."""
    draws = np.random.default_rng((seed, _MODELS))
    items = fraction_items(draws, count)
    questions = sorted({item.question for item in items})
    first = set(draws.choice(questions, len(questions) // 2, replace=False).tolist())
    taught, asked = [item for item in items if item.question in first], [item for item in items if item.question not in first]
    said = [row[0] for row in simulated(taught, draws, knowledge=_TEACHER, habit=0, order="given").chosen]
    chosen = {
        "word_overlap": word_overlap(taught, said, asked),
        "network": network(taught, said, asked, seed=seed, updates=updates),
        "teacher": [row[0] for row in simulated(asked, draws, knowledge=_TEACHER, habit=0, order="given").chosen],
    }
    found = {}
    for name, options in chosen.items():
        picked = draws.integers(0, _OPTIONS, len(options)).tolist() if arm == "untrained" else options
        order = "cyclic" if arm == CARD.slug else "given"
        rows = tuple((option,) * len(shifts(item, order)) for item, option in zip(asked, picked, strict=True))  # wherever it stands
        one = score(asked, Sitting(model=name, chosen=rows, places=rows, answers=((),) * len(rows)))[OVERALL]
        found[name] = one.balanced if arm == "balanced" else one.accuracy
    return found
