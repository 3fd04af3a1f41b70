"""The ladder: widths, resumption, refusals."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console
from tests.commands.test_scaling_command import call

from preceptor import sweeping
from preceptor.core.files import write_whole
from preceptor.progress import Bars
from preceptor.recipe import dump, parse
from preceptor.sweeping import run_sweep, scaled

RECIPE = {
    "threads": 1,
    "data": {"name": "digits", "train_images": 100},
    "student": {"reference": "mlp", "inputs": 64, "hidden": [8]},
    "method": {"name": "ce"},
    "training": {"steps": 10, "batch_size": 32},
}


def sweep(out, sizes=(0.25, 0.5, 1, 2), recipe=RECIPE, **rest):
    said = io.StringIO()
    with Bars(Console(file=said)) as bars:
        return run_sweep(parse(recipe), sizes, out=out, bars=bars, draws=0, **rest), said.getvalue()


def test_students_are_scaled():
    assert scaled(RECIPE["student"], 0.5)["hidden"] == [4]
    assert scaled({"reference": "cnn", "channels": [8, 16], "width": 2.0}, 0.5)["channels"] == [8, 16]
    assert scaled({"shrink": 0.5}, 0.5) == {"shrink": 0.25}
    assert scaled({"keep_layers": 4}, 0.3) == {"keep_layers": 1}
    with pytest.raises(
        ValueError, match=r"^student: expected a reference model, shrink or a number of keep_layers to make a ladder of, got"
    ):
        scaled("timm:resnet18", 0.5)
    with pytest.raises(ValueError, match=r"^student: expected a reference model, shrink"):
        scaled({"keep_layers": [0, 1]}, 0.5)


@pytest.fixture
def trained(monkeypatch):
    """Runs that take no time; the widths and seeds of those that were made, in order. The fifth is interrupted once."""
    made = []

    def run(recipe, *, out, resume, bars):
        width = recipe.student["hidden"][0]
        made.append((width, recipe.seed))
        if len(made) == 5:
            raise KeyboardInterrupt
        cost = {"parameters": 75 * width, "macs": 74 * width}
        seeds = [{"seed": recipe.seed, "steps": 10, "metrics": {"nll": 1 + 2 / width + 0.01 * recipe.seed}}]
        row = {"name": "ce", "role": "baseline", "cost": cost, "seeds": seeds}
        write_whole(out / "result.json", json.dumps({"kind": "run", "rows": [row], "recipe": dump(recipe)}))

    monkeypatch.setattr(sweeping, "run_distill", run)
    return made


def test_a_finished_size_is_not_trained_again_and_more_sizes_are_added(tmp_path, trained):
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path / "sw", seeds=2)
    result, said = sweep(tmp_path / "sw", seeds=2)
    assert trained == [(2, 0), (2, 1), (4, 0), (4, 1), (8, 0), (8, 0), (8, 1), (16, 0), (16, 1)]
    assert said.count("kept in") == 4
    assert sorted(result["points"]["x"]) == [[75.0 * width] for width in (2, 2, 4, 4, 8, 8, 16, 16)]
    e, a, alpha = (result["parameters"][name]["value"] for name in ("E", "A", "alpha"))
    for width in (2, 4, 8, 16):  # every curve between the two seeds is as good: their sum of distances is the same
        assert 1 + 2 / width - 1e-4 <= e + a * (75 * width) ** -alpha <= 1.01 + 2 / width + 1e-4
    again, _ = sweep(tmp_path / "sw", sizes=(0.25, 0.5, 1, 2, 3), seeds=2)
    assert trained[9:] == [(24, 0), (24, 1)]
    assert len(again["runs"]["nll"]) == 10
    with pytest.raises(ValueError, match=r"^out: expected a new folder or one of the same recipe, got .*, whose sweep.yaml differs$"):
        sweep(tmp_path / "sw", recipe={**RECIPE, "seed": 7})


def test_the_plain_power_law_needs_three_sizes(tmp_path, trained):
    assert sweep(tmp_path / "sw", sizes=(0.25, 0.5, 1), law="power")[0]["law"] == "power"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0.5, 1, 2), "sizes: expected at least 4 for the law power-constant, got 3"),
        ((1, 1, 2, 3), "sizes: expected numbers above 0, each once, got 1, 1, 2, 3"),
        ((0, 1, 2, 3), "sizes: expected numbers above 0, each once, got 0, 1, 2, 3"),
        ((0.1, 0.12, 1, 2), "sizes: expected widths that differ, got the same student for 0.1 and the next size"),
    ],
)
def test_sizes_that_do_not_pass(tmp_path, sizes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sweep(tmp_path / "sw", sizes=sizes)
    assert not (tmp_path / "sw").exists()


def test_another_folder_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"^out: expected a new folder or one of a sweep, got .*, which holds something else$"):
        sweep(tmp_path)


def test_the_command(tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    done = call("sweep", tmp_path / "recipe.yaml", "training.steps=5", "--sizes", "0.25,0.5,1,2", "--out", tmp_path / "sw", "--loss", "2")
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "sw" / "result.json").read_text())
    assert result["answers"][0]["question"] == "What N for a loss of 2?"
    assert "fitted to compute" in result["answers"][1]["question"]
    assert (tmp_path / "sw" / "report.html").exists()
    assert any("no intervals" in line for line in result["warnings"])
    done = call("sweep", tmp_path / "recipe.yaml", "--sizes", "a,b", "--out", tmp_path / "no")
    assert done.exit_code == 2
    assert "sizes: expected a number, got 'a'" in done.stderr
