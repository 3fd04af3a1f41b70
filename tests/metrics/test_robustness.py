"""Accuracy under attack."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from preceptor.metrics.robustness import pgd_of, several, withstands


class Bands(nn.Module):
    """Classifies one number by the nearest of three centres; ``flat``: so steeply that gradients vanish."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([0.2, 0.5, 0.8]))
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        near = -((x - self.centres) ** 2)
        return near if not self.flat else torch.nn.functional.one_hot(near.argmax(dim=1), 3) + 0 * near


def batches(*points: float, labels: tuple[int, ...]):
    x, y = torch.tensor(points)[:, None], torch.tensor(labels)
    return [{"x": part, "y": y[i : i + 2], "id": torch.arange(len(part))} for i, part in ((0, x[:2]), (2, x[2:4]), (4, x[4:]))]


DATA = {"labels": (0, 0, 1, 1, 1, 2)}
POINTS = (0.1, 0.3, 0.5, 0.4, 0.1, 0.99)  # the distance to the next border, 0.35 or 0.65: 0.25, 0.05, 0.15, 0.05, wrong, 0.34


@pytest.mark.parametrize(("epsilon", "expected"), [(0.01, [1, 1, 1, 1, 0, 1]), (0.1, [1, 0, 1, 0, 0, 1]), (0.3, [0, 0, 0, 0, 0, 1])])
def test_what_stands_is_what_lies_deeper_than_epsilon(epsilon, expected):
    for attacks in ((pgd_of(epsilon, steps=40),), several(epsilon, steps=40, targets=2)):
        assert withstands(Bands(), batches(*POINTS, **DATA), attacks).tolist() == expected


def test_without_attacks_it_is_accuracy():
    assert withstands(Bands(), batches(*POINTS, **DATA), ()).tolist() == [1, 1, 1, 1, 0, 1]


def test_a_search_without_gradients_sees_through_a_flat_model():
    only = torch.tensor([1, 1, 1, 1, 0, 1.0])
    assert torch.equal(withstands(Bands(flat=True), batches(*POINTS, **DATA), (pgd_of(0.1, seed=None),)), only)
    assert withstands(Bands(flat=True), batches(*POINTS, **DATA), several(0.1, targets=2)).tolist() == [1, 0, 1, 0, 0, 1]


def test_an_attack_sees_only_what_still_stands_and_the_worst_counts():
    seen = []

    def spoil(count):
        def attack(model, x, y):
            seen.append(len(x))
            return torch.cat([torch.where(x[:count] > 0.5, 0.1, 0.9), x[count:]])

        return attack

    assert withstands(Bands(), batches(*POINTS, **DATA), (spoil(1), spoil(0), spoil(1))).sum() == 0
    assert seen == [2, 1, 1, 2, 1, 1, 1]


def test_the_model_is_left_as_it_was_and_the_same_call_says_the_same():
    model = Bands().train()
    first, again = (withstands(model, batches(*POINTS, **DATA), several(0.06, targets=1)) for _ in range(2))
    assert torch.equal(first, again)
    assert model.training
    assert model.centres.grad is None


def test_no_example_is_refused():
    with pytest.raises(ValueError, match=r"^batches: expected at least one example, got none$"):
        withstands(Bands(), [], ())
