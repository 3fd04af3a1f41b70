"""The report page: complete, honest, self-contained, escaped and the same for the same result."""

import base64
import copy
import io
import json
import re
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from preceptor.report.charts import Point, pareto_front, standing
from preceptor.report.numbers import count, duration, significant
from preceptor.report.page import render, summary_table, write_report
from preceptor.report.words import verdict

VOID = {"meta", "img", "br", "link", "hr", "input"}


def png(pixels: np.ndarray) -> str:
    """A greyscale image of bytes, (height, width), as a data URI."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels.astype(np.uint8))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        "data:image/png;base64,"
        + base64.b64encode(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")).decode()
    )


def interval(values: np.ndarray) -> dict:
    spread = 2.776 * values.std(ddof=1) / np.sqrt(len(values))
    return {"mean": values.mean(), "low": values.mean() - spread, "high": values.mean() + spread}


def arm(rng, name: str, role: str, centre: dict, cost: dict, seeds: int = 5) -> dict:
    rows = [
        {
            "seed": seed,
            "metrics": {key: value * (1 if role == "teacher" else 1 + rng.normal(0, 0.006)) for key, value in centre.items()},
            "train_seconds": (11.0 if role == "baseline" else 14.0) + rng.normal(0, 0.4),
            "steps": 1500,
            "peak_memory_mb": 212.0 + rng.normal(0, 2),
            "teacher_seconds": 0.0 if role == "baseline" else 2.4,
        }
        for seed in range(seeds)
    ]
    summary = {key: interval(np.array([row["metrics"][key] for row in rows])) for key in centre} if seeds > 1 else {}
    return {"name": name, "role": role, "seeds": rows, "summary": summary, "cost": cost}


def realistic(steps: int = 1500) -> dict:
    """A study as `preceptor compare` writes it: a teacher, a baseline, two methods, five seeds."""
    rng = np.random.default_rng(0)
    small = {
        "parameters": 12730,
        "macs": 12704,
        "latency_ms": {"1": {"p50": 0.041, "p95": 0.058}, "64": {"p50": 0.118, "p95": 0.171}},
        "checkpoint_bytes": 52_312,
    }
    large = {
        "parameters": 421_642,
        "macs": 3_868_000,
        "latency_ms": {"1": {"p50": 0.312, "p95": 0.405}, "64": {"p50": 6.41, "p95": 7.02}},
        "checkpoint_bytes": 1_690_000,
    }
    names = ("accuracy", "top5", "nll", "brier", "ece", "classwise_ece", "adaptive_ece", "agreement", "kl_to_teacher", "rank_correlation")
    centres = {
        "teacher": (0.972, 0.999, 0.101, 0.043, 0.0121, 0.0051, 0.0118, 1.0, 0.0, 1.0),
        "ce": (0.823, 0.981, 0.702, 0.272, 0.0684, 0.0191, 0.0672, 0.829, 0.651, 0.71),
        "classic-kd": (0.854, 0.987, 0.489, 0.216, 0.0213, 0.0102, 0.0221, 0.862, 0.402, 0.83),
        "dkd": (0.848, 0.986, 0.533, 0.225, 0.0391, 0.0133, 0.0388, 0.857, 0.441, 0.80),
    }
    roles = {"teacher": "teacher", "ce": "baseline", "classic-kd": "method", "dkd": "method"}
    rows = [
        arm(
            rng,
            name,
            roles[name],
            dict(zip(names, centre, strict=True)),
            large if name == "teacher" else small,
            1 if name == "teacher" else 5,
        )
        for name, centre in centres.items()
    ]
    rows[0]["seeds"][0]["train_seconds"] = 61.0
    x = np.arange(1, steps + 1)
    curves = []
    for name, end, start in (("ce", 0.02, 2.3), ("classic-kd", 0.35, 3.9), ("dkd", 0.6, 5.2)):
        for seed in range(5):
            noise = np.exp(rng.normal(0, 0.15, steps))
            final = centres[name][0]
            valid = [
                {"step": int(s), "accuracy": final - 0.7 * np.exp(-s / 180) + rng.normal(0, 0.006), "nll": 0.6}
                for s in range(100, steps + 1, 100)
            ]
            curves.append(
                {
                    "name": name,
                    "seed": seed,
                    "step": x.tolist(),
                    "loss": ((end + (start - end) * np.exp(-x / 200)) * noise).tolist(),
                    "valid": valid,
                }
            )
    sweep = {"ce": (0.652, 0.823, 0.876, 0.903), "classic-kd": (0.701, 0.854, 0.889, 0.901)}
    bins = np.linspace(0.25, 0.97, 10)
    bend = {"teacher": 0.01, "ce": 0.12, "classic-kd": -0.03, "dkd": 0.06}
    digit = np.zeros((28, 28))
    digit[5:23, 12:16] = 255
    return {
        "kind": "study",
        "title": "MNIST on 300 images: which student to ship?",
        "task": "mnist5k",
        "created": "2026-11-24T09:30:00+00:00",
        "headline_metric": "accuracy",
        "rows": rows,
        "paired": [
            {
                "metric": "accuracy",
                "method": "classic-kd",
                "baseline": "ce",
                "mean": 0.031,
                "low": 0.022,
                "high": 0.040,
                "p_value": 0.0006,
                "p_holm": 0.0012,
                "verdict": "shown",
            },
            {
                "metric": "accuracy",
                "method": "dkd",
                "baseline": "ce",
                "mean": 0.025,
                "low": 0.014,
                "high": 0.036,
                "p_value": 0.003,
                "p_holm": 0.003,
                "verdict": "shown",
            },
            {
                "metric": "nll",
                "method": "classic-kd",
                "baseline": "ce",
                "mean": -0.213,
                "low": -0.25,
                "high": -0.176,
                "p_value": 0.0001,
                "p_holm": 0.0002,
                "verdict": "shown",
            },
            {
                "metric": "ece",
                "method": "dkd",
                "baseline": "ce",
                "mean": 0.001,
                "low": -0.02,
                "high": 0.022,
                "p_value": 0.9,
                "p_holm": 0.9,
                "verdict": "not shown at this size",
            },
        ],
        "curves": curves,
        "sweep": {
            "axis": "training images",
            "points": [
                {"value": value, "name": name, "mean": means[i], "low": means[i] - 0.012 / (1 + i), "high": means[i] + 0.012 / (1 + i)}
                for name, means in sweep.items()
                for i, value in enumerate((100, 300, 1000, 2500))
            ],
        },
        "reliability": [
            {
                "name": name,
                "confidence": bins.tolist(),
                "accuracy": np.clip(bins - bend[name] * (0.5 + rng.random(10)), 0, 1).tolist(),
                "count": np.round(40 * 1.5 ** np.arange(10)).tolist(),
            }
            for name in centres
        ],
        "disagreements": [
            {
                "image": png(np.roll(digit, shift, 1)),
                "label": 1 + shift % 3,
                "student": 7,
                "student_confidence": 0.62,
                "teacher": 1,
                "teacher_confidence": 0.97,
            }
            for shift in range(-6, 6)
        ],
        "recipe": "task: mnist5k\nmethod:\n  slug: classic-kd\n  temperature: 4.0\n  alpha: 0.9\nsteps: 1500\n",
        "versions": {"python": "3.11.9", "torch": "2.13.0", "preceptor": "0.1.0"},
        "commit": "3f2c9ab",
        "seeds": [0, 1, 2, 3, 4],
        "hardware": "2 CPU cores, x86-64",
        "notes": ["The test part was read once, at the end.", "The teacher was trained once on 2,500 images and kept."],
    }


@pytest.fixture(scope="module")
def study() -> dict:
    return realistic()


@pytest.fixture(scope="module")
def page(study) -> str:
    return render(study)


class Reader(HTMLParser):
    """Collects tags, ids, links and text, and checks that every tag is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}: {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def having(self, attribute: str) -> list[str]:
        return [attrs[attribute] for _, attrs in self.tags if attribute in attrs]


def without(result: dict, *keys: str) -> dict:
    return {key: value for key, value in result.items() if key not in keys}


def one_run(result: dict) -> dict:
    """The same result as a run: the teacher and one arm with one seed, nothing to compare."""
    method = {**result["rows"][2], "seeds": result["rows"][2]["seeds"][:1], "summary": {}}
    parts = {"curves": result["curves"][5:6], "reliability": result["reliability"][2:3], "paired": [], "sweep": None, "seeds": [0]}
    return {**result, "kind": "run", "title": "classic-kd on mnist5k", "rows": [result["rows"][0], method], **parts}


def test_the_page_is_well_formed_and_loads_nothing(page):
    reader = Reader(page)
    for value in [*reader.having("src"), *reader.having("href"), *reader.having("xlink:href")]:
        assert value.startswith(("data:image/png;base64,", "#"))
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page)
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(tag for tag, _ in reader.tags)
    assert "default-src 'none'" in reader.having("content")[0]
    assert [attrs for tag, attrs in reader.tags if tag == "html"] == [{"lang": "en"}]
    assert len(page.encode()) < 1_500_000


