"""Learning progress of a sequence, interest of a region, and the window of a curriculum by hand, against released teachers."""

from __future__ import annotations

from typing import Any

import numpy as np

from preceptor.teachers.mixtures import LearningProgress
from preceptor.teachers.riac import region_interest
from preceptor.teachers.tasks import Box, OracleTeacher


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """One of the three."""
    rewards = inputs["rewards"].tolist()
    if params["op"] == "absolute_learning_progress":
        progress = LearningProgress(min_history=params["min_history"], max_size=params["max_size"])
        tasks = inputs["tasks"].detach().numpy()
        return {"alp": [progress(task, r) for task, r in zip(tasks, rewards, strict=True)]}
    if params["op"] == "riac_region_alp":
        return {"alp_of_prefix": [region_interest(rewards[:n], window=params["window"]) for n in range(1, len(rewards) + 1)]}
    teacher = OracleTeacher(
        Box(params["mins"], params["maxs"]),
        step=params["step"],
        threshold=params["reward_threshold"],
        step_rate=params["step_rate"],
        window=params["window_fraction"],
        seed=0,
    )
    lows = [teacher.low.tolist()]
    for r in rewards:
        teacher.update(np.array(params["mins"]), r)
        lows.append(teacher.low.tolist())
    return {"window_low": lows}
