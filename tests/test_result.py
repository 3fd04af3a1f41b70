"""``result.json``: every number in it recomputed from the trials, and pictures that are the examples they claim to be."""

import base64
import io
import json
import subprocess
from dataclasses import replace

import matplotlib.image
import pytest
import torch
from scipy import stats
from torch import nn

from preceptor.data.examples import examples_from
from preceptor.data.text import Texts
from preceptor.metrics.evaluate import Predictions, score
from preceptor.report.page import render
from preceptor.result import _tokens_per_second, build_result, write_result
from preceptor.trial import Task, Trial


class Says(nn.Module):
    """Logits by the first pixel, which numbers the example."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x):
        return self.logits[(x[:, 0, 0, 0] * 100).round().long()]


COUNT, CLASSES = 12, 3
PIXELS = torch.rand(COUNT, 1, 3, 2, generator=torch.Generator().manual_seed(0))
PIXELS[:, 0, 0, 0] = torch.arange(COUNT) / 100
LABELS = torch.arange(COUNT) % CLASSES


def draw(seed, wrong, by=1):
    """Random logits that predict the label, but for the examples in ``wrong`` the label plus ``by``."""
    logits = torch.rand(COUNT, CLASSES, generator=torch.Generator().manual_seed(seed))
    shift = torch.tensor([by * (index in wrong) for index in range(COUNT)])
    logits[torch.arange(COUNT), (LABELS + shift) % CLASSES] += 1
    return logits


def a_trial(task, name, seed, right):
    student = Says(draw(seed, range(right, COUNT)))
    metrics, says = task.measure(student, task.measured)
    curve = {"name": name, "seed": seed, "step": [1], "loss": [1.0], "valid": [{"step": 1, **metrics}]}
    return Trial(
        name=name,
        seed=seed,
        student=student,
        metrics=metrics,
        says=says,
        steps=7,
        examples=70,
        train_seconds=1.5 + seed,
        peak_memory_mb=100.0,
        curve=curve,
    )


def a_task(teacher=True):
    whole = examples_from((PIXELS, LABELS), CLASSES)
    return Task(train=whole, valid=whole, test=whole, teacher=Says(draw(9, range(2), by=2)) if teacher else None)


def a_result(task, **options):
    arms = {
        name: [a_trial(task, name, seed, n) for seed, n in enumerate(right)] for name, right in {"ce": (8, 7, 6), "kd": (9, 7, 6)}.items()
    }
    return arms, build_result(kind="study", title="T", task=task, arms=arms, baselines=["ce"], **options)


@pytest.fixture(scope="module")
def study():
    """Task, trials by arm, result."""
    task = a_task()
    names = ("zero", "one", "two")
    return task, *a_result(task, class_names=names, teacher_seconds=12.5, notes=("a note",), recipe="title: T")


def test_rows_hold_each_seed_and_the_interval_over_them(study):
    task, arms, result = study
    assert [(row["name"], row["role"]) for row in result["rows"]] == [("teacher", "teacher"), ("ce", "baseline"), ("kd", "method")]
    for row in result["rows"][1:]:
        assert [entry["seed"] for entry in row["seeds"]] == [0, 1, 2]
        for entry, trial in zip(row["seeds"], arms[row["name"]], strict=True):
            says = trial.student(PIXELS)
            assert entry["metrics"] == score(says.detach(), LABELS, task.teacher(PIXELS).detach())
            assert (entry["train_seconds"], entry["steps"]) == (trial.train_seconds, 7)
        for metric, entry in row["summary"].items():
            values = [one["metrics"][metric] for one in row["seeds"]]
            mean = sum(values) / 3
            low, high = stats.t.interval(0.95, 2, loc=mean, scale=stats.sem(values))
            assert [entry["mean"], entry["low"], entry["high"]] == pytest.approx([mean, low, high], nan_ok=True)
    accuracies = [entry["metrics"]["accuracy"] for entry in result["rows"][2]["seeds"]]
    assert accuracies == pytest.approx([9 / 12, 7 / 12, 6 / 12])
    assert result["seeds"] == [0, 1, 2]
    assert len(result["curves"]) == 6


def test_the_teacher_is_not_compared_with_itself(study):
    teacher = study[2]["rows"][0]
    assert teacher["seeds"][0]["metrics"]["accuracy"] == pytest.approx(10 / 12)
    assert teacher["seeds"][0]["train_seconds"] == 12.5
    assert not {"agreement", "kl_to_teacher", "rank_correlation"} & teacher["summary"].keys()
    assert a_result(a_task(teacher=False))[1]["rows"][0]["name"] == "ce"


def test_costs_are_those_of_the_models(study):
    for row in study[2]["rows"]:
        assert row["cost"]["parameters"] == COUNT * CLASSES
        assert row["cost"]["macs"] == 0  # a table is looked up
        assert row["cost"]["checkpoint_bytes"] > 4 * COUNT * CLASSES


def test_reliability_is_of_all_seeds_together_and_gives_the_calibration_error(study):
    _, arms, result = study
    curve = next(entry for entry in result["reliability"] if entry["name"] == "kd")
    assert sum(curve["count"]) == 3 * COUNT
    assert sum(result["reliability"][0]["count"]) == COUNT  # the teacher, once
    logits = torch.cat([trial.says.logits for trial in arms["kd"]])
    gaps = [n * abs(a - c) for n, a, c in zip(curve["count"], curve["accuracy"], curve["confidence"], strict=True)]
    assert sum(gaps) / (3 * COUNT) == pytest.approx(score(logits, LABELS.repeat(3))["ece"])


def test_disagreements_are_examples_of_the_best_method_with_their_own_pictures(study):
    task, arms, result = study
    best = arms["kd"][0]  # 9 of 12 right
    student, teacher = best.says.logits.softmax(1).max(1), task.teacher(PIXELS).detach().softmax(1).max(1)
    differ = torch.nonzero(student.indices != teacher.indices)[:, 0].tolist()
    assert len(result["disagreements"]) == len(differ) == 5  # the teacher is wrong in two, the student in three
    names = ("zero", "one", "two")
    shown = set()
    for entry in result["disagreements"]:
        picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(entry["image"].partition(",")[2])), format="png")[..., 0]
        flat = PIXELS.flatten(1)
        scaled = (flat - flat.min(1, keepdim=True).values) / (flat.max(1).values - flat.min(1).values)[:, None]
        distance = (scaled - torch.from_numpy(picture).flatten()).abs().max(1).values
        index = int(distance.argmin())
        assert float(distance[index]) < 0.01  # eight bits
        shown.add(index)
        said = (names[LABELS[index]], names[student.indices[index]], names[teacher.indices[index]])
        assert (entry["label"], entry["student"], entry["teacher"]) == said
        assert entry["student_confidence"] == pytest.approx(float(student.values[index]))
        assert entry["teacher_confidence"] == pytest.approx(float(teacher.values[index]))
    assert shown == set(differ)


def test_the_best_method_is_shown_not_a_worse_one_nor_the_baseline():
    task = a_task()
    arms = {name: [a_trial(task, name, 0, right)] for name, right in {"ce": 12, "worse": 2, "kd": 5}.items()}
    result = build_result(kind="study", title="T", task=task, arms=arms, baselines=["ce"])
    differ = {name: int((trials[0].says.logits.argmax(1) != task.teacher(PIXELS).argmax(1)).sum()) for name, trials in arms.items()}
    assert differ == {"ce": 2, "worse": 12, "kd": 9}
    assert len(result["disagreements"]) == 9


def test_what_is_no_picture_shows_none():
    task = a_task()
    flat = examples_from((PIXELS.flatten(1)[:, :3], LABELS), CLASSES)
    says = Predictions(draw(9, range(2, COUNT)), LABELS, torch.arange(COUNT))
    task = replace(task, train=flat, valid=flat, test=flat, teacher=nn.Linear(3, CLASSES), teacher_says={"train": says})
    trial = replace(a_trial(a_task(), "kd", 0, 9), student=nn.Linear(3, CLASSES))
    assert build_result(kind="run", title="", task=task, arms={"kd": [trial]})["disagreements"] == []


def test_one_seed_has_no_interval():
    task = a_task()
    result = build_result(kind="run", title="T", task=task, arms={"kd": [a_trial(task, "kd", 4, 9)]})
    assert result["rows"][1]["summary"]["accuracy"] == {"mean": pytest.approx(0.75), "low": None, "high": None}
    assert (result["seeds"], result["rows"][1]["role"]) == ([4], "method")


def test_it_is_plain_json_written_whole_and_drawn_from_alone(study, tmp_path):
    result = study[2]
    assert write_result(result, tmp_path / "run") == tmp_path / "run" / "result.json"
    text = (tmp_path / "run" / "result.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) == result
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["result.json"]
    assert render(json.loads(text)) == render(result)


def test_the_commit_is_that_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    task = a_task()

    def commit():
        return build_result(kind="run", title="", task=task, arms={"kd": [a_trial(task, "kd", 0, 9)]})["commit"]

    assert commit() is None

    def git(*words):
        author = ["-c", "user.name=n", "-c", "user.email=e"]
        return subprocess.run(["git", *author, *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "m")
    head = git("rev-parse", "--short=12", "HEAD")
    assert commit() == head
    (tmp_path / "a").write_text("2")
    assert commit() == f"{head}+"


def test_tokens_in_a_second_of_training():
    ids = torch.arange(12).view(3, 4)
    mask = torch.ones(3, 4)
    mask[0, 1:] = 0
    texts = Texts(ids, ids, ids, mask, vocabulary=12)
    trial = a_trial(a_task(), "ce", 0, 8)
    assert _tokens_per_second(Task(train=texts, valid=texts), trial) == 70 * (9 / 3) / 1.5
    assert _tokens_per_second(a_task(), trial) is None
