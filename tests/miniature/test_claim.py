"""The verdict rule: its error rate, its power, its arithmetic and its refusals."""

import math
import random
import statistics

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from preceptor.miniature.claim import Claim, decide, holm, t_interval


def measured(differences, base=0.0):
    """Arms "kd" and "ce" whose accuracies differ by the given numbers, seed by seed."""
    return {
        "kd": {seed: {"accuracy": base + d} for seed, d in enumerate(differences)},
        "ce": {seed: {"accuracy": base} for seed in range(len(differences))},
    }


CLAIM = Claim(name="kd beats ce", method="kd", baseline="ce", metric="accuracy")


def one(differences, claim=CLAIM, base=0.0):
    (verdict,) = decide([claim], measured(differences, base))
    return verdict


def study_of_three(generator, effects, seeds):
    """Three claims against one baseline, whose noise the three share."""
    baseline = generator.normal(size=seeds)
    arms = {"ce": {s: {"accuracy": baseline[s]} for s in range(seeds)}}
    for k, effect in enumerate(effects):
        values = effect + generator.normal(size=seeds)
        arms[f"m{k}"] = {s: {"accuracy": values[s]} for s in range(seeds)}
    claims = [Claim(name=f"m{k}", method=f"m{k}", baseline="ce", metric="accuracy") for k in range(len(effects))]
    return [v.verdict for v in decide(claims, arms)]


@pytest.mark.parametrize("seeds", [5, 10])
def test_a_study_without_any_effect_takes_a_side_in_at_most_five_percent(seeds):
    generator = np.random.default_rng(seeds)
    studies = 4000
    verdicts = [study_of_three(generator, (0.0, 0.0, 0.0), seeds) for _ in range(studies)]
    wrong = sum(any(v in ("shown", "contradicted") for v in study) for study in verdicts)
    shown = sum("shown" in study for study in verdicts)
    contradicted = sum("contradicted" in study for study in verdicts)
    # 0.999 quantile of the count when the true rate is exactly 5 %; Holm with 3 dependent claims is a little below that.
    assert wrong <= stats.binom.ppf(0.999, studies, 0.05)
    assert wrong >= stats.binom.ppf(0.001, studies, 0.025)  # a rule that never decides would pass the line above
    assert max(shown, contradicted) <= stats.binom.ppf(0.999, studies, 0.03)


def test_one_claim_without_effect_errs_at_exactly_five_percent():
    generator = np.random.default_rng(1)
    studies = 4000
    wrong = sum(study_of_three(generator, (0.0,), 5)[0] != "not shown at this size" for _ in range(studies))
    assert stats.binom.ppf(0.0005, studies, 0.05) <= wrong <= stats.binom.ppf(0.9995, studies, 0.05)


def test_a_true_claim_among_false_ones_does_not_raise_the_error_of_the_false():
    generator = np.random.default_rng(2)
    studies = 3000
    verdicts = [study_of_three(generator, (30.0, 0.0, 0.0), 6) for _ in range(studies)]
    assert all(study[0] == "shown" for study in verdicts)
    wrong = sum(any(v != "not shown at this size" for v in study[1:]) for study in verdicts)
    assert wrong <= stats.binom.ppf(0.999, studies, 0.05)


def test_power_is_that_of_the_noncentral_t():
    generator = np.random.default_rng(3)
    seeds, studies, effect = 8, 3000, 2.0
    shown = sum(study_of_three(generator, (effect,), seeds)[0] == "shown" for _ in range(studies))
    noncentrality = effect / math.sqrt(2 / seeds)  # the difference of two unit normals has variance 2
    power = stats.nct.sf(stats.t.ppf(0.975, seeds - 1), seeds - 1, noncentrality)
    assert 0.9 < power < 1
    assert stats.binom.ppf(0.0005, studies, power) <= shown <= stats.binom.ppf(0.9995, studies, power)


def test_interval_by_hand():
    # mean 3, sd sqrt(2.5), n = 5, t(0.975; 4) = 2.7764451052 from tables: half width 2.7764451052 * sqrt(0.5)
    mean, low, high = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert math.isclose(low, 3 - 2.7764451052 * math.sqrt(0.5), rel_tol=1e-9)
    assert math.isclose(high, 3 + 2.7764451052 * math.sqrt(0.5), rel_tol=1e-9)


def test_interval_and_p_agree_with_scipy():
    differences = [0.031, 0.012, 0.044, -0.003, 0.027, 0.019]
    verdict = one(differences)
    reference = stats.ttest_1samp(differences, 0.0)
    interval = reference.confidence_interval(0.95)
    assert math.isclose(verdict.p_value, reference.pvalue, rel_tol=1e-9)
    assert math.isclose(verdict.low, interval.low, rel_tol=1e-9)
    assert math.isclose(verdict.high, interval.high, rel_tol=1e-9)
    assert (verdict.n, verdict.mean) == (6, pytest.approx(statistics.fmean(differences)))


def test_interval_covers_at_its_level():
    generator = np.random.default_rng(4)
    trials = 4000
    covered = sum(low <= 0 <= high for _, low, high in (t_interval(generator.normal(size=5).tolist(), level=0.8) for _ in range(trials)))
    assert stats.binom.ppf(0.0005, trials, 0.8) <= covered <= stats.binom.ppf(0.9995, trials, 0.8)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_interval_refuses(values):
    with pytest.raises(ValueError, match="values: expected"):
        t_interval(values)


def test_interval_refuses_a_level_outside_zero_and_one():
    with pytest.raises(ValueError, match="level"):
        t_interval([1.0, 2.0], level=95)


