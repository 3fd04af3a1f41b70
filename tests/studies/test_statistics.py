"""Summary over seeds, paired comparisons, Pareto front, what distillation moved."""

import math
import random

import pytest
from scipy import stats

from preceptor.miniature.claim import Claim, decide
from preceptor.studies.statistics import kd_study, paired, pareto_front, summary

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


def rows(task, student, size, teacher, right, *, loss="none", temperature=1.0, noise=0.0, trace="so it is", answer=None):
    """Answers of a model: to item i "i" where ``right[i]``, else "wrong", or what ``answer`` says."""
    shared = {"task": task, "student": student, "size": size, "teacher": teacher, "loss": loss, "temperature": temperature, "noise": noise}
    given = [str(i) if yes else "wrong" for i, yes in enumerate(right)] if answer is None else answer
    texts = [trace] * len(right) if isinstance(trace, str) else trace
    return [
        shared | {"item": i, "correct": bool(yes), "answer": a, "trace": text}
        for i, (yes, a, text) in enumerate(zip(right, given, texts, strict=True))
    ]


def grid(draw, *, students=4, tasks=3, losses=("forward", "reverse", "gkd"), items=30, gain=0.0):
    """Students and one teacher on tasks; each loss adds ``gain``, which nothing else depends on."""
    table = []
    for task in range(tasks):
        traces = [" ".join(draw.choices("abc", k=6)) for _ in range(items)]
        table += rows(task, "teacher", 100, None, [draw.random() < 0.8 for _ in range(items)], trace=traces)
        for size in range(1, students + 1):
            table += rows(task, f"s{size}", size, None, [draw.random() < 0.5 for _ in range(items)])
            for loss in losses:
                traces = [" ".join(draw.choices("abc", k=6)) for _ in range(items)]
                right = [draw.random() < 0.5 + gain for _ in range(items)]
                table += rows(task, f"s{size}", size, "teacher", right, loss=loss, trace=traces)
    return table


def test_kd_study_of_one_cell_by_hand():
    table = [
        *rows("sums", "large", 7, None, [1, 1, 1, 0], trace=["a b c d", "a b c d", "e f g h", "e f g h"]),
        *rows("sums", "small", 1, None, [1, 0, 0, 0]),
        *rows("sums", "small", 1, "large", [1, 1, 0, 0], loss="forward", trace="a b c d", answer=["0", "1", None, "wrong"]),
    ]
    (cell,) = kd_study(table)["cells"]
    assert {"task": "sums", "student": "small", "size": 1, "teacher": "large", "loss": "forward"}.items() <= cell.items()
    assert (cell["items"], cell["unread"], cell["accuracy"], cell["teacher_accuracy"]) == (4, 0.25, 0.5, 0.75)
    assert (cell["gain"], cell["relative_gain"]) == (0.25, 1.0)
    assert (cell["agreement"], cell["agreement_wrong"], cell["fidelity"]) == (0.75, 1.0, 0.5)
    assert math.isclose(cell["agreement_right"], 2 / 3)
    assert math.isclose(cell["kappa"], (3 / 4 - 3 / 16) / (1 - 3 / 16))


def test_kd_study_says_what_is_undefined_and_why():
    table = [
        *rows("sums", "large", 7, None, [1, 1]),
        *rows("sums", "small", 1, None, [0, 0]),
        *rows("sums", "small", 1, "large", [1, 1], loss="forward"),
    ]
    study = kd_study(table)
    (cell,) = study["cells"]
    assert math.isnan(cell["relative_gain"])
    assert math.isnan(cell["agreement_wrong"])
    for entry in (*study["correlations"], *study["tests"]):
        assert entry["reason"]
        assert all(math.isnan(entry[key]) for key in ("value", "p_value", "p_holm", "effect"))
    flat = [row | {"trace": "the same words here"} for row in grid(random.Random(0))]
    reasons = {(entry["x"], entry["reason"]) for entry in kd_study(flat)["correlations"] if entry["y"] == "accuracy"}
    assert reasons == {("agreement", ""), ("fidelity", "all values are equal")}


