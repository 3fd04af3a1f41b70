import pytest
import torch

from preceptor.data.samplers import Epochs, Weighted


def test_draw_depends_on_the_place_alone():
    a, b = (Epochs(20, batch_size=6, seed=4) for _ in range(2))
    places = [(epoch, index) for epoch in range(3) for index in range(4)]
    forward = {place: a.draw(*place).tolist() for place in places}
    backward = {place: b.draw(*place).tolist() for place in reversed(places)}
    assert forward == backward


def test_weighted_draws_in_proportion():
    sampler = Weighted(torch.arange(4), batch_size=1, rate=1.0)
    sampler.feedback(torch.arange(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    draws = torch.cat([sampler.draw(0, i) for i in range(4000)])
    rates = torch.bincount(draws, minlength=4) / 4000
    assert torch.allclose(rates, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=4 * (0.24 / 4000) ** 0.5)  # four standard errors


def test_feedback_is_an_exponential_average_with_a_floor():
    sampler = Weighted(torch.tensor([30, 10, 20]), batch_size=2, rate=0.25, floor=0.1)
    sampler.feedback(torch.tensor([20, 30]), torch.tensor([3.0, -5.0]))
    assert sampler.weights.tolist() == pytest.approx([0.75 + 0.25 * 0.1, 1.0, 0.75 + 0.25 * 3.0])


@pytest.mark.parametrize(
    ("ids", "scores", "message"),
    [
        (torch.tensor([10, 20]), torch.tensor([1.0]), r"^scores: expected shape \(2,\) like ids, one axis, got \(1,\)$"),
        (torch.tensor([10]), torch.tensor([float("nan")]), "^scores: expected finite numbers, got NaN or infinity$"),
        (torch.tensor([10, 40]), torch.tensor([1.0, 1.0]), "^ids: expected ids of the sampler's examples, got 40$"),
        (torch.tensor([5]), torch.tensor([1.0]), "^ids: expected ids of the sampler's examples, got 5$"),
    ],
)
def test_bad_feedback_changes_nothing(ids, scores, message):
    sampler = Weighted(torch.tensor([30, 10, 20]), batch_size=2)
    with pytest.raises(ValueError, match=message):
        sampler.feedback(ids, scores)
    assert sampler.weights.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("option", "value"), [("batch_size", 0), ("batch_size", 4), ("rate", 0.0), ("rate", 1.5), ("floor", 0.0)])
def test_bad_settings(option, value):
    with pytest.raises(ValueError, match=rf"^{option}: expected a number in .*, got {value}$"):
        Weighted(torch.arange(3), **{"batch_size": 2, option: value})


def test_saved_state_of_another_sampler_is_refused():
    with pytest.raises(ValueError, match=r"^rate: expected 0.5 as in this run, got 0.25 in the saved state$"):
        Weighted(torch.arange(3), batch_size=2).load_state_dict(Weighted(torch.arange(3), batch_size=2, rate=0.25).state_dict())
