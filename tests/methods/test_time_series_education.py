"""time-series-education: the made-up panels hold what they are said to hold."""

import numpy as np
import pytest

from preceptor.education.panel import synthetic_panel
from preceptor.methods.time_series_education import miniature


def test_panels_hold_their_truth():
    shapes = synthetic_panel("archetypes", 0, students=60)
    assert shapes.values.shape == (60, 24, 1)
    assert set(shapes.labels) == {0, 1, 2}
    activity = synthetic_panel("activity", 0, students=200)
    x, declines = activity.values[..., 0], activity.labels == 1
    ratio = x[:, -28:].sum(1) / x[:, :28].sum(1)
    assert ratio[declines].mean() < 0.6
    assert ratio[~declines].mean() > 0.9
    odd = synthetic_panel("anomalies", 0, students=200)
    day = np.arange(84) % 7
    assert odd.labels.shape == (200, 84)
    assert not odd.labels[:, day < 5].any()
    assert abs(odd.labels[:, day >= 5].mean() - 0.125) < 0.02
    changes = synthetic_panel("changes", 0, students=200)
    changed = changes.labels[:, -1] == 1
    assert 0.4 < changed.mean() < 0.6
    assert (np.diff(changes.labels, axis=1) >= 0).all()  # once fallen, it stays so
    assert not changes.labels[:, :42].any()
    ratio = changes.values[..., 0][:, -14:].sum(1) / changes.values[..., 0][:, :14].sum(1)
    assert abs(ratio[changed].mean() - 0.4) < 0.05
    assert abs(ratio[~changed].mean() - 1) < 0.1
    with pytest.raises(ValueError, match=r"^kind: expected archetypes, activity, anomalies or changes, got 'noise'$"):
        synthetic_panel("noise", 0)


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {"untrained", "plain", "features", "time-series-education"}
    assert all(arm["mase"] > 0 for arm in run.arms.values())
