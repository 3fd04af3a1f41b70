"""sight: the miniature's raters, and the numbers of the released annotations where they lie beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.parity import check_case, load_adapter

from preceptor.education.agreement import agreement
from preceptor.education.reliability import regression
from preceptor.methods.sight import miniature, shared_ambiguity

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "sight.json"  # codes that people made: not copied


@pytest.mark.skipif(not GOLDEN.exists(), reason="the released codes are not here")
def test_parity():
    adapter = load_adapter("sight")
    for index, case in enumerate(json.loads(GOLDEN.read_text())["cases"]):
        line = check_case("sight", str(index), case, adapter.run)
        assert line.status == "ok", line


def test_the_adapter_takes_missing_labels_and_lines():
    adapter = load_adapter("sight")
    given = {"H1": [0, 1, 1, 0], "H2": [0, 1, 0, 0], "M": [None, 1, 1, 0]}
    found = adapter.run({}, dict(given))
    assert found["kappa_H1_M"] == 1
    assert found["kappa_H2_M"] == agreement([1, 0, 0], [1, 1, 0], draws=0).kappa.value
    line = adapter.run({"function": "regression"}, {"x": [0.1, 0.5, 0.7], "y": [0.3, 0.4, 0.9]})
    assert line["slope"] == pytest.approx(np.polyfit([0.1, 0.5, 0.7], [0.3, 0.4, 0.9], 1)[0])
    assert adapter.run({}, {"a": given, "b": {**given, "H2": [1, 1, 0, 0]}})["regression_n"] == 4


def test_raters_err_as_often_as_they_should():
    rates = np.array([0.0, 0.1, 0.3])
    made = shared_ambiguity(np.random.default_rng(0), 20_000, rates, model=2 * rates, prevalence=np.array([0.1, 0.2, 0.5]))
    for said, factor in ((made.first, 1), (made.second, 1), (made.model, 2)):
        assert np.allclose((said != made.truth).mean(0), factor * rates, atol=0.01)
    assert np.allclose(made.truth.mean(0), [0.1, 0.2, 0.5], atol=0.01)


def test_shared_ambiguity_alone_makes_the_correlation_of_the_paper():
    found = []
    for seed in range(10):
        rates = np.linspace(0.005, 0.15, 9)
        made = shared_ambiguity(np.random.default_rng(seed), 300, rates, model=2 * rates, prevalence=np.full(9, 0.3))
        columns = [(made.first[:, c], made.second[:, c], made.model[:, c]) for c in range(9)]
        people = [agreement(a, b, draws=0).kappa.value for a, b, _ in columns]
        model = [agreement(a, m, draws=0).kappa.value for a, _, m in columns]
        found.append(regression(people, model).correlation)
    assert min(found) > 0.8


def test_miniature():
    arms = miniature(0, "smoke").arms
    assert arms["sight"]["correlation"] == arms["all"]["correlation"]
    assert arms["sight"]["categories"] < arms["all"]["categories"] == 9
    assert arms["sight"]["labels"] == arms["all"]["labels"] != arms["elsewhere"]["labels"]
    assert arms["sight"]["distilled"] != arms["all"]["distilled"]
