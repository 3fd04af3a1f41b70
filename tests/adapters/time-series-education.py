"""Dynamic time warping, and additive Holt-Winters with given parameters."""

from preceptor.education.dtw import dtw, dtw_path
from preceptor.education.forecasting import holt_winters


def run(params, inputs):
    if "y" not in inputs:
        a, b = (inputs[name].detach().numpy() for name in ("a", "b"))
        path, distance = dtw_path(a, b)
        return {"dtw": distance, "dtw_band": dtw(a, b, radius=params["radius"]), "path": path}
    numbers = {name: params[name] for name in ("period", "alpha", "beta", "gamma", "horizon")}
    found = holt_winters(inputs["y"].detach().numpy(), **numbers)
    return {"fitted": found.fitted, "level": found.level, "forecast": found.forecast}