def test_ids_are_unique_and_every_reference_has_its_target(page):
    reader = Reader(page)
    ids = reader.having("id")
    assert len(ids) == len(set(ids)) > 20
    references = [link[1:] for link in reader.having("href")] + re.findall(r"url\(#([^)]+)\)", page)
    assert len(references) > 20
    assert set(references) <= set(ids)


def test_every_headline_number_is_there(study, page):
    text = Reader(page).text
    for row in study["rows"]:
        for key, scale, digits, unit in (("accuracy", 100, 1, " %"), ("nll", 1, 3, ""), ("ece", 100, 1, " %"), ("agreement", 100, 1, " %")):
            mean = row["summary"][key] if row["summary"] else {"mean": row["seeds"][0]["metrics"][key]}
            assert f"{scale * mean['mean']:.{digits}f}{unit}" in text
            if row["summary"]:
                assert f"({scale * mean['low']:.{digits}f} to {scale * mean['high']:.{digits}f})" in text
        assert f"{np.mean([seed['train_seconds'] for seed in row['seeds']]):.3g} s" in text
        assert f"{np.mean([seed['peak_memory_mb'] for seed in row['seeds']]):.3g} MB" in text
    for value in (
        "422 k",
        "12.7 k",
        "3.87 M",
        "0.312 ms",
        "p95 0.405",
        "0.041 ms",
        "p95 0.058",
        "6.41 ms",
        "p95 7.02",
        "0.118 ms",
        "p95 0.171",
        "52.3 kB",
    ):
        assert value in text
    for value in (
        "+3.1 points",
        "(2.2 to 4.0)",
        "−0.213",
        "(−0.250 to −0.176)",
        "< 0.001",
        "3f2c9ab",
        "0, 1, 2, 3, 4",
        "torch 2.13.0",
        "2 CPU cores",
        "temperature: 4.0",
    ):
        assert value in text
    assert "classic-kd beats ce by 3.1 points (95 % interval 2.2 to 4.0, 5 seeds); so does dkd." in text


