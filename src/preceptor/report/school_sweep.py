"""The page of a sweep over one parameter of a school."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preceptor.core.files import write_whole
from preceptor.report.frame import frame
from preceptor.report.schooling import NAMES, ORDER
from preceptor.report.svg import INK, MARKERS, SERIES, svg_axes
from preceptor.simulation.order import ENTROPIES, METRICS


def write_sweep_report(result: Mapping[str, Any], out: Path) -> Path:
    """Write ``report.html`` of what `preceptor.simulation.sweep.sweep` returned into a folder.

    Raises:
        ImportError: matplotlib is missing.
    """
    return write_whole(out / "report.html", render(result))


def render(result: Mapping[str, Any]) -> str:
    """The page as HTML text."""
    return frame(
        title=f"Schools of {result['case']['agents']:,} fish: {result['name']} by {_plain(result['parameter'])}",
        kicker=["simulation", "schooling"],
        verdict=html.escape(headline(result)),
        tone="",
        tiles=_tiles(result),
        sections=_sections(result),
        sheets=["schooling.css"],
        script="",
    )


def headline(result: Mapping[str, Any]) -> str:
    """The commonest state at the smallest and at the largest value, in one sentence."""
    order = np.argsort(result["values"])
    ends = [f"“{states(result)[i].most_common(1)[0][0]}” at {result['values'][i]:g}" for i in (int(order[0]), int(order[-1]))]
    return f"By {_plain(result['parameter'])} the school is most often {ends[0]} and {ends[1]}."


def states(result: Mapping[str, Any]) -> list[Counter[str]]:
    """How many seeds end in each state, for every value."""
    return [Counter(run["state"] for run in result["runs"] if run["value"] == value) for value in result["values"]]


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What a terminal shows."""
    yield headline(result)
    for i, (value, found) in enumerate(zip(result["values"], states(result), strict=True)):
        means = ", ".join(
            f"{NAMES[name]} {result['table'][name]['mean'][i]:.3f} (sd {result['table'][name]['sd'][i]:.3f})" for name in ORDER
        )
        yield f"  {result['parameter']} {value:g}: {means}; {_counted(found)}"


def _tiles(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield f"{len(result['values'])}", f"values of {_plain(result['parameter'])}"
    yield f"{len(result['seeds'])}", "seeds at each"
    yield f"{result['case']['steps']:,}", "steps; measures are means over the second half"


def _sections(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    charts = _against(result, "Order parameters and index", ORDER), _against(result, "Entropies", ENTROPIES)
    yield "Order by parameter", f'<div class="charts">{"".join(charts)}</div>'
    yield (
        "States",
        _rows("States", ("Value", "Runs"), [(f"{v:g}", _counted(n)) for v, n in zip(result["values"], states(result), strict=True)]),
    )
    head = ("Measure", *(f"{value:g}" for value in result["values"]))
    cells = [(NAMES[name], *(f"{m:.3f} ± {s:.3f}" for m, s in zip(*result["table"][name].values(), strict=True))) for name in METRICS]
    yield "Measures", _rows("Measures", head, cells) + '<p class="note">Mean and standard deviation over seeds.</p>'
    facts = {
        **{name: value for name, value in result["case"]["zones"].items() if name != result["parameter"]},
        "fish": result["case"]["agents"],
        "start": "uniform" if result["case"]["ring"] is None else f"ring of radius {result['case']['ring']:.4g}",
        "seeds": ", ".join(map(str, result["seeds"])),
        "centroid": result["centroid"],
        "sphere": result["sphere"],
        "small-sample correction": "on" if result["correction"] else "off",
        "versions": ", ".join(f"{name} {number}" for name, number in result["versions"].items()),
    }
    words = {_plain(name).capitalize(): f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in facts.items()}
    terms = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(word)}</dd>" for name, word in words.items())
    yield "How this was made", f"<dl>{terms}</dl>"


def _against(result: Mapping[str, Any], title: str, names: Sequence[str]) -> str:
    order = np.argsort(result["values"])
    x = np.array(result["values"])[order]
    with svg_axes(title, height=3.4) as (axes, svg):
        for i, name in enumerate(names):
            mean, sd = (np.array(result["table"][name][what])[order] for what in ("mean", "sd"))
            look = {"color": SERIES[i % len(SERIES)], "marker": MARKERS[i % len(MARKERS)], "linewidth": 1.2}
            axes.errorbar(x, mean, yerr=sd, label=NAMES[name], **look)
        axes.set(ylim=(-0.02, 1.02), xlabel=_plain(result["parameter"]).capitalize())
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, fontsize=8.5, labelcolor=INK)
    return f"<figure><h3>{title}</h3>{svg[0]}<figcaption>Means over seeds; bars are one standard deviation.</figcaption></figure>"


def _rows(label: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>{"".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">{table}</div>'


def _counted(found: Counter[str]) -> str:
    return ", ".join(f"{number} {state}" for state, number in found.most_common())


def _plain(name: str) -> str:
    return name.replace("_", " ")
