"""Adapter of the fixtures ``schooling``: metrics of a state, and steps without noise."""

from __future__ import annotations

from typing import Any

from preceptor.simulation.motion import simulate
from preceptor.simulation.order import metrics
from preceptor.simulation.zones import Zones


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """All metrics, or velocities after one step and the state after ``n_steps``."""
    positions, velocities = (inputs[name].detach().numpy() for name in ("positions", "velocities"))
    box = params["box_size"]
    if params["what"] == "metrics":
        return metrics(positions, velocities, box)
    given = {"max_turn": 0.3, "noise": 0.0, "speed": 1.0, "orientation_weight": 1.0, "dt": 0.1}
    given |= {name: params[name] for name in [*given, "r_repulsion", "r_orientation", "r_attraction"] if name in params}
    zones = Zones(box=box, blind_angle=params.get("blind_angle_deg", 0.0), **given)
    first, *_, last = list(simulate((positions, velocities), zones, steps=params["n_steps"]))[1:] * 2
    return {
        "positions_after_1": first.positions,
        "velocities_after_1": first.velocities,
        "positions_after_n": last.positions,
        "velocities_after_n": last.velocities,
    }
