"""Checks that many share: numbers from 1, and words of a choice."""

from __future__ import annotations

from typing import Literal

import pytest

from preceptor.losses.checks import check_choice, check_counts


def test_counts():
    check_counts(bins=1, rows=7)
    with pytest.raises(ValueError, match=r"^rows: expected at least 1, got 0$"):
        check_counts(bins=1, rows=0)


def test_choices():
    known = Literal["left", "right"]
    check_choice(known, side="left", other="right")
    with pytest.raises(ValueError, match=r"^side: expected one of left, right, got 'up'$"):
        check_choice(known, side="up")
