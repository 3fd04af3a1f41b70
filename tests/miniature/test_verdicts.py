"""The committed verdicts follow from the committed raw values, whoever wrote the file."""

import dataclasses
from pathlib import Path

import pytest

from preceptor.miniature.claim import Claim, decide
from preceptor.miniature.run import Measurements, read_verdicts

ROOT = Path(__file__).parents[2]
VERDICTS = read_verdicts(ROOT / "docs" / "verdicts.json")


def check(entry: Measurements) -> None:
    """Every verdict is what the rule says about the raw values, to rounding."""
    recomputed = decide(entry.claims, entry.arms)
    assert [v.verdict for v in recomputed] == [v.verdict for v in entry.verdicts]
    for saved, verdict in zip(entry.verdicts, recomputed, strict=True):
        numbers = [(v.mean, v.low, v.high, v.p_value, v.p_holm, v.n) for v in (saved, verdict)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-9, abs=0)


def example() -> Measurements:
    """An entry as `reproduce` would write it."""
    arms = {
        "null": {s: {"accuracy": 0.1} for s in range(5)},
        "ce": {s: {"accuracy": 0.80 + 0.001 * s} for s in range(5)},
        "kd": {s: {"accuracy": 0.84 + 0.003 * s} for s in range(5)},
    }
    claims = (Claim(name="kd beats ce", method="kd", baseline="ce", metric="accuracy"),)
    return Measurements(
        slug="example",
        size="full",
        date="2026-01-01",
        versions={},
        seeds=tuple(range(5)),
        arms=arms,
        claims=claims,
        verdicts=decide(claims, arms),
        notes=(),
    )


def test_committed_verdicts_follow_from_their_raw_values():
    for slug, entry in VERDICTS.items():
        assert (entry.slug, entry.size) == (slug, "full")
        assert (ROOT / "src/preceptor/methods" / f"{slug.replace('-', '_')}.py").exists()
        check(entry)


def test_a_verdict_written_by_hand_would_be_found():
    entry = example()
    check(entry)
    (verdict,) = entry.verdicts
    for change in ({"verdict": "contradicted"}, {"mean": verdict.mean + 1e-6}, {"p_holm": verdict.p_holm / 2}):
        with pytest.raises(AssertionError):
            check(dataclasses.replace(entry, verdicts=(dataclasses.replace(verdict, **change),)))
    arms = entry.arms | {"kd": {s: {"accuracy": 0.80} for s in range(5)}}
    with pytest.raises(AssertionError):
        check(dataclasses.replace(entry, arms=arms))
