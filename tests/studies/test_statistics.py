"""Summary over seeds, paired comparisons, Pareto front."""

import math
import random

import pytest
from scipy import stats

from preceptor.miniature.claim import Claim, decide
from preceptor.studies.statistics import paired, pareto_front, summary

ARMS = {
    "ce": {s: {"accuracy": v, "nll": n} for s, (v, n) in enumerate([(0.80, 0.71), (0.82, 0.66), (0.81, 0.70), (0.83, 0.64), (0.79, 0.69)])},
    "kd": {s: {"accuracy": v, "nll": n} for s, (v, n) in enumerate([(0.85, 0.51), (0.86, 0.50), (0.85, 0.53), (0.86, 0.49), (0.84, 0.50)])},
    "bad": {s: {"accuracy": v, "nll": 0.7} for s, v in enumerate([0.70, 0.71, 0.73, 0.70, 0.72])},
}


def test_summary_agrees_with_scipy():
    result = summary(ARMS["ce"])
    assert list(result) == ["accuracy", "nll"]
    for metric, entry in result.items():
        values = [m[metric] for m in ARMS["ce"].values()]
        low, high = stats.t.interval(0.95, 4, loc=sum(values) / 5, scale=stats.sem(values))
        assert [entry["mean"], entry["low"], entry["high"]] == pytest.approx([sum(values) / 5, low, high], rel=1e-9)


def test_summary_of_one_seed_has_no_interval():
    assert summary({4: {"accuracy": 0.5}}) == {"accuracy": {"mean": 0.5, "low": None, "high": None}}


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({}, "at least one seed"),
        ({0: {"accuracy": 1.0}, 3: {"nll": 1.0}}, r"metrics of seed 3: expected \['accuracy'\] like seed 0, got \['nll'\]"),
        ({0: {"accuracy": 1.0}, 3: {"accuracy": math.nan}}, "accuracy of seed 3: expected a finite number"),
    ],
)
def test_summary_refuses(arm, message):
    with pytest.raises(ValueError, match=message):
        summary(arm)


def test_paired_is_the_rule_over_one_family():
    entries = paired(ARMS, methods=["kd", "bad"], baseline="ce", metrics={"accuracy": "higher", "nll": "lower"})
    assert [(e["method"], e["metric"]) for e in entries] == [("kd", "accuracy"), ("kd", "nll"), ("bad", "accuracy"), ("bad", "nll")]
    assert [e["verdict"] for e in entries] == ["shown", "shown", "contradicted", "not shown at this size"]
    assert entries[0]["mean"] == pytest.approx(0.042)
    assert entries[1]["mean"] == pytest.approx(-0.174)  # method minus baseline, in nats: the method is better
    assert entries[1]["low"] < entries[1]["mean"] < entries[1]["high"] < 0
    assert {e["baseline"] for e in entries} == {"ce"}
    claims = [
        Claim(name="", method=e["method"], baseline="ce", metric=e["metric"], direction="higher" if e["metric"] == "accuracy" else "lower")
        for e in entries
    ]
    for entry, verdict in zip(entries, decide(claims, ARMS), strict=True):
        assert {k: entry[k] for k in ("p_value", "p_holm", "n", "verdict")}.items() <= vars(verdict).items()
        spans = (entry["mean"], entry["low"], entry["high"]), (verdict.mean, verdict.low, verdict.high)
        assert spans[0] == (spans[1] if entry["metric"] == "accuracy" else (-verdict.mean, -verdict.high, -verdict.low))


def test_pareto_front_against_the_definition():
    generator = random.Random(0)
    for _ in range(200):
        points = [(generator.randrange(6), generator.randrange(6)) for _ in range(generator.randrange(12))]
        slow = {i for i, (c, q) in enumerate(points) if not any(d <= c and r >= q and (d, r) != (c, q) for d, r in points)}
        front = pareto_front(points)
        assert set(front) == slow
        assert len(front) == len(slow)
        assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_pareto_front_refuses_what_it_cannot_order():
    with pytest.raises(ValueError, match=r"points\[1\]"):
        pareto_front([(1.0, 2.0), (math.nan, 2.0)])
