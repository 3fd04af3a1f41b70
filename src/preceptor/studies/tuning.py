"""Equal tuning for every arm of a study: as many trials each, on validation data, before the seeds that count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from preceptor.core.optional import require


class Tuning(BaseModel):
    """How hyper-parameters are chosen: the best of so many random choices by the validation metric that also chooses the weights."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    trials: Annotated[int, Field(ge=1)] = 4
    """Of every arm, the baseline included."""
    seed: int = 1000
    """Of the choices and of the trials; not among the seeds that count."""
    training: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Field of the training -> values to choose from, for every arm."""


def candidates(arm: str, search: Mapping[str, Sequence[Any]], tuning: Tuning) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Different random choices, ``tuning.trials`` of them.

    Args:
        arm: its name, for messages.
        search: hyper-parameter -> values to choose from.
        tuning: how many, and what of the training.
    Returns:
        For each, the fields of the training and the hyper-parameters of the method.
    Raises:
        ValueError: there are fewer combinations than trials, or a field is no list of values.
        ImportError: scikit-learn is missing.
    """
    for name, values in search.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise ValueError(f"study.methods {arm}: expected a list of values to choose from at search.{name}, got {values!r}")
    space = {("training", name): list(values) for name, values in tuning.training.items()}
    space |= {("method", name): list(values) for name, values in search.items()}
    combinations = prod(map(len, space.values()))
    if combinations < tuning.trials:
        raise ValueError(
            f"study.tune.trials: expected at most the {combinations} combinations that {arm} can choose from, got {tuning.trials};"
            " add values to study.tune.training or to the arm's search"
        )
    sampler = require("sklearn.model_selection", extra="vision", purpose="the tuning of a study").ParameterSampler
    drawn = sampler(space, tuning.trials, random_state=tuning.seed)
    return [(_of(choice, "training"), _of(choice, "method")) for choice in drawn]


def _of(choice: Mapping[tuple[str, str], Any], part: str) -> dict[str, Any]:
    return {name: value for (of, name), value in choice.items() if of == part}