def test_charts_and_tables_can_be_read_without_seeing_them(page):
    reader = Reader(page)
    charts = [attrs for tag, attrs in reader.tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(charts) == 2 + 1 + 2 + 4
    assert all(attrs["aria-label"] for attrs in charts)
    assert len({attrs["aria-label"] for attrs in charts}) == len(charts)
    assert {attrs.get("scope") for tag, attrs in reader.tags if tag == "th"} == {"col", "row"}
    assert all(attrs["alt"] for tag, attrs in reader.tags if tag == "img")
    assert "classic-kd is ahead of ce at 100, 300 and 1,000 and level with ce at 2,500." in reader.text
    assert "is the Pareto front: ce, classic-kd and teacher" in reader.text


def test_best_student_is_marked_with_a_word_and_never_the_teacher(study):
    text = Reader(render(without(study, "disagreements"))).text
    rows = text[text.index("Peak memory") : text.index("In brackets")]
    teacher, ce, kd, dkd = (rows[rows.index(name) :] for name in ("teacher", "ce baseline", "classic-kd", "dkd"))
    assert "best" not in teacher[: teacher.index("ce baseline")]
    assert kd[: kd.index("dkd")].count("best") == 4
    assert ce[: ce.index("classic-kd")].count("best") == 1
    assert "best" not in dkd


def test_same_result_gives_the_same_bytes(study, tmp_path):
    first = write_report(study, tmp_path / "a")
    code = "import json, pathlib, sys; from preceptor.report.page import *; write_report(json.load(sys.stdin), pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b.html")], input=json.dumps(study), text=True, check=True)
    assert first == tmp_path / "a" / "report.html"
    assert first.read_bytes() == (tmp_path / "b.html").read_bytes()
    assert [path.name for path in first.parent.iterdir()] == ["report.html"]


