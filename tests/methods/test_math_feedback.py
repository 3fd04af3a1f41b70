"""math-feedback: the made-up answers of the miniature, and the golden numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.parity import check_case, load_adapter

from preceptor.education.feedback import scoring_report
from preceptor.education.open_answers import char_ngrams
from preceptor.methods import math_feedback
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
    run = miniature(0, "smoke")
    arms = run.arms
    assert list(arms) == ["untrained-majority", "untrained-mean", "nearest", "cosine", "math-feedback"]
    assert arms["untrained-majority"]["kappa"] == arms["untrained-mean"]["kappa"] == 0
    assert arms["untrained-majority"]["auc"] == 0.5
    assert arms["math-feedback"]["rmse"] < arms["untrained-majority"]["rmse"]
    assert "which a smoke run leaves out" in run.notes[0]
    assert run == miniature(0, "smoke")


def test_sentence_embeddings_are_two_arms_where_they_are_installed(monkeypatch):
    monkeypatch.setattr(math_feedback, "_PAST", {"full": (60, 40, 20)})
    monkeypatch.setattr(math_feedback, "_TESTED", {"full": 40})
    read = []
    monkeypatch.setattr(math_feedback, "sentence_embedder", lambda: lambda texts: read.append(len(texts)) or char_ngrams(texts))
    run = miniature(0, "full")
    assert read == [100]  # each text is read once
    assert run.arms["nearest-minilm"] == run.arms["nearest"]
    assert run.arms["trained-minilm"] == run.arms["math-feedback"]
    assert [claim.method for claim in run.claims] == ["math-feedback"] * 4 + ["trained-minilm"]

    def missing():
        raise ImportError("embed: expected the package that ships MiniLM, got none")

    monkeypatch.setattr(math_feedback, "sentence_embedder", missing)
    without = miniature(0, "full")
    assert "left out: embed: expected the package that ships MiniLM, got none" in without.notes[0]
    assert without.claims == run.claims[:4]
    assert without.arms == {name: arm for name, arm in run.arms.items() if not name.endswith("minilm")}
