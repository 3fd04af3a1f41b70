"""Wrong labels on purpose."""

import pytest
import torch

from preceptor.data.examples import examples_from
from preceptor.data.noise import confused_labels, redrawn_labels, relabelled

LABELS = torch.arange(20_000) % 4


def test_uniform_noise_is_wrong_as_often_as_it_says_and_spreads_evenly():
    noisy = redrawn_labels(LABELS, rate=0.6, num_classes=4, seed=1)
    wrong = noisy != LABELS
    assert wrong.double().mean().item() == pytest.approx(0.6 * 3 / 4, abs=0.015)
    counts = torch.bincount((noisy - LABELS)[wrong] % 4, minlength=4)
    assert counts[0] == 0
    assert (counts[1:] / wrong.sum() - 1 / 3).abs().max() < 0.02


def test_confusion_goes_where_it_says():
    noisy = confused_labels(LABELS, rate=0.3, num_classes=4, seed=1)
    wrong = noisy != LABELS
    assert wrong.double().mean().item() == pytest.approx(0.3, abs=0.015)
    assert torch.equal(noisy[wrong], (LABELS[wrong] + 1) % 4)
    pairs = confused_labels(LABELS, rate=1.0, num_classes=4, seed=1, confusion=[0, 3, 2, 1])
    assert torch.equal(pairs, torch.tensor([0, 3, 2, 1])[LABELS])


@pytest.mark.parametrize("noise", [redrawn_labels, confused_labels])
def test_the_seed_decides_and_a_larger_rate_changes_more_of_the_same(noise):
    one, again, other, more = (noise(LABELS, rate=r, num_classes=4, seed=s) for r, s in ((0.2, 0), (0.2, 0), (0.2, 1), (0.5, 0)))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    changed = one != LABELS
    assert torch.equal(one[changed], more[changed])
    assert torch.equal(noise(LABELS, rate=0.0, num_classes=4, seed=0), LABELS)


def test_relabelling_leaves_the_examples_alone():
    whole = examples_from((torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])), 3)
    part = whole.subset([4, 0, 2])
    other = relabelled(part, torch.tensor([2, 2, 1]))
    batch = other.batch(torch.arange(3))
    assert batch["y"].tolist() == [2, 2, 1]
    assert batch["id"].tolist() == [4, 0, 2]
    assert torch.equal(batch["x"], part.batch(torch.arange(3))["x"])
    assert part.labels.tolist() == [1, 0, 2]
    assert whole.all_labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_bad_input():
    whole = examples_from((torch.randn(3, 2), torch.tensor([0, 1, 2])), 3)
    with pytest.raises(ValueError, match=r"^rate: expected a number in \[0, 1\], got 1.5$"):
        redrawn_labels(LABELS, rate=1.5, num_classes=4, seed=0)
    with pytest.raises(ValueError, match=r"^confusion: expected 4 classes in \[0, 4\), got \[0, 1\]$"):
        confused_labels(LABELS, rate=0.5, num_classes=4, seed=0, confusion=[0, 1])
    with pytest.raises(ValueError, match=r"^labels: expected shape \(3,\), got \(2,\)$"):
        relabelled(whole, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"^labels: expected values in \[0, 3\), got 0 to 3$"):
        relabelled(whole, torch.tensor([0, 1, 3]))
