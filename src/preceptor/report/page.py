"""The report of a run or a study: the dictionary of ``result.json`` to one self-contained HTML page, and to a table for the terminal.

The page loads nothing: its style sheet, charts and images are inside, and its content policy forbids requests. The same result gives the
same bytes. Whatever comes from the result is escaped; a field that is missing or empty leaves its part of the page out.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from preceptor.core.files import write_whole
from preceptor.report.charts import Chart, curve_charts, front_charts, reliability_charts, sweep_charts, sweep_points
from preceptor.report.frame import frame
from preceptor.report.numbers import (
    Cell,
    Column,
    Result,
    columns,
    duration,
    finite,
    headline,
    headline_measures,
    measure_of,
    more_measures,
    rows_in_order,
)
from preceptor.report.svg import legend
from preceptor.report.words import difference, takeaways, verdict

IMAGE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+")
TONES = {"shown": ("good", "✓"), "contradicted": ("bad", "✗"), "not shown at this size": ("calm", "○"), "too few seeds": ("calm", "…")}
WORDS = ("Measure", "Verdict", "Chosen")  # headings of columns of words, set flush left
BELOW = {"parameters": "macs", "train_seconds": "peak_memory_mb"}  # the value stands under the key in the terminal's table
SHORT = {"agreement": "Agreement\nwith teacher", "parameters": "Params", "train_seconds": "Time", "peak_memory_mb": "Memory"}


def write_report(result: Result, out: Path) -> Path:
    """Write the page of a result.

    Args:
        result: what ``result.json`` holds, of a run or a study.
        out: the file when it ends in ``.html``, else the run directory, which gets ``report.html``.
    Returns:
        The file written.
    Raises:
        ImportError: there is something to draw and matplotlib is not installed.
    """
    path = out if out.suffix == ".html" else out / "report.html"
    return write_whole(path, render(result), shared=True)


def summary_table(result: Result) -> Table:
    """The headline table for a terminal of 100 columns: intervals and p95 stand under the values, the best student has a star."""
    title = Text(str(result["title"])) if result.get("title") else None
    table = Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left")
    table.add_column("")
    shown = {column.measure.key: column for column in columns(result, headline_measures(result))}
    pairs = [(column, shown.get(BELOW.get(key, ""))) for key, column in shown.items()]
    second = {below.measure.key for _, below in pairs if below}
    pairs = [(column, below) for column, below in pairs if column.measure.key not in second]
    for pair in pairs:
        heads = [SHORT.get(column.measure.key, column.measure.label.replace("Latency, batch", "Batch")) for column in pair if column]
        table.add_column(Text("\n".join(heads)), justify="right")
    for number, row in enumerate(rows_in_order(result)):
        name = Text("\n".join(textwrap.wrap(str(row.get("name")), 12)), style="bold")
        table.add_row(name, *(_terminal_cell(column.cells[number], below.cells[number] if below else None) for column, below in pairs))
    if any(cell and cell.best for column in shown.values() for cell in column.cells):
        table.caption = "* best mean of the students; under a mean its 95 % interval; batch: latency, p50 and p95"
    return table


def _terminal_cell(cell: Cell | None, below: Cell | None) -> Text:
    lines = Text(justify="right")
    if cell:
        lines.append(cell.text + " *" * cell.best, style="bold" if cell.best else "")
    if below:
        lines.append(f"\n{below.text}{' *' * below.best}", style="bold" if below.best else "")
    elif cell and cell.detail:
        lines.append(f"\n{cell.detail}", style="dim")
    return lines


def render(result: Result) -> str:
    """The page of a result as HTML text. See `write_report`."""
    sentence, tone = verdict(result)
    return frame(
        title=result.get("title") or "Report",
        kicker=[result[key] for key in ("kind", "task") if result.get(key)],
        verdict=f"{_escape(sentence)}.",
        tone=TONES[tone][0] if tone else "",
        tiles=takeaways(result),
        sections=_sections(result),
        created=result.get("created") or "",
    )


def _sections(result: Result) -> Iterable[tuple[str, str]]:
    """The parts of the page with their headings; an empty part has no data."""
    yield "Results", _headline(result)
    yield "Is the difference real?", _paired(result)
    yield "At equal total compute", _compute(result)
    yield "What tuning chose", _tuning(result)
    yield "Learning curves", _charts(result, curve_charts(result))
    yield "How much data it takes", _sweep(result)
    yield "What it costs", _charts(result, front_charts(result))
    yield "Can its confidence be trusted?", _reliability(result)
    yield "Where student and teacher disagree", _gallery(result)
    yield "How they write", _generations(result)
    recipe, notes = result.get("recipe"), "".join(f"<li>{_escape(note)}</li>" for note in result.get("notes") or [])
    yield (
        "Recipe",
        f"<details><summary>Show the recipe (YAML)</summary><pre><code>{_escape(recipe)}</code></pre></details>" if recipe else "",
    )
    yield "Notes", f'<ul class="notes">{notes}</ul>' if notes else ""
    yield "How this was made", _provenance(result)


def _escape(value: object) -> str:
    return html.escape(str(value))


def _table(label: str, head: Sequence[str], body: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table in a container of its own that scrolls; the cells are ready ``<td>`` elements."""
    heads = "".join(f'<th scope="col"{" class=words" if text in WORDS else ""}>{text}</th>' for text in head)
    rows = "".join(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>' for name, cells in body)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">{table}</div>'


def _td(cell: Cell | None) -> str:
    if cell is None:
        return "<td>–</td>"
    detail = f"({cell.detail})" if " to " in cell.detail else cell.detail
    best = '<span class="chip">best</span>' if cell.best else ""
    return f"<td{' class=best' if cell.best else ''}>{best}{_escape(cell.text)}{f' <small>{detail}</small>' if detail else ''}</td>"


def _arms(result: Result, label: str, table: Sequence[Column]) -> str:
    """A table of the arms."""
    heads = [_escape(column.measure.label) + "<small>p50</small>" * column.measure.key.startswith("latency_ms") for column in table]
    body = [
        (f"{_escape(row.get('name'))} <small>{_escape(row.get('role') or '')}</small>", [_td(column.cells[number]) for column in table])
        for number, row in enumerate(rows_in_order(result))
    ]
    return _table(label, ["Model", *heads], body)


def _headline(result: Result) -> str:
    main, more = columns(result, headline_measures(result)), columns(result, more_measures(result))
    cells = [cell for column in main for cell in column.cells if cell]
    notes = ["In brackets the 95 % interval of the mean over seeds."] * any(" to " in cell.detail for cell in cells)
    if any(cell.best for cell in cells):
        notes.append("“best” marks the best mean among the students, equals included; the paired differences say what is more than noise.")
    table = _arms(result, "Results", main) if main else ""
    note = f"<p class=note>{' '.join(notes)}</p>" if notes else ""
    return table + note + (f"<details><summary>More measures</summary>{_arms(result, 'More measures', more)}</details>" if more else "")


def _compute(result: Result) -> str:
    """The arms once more, each for as long as the dearest took with its teacher."""
    found = result.get("compute") or {}
    rows = [{**row, "seeds": [{"steps": row["steps"]}]} for row in found.get("rows") or []]
    if not rows:
        return ""
    table = columns({**result, "rows": rows}, [*headline_measures(result)[:3], measure_of("robust_accuracy"), measure_of("steps")])
    note = f"Every arm trained for {duration(found['seconds'])}, estimated before the study; with a teacher this counts its training"
    known = f" ({duration(found['teacher_seconds'])})" if finite(found.get("teacher_seconds")) else ", whose time is not known"
    return f"<p class=note>{note}{known}.</p>{_arms({**result, 'rows': rows}, 'Equal compute', table)}{_paired({**result, **found})}"


def _tuning(result: Result) -> str:
    body = []
    for choice in result.get("tuning") or []:
        chosen = ", ".join(f"{name} {value}" for name, value in choice["chosen"].items()) or "nothing to choose"
        cells = [f"<td>{choice['trials']}</td>", f"<td class=words>{_escape(chosen)}</td>", f"<td>{choice['value']:.4f}</td>"]
        body.append((_escape(choice["name"]), cells))
    return _table("Tuning", ["Arm", "Trials", "Chosen", "Validation"], body) if body else ""


def _paired(result: Result) -> str:
    pairs = [pair for pair in result.get("paired") or [] if finite(pair.get("mean"))]
    pairs.sort(key=lambda pair: pair.get("metric") != headline(result).key)
    body = []
    for pair in pairs:
        measure = measure_of(pair["metric"])
        text, interval = difference(measure, pair, plus=True)
        tone, sign = TONES.get(pair.get("verdict") or "", ("calm", ""))
        cells = [f"<td class=words>{_escape(measure.label)}</td>", f"<td>{text}{f' <small>({interval})</small>' if interval else ''}</td>"]
        cells += [f"<td>{_p_value(pair.get(key))}</td>" for key in ("p_value", "p_holm")]
        cells.append(f'<td class=words><span class="chip {tone}">{sign} {_escape(pair.get("verdict") or "no verdict")}</span></td>')
        body.append((f"{_escape(pair['method'])} − {_escape(pair['baseline'])}", cells))
    if not body:
        return ""
    head = ["Method − baseline", "Measure", "Difference", "p", "p (Holm)", "Verdict"]
    note = "Method minus baseline on the same seed, mean and 95 % Student t interval; Holm's p accounts for all comparisons of the study."
    return f"{_table('Paired differences', head, body)}<p class=note>{note}</p>"


def _p_value(value: object) -> str:
    if not finite(value):
        return "–"
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"


def _figure(chart: Chart) -> str:
    caption = f"<figcaption>{_escape(chart.caption)}</figcaption>" if chart.caption else ""
    return f"<figure><h3>{_escape(chart.title)}</h3>{chart.svg}{caption}</figure>"


def _charts(result: Result, charts: Sequence[Chart], beside: str = "") -> str:
    """Figures in a grid under their legend, and something else beside them."""
    names = {name for chart in charts for name in chart.names}
    return f'{legend(result, names)}<div class="charts">{"".join(map(_figure, charts))}{beside}</div>' if charts else ""


def _sweep(result: Result) -> str:
    """The chart of the sweep, and its numbers beside it."""
    measure, points = headline(result), sweep_points(result)
    names = list(dict.fromkeys(point.name for point in points))
    cells = {}
    for point in points:
        detail = measure.interval(point.low, point.high) if point.high > point.low else ""
        cells[point.x, point.name] = _td(Cell(value=point.mean, text=measure.text(point.mean), detail=detail))
    body = [(f"{x:,g}", [cells.get((x, name), "<td>–</td>") for name in names]) for x in sorted({point.x for point in points})]
    axis = str((result.get("sweep") or {}).get("axis") or "value")
    return _charts(
        result, sweep_charts(result), _table("Numbers of the chart", [_escape(axis[:1].upper() + axis[1:]), *map(_escape, names)], body)
    )


def _reliability(result: Result) -> str:
    figures = "".join(map(_figure, reliability_charts(result)))
    note = "On the dashed line confidence equals accuracy; below it the model is too sure. Bars: share of the examples."
    return f'<p class=note>{note}</p><div class="charts small">{figures}</div>' if figures else ""


def _gallery(result: Result) -> str:
    """Real examples; an image that is not an inline bitmap is left out."""
    items = []
    for example in result.get("disagreements") or []:
        label, image = _escape(example.get("label")), str(example.get("image") or "")
        shown = f'<img src="{image}" alt="Example with label {label}">' if IMAGE.fullmatch(image) else ""
        said = "".join(_said(example, who) for who in ("student", "teacher") if example.get(who) is not None)
        items.append(f"<li>{shown}<b>label {label}</b>{said}</li>")
    return f'<ul class="gallery">{"".join(items)}</ul>' if items else ""


def _said(example: Mapping[str, Any], who: str) -> str:
    answer, confidence = str(example[who]), example.get(f"{who}_confidence")
    tone, sign = ("right", "✓") if answer == str(example.get("label")) else ("wrong", "✗")
    sure = f" ({100 * confidence:.0f} %)" if finite(confidence) else ""
    return f' <small>{who} says</small> <span class="{tone}">{sign} {_escape(answer)}{sure}</span>'


def _generations(result: Result) -> str:
    """Beginnings of texts, and how each model goes on."""
    body = []
    for example in result.get("generations") or []:
        said = "".join(f"<dt>{_escape(name)}</dt><dd>{_escape(text)}</dd>" for name, text in (example.get("said") or {}).items())
        body.append(f"<blockquote>{_escape(example.get('prompt') or '')} …</blockquote><dl>{said}</dl>")
    note = "Each goes on with its most probable token, on beginnings of texts that no model was trained on here."
    return f"{''.join(body)}<p class=note>{note}</p>" if body else ""


def _provenance(result: Result) -> str:
    seeds = ", ".join(str(seed) for seed in result.get("seeds") or [])
    versions = ", ".join(f"{name} {version}" for name, version in (result.get("versions") or {}).items() if version)
    facts = {"Versions": versions, "Commit": result.get("commit"), "Seeds": seeds, "Hardware": result.get("hardware")}
    terms = "".join(f"<dt>{name}</dt><dd>{_escape(value)}</dd>" for name, value in facts.items() if value)
    return f"<dl>{terms}</dl>" if terms else ""
