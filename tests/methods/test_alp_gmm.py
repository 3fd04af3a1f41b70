"""The experiment with teachers of tasks, and the released numbers."""

from __future__ import annotations

from tests.parity import check_folder
from tests.test_parity import GOLDEN

from preceptor.methods.alp_gmm import miniature


def test_parity():
    lines = [line for line in check_folder(GOLDEN) if line.slug == "alp-gmm"]
    assert len(lines) == 3
    assert {line.status for line in lines} == {"ok"}


def test_miniature():
    run = miniature(2, "smoke")
    assert run.arms.keys() == {"untrained", "random", "oracle", "riac", "covar-gmm", "alp-gmm"}
    assert set(run.arms["untrained"].values()) == {0.0}
    assert run.arms["alp-gmm"]["counter"] > 0