def test_the_result_is_not_changed(study):
    before = copy.deepcopy(study)
    render(study)
    assert study == before


HOSTILE = "_<script>alert(1)</script>\"'>&$x^2$ http://evil.example/</style></svg>"


def test_hostile_text_stays_text(study):
    def poison(value):
        if isinstance(value, dict):
            kept = ("kind", "role", "verdict", "headline_metric", "metric", "image")
            return {key: item if key in kept else poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return value + HOSTILE if isinstance(value, str) else value

    poisoned = poison(study)
    for example in poisoned["disagreements"]:
        example.update(label=HOSTILE, student=HOSTILE, teacher="x" + HOSTILE)
    poisoned["disagreements"][0]["image"] = "http://evil.example/a.png"
    poisoned["disagreements"][1]["image"] = 'data:image/png;base64,AA" onerror="alert(1)'
    poisoned["disagreements"][2]["image"] = "data:image/svg+xml;base64,AAAA"
    reader = Reader(render(poisoned))
    assert "script" not in {tag for tag, _ in reader.tags}
    assert not [key for _, attrs in reader.tags for key in attrs if key.startswith("on")]
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in reader.having("src") + reader.having("href"))
    assert len(reader.having("src")) == len(study["disagreements"]) - 3
    assert reader.text.count("<script>alert(1)</script>") > 30
    assert [tag for tag, _ in reader.tags if tag == "style"] == ["style"]
    assert reader.words.count("Training images" + HOSTILE) == 2, "the axis of the chart and the heading of its table"


def assert_no_hole(result: dict):
    text = render(result)
    assert not re.search(r"\b(None|nan|null)\b", Reader(text).text)
    assert not re.search(r"<(section|ul|dl|table|tbody|figure|figcaption|p|div)[^>]*></\1>", text)
    assert text.count("<section") == text.count("<h2>") == text.count('<a href="#part-')


@pytest.mark.parametrize("key", list(realistic(steps=2)))
def test_a_missing_field_leaves_no_hole(study, key):
    rows = [{**row, "seeds": [{"seed": 0, "metrics": seed["metrics"]} for seed in row["seeds"]], "cost": {}} for row in study["rows"]]
    light = {**study, "rows": rows, "curves": [], "sweep": None, "reliability": []}
    assert_no_hole(without(light, key))
    assert_no_hole({**light, key: None})
    assert_no_hole({**light, key: "" if isinstance(study[key], str) else type(study[key])()})


@pytest.mark.parametrize(("key", "heading"), [("curves", "Learning curves"), ("sweep", "How much data"), ("reliability", "confidence")])
def test_a_chart_without_data_is_left_out(study, page, key, heading):
    result = {**study, key: None}
    assert_no_hole(result)
    assert heading in page
    assert heading not in render({**result, "curves": None, "sweep": None, "reliability": None})


