"""Exposure of secrets."""

import itertools
import math

import pytest
import torch
from torch import nn

from preceptor.metrics.privacy import continuation_log_likelihoods, exposure
from preceptor.miniature.symbols import ContextLM, TextLM


def test_first_and_last():
    scores = torch.arange(10_000.0)
    assert exposure(scores, 9_999) == math.log2(10_000)
    assert exposure(scores, 0) == 0
    assert exposure(scores, 9_998) == pytest.approx(math.log2(5_000))
    assert exposure(torch.tensor([-torch.inf, 0.0, -3.0]), 2) == pytest.approx(math.log2(3) - 1)


def test_a_guess_has_the_known_mean():
    scores = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    mean = sum(exposure(scores, secret) for secret in range(4096)) / 4096
    assert mean == pytest.approx(1 / math.log(2), abs=0.01)


def test_ties_count_against_the_model():
    scores = torch.tensor([1.0, 5.0, 5.0, 5.0, 0.0, 7.0, 2.0, 3.0])
    assert {exposure(scores, secret) for secret in (1, 2, 3)} == {3 - math.log2(2)}
    assert exposure(torch.zeros(8), 3) == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_a_broken_model_does_not_pass_for_one_that_knows(bad, place):
    scores = torch.zeros(4)
    scores[place] = bad
    with pytest.raises(ValueError, match=r"^log_likelihoods: expected no NaN and no infinity, got 1 of 4$"):
        exposure(scores, 0)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"^log_likelihoods: expected shape \(candidates,\) with at least one, got \(0,\)$"):
        exposure(torch.zeros(0), 0)
    with pytest.raises(ValueError, match=r"^log_likelihoods: expected shape \(candidates,\) with at least one, got \(2, 2\)$"):
        exposure(torch.zeros(2, 2), 0)
    with pytest.raises(ValueError, match=r"^secret: expected a number in \[0, 2\], got 3$"):
        exposure(torch.zeros(3), 3)
    with pytest.raises(ValueError, match=r"^length: expected at least 1, got 0$"):
        continuation_log_likelihoods(nn.Identity(), torch.zeros(1), torch.zeros(1), 0)


class Switching(nn.Module):
    """Another model while it trains."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids) * (0 if self.training else 1)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_continuations_one_by_one(length):
    torch.manual_seed(0)
    model = Switching(TextLM(ContextLM(symbols=7, context=4, hidden=9))).double()
    prefix, symbols = torch.tensor([3, 0, 6]), torch.tensor([5, 1, 2])
    found = continuation_log_likelihoods(model, prefix, symbols, length)
    assert model.training
    model.eval()
    assert found.dtype == torch.float64
    assert len(found) == 3**length
    for number, places in enumerate(itertools.product(range(3), repeat=length)):
        text = torch.tensor([*prefix.tolist(), *(symbols[place].item() for place in places)])
        log_p = model(text[None])[0].detach().double().log_softmax(-1)
        expected = sum(log_p[t - 1, text[t]].item() for t in range(3, len(text)))
        assert found[number].item() == pytest.approx(expected, rel=1e-9)


def test_all_continuations_together_are_certain():
    torch.manual_seed(0)
    model = TextLM(ContextLM(symbols=4, context=2, hidden=5))
    total = continuation_log_likelihoods(model, torch.tensor([1]), torch.arange(4), 3).logsumexp(0)
    assert total.item() == pytest.approx(0, abs=1e-6)
