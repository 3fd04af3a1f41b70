"""The one accumulating mean."""

from __future__ import annotations

import math
from fractions import Fraction

from torch import Tensor

_UNIT = 2**1074  # every finite float64 is a whole multiple of 1 / _UNIT, the smallest positive one


class Mean:
    """Mean of values that arrive in batches: the exact mean, rounded once.

    The sum is kept as a whole number, so the result depends on the values alone: neither on how they were split into batches nor on
    their order. Infinite values and NaN give what a plain sum would.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0  # in units of 1 / _UNIT
        self._not_finite = 0.0

    def update(self, values: Tensor) -> None:
        """Add values, any shape, each counting once; an empty tensor changes nothing."""
        for value in values.detach().double().flatten().tolist():
            if math.isfinite(value):
                numerator, denominator = value.as_integer_ratio()
                self._sum += numerator * (_UNIT // denominator)
            else:
                self._not_finite += value
        self.count += values.numel()

    def compute(self) -> float:
        """The mean of all values so far.

        Raises:
            ValueError: there were none.
        """
        if self.count == 0:
            raise ValueError("Mean: expected at least one value, got none")
        return float(Fraction(self._sum, _UNIT * self.count)) + self._not_finite