def test_nothing_measured_is_a_page_too():
    assert "No results yet." in Reader(render({})).text
    assert summary_table({}).row_count == 0


def test_a_single_run(study):
    reader = Reader(render(one_run(study)))
    accuracy = study["rows"][2]["seeds"][0]["metrics"]["accuracy"]
    assert f"classic-kd reaches {100 * accuracy:.1f} % accuracy; its teacher 97.2 %." in reader.text
    assert " to " not in reader.text[reader.text.index("Results Model") : reader.text.index("More measures")]
    assert "best" not in reader.text
    assert "Is the difference real?" not in reader.text
    assert "One line per arm." in reader.text


def test_values_that_are_not_numbers_are_left_out(study):
    result = copy.deepcopy(study)
    result["rows"][1]["summary"]["nll"] = {"mean": float("nan"), "low": None, "high": None}
    for seed in result["rows"][1]["seeds"]:
        seed["metrics"]["nll"] = float("nan")
    result["rows"][1]["cost"]["latency_ms"] = None
    result["curves"][0]["loss"][3] = None
    result["reliability"][0]["accuracy"][0] = None
    result["sweep"]["points"][0]["mean"] = None
    reader = Reader(render(result))
    assert "nan" not in reader.text
    assert "–" in reader.words


def pair(method: str, mean: float, verdict: str, *, metric: str = "accuracy", spread: float = 0.005) -> dict:
    return {
        "metric": metric,
        "method": method,
        "baseline": "ce",
        "mean": mean,
        "low": mean - spread,
        "high": mean + spread,
        "verdict": verdict,
    }


@pytest.mark.parametrize(
    ("pairs", "sentence", "tone"),
    [
        (
            [pair("dkd", 0.02, "shown"), pair("classic-kd", 0.031, "shown")],
            "classic-kd beats ce by 3.1 points (95 % interval 2.6 to 3.6, 5 seeds); so does dkd",
            "shown",
        ),
        (
            [pair("dkd", 0.05, "not shown at this size"), pair("classic-kd", 0.03, "shown")],
            "classic-kd beats ce by 3.0 points (95 % interval 2.5 to 3.5, 5 seeds)",
            "shown",
        ),
        (
            [pair("dkd", -0.001, "not shown at this size"), pair("classic-kd", 0.004, "not shown at this size")],
            "No method beats ce at this size; closest is classic-kd with a difference of +0.4 points (95 % interval −0.1 to 0.9, 5 seeds)",
            "not shown at this size",
        ),
        (
            [pair("dkd", -0.02, "contradicted"), pair("classic-kd", 0.004, "not shown at this size")],
            "No method beats ce at this size; dkd is worse than ce by 2.0 points (95 % interval 1.5 to 2.5, 5 seeds)",
            "contradicted",
        ),
        ([pair("dkd", 0.02, "too few seeds")], "Too few seeds for a verdict: dkd is ahead of ce by 2.0 points (5 seeds)", "too few seeds"),
        ([pair("dkd", -0.02, "too few seeds")], "Too few seeds for a verdict: dkd is behind ce by 2.0 points (5 seeds)", "too few seeds"),
        ([pair("dkd", -0.1, "shown", metric="nll")], "classic-kd reaches 85.6 % accuracy; its teacher 97.2 %", ""),
    ],
)
def test_the_verdict_says_what_the_pairs_say(study, pairs, sentence, tone):
    assert verdict({**study, "paired": pairs}) == (sentence, tone)


def test_a_lower_loss_is_a_gain(study):
    result = {
        **study,
        "headline_metric": "nll",
        "paired": [pair("dkd", -0.17, "shown", metric="nll"), pair("classic-kd", -0.2, "shown", metric="nll")],
    }
    assert verdict(result) == ("classic-kd beats ce by 0.200 NLL (95 % interval 0.195 to 0.205, 5 seeds); so does dkd", "shown")


