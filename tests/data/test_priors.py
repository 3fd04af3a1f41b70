"""Noise without end: resumable, the same for any number of processes; times of a given law."""

import pytest
import torch

from preceptor.data.priors import Prior, draw_times


def test_a_prior_goes_on_where_it_was_and_processes_share_one_draw():
    straight = Prior((3,), batch_size=4, seed=1, num_classes=5)
    first = next(straight)
    saved = straight.state_dict()
    second = next(straight)
    other = Prior((3,), batch_size=4, seed=9, num_classes=5)
    other.load_state_dict(saved)
    again = next(other)
    assert all(torch.equal(again[key], second[key]) for key in ("x", "noise", "cond", "id"))
    assert second["id"].tolist() == [4, 5, 6, 7]
    assert not torch.equal(first["x"], first["noise"])
    (scanned,) = straight.scan()
    assert torch.equal(scanned["x"], first["x"])
    parts = [next(Prior((3,), batch_size=4, seed=1, num_classes=5, rank=rank, world=2)) for rank in (0, 1)]
    assert torch.equal(torch.stack([part["x"] for part in parts], dim=1).flatten(0, 1), first["x"])


def test_a_prior_of_ones_own_and_bad_input():
    ones = next(Prior((2,), batch_size=3, sample=lambda count, generator: torch.ones(count, 2)))
    assert ones["x"].eq(1).all()
    with pytest.raises(ValueError, match="sample: expected points of shape"):
        next(Prior((2,), batch_size=3, sample=lambda count, generator: torch.ones(count, 1)))
    with pytest.raises(ValueError, match="batch_size: expected a multiple of the 2"):
        Prior((2,), batch_size=3, world=2)
    with pytest.raises(ValueError, match="rank"):
        Prior((2,), batch_size=4, rank=2, world=2)


def test_times_have_the_law_asked_for():
    draws = torch.Generator().manual_seed(0)
    times = draw_times(20000, draws, normal=(0.8, 1.0))
    logits = torch.logit(times)
    assert abs(float(logits.mean()) - 0.8) < 0.03
    assert abs(float(logits.std()) - 1.0) < 0.03
    cut = draw_times(20000, draws, normal=(0.8, 1.0), interval=(0.0, 0.6))
    kept = times[times <= 0.6]
    assert cut.max() <= 0.6
    assert abs(float(cut.mean() - kept.mean())) < 0.01
    assert abs(float(draw_times(20000, draws, interval=(0.2, 0.4)).mean()) - 0.3) < 0.003
