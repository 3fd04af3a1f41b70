"""Parts of pages: tables, figures, lists of facts, numbers as text."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime


def table(label: str, head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], *, words: Sequence[str] = ()) -> str:
    """A table that scrolls in a container of its own; "" without rows.

    Args:
        label: for screen readers.
        head: headings, that of the row names first.
        rows: name and cells, ready HTML.
        words: headings of the columns that hold words, set flush left.
    """
    kinds = [" class=words" if text in words else "" for text in head[1:]]
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, cells, strict=True))}</tr>'
        for name, cells in rows
    )
    if not body:
        return ""
    heads = "".join(f'<th scope="col"{kind}>{escape(text)}</th>' for kind, text in zip(["", *kinds], head, strict=True))
    whole = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">{whole}</div>'


def figure(title: str, svg: str, caption: str) -> str:
    """A chart with its heading and what to read from it."""
    return f"<figure><h3>{escape(title)}</h3>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def charts(figures: Sequence[str]) -> str:
    """Figures side by side."""
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def facts(given: Iterable[tuple[str, object]]) -> str:
    """A list of names and values; one without a value is left out."""
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in given if value not in (None, ""))
    return f"<dl>{terms}</dl>" if terms else ""


def chip(text: str, tone: str) -> str:
    """A word in a frame."""
    return f'<span class="chip {tone}">{escape(text)}</span>'


def number(value: float | None, form: str) -> str:
    """A formatted number with a real minus sign, or a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else format(value, form).replace("-", "−")


def between(value: float | None, low: float | None, high: float | None, form: str) -> str:
    """A value with its interval underneath."""
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return number(value, form) + (f" <small>({number(low, form)} to {number(high, form)})</small>" if known else "")


def money(value: float) -> str:
    """An amount with three significant figures, no exponent."""
    if value == 0:
        return "0"
    places = max(2, 2 - math.floor(math.log10(abs(value))))
    whole, _, cents = f"{value:,.{min(places, 10)}f}".partition(".")
    return f"{whole}.{cents.rstrip('0').ljust(2, '0')}"


def now() -> str:
    """The present minute, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def strict(value: object) -> object:
    """Plain values for JSON, which has no NaN: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def escape(value: object) -> str:
    """Text as HTML."""
    return html.escape(str(value))
