"""The command line: what it prints, what it refuses, and its exit statuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from preceptor.cli import app

TINY = {
    "threads": 1,
    "data": {"name": "digits", "train_images": 100},
    "teacher": {"model": {"reference": "mlp", "inputs": 64, "hidden": [32]}, "train": {"epochs": 10, "learning_rate": 0.01}},
    "student": {"reference": "mlp", "inputs": 64, "hidden": [4]},
    "method": {"name": "classic-kd"},
    "training": {"steps": 12, "batch_size": 32},
}


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    """A folder with a recipe and its trained teacher."""
    folder = tmp_path_factory.mktemp("kitchen")
    recipe = {**TINY, "teacher": {**TINY["teacher"], "folder": str(folder / "teachers")}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(kitchen, *words, out="refused"):
    """The one line of a refusal: exit 2, nothing written."""
    result = call("distill", kitchen / "tiny.yaml", *words, "--out", kitchen / out)
    assert result.exit_code == 2, result.output
    assert not (kitchen / out).exists()
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_list_names_every_method_and_prints_json():
    slugs = {card["slug"] for card in json.loads(call("list", "--json").stdout)}
    assert {"ce", "classic-kd", "dkd"} <= slugs
    assert all(slug in call("list").stdout for slug in ("ce", "dkd"))
    assert json.loads(call("list", "--task", "no-such-task", "--json").stdout) == []


def test_show_prints_hyper_parameters_with_sources_and_a_valid_recipe():
    from preceptor.recipe import parse

    text = call("show", "dkd").stdout
    assert "temperature = 4.0" in text
    assert "arXiv:2203.08679" in text
    parse(yaml.safe_load(text.partition("\nRecipe\n")[2]))
    wrong = call("show", "dkdd")
    assert wrong.exit_code == 2
    assert "nearest: 'dkd'" in wrong.stderr


def test_help_and_list_load_neither_torch_nor_extras():
    code = "import sys, preceptor.cli, preceptor.catalog as c; c.list_methods(); print([m for m in ('torch', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("method.temprature=2", "nearest: 'temperature'"),
        ("method.name=clasic-kd", "nearest: 'classic-kd'"),
        ("trainning.steps=3", "nearest: 'training'"),
        ("training.stepz=3", "nearest: 'steps'"),
        ("training.steps=soon", "training.steps: expected a valid integer, got 'soon'"),
        ("training.optimizer=AdamX", "nearest: Adam"),
        ("training.optimizer_options={wd: 1}", "training.optimizer_options.wd"),
        ("training.schedule=cosin", "nearest: cosine"),
        ("training.monitor=acuracy", "nearest: accuracy"),
        ("data.name=digitz", "nearest: digits"),
        ("data.train_images=100000", "count: expected a number in [1, "),
        ("method.temperature=-1", "temperature"),
        ("method=fitnets", "method.student_layers"),
        ("teacher=null", "classic-kd needs a teacher"),
        ("student={reference: mlp, inputs: 64, hidden: [4], classes: 7}", "classes like the student, got 10"),
        ("student=nowhere.pt", "pickle"),
        ("student={reference: mlpp}", "nearest"),
        ("trackers=[tensorbord]", "nearest: 'tensorboard'"),
        ("nonsense", "override: expected key=value"),
    ],
)
def test_bad_input_is_refused_in_one_line(kitchen, override, expected):
    assert expected in refused(kitchen, override)


def test_missing_layers_and_layers_that_do_not_exist(kitchen):
    line = refused(kitchen, "method={name: fitnets, student_layers: [hiden1], teacher_layers: [hidden1]}")
    assert "hidden1" in line
    assert "'hiden1'" in line


def test_a_missing_recipe_names_the_nearest(kitchen):
    result = call("distill", kitchen / "tinny.yaml")
    assert result.exit_code == 2
    assert "tiny.yaml" in result.stderr


def test_distill_evaluate_export_resume_and_refusals(kitchen):
    out = kitchen / "run"
    recipe = kitchen / "tiny.yaml"
    done = call("distill", recipe, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result == json.loads((out / "result.json").read_text())
    assert [row["role"] for row in result["rows"]] == ["teacher", "method"]
    assert {p.name for p in out.iterdir()} >= {"recipe.yaml", "metrics.jsonl", "student", "report.html", "result.json", "checkpoints"}
    measured = json.loads(call("evaluate", out, "--json").stdout)
    assert measured == result["rows"][1]["seeds"][0]["metrics"]
    again = call("distill", recipe, "--out", out)
    assert again.exit_code == 2
    assert "holds another run" in again.stderr
    changed = call("distill", recipe, "method.temperature=2", "--out", out, "--resume")
    assert changed.exit_code == 2
    assert "temperature" in changed.stderr
    before = (out / "student" / "model.safetensors").read_bytes()
    assert call("distill", recipe, "--out", out, "--resume").exit_code == 0
    assert (out / "student" / "model.safetensors").read_bytes() == before
    exported = call("export", out, "--to", "torch-export", "--json")
    assert exported.exit_code == 0, exported.output
    assert json.loads(exported.stdout)["agreement"] == 1.0
    assert call("evaluate", kitchen / "nowhere").exit_code == 2


def test_compare_runs_every_arm_and_reuses_trials(kitchen):
    words = ("compare", kitchen / "tiny.yaml", "--methods", "classic-kd,dkd", "--seeds", "2", "--out", kitchen / "study")
    first = call(*words, "--json")
    assert first.exit_code == 0, first.output
    result = json.loads(first.stdout)
    assert [row["name"] for row in result["rows"]] == ["teacher", "ce", "classic-kd", "dkd"]
    assert [len(row["seeds"]) for row in result["rows"]] == [1, 2, 2, 2]
    assert {pair["verdict"] for pair in result["paired"]} == {"too few seeds"}
    second = json.loads(call(*words, "--resume", "--json").stdout)
    assert [row["seeds"] for row in second["rows"]] == [row["seeds"] for row in result["rows"]]


def test_no_permission_to_write(kitchen):
    if os.geteuid() == 0:
        blocked = Path("/proc/preceptor")  # not even root can make a folder there
    else:
        blocked = kitchen / "blocked" / "run"
        blocked.parent.mkdir(mode=0o500)
    result = call("distill", kitchen / "tiny.yaml", "--out", blocked)
    assert result.exit_code in (1, 2)
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_ctrl_c_saves_and_says_how_to_go_on(kitchen):
    out = kitchen / "stopped"
    words = ["distill", str(kitchen / "tiny.yaml"), "training.steps=20000", "training.evaluate_every=20000", "--out", str(out)]
    child = subprocess.Popen([sys.executable, "-m", "preceptor.cli", *words], stderr=subprocess.PIPE, text=True)
    journal = out / "metrics.jsonl"
    for _ in range(600):
        if journal.exists() and journal.stat().st_size:
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert "--resume" in errors
    assert list((out / "checkpoints").glob("step-*"))


def test_docs_writes_and_checks_the_catalogue(tmp_path):
    page = tmp_path / "methods.md"
    assert call("docs", "--out", page).exit_code == 0
    assert "## classic-kd" in page.read_text()
    assert call("docs", "--check", "--out", page).exit_code == 0
    page.write_text("stale")
    assert call("docs", "--check", "--out", page).exit_code == 1


def test_reproduce_says_which_difference_it_prints(monkeypatch):
    from preceptor.miniature import run
    from preceptor.miniature.claim import Claim, decide

    arms = {"ce": {s: {"accuracy": 0.80, "nll": 0.70} for s in range(6)}, "kd": {s: {"accuracy": 0.85, "nll": 0.50} for s in range(6)}}
    common = {"method": "kd", "baseline": "ce"}
    claims = (
        Claim(name="kd is more accurate", metric="accuracy", **common),
        Claim(name="kd is surer", metric="nll", direction="lower", **common),
    )
    found = run.Measurements(
        slug="kd",
        size="full",
        date="",
        versions={},
        seeds=tuple(range(6)),
        arms=arms,
        claims=claims,
        verdicts=decide(claims, arms),
        notes=(),
    )
    monkeypatch.setattr(run, "reproduce", lambda *args, **options: found)
    lines = call("reproduce", "classic-kd").stdout.splitlines()
    assert lines[1].startswith("  kd - ce in accuracy: +0.0500")
    assert lines[3].startswith("  ce - kd in nll: +0.2000")


def test_reproduce_smoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("reproduce", "classic-kd", "--seeds", "1", "--size", "smoke")
    assert result.exit_code == 0, result.output
    assert "too few seeds" in result.stdout
    assert call("reproduce").exit_code == 2
    assert "a baseline" in call("reproduce", "ce").stderr