def test_kd_study_against_scipy():
    study = kd_study(grid(random.Random(1), students=9, gain=0.3))
    cells = study["cells"]
    assert len(cells) == 9 * 3 * 3
    for entry in study["correlations"]:
        here = [cell for cell in cells if cell["task"] == entry["task"]]
        if entry["x"] == "teacher_accuracy":
            assert (entry["n"], entry["reason"]) == (1, "fewer than 3 points")
            continue
        points = [(cell[entry["x"]], cell[entry["y"]]) for cell in here]
        if entry["x"] == "size":
            points = [(size, sum(cell["gain"] for cell in here if cell["size"] == size) / 3) for size in range(1, 10)]
        expected = stats.spearmanr(*([round(value, 9) for value in column] for column in zip(*points, strict=True)))
        assert entry["n"] == len(points)
        assert (entry["value"], entry["p_value"]) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)
    pairs, variance = study["tests"]
    means = [
        (sum(group) / 3, group)
        for group in ([c["gain"] for c in cells if (c["task"], c["student"]) == (t, f"s{s}")] for t in range(3) for s in range(1, 10))
    ]
    expected = stats.ttest_rel([mean for mean, _ in means], [0.0] * 27)
    assert (pairs["value"], pairs["p_value"], pairs["n"]) == pytest.approx((expected.statistic, expected.pvalue, 27))
    assert pairs["p_holm"] < 1e-6
    assert pairs["effect"] == pytest.approx(expected.statistic / math.sqrt(27))
    groups = [[cell["gain"] for cell in cells if cell["loss"] == loss] for loss in ("forward", "reverse", "gkd")]
    expected = stats.f_oneway(*groups)
    assert (variance["value"], variance["p_value"]) == pytest.approx((expected.statistic, expected.pvalue))
    assert variance["effect"] == pytest.approx(expected.statistic * 2 / (expected.statistic * 2 + 78))
    defined = [entry for entry in (*study["correlations"], *study["tests"]) if not entry["reason"]]
    assert min(entry["p_holm"] for entry in defined) == pytest.approx(len(defined) * min(entry["p_value"] for entry in defined))


def test_kd_study_ranks_and_gives_few_points_their_exact_p():
    """Four students in perfect order: 2 of the 24 orders are as extreme; a monotone map of the sizes changes nothing."""
    table = rows("sums", "large", 100, None, [1] * 8)
    for size in range(1, 5):
        name = f"s{size}"
        table += rows("sums", name, size, None, [0] * 8)
        table += rows("sums", name, size, "large", [i < 5 - size for i in range(8)], loss="forward")
    (first,) = [entry for entry in kd_study(table)["correlations"] if entry["x"] == "size"]
    assert first["value"] == pytest.approx(-1)
    assert first["p_value"] == pytest.approx(2 / 24)
    (mapped,) = [e for e in kd_study([row | {"size": math.exp(row["size"])} for row in table])["correlations"] if e["x"] == "size"]
    assert mapped == first


def test_kd_study_takes_gains_that_differ_by_rounding_as_equal():
    """Gains of 2/10, as differences of tenths."""
    table = rows("sums", "large", 100, None, [1] * 10)
    for size in range(1, 6):
        table += rows("sums", f"s{size}", size, None, [i < size for i in range(10)])
        table += rows("sums", f"s{size}", size, "large", [i < size + 2 for i in range(10)], loss="forward")
    assert len({cell["gain"] for cell in kd_study(table)["cells"]}) > 1
    assert {e["reason"] for e in kd_study(table)["correlations"] if e["y"] == "gain" and e["x"] == "size"} == {"all values are equal"}


def test_kd_study_of_a_grid_without_an_effect_has_uniform_p_values():
    draw = random.Random(0)
    studies = [kd_study(grid(draw, students=8, tasks=1, losses=("forward", "reverse"), items=20)) for _ in range(200)]
    of_pairs = [study["tests"][0]["p_value"] for study in studies]
    of_sizes = [next(entry["p_value"] for entry in study["correlations"] if entry["x"] == "size") for study in studies]
    of_traces = [next(entry["p_value"] for entry in study["correlations"] if entry["x"] == "fidelity") for study in studies]
    for values in (of_pairs, of_sizes, of_traces):
        assert stats.kstest(values, "uniform").pvalue > 0.01


def test_kd_study_refuses_a_table_with_holes():
    whole = grid(random.Random(0), students=1, tasks=1, losses=("forward",), items=3)
    taught = [row for row in whole if row["teacher"]]
    with pytest.raises(ValueError, match="expected rows with a teacher, got none"):
        kd_study([row for row in whole if not row["teacher"]])
    for who, name in (("student", "s1"), ("teacher", "teacher")):
        with pytest.raises(ValueError, match=f"expected rows of {who} '{name}' without a teacher on task 0"):
            kd_study([row for row in whole if row["teacher"] or row["student"] != name])
    with pytest.raises(ValueError, match="one answer of teacher 'teacher' to item 2 of task 0, got 0"):
        kd_study([row for row in whole if (row["student"], row["item"]) != ("teacher", 2)])
    with pytest.raises(ValueError, match="to item 0 of task 0, got 2"):
        kd_study([*whole, *(row for row in whole if row["student"] == "teacher")])
    assert len(kd_study([*whole, *taught])["cells"]) == 1  # several answers of a student to one item are one cell
