"""Scaling laws of downstream tasks: the alignment score, the judge of a source of data, the miniature."""

from __future__ import annotations

import math

import numpy as np
import pytest

from preceptor.methods.scaling_downstream import alignment_score, miniature
from preceptor.scaling.fitting import fit
from preceptor.scaling.foresight import straight_line
from preceptor.scaling.forms import LogLaw
from preceptor.scaling.sources import averaged, compare_sources, judge_source

DATA = np.geomspace(1e8, 1e11, 9)
LOSS = 1 + (1e7 / DATA) ** 0.2


def law(beta):
    return (np.log(1e-6) + 1.1 * np.log(DATA)) ** beta


@pytest.mark.parametrize(("shares", "score"), [((0.5, 0.5), 1.0), ((1, 0), 0.7), ((0, 1), 0.8), ((0, 0), 0.0)])
def test_alignment_at_the_corners(shares, score):
    assert math.isclose(alignment_score(*shares), score)


def test_alignment_refuses_shares_that_are_none():
    with pytest.raises(ValueError, match=r"^source, target: expected shares with a sum of at most 1, got 0.7 and 0.7$"):
        alignment_score(0.7, 0.7)


def test_with_beta_1_the_law_is_the_line():
    found = fit(LogLaw(), DATA, law(1.0), bounds={"beta": (1.0, 1.0)})
    np.testing.assert_allclose(found.predict(DATA), straight_line(DATA, law(1.0), DATA, of_scores=True), rtol=1e-6)
    assert (np.diff(found.predict(np.geomspace(1e8, 1e13, 50))) > 0).all()


def test_ties_are_averaged():
    sizes, values = averaged([4, 1, 4, 2], [3.0, 1.0, 5.0, 2.0])
    assert sizes.tolist() == [1, 2, 4]
    assert values.tolist() == [1, 2, 4]


def test_data_that_suit_are_recognised():
    found = judge_source(DATA, law(1.2), LOSS)
    assert found.verdict == "aligned"
    assert found.error < 1e-6 < found.line_error
    assert found.rank_correlation == 1
    assert found.drop == 0
    assert found.loss_falls
    assert found.covered is None
    noisy = law(1.2) * np.exp(0.003 * np.random.default_rng(0).standard_normal(9))
    assert judge_source(DATA, noisy, LOSS, fitted=6, draws=100).covered
    bent = np.concatenate([noisy[:6], noisy[5] + 0.01 * np.arange(1, 4)])
    assert not judge_source(DATA, bent, LOSS, fitted=6, draws=100).covered


def test_a_score_that_falls_is_an_alarm_though_the_loss_falls():
    score = np.array([20, 24, 27, 29, 30, 30, 29, 28, 27.0])
    found = judge_source(DATA, score, LOSS)
    assert found.verdict == "misaligned"
    assert found.loss_falls
    assert found.drop == 3
    assert "score: falls by 3 with more pretraining data, they do not suit the task" in found.warnings
    assert judge_source(DATA, np.full(9, 20.0), LOSS).verdict == "misaligned"
    wavering = judge_source(DATA, [20, 20.9, 20, 20.9, 20, 20.9, 20, 20.9, 20.1], LOSS)
    assert wavering.rank_correlation < 0.5
    assert wavering.verdict == "misaligned"
    assert judge_source(DATA, np.linspace(22, 20, 9), LOSS[::-1]).verdict == "misaligned"


def test_fine_tuning_data_can_be_enough():
    flat = 30 + 0.01 * np.arange(9)
    assert judge_source(DATA, flat, 2 + 0.001 * np.arange(9)).verdict == "sufficient"


def test_limits_of_the_law():
    found = judge_source(DATA[:3], law(1.2)[:3], LOSS[:3])
    assert found.law is None
    assert found.warnings == ("data: expected at least 4 sizes for the log law, got 3: only a line",)
    ceiling = judge_source(DATA, law(1.2), LOSS, ceiling=15.0)
    assert "score: the law passes the ceiling 15, it is not applicable" in ceiling.warnings
    with pytest.raises(ValueError, match=r"^score: expected finite numbers above 0, got -1.0 in row 0$"):
        judge_source(DATA, [-1, *range(1, 9)], LOSS)
    with pytest.raises(ValueError, match=r"^data: expected at least two sizes, got 1$"):
        judge_source([5, 5], [1, 2], [1, 2])


def test_sources_are_ranked_by_what_they_foretell_at_the_budget():
    better, worse = (10 + 1.1 * np.log(DATA) ** 1.2, 9 + 1.0 * np.log(DATA) ** 1.2)
    falling = 60 + np.array([20, 24, 27, 28, 27, 26, 25, 24, 22])  # high, but not to be trusted
    sources = {"falls": falling, "worse": worse, "better": better}
    runs = [(name, *row) for name, score in sources.items() for row in zip(DATA, score, LOSS, strict=True)]
    found = compare_sources(runs, budget=1e12, without=12.0)
    assert [one.name for one in found] == ["better", "worse", "falls"]
    assert [one.source.verdict for one in found] == ["aligned", "aligned", "misaligned"]
    for one in found[:2]:
        law = judge_source(DATA, sources[one.name], LOSS, fitted=8).law
        assert one.foretold == pytest.approx(float(law.predict([1e12])[0]))
        assert one.gain == pytest.approx(one.foretold - 12)
        assert one.low is None
        assert one.source.error < 1e-3  # on the largest size, which was held out
    wide = compare_sources(runs[9:], budget=1e12, draws=50)
    assert all(one.low <= one.foretold <= one.high and one.gain is None for one in wide)
    few = compare_sources([("a", 1e6, 20.0, 3.0), ("a", 2e6, 22.0, 2.9)], budget=1e12)
    assert few[0].foretold is None
    assert compare_sources(runs[9:18], budget=1e12, fitted=4)[0].source.error is not None


@pytest.mark.parametrize(
    ("runs", "budget", "message"),
    [
        ([], 1e9, "runs: expected at least one, got none"),
        ([("a", 1e6, 20.0, 3.0)], 0.0, "budget: expected a number above 0, got 0.0"),
        ([("a", 1e6, 20.0, 3.0)], 1e9, "a: data: expected at least two sizes, got 1"),
    ],
)
def test_sources_that_cannot_be_compared(runs, budget, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        compare_sources(runs, budget=budget)


def test_miniature():
    found = miniature(0, "smoke")
    assert set(found.arms) == {"untrained-last", "line", "pretraining-loss", "scaling-downstream"}
    assert found.arms["scaling-downstream"]["known_error"] < found.arms["line"]["known_error"]