def test_holm_against_statsmodels():
    generator = random.Random(0)
    for size in (1, 2, 3, 10, 40):
        p_values = [generator.random() ** 3 for _ in range(size)]
        p_values[0] = p_values[-1]  # a tie
        assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], rel=1e-12)
    assert holm([]) == []


def test_the_four_verdicts():
    good = [0.03, 0.04, 0.05, 0.04, 0.03]
    assert one(good).verdict == "shown"
    assert one([-d for d in good]).verdict == "contradicted"
    assert one([0.03, -0.04, 0.05, -0.04, 0.01]).verdict == "not shown at this size"
    assert one(good[:4]).verdict == "too few seeds"
    assert one(good[:4]).p_value < 0.05  # significant, and still too few


def test_direction_turns_the_sign():
    lower = Claim(name="less", method="kd", baseline="ce", metric="accuracy", direction="lower")
    up, down = one([0.03, 0.04, 0.05, 0.04, 0.03]), one([-0.03, -0.04, -0.05, -0.04, -0.03], lower)
    assert down == up
    assert one([0.03, 0.04, 0.05, 0.04, 0.03], lower).verdict == "contradicted"


def test_margin_moves_the_null_and_not_the_interval():
    differences = [0.03, 0.04, 0.05, 0.04, 0.03]
    at = {m: one(differences, Claim(name="", method="kd", baseline="ce", metric="accuracy", margin=m)) for m in (0.0, 0.038, 0.1)}
    assert [v.verdict for v in at.values()] == ["shown", "not shown at this size", "contradicted"]
    assert len({(v.mean, v.low, v.high) for v in at.values()}) == 1
    assert math.isclose(at[0.038].p_value, stats.ttest_1samp(differences, 0.038).pvalue, rel_tol=1e-9)


def test_holm_is_over_the_claims_of_the_study():
    differences = [0.03, 0.02, 0.05, 0.02, 0.0]
    alone = one(differences)
    assert alone.verdict == "shown"
    assert alone.p_holm == alone.p_value
    noise = Claim(name="noise", method="noise", baseline="ce", metric="accuracy")
    arms = measured(differences) | {"noise": {s: {"accuracy": v} for s, v in enumerate([0.1, -0.1, 0.2, -0.2, 0.01])}}
    together = decide([noise, CLAIM, noise], arms)[1]
    assert together.p_holm == 3 * alone.p_value
    assert together.verdict == "not shown at this size"


@pytest.mark.parametrize("base", [0.0, 0.81, 1e9])
def test_equal_differences_get_the_sign_test(base):
    step = 0.25 if base == 1e9 else 0.043
    for n, word in ((5, "not shown at this size"), (6, "shown")):
        verdict = one([step] * n, base=base)
        assert verdict.p_value == 2.0 ** (1 - n)
        assert verdict.verdict == word
        assert verdict.mean == pytest.approx(step, rel=1e-9)
        assert verdict.low == pytest.approx(step, rel=1e-9)
    assert one([-step] * 6, base=base).verdict == "contradicted"


def test_differences_that_are_equal_but_for_rounding_are_equal():
    bases = (0.81, 0.1, 0.333, 0.57, 0.92)
    arms = {"kd": {s: {"accuracy": b + 0.043} for s, b in enumerate(bases)}, "ce": {s: {"accuracy": b} for s, b in enumerate(bases)}}
    assert len({b + 0.043 - b for b in bases}) > 1
    assert decide([CLAIM], arms)[0].p_value == 2.0**-4


def test_no_difference_at_all_is_no_evidence():
    verdict = one([0.0] * 20, base=0.7)
    assert (verdict.p_value, verdict.verdict, verdict.low, verdict.high) == (1.0, "not shown at this size", 0.0, 0.0)
    on_margin = Claim(name="", method="kd", baseline="ce", metric="accuracy", margin=0.1)
    assert one([0.1] * 20, on_margin, base=0.2).p_value == 1.0  # 0.3 - 0.2 is not exactly 0.1


def test_one_seed_has_no_interval():
    verdict = one([0.1])
    assert (verdict.mean, verdict.low, verdict.high, verdict.p_value, verdict.verdict) == (0.1, None, None, 1.0, "too few seeds")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_name_arm_and_seed(value):
    with pytest.raises(ValueError, match="accuracy of kd, seed 2: expected a finite number"):
        one([0.1, 0.2, value, 0.1, 0.2])


def test_unpaired_seeds_are_named():
    arms = measured([0.1] * 5)
    arms["kd"][7] = arms["kd"].pop(3)
    with pytest.raises(ValueError, match=r"unpaired: \[3, 7\]"):
        decide([CLAIM], arms)


def test_order_of_seeds_does_not_matter():
    arms = measured([0.03, 0.01, 0.05, 0.02, 0.04])
    turned = {"kd": dict(reversed(arms["kd"].items())), "ce": arms["ce"]}
    assert decide([CLAIM], turned) == decide([CLAIM], arms)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"kd": {}, "ce": {}}, "at least one, got none"),
        ({"kd": {0: {"accuracy": 1.0}}}, r"arm: expected one of \['kd'\], got 'ce'"),
        ({"kd": {0: {"nll": 1.0}}, "ce": {0: {"accuracy": 1.0}}}, r"metric of kd, seed 0: expected one of \['nll'\], got 'accuracy'"),
    ],
)
def test_missing_measurements_are_named(arms, message):
    with pytest.raises(ValueError, match=message):
        decide([CLAIM], arms)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"baseline": "kd"}, "baseline"), ({"direction": "better"}, "direction"), ({"margin": math.nan}, "margin")],
)
def test_claims_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        Claim(**({"name": "", "method": "kd", "baseline": "ce", "metric": "accuracy"} | change))
