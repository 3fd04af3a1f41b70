"""The golden fixtures, and the runner that compares with them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.parity import ADAPTERS, TOLERANCES, Line, check_folder, main

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared" / "golden"
FOLDERS = [folder for folder in (GOLDEN, SHARED) if folder.is_dir()]

ADAPTER = """
def run(params, inputs):
    if params.get("raises"):
        raise RuntimeError("broken")
    loss = (inputs["student_logits"] ** 2).sum(-1) * params.get("factor", 1.0)
    outputs = {"loss": loss, "detail": {"values": [1, 2]}, "label": "A"}
    if "drop" in params:
        del outputs[params["drop"]]
    return outputs | params.get("extra", {})
"""
INPUTS = {"student_logits": [[1.0, 2.0], [3.0, 0.0]]}
OUTPUTS = {"loss": 7.0, "grad_student": [[1.0, 2.0], [3.0, 0.0]], "detail": {"values": [1, 2]}, "label": "A"}


@pytest.fixture
def check(tmp_path, monkeypatch):
    """A function that runs one made-up case through the runner."""
    adapters, fixtures = tmp_path / "adapters", tmp_path / "fixtures"
    adapters.mkdir()
    fixtures.mkdir()
    (adapters / "made-up.py").write_text(ADAPTER)
    monkeypatch.setitem(TOLERANCES, "made-up", TOLERANCES["classic-kd"])

    def run(outputs: dict, params: dict | None = None, slug: str = "made-up", inputs: dict | None = None) -> Line:
        case = {"params": params or {}, "inputs": inputs or INPUTS, "outputs": outputs}
        (fixtures / f"{slug}.json").write_text(json.dumps({"cases": [case]}))
        return next(check_folder(fixtures, adapters))

    return run


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_every_fixture_with_an_adapter_agrees(folder):
    lines = list(check_folder(folder))
    assert lines
    assert [line for line in lines if line.status == "FAIL"] == []
    slugs = {path.stem.replace("_", "-") for path in ADAPTERS.glob("*.py")}
    assert {line.slug for line in lines if line.status == "ok"} >= slugs & {path.stem for path in folder.glob("*.json")}


def test_every_copy_has_an_adapter_and_every_fixture_a_tolerance():
    assert all(line.status == "ok" for line in check_folder(GOLDEN))
    for folder in FOLDERS:
        assert {path.stem for path in folder.glob("*.json")} <= TOLERANCES.keys()


def test_right_values_pass(check):
    line = check(OUTPUTS)
    assert (line.slug, line.status, line.absolute) == ("made-up", "ok", 0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": 7.000001},
        {"grad_student": [[1.0, 2.0], [3.0, 1e-6]]},
        {"grad_student": [[1.0, 2.0]]},
        {"detail": {"values": [1, 2, 3]}},
        {"detail": {"values": [1, 3]}},
        {"detail": {"other": 1}},
        {"label": "B"},
        {"loss": float("nan")},
    ],
)
def test_a_wrong_value_fails(check, wrong):
    line = check(OUTPUTS | wrong)
    assert line.status == "FAIL"
    assert next(iter(wrong)) in line.reason


def test_an_error_of_nan_fails(check):
    assert check(OUTPUTS, {"factor": float("nan")}).status == "FAIL"


@pytest.mark.parametrize("key", ["label", "detail", "loss"])
def test_a_missing_key_fails(check, key):
    line = check(OUTPUTS, {"drop": key})
    assert line.status == "FAIL"
    assert key in line.reason


@pytest.mark.parametrize("key", ["grad_teacher", "unknown"])
def test_a_key_that_nobody_computes_fails(check, key):
    assert check(OUTPUTS | {key: 1.0}).status == "FAIL"


@pytest.mark.parametrize("key", ["loss_as_official_cross_entropy", "value_as_released"])
def test_values_of_official_bugs_may_be_missing(check, key):
    assert check(OUTPUTS | {key: 1.0}).status == "ok"


def test_values_of_official_bugs_count_when_returned(check):
    assert check({"official": 3.0}, {"extra": {"official": 3.0}}).status == "ok"
    assert check({"official": 3.0}, {"extra": {"official": 3.1}}).status == "FAIL"


def test_reduction_is_read_from_the_parameters(check):
    gradient = [[2.0, 4.0], [6.0, 0.0]]
    assert check({"loss": 14.0, "grad_student": gradient}, {"reduction": "sum"}).status == "ok"
    assert check({"loss": [5.0, 9.0], "grad_student": gradient}, {"reduction": "none"}).status == "ok"
    assert check({"loss": 14.0}, {"reduction": "mean over items"}).status == "FAIL"


def test_ragged_inputs_have_gradients(tmp_path):
    (tmp_path / "ragged.py").write_text(
        "import torch\ndef run(params, inputs):\n    return {'loss': torch.stack([m.sum() for m in inputs['student_maps']])}\n"
    )
    case = {"params": {}, "inputs": {"student_maps": [[1.0, 2.0], [3.0]]}, "outputs": {"loss": 3.0, "grad_student": [[0.5, 0.5], [0.5]]}}
    (tmp_path / "ragged.json").write_text(json.dumps({"cases": [case]}))
    assert next(check_folder(tmp_path, tmp_path)).status == "ok"


def test_an_adapter_that_raises_fails_and_the_others_go_on(check, capsys):
    assert check(OUTPUTS, {"raises": True}).reason == "adapter raised RuntimeError"
    assert "broken" in capsys.readouterr().err


def test_no_adapter_is_reported(check):
    assert check(OUTPUTS, slug="another").status == "no adapter"


def test_exit_statuses(tmp_path, capsys):
    assert main([str(GOLDEN)]) == 0
    fixture = json.loads((GOLDEN / "classic-kd.json").read_text())
    fixture["cases"][3]["outputs"]["loss"] += 1e-6
    (tmp_path / "classic-kd.json").write_text(json.dumps(fixture))
    assert main([str(tmp_path)]) == 1
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[4] for line in table[-len(fixture["cases"]) :]].count("FAIL") == 1
    del fixture["cases"][3]["outputs"]["loss"]
    (tmp_path / "classic-kd.json").write_text(json.dumps(fixture))
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path / "nothing")]) == 2
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 2
    assert main([]) == 2


def test_it_runs_as_a_script():
    result = subprocess.run([sys.executable, str(ADAPTERS.parent / "parity.py"), str(GOLDEN)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "classic-kd 0:kd" in result.stdout