def test_only_common_seeds_are_counted(study):
    result = copy.deepcopy(study)
    result["rows"][1]["seeds"] = result["rows"][1]["seeds"][:3]
    assert "3 seeds" in verdict(result)[0]


def test_the_sweep_says_nothing_without_intervals(study):
    result = copy.deepcopy(study)
    for point in result["sweep"]["points"]:
        point.update(low=None, high=None)
    text = Reader(render(result)).text
    assert "ahead of ce" not in text
    assert "level with" not in text


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.71, 0.75, "ahead of"),
        (0.70, 0.75, "level with"),
        (0.62, 0.68, "level with"),
        (0.5, 0.9, "level with"),
        (0.5, 0.55, "behind"),
        (0.8, 0.8, ""),
    ],
)
def test_standing(low, high, word):
    point, base = Point(name="kd", x=1.0, mean=(low + high) / 2, low=low, high=high), Point(name="ce", x=1.0, mean=0.65, low=0.6, high=0.7)
    turned = {"ahead of": "behind", "behind": "ahead of"}.get(word, word)
    assert (standing(point, base, 1), standing(point, base, -1), standing(point, None, 1)) == (word, turned, "")


def test_pareto_front_against_a_slow_definition():
    rng = np.random.default_rng(1)
    for sign in (1, -1):
        points = [Point(name=str(i), x=float(x), mean=float(y), low=y, high=y) for i, (x, y) in enumerate(rng.integers(0, 12, (40, 2)))]

        def beaten(p, q, sign=sign):
            return q.x <= p.x and sign * q.mean >= sign * p.mean and (q.x, q.mean) != (p.x, p.mean)

        expected = {(p.x, p.mean) for p in points if not any(beaten(p, q) for q in points)}
        front = pareto_front(points, sign)
        assert {(p.x, p.mean) for p in front} == expected
        assert [p.x for p in front] == sorted(p.x for p in front)


def test_numbers_in_words():
    assert [count(v) for v in (0, 7, 999, 999.6, 12730, 999_700, 1.2e6, 3.4e12)] == [
        "0",
        "7",
        "999",
        "1 k",
        "12.7 k",
        "1 M",
        "1.2 M",
        "3.4 T",
    ]
    assert [significant(v) for v in (0, 0.00012, 0.1234, 12.34, 999.7, 12345)] == ["0", "1.2e-04", "0.123", "12.3", "1000", "12345"]
    assert [duration(v) for v in (0.42, 12.34, 99.94, 100, 204, 7560)] == ["0.42 s", "12.3 s", "99.9 s", "1.7 min", "3.4 min", "2.1 h"]


@pytest.mark.parametrize("name", ["classic-kd", "attention-transfer", "<script>[red]$x$"])
def test_terminal_table_fits_and_says_the_same(study, name):
    result = copy.deepcopy(study)
    result["rows"][2]["name"], result["title"] = name, "a [red] title"
    out = io.StringIO()
    Console(file=out, width=100, color_system=None).print(summary_table(result))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in out.getvalue()
    for row in result["rows"][1:]:
        assert f"{100 * row['summary']['accuracy']['mean']:.1f} %" in out.getvalue()
        assert f"{100 * row['summary']['accuracy']['low']:.1f} to {100 * row['summary']['accuracy']['high']:.1f}" in out.getvalue()
    for value in ("12.7 k", "3.87 M", "p95 0.171", "6.41 ms", "61 s", "212 MB", "97.2 %"):
        assert value in out.getvalue()
    assert sum(line.count(" *") for line in lines) == 5
    assert "a [red] title" in lines[0]
    assert lines[7].startswith({"attention-transfer": "attention- "}.get(name, name[:12]))


def test_matplotlib_is_only_needed_for_charts(study):
    code = """
import sys
sys.modules["matplotlib"] = None
from preceptor.report.page import render
assert render({"title": "x", "rows": []})
try:
    render({"curves": [{"name": "a", "seed": 0, "step": [1, 2], "loss": [2.0, 1.0], "valid": []}]})
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'preceptor[study]'" in done.stdout
