"""The page of a fitted scaling law: the dictionary of its ``result.json`` to one self-contained HTML file, and to lines for a terminal."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preceptor.core.files import write_whole
from preceptor.report.frame import frame
from preceptor.report.numbers import count
from preceptor.report.svg import GREY, INK, SERIES, svg_axes

MEANINGS = {
    "E": "irreducible loss",
    "A": "coefficient of the first term",
    "B": "coefficient of the second term",
    "F": "score at the mean size",
    "k": "slope there",
    "log_A": "the paper's log A",
}
FORMULAS = {
    "power": "loss = {A} {x}^-{alpha}",
    "power-constant": "loss = {E} + {A} {x}^-{alpha}",
    "separable": "loss = {E} + {A} N^-{alpha} + {B} D^-{beta}",
    "product": "loss = {E} + {A} Ne^-{p_e} Nd^-{p_d}",
    "log": "score = ({alpha} log D + {log_A})^{beta}",
}
SIZES = ("N", "D", "C", "Ne", "Nd", "budget")
NEVER = "never: at or below the irreducible loss"
RIVALS = {
    "law": "this law, robust fit",
    "least squares": "this law, least squares",
    "line": "straight line",
    "last": "the largest run kept",
    "total": "a law in Ne + Nd alone",
}


def write_scaling_report(result: Mapping[str, Any], out: Path) -> Path:
    """Write ``report.html`` of a fitted law into a folder.

    Args:
        result: from `preceptor.scaling.inquiry.inquire`.
        out: the folder.
    Raises:
        ImportError: matplotlib is missing.
    """
    return write_whole(out / "report.html", render(result))


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What a terminal shows: the law, its parameters, the answers, the warnings."""
    yield formula(result)
    for name, entry in result["parameters"].items():
        yield f"  {name:6} {_with_interval(name, entry)}"
    yield f"R2 {_value(result['r_squared'])} in log space, {len(result['points']['y'])} points, objective {result['objective']:.6g}"
    if result["foresight"]:
        errors = result["foresight"]["mean"]
        yield (
            f"mean error on the largest runs, {len(result['foresight']['held'])} held out:"
            f" {100 * errors['law']:.2g} %, of a straight line {100 * errors['line']:.2g} %"
        )
    for answer in result["answers"]:
        found = ", ".join(f"{name} {_with_interval(name, entry)}" for name, entry in answer["values"].items())
        if any(entry["value"] == "never" for entry in answer["values"].values()):
            found = NEVER
        yield f"{answer['question']} {found}{'  (a bold projection)' if answer['bold'] else ''}"
    for warning in result["warnings"]:
        yield f"warning: {warning}"


def formula(result: Mapping[str, Any]) -> str:
    """The equation with its numbers in place of the parameters."""
    numbers = {name: _value(entry["value"]) for name, entry in result["parameters"].items()}
    return FORMULAS[result["law"]].format(x=result["quantities"][0], **numbers).replace("+ -", "- ")


def render(result: Mapping[str, Any]) -> str:
    """The page as HTML text."""
    return frame(
        title=result["title"],
        kicker=["scaling", result["law"]],
        verdict=_powers(_escape(formula(result))),
        tone="calm" if result["warnings"] else "",
        tiles=((_escape(big), words) for big, words in _tiles(result)),
        sections=_sections(result),
        created=result["created"],
    )


