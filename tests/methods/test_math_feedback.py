"""math-feedback: the made-up answers of the miniature, and the golden numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.parity import check_case, load_adapter

from preceptor.education.feedback import scoring_report
from preceptor.methods.math_feedback import majority, miniature
from preceptor.miniature.ratios import ratio_answers

GOLDEN = Path(__file__).parents[1] / "golden" / "math-feedback.json"


def test_parity():
    adapter = load_adapter("math-feedback")
    for index, case in enumerate(json.loads(GOLDEN.read_text())["cases"]):
        line = check_case("math-feedback", str(index), case, adapter.run)
        assert line.status == "ok", line


def test_the_teacher_is_off_as_often_as_said():
    made = ratio_answers(np.random.default_rng(0), 5000)
    gaps = np.abs(np.array(made.scores) - np.array(made.quality))
    assert gaps.max() == 1
    assert gaps.mean() == pytest.approx(0.25 * 0.8, abs=0.02)  # a fifth of the answers have only one side to go to, half of the time
    assert min(made.scores) == 0
    assert max(made.scores) == 4
    assert scoring_report(made.scores, made.quality).rmse == pytest.approx(0.447, abs=0.02)
    assert all(text.strip() for text in made.texts)
    kept = ratio_answers(np.random.default_rng(0), 50, dropped=0, off=0)
    assert kept.scores == kept.quality


def test_majority():
    assert majority((1, 2, 2, 3, 3)) == 2
    assert majority((4,)) == 4


def test_miniature():
    arms = miniature(0, "smoke").arms
    assert arms["untrained-majority"]["kappa"] == 0
    assert arms["untrained-majority"]["auc"] == 0.5
    assert arms["math-feedback"]["rmse"] < arms["untrained-majority"]["rmse"]
