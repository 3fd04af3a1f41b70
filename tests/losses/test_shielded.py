"""Temperatures by privacy, and probabilities with noise."""

import math

import pytest
import torch

from preceptor.losses.shielded import blurred, check_noise, privacy_temperature


def test_temperatures_by_hand():
    scores = torch.tensor([0.0, 0.25, 1.0], dtype=torch.double)
    assert privacy_temperature(scores, t_base=2.0, t_max=10.0).tolist() == [2.0, 4.0, 10.0]
    assert privacy_temperature(scores, t_base=2.0, t_max=10.0, power=2.0).tolist() == [2.0, 2.5, 10.0]
    assert privacy_temperature(scores, t_base=2.0, t_max=10.0, power=0.5).tolist() == [2.0, 6.0, 10.0]
    assert privacy_temperature(torch.tensor([False, True])).tolist() == [1.0, 8.0]
    assert privacy_temperature(scores.half()).dtype == torch.float32


def test_what_is_a_distribution_above_the_floor_stays():
    torch.manual_seed(0)
    p = torch.randn(50, 6, dtype=torch.double).softmax(-1)
    everything = torch.ones(50, 6, dtype=torch.bool)
    torch.testing.assert_close(blurred(p, torch.zeros_like(p), floor=1e-6, possible=everything), p, rtol=1e-12, atol=1e-15)
    noise = torch.randn_like(p)
    once = blurred(p, noise, floor=1e-3, possible=everything)
    torch.testing.assert_close(blurred(once, torch.zeros_like(p), floor=1e-3, possible=everything), once)


def test_by_hand():
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.double)
    noise = torch.tensor([[0.1, -0.4, 0.2]], dtype=torch.double)
    everything = torch.ones(1, 3, dtype=torch.bool)
    excess = [0.6 - 0.01, 0.0, 0.4 - 0.01]
    expected = [0.01 + 0.97 * e / sum(excess) for e in excess]
    assert blurred(p, noise, floor=0.01, possible=everything)[0].tolist() == pytest.approx(expected, rel=1e-12)
    two = torch.tensor([[True, True, False]])
    found = blurred(p, noise, floor=0.01, possible=two)[0].tolist()
    assert found == pytest.approx([0.99, 0.01, 0.0], rel=1e-12)
    assert blurred(p, -2 * torch.ones_like(p), floor=0.01, possible=two)[0].tolist() == pytest.approx([0.5, 0.5, 0.0])


@pytest.mark.parametrize("floor", [0.0, 1 / 3, -1.0, math.nan])
def test_a_floor_that_leaves_no_room_is_refused(floor):
    p = torch.full((1, 3), 1 / 3)
    with pytest.raises(ValueError, match=r"^floor: expected a number in \(0, 1 / 3\) for as many classes, got "):
        blurred(p, p, floor=floor, possible=p > 0)


def test_one_class_is_sure():
    assert blurred(torch.ones(2, 1), torch.tensor([[-9.0], [9.0]]), floor=1e-6, possible=torch.ones(2, 1, dtype=torch.bool)).tolist() == [
        [1.0],
        [1.0],
    ]


def test_numbers_out_of_range_are_refused():
    check_noise(noise_scale=0.0, noise_minimum=1.0, noise_classes=1)
    with pytest.raises(ValueError, match=r"^noise_scale: expected a finite number >= 0, got inf$"):
        check_noise(noise_scale=math.inf, noise_minimum=0.0, noise_classes=1)
    with pytest.raises(ValueError, match=r"^privacy: expected scores in \[0, 1\], got -0\.5$"):
        privacy_temperature(torch.tensor([0.5, -0.5]))