def _tiles(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, entry in result["parameters"].items():
        if name in ("E", "alpha", "beta", "p_e", "p_d") and entry["value"] is not None and (name != "alpha" or result["law"] != "log"):
            between = f", 95 % interval {_between(name, entry)}" if _between(name, entry) else ""
            yield _value(entry["value"]), f"{name}{': ' + MEANINGS[name] if name in MEANINGS else ''}{between}"
    if result["foresight"]:
        errors = result["foresight"]["mean"]
        yield f"{100 * errors['law']:.2g} %", f"mean error on the largest runs, held out; a straight line {100 * errors['line']:.2g} %"
    yield str(len(result["points"]["y"])), "runs" + (f", {result['points']['dropped']} left out" if result["points"]["dropped"] else "")


def _sections(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "What to know", "".join(f"<p>{_escape(warning[:1].upper() + warning[1:])}.</p>" for warning in result["warnings"])
    yield "Answers", _answers(result)
    figures = [_figure(chart) for chart in result["charts"]] + [_predicted(result)]
    yield "The law", f'<div class="charts">{"".join(figures)}</div>'
    yield "Parameters", _parameters(result)
    yield "Does it foretell?", _foresight(result)
    facts = {
        "Equation": result["equation"],
        "Objective": f"{result['objective']:.6g}, Huber of log residuals, delta {result['delta']:g}, summed",
        "R²": f"{_value(result['r_squared'])} in log space",
        "Residual": f"{100 * result['residual']:.2g} % on average",
        "Bootstrap": f"{result['draws']} draws of the runs" if result["draws"] else "none",
        "Versions": ", ".join(f"{name} {number}" for name, number in result["versions"].items()),
    }
    yield "How this was made", f"<dl>{''.join(f'<dt>{name}</dt><dd>{_escape(value)}</dd>' for name, value in facts.items())}</dl>"


def _answers(result: Mapping[str, Any]) -> str:
    rows = []
    for answer in result["answers"]:
        mark = ' <span class="chip calm">bold projection</span>' if answer["bold"] else ""
        for place, (name, entry) in enumerate(answer["values"].items()):
            between = _between(name, entry)
            if entry["value"] == "never":  # the same for every quantity of the answer
                rows.append((_escape(answer["question"]), [_escape(name), NEVER, _escape(between or "–")]))
                break
            cells = [_escape(name), _escape(_quantity(name, entry["value"])), _escape(between or "–")]
            rows.append((f"{_escape(answer['question'])}{mark}" if place == 0 else "", cells))
    if not rows:
        return ""
    note = "<p class=note>A bold projection is more than ten times beyond the largest run: 5 % more of an exponent moves it far.</p>"
    table = _table("Answers", ["Question", "Quantity", "Answer", "95 % interval"], rows)
    return table + note * any(answer["bold"] for answer in result["answers"])


def _parameters(result: Mapping[str, Any]) -> str:
    rows = [
        (_escape(name), [_escape(MEANINGS.get(name, "exponent")), _value(entry["value"]), _escape(_between(name, entry) or "–")])
        for name, entry in result["parameters"].items()
    ]
    return _table("Parameters", ["Parameter", "Meaning", "Value", "95 % interval"], rows)


def _foresight(result: Mapping[str, Any]) -> str:
    seen = result["foresight"]
    if not seen:
        return ""
    rows = [(RIVALS[name], [f"{100 * seen['mean'][name]:.2f} %", f"{100 * seen['largest'][name]:.2f} %"]) for name in seen["mean"]]
    note = f"Fitted without the largest runs ({len(seen['held'])}), which were then predicted: |predicted / measured − 1|."
    return f"<p class=note>{note}</p>{_table('Foresight', ['Fit', 'Mean error', 'Largest error'], rows)}"


def _figure(chart: Mapping[str, Any]) -> str:
    grid, value = np.array(chart["grid"]), _numbers(chart["value"])
    with svg_axes(chart["title"], height=3.0) as (axes, svg):
        if chart["low"] is not None:
            axes.fill_between(grid, _numbers(chart["low"]), _numbers(chart["high"]), color=SERIES[0], alpha=0.2, linewidth=0)
        axes.plot(*chart["points"], color=GREY, marker="o", markersize=3, linestyle="none", alpha=0.75)
        axes.plot(grid, value, color=SERIES[0], linewidth=1.6)
        if chart["log_x"]:
            axes.set_xscale("log")
            _plain_ticks(axes.xaxis, grid)
            if len(chart["points"][0]) and chart["y"] in ("loss", "score"):
                axes.axvline(max(chart["points"][0]), color=INK, linewidth=0.8, linestyle="--")
        shown = np.concatenate([value, chart["points"][1]])
        if np.nanmax(shown) > 8 * np.nanmin(shown):
            axes.set_yscale("log")
            _plain_ticks(axes.yaxis, shown)
        axes.set(xlabel=chart["x"], ylabel=chart["y"].capitalize() if chart["y"] != "N" else "N")
    band = " with its 95 % interval" if chart["low"] is not None else ""
    dots = " Dots are runs" + ("; right of the dashed line is projection." if chart["y"] in ("loss", "score") else ".")
    caption = f"The line is {chart['curve']}{band}.{dots if len(chart['points'][0]) else ''}"
    return f"<figure><h3>{_escape(chart['title'])}</h3>{svg[0]}<figcaption>{caption}</figcaption></figure>"


def _plain_ticks(axis: Any, values: Any) -> None:
    """Ticks of a logarithmic axis without mathematical text, at most five or so."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if np.nanmax(values) < 50 * np.nanmin(values) else (1.0,), numticks=6))
    axis.set_major_formatter(lambda value, _: f"{value:.3g}".replace("e+", "e") if value >= 1e15 or value < 1 else count(value))
    axis.set_minor_formatter(NullFormatter())


def _predicted(result: Mapping[str, Any]) -> str:
    measured, predicted = np.array(result["points"]["y"]), _numbers(result["points"]["predicted"])
    held = np.array((result["foresight"] or {"held": []})["held"], dtype=int)
    with svg_axes("Residuals", height=3.0) as (axes, svg):
        error = 100 * (measured / predicted - 1)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.plot(predicted, error, color=GREY, marker="o", markersize=3, linestyle="none", alpha=0.75)
        axes.plot(predicted[held], error[held], color=SERIES[1], marker="s", markersize=4, linestyle="none")
        axes.set(xlabel=f"Predicted {result['of']}", ylabel="Measured − predicted (%)")
    caption = "A law that fits leaves no pattern here." + (
        " Squares are the largest runs, held out in the check below." if len(held) else ""
    )
    return f"<figure><h3>Residuals</h3>{svg[0]}<figcaption>{caption}</figcaption></figure>"


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array([value if isinstance(value, float) else np.nan for value in values], dtype=float)


def _value(value: object) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-") if isinstance(value, float) else "?"


def _quantity(name: str, value: object) -> str:
    """A size with a prefix, compute in FLOP, anything else as it is."""
    if not isinstance(value, float) or name not in SIZES:
        return _value(value)
    if name == "C" or value >= 1e15:
        return f"{value:.3g}".replace("e+", "e") + (" FLOP" if name == "C" else "")
    return count(value)


def _between(name: str, entry: Mapping[str, Any]) -> str:
    if entry["low"] is None or entry["high"] is None:
        return ""
    return f"{_quantity(name, entry['low'])} to {_quantity(name, entry['high'])}"


def _with_interval(name: str, entry: Mapping[str, Any]) -> str:
    between = _between(name, entry)
    return _quantity(name, entry["value"]) + (f" ({between})" if between else "")


def _powers(text: str) -> str:
    """``x^-0.3`` with a raised exponent."""
    words = [word.partition("^") for word in text.split(" ")]
    return " ".join(f"{head}<sup>{power.replace('-', '−')}</sup>" if hat else head for head, hat, power in words)


def _table(label: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    words = ("Quantity", "Meaning")
    heads = "".join(f'<th scope="col"{" class=words" if text in words else ""}>{text}</th>' for text in head)
    kinds = [" class=words" if text in words else "" for text in head[1:]]
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, cells, strict=True))}</tr>'
        for name, cells in rows
    )
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">{table}</div>'


def _escape(value: object) -> str:
    return html.escape(str(value))
