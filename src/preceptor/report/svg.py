"""Matplotlib figures as SVG elements to paste into an HTML page, and how every arm looks in all of them.

Colours leave as CSS variables (``--s1`` ...) and ``currentColor``, so that the page decides on light, dark and print; text stays text.
The baseline is grey, the teacher has the colour of the text, and every arm has a marker of its own.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from preceptor.core.optional import require
from preceptor.report.numbers import Result, rows_in_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GRID, PAPER, GREY = "#101112", "#d1d2d3", "#fafbfc", "#767778"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006", "#0a0007")  # stand for --s1 to --s7
VARIABLES = {INK: "currentColor", GRID: "var(--grid)", PAPER: "var(--paper)", GREY: "var(--s0)"}
VARIABLES |= {colour: f"var(--s{i})" for i, colour in enumerate(SERIES, 1)}
MARKERS = "os^Dv"  # 5 markers and 7 colours: 35 pairs before one repeats
MARKS = {  # the markers of matplotlib as paths in a box from -5 to 5, for the legend of the page
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "s": "M-3.5 -3.5h7v7h-7z",
    "^": "M0 -4L4 4H-4z",
    "D": "M0 -5L5 0L0 5L-5 0z",
    "v": "M0 4L4 -4H-4z",
    "*": "M0 -5L1.2 -1.6L4.8 -1.5L1.9 .6L2.9 4L0 2L-2.9 4L-1.9 .6L-4.8 -1.5L-1.2 -1.6z",
    "X": "M-2 -4L0 -2L2 -4L4 -2L2 0L4 2L2 4L0 2L-2 4L-4 2L-2 0L-4 -2z",
}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "preceptor",
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "errorbar.capsize": 2.5,
    "lines.markersize": 5,
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """How an arm is drawn in every chart."""

    colour: str
    marker: str


def looks(result: Result) -> dict[str, Look]:
    """The look of every arm that a chart may name, in the order of the legend."""
    rows = {str(row.get("name")): row.get("role") for row in rows_in_order(result)}
    points = (result.get("sweep") or {}).get("points") or []
    names = dict.fromkeys([*rows, *(str(part.get("name")) for part in [*(result.get("curves") or []), *points])])
    baseline = baseline_of(result)
    given, students = {}, 0
    for name in names:
        if rows.get(name) == "teacher":
            given[name] = Look(colour=INK, marker="*")
        elif name == baseline:
            given[name] = Look(colour=GREY, marker="X")
        else:
            given[name] = Look(colour=SERIES[students % len(SERIES)], marker=MARKERS[students % len(MARKERS)])
            students += 1
    return given


def baseline_of(result: Result) -> str | None:
    """The name of the first baseline."""
    return next((str(row.get("name")) for row in rows_in_order(result) if row.get("role") == "baseline"), None)


@contextmanager
def svg_axes(title: str, width: float = 4.2, height: float = 2.7) -> Iterator[tuple[Axes, list[str]]]:
    """Give axes to draw on, and a list that holds the SVG element afterwards."""
    require("matplotlib", extra="study", purpose="the charts of a report")
    from matplotlib import style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    svg: list[str] = []
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot(), svg
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    svg.append(_inline(buffer.getvalue(), title))


def _inline(svg: str, title: str) -> str:
    """Turn a matplotlib SVG file into an element for a page: own ids, page colours and font, no namespaces, no metadata."""
    body = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="([^"]+)"', body)
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|(?<=>)\s+(?=<)", "", body[body.index(">") + 1 :], flags=re.DOTALL)
    prefix = "c" + hashlib.sha256((title + svg).encode()).hexdigest()[:8]
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", body).replace("xlink:href", "href")
    body = re.sub(r"font-family: [^;\"]+", "font-family: inherit", body)
    body = re.sub(r": (#[0-9a-f]{6})\b", lambda found: f": {VARIABLES.get(found[1], found[1])}", body)
    name = html.escape(title)
    body = body.replace("\n", " ").strip()
    return f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{name}"><title>{name}</title>{body}'


def legend(result: Result, names: Container[str]) -> str:
    """The legend of some charts as an HTML list: marker, colour and name of every arm of ``names``."""
    items = (
        f'<li><svg viewBox="-6 -6 12 12" aria-hidden="true"><path d="{MARKS[look.marker]}" style="fill: {VARIABLES[look.colour]}"/></svg>'
        f"{html.escape(name)}</li>"
        for name, look in looks(result).items()
        if name in names
    )
    return f'<ul class="legend" aria-label="Legend">{"".join(items)}</ul>'
