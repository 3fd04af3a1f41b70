"""The page of a simulated school: its state, its measures over time, and an animation that plays in the page, all in one file."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from preceptor.core.files import write_whole
from preceptor.core.optional import require
from preceptor.report.frame import frame
from preceptor.report.svg import INK, MARKERS, SERIES, svg_axes
from preceptor.simulation.motion import Frame
from preceptor.simulation.order import ENTROPIES, METRICS

SHOWN_FISH, SHOWN_FRAMES = 400, 150
ORDER = ("polarization", "rotation", "oceanic_schooling_index")
NAMES = {
    "polarization": "Polarisation P",
    "rotation": "Rotation M",
    "spread": "Spread",
    "order_index": "Order index, max(P, M)",
    "school_cohesion_entropy": "Cohesion H1",
    "polarization_entropy": "Headings H2",
    "depth_stratification_entropy": "Depth H3",
    "angular_momentum_entropy": "Angular momentum H4",
    "nearest_neighbor_entropy": "Neighbour distances H5",
    "velocity_correlation_entropy": "Velocity correlation H6",
    "school_shape_entropy": "Shape H7",
    "oceanic_schooling_index": "Oceanic Schooling Index",
}


def write_schooling_report(result: Mapping[str, Any], frames: Sequence[Frame], out: Path) -> Path:
    """Write ``report.html`` of a run into a folder.

    Args:
        result: from `preceptor.simulation.run.run`.
        frames: of the run, at least one.
        out: the folder.
    Raises:
        ImportError: matplotlib is missing.
    """
    return write_whole(out / "report.html", render(result, frames))


def render(result: Mapping[str, Any], frames: Sequence[Frame]) -> str:
    """The page as HTML text."""
    return frame(
        title=f"School of {result['agents']:,} fish: {result['case']}",
        kicker=["simulation", "schooling"],
        verdict=html.escape(headline(result)),
        tone="calm" if result["warnings"] else "",
        tiles=_tiles(result),
        sections=_sections(result, frames),
        sheets=["schooling.css"],
        script=files("preceptor.report").joinpath("schooling.js").read_text(encoding="utf-8"),
    )


def headline(result: Mapping[str, Any]) -> str:
    """What the school came to be, in one sentence."""
    mean = {name: result["summary"][name]["mean"] for name in ("polarization", "rotation", "oceanic_schooling_index")}
    return (
        f"In the second half of {result['steps']:,} steps the school is in the state “{result['state']}”: polarisation"
        f" {mean['polarization']:.2f}, rotation {mean['rotation']:.2f}, index {mean['oceanic_schooling_index']:.2f}."
    )


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What a terminal shows."""
    yield headline(result)
    for name, row in result["summary"].items():
        yield f"  {NAMES[name]:26} {row['mean']:8.4f} (sd {row['sd']:.4f}), at the end {row['final']:.4f}"


def _tiles(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("polarization", "rotation", "oceanic_schooling_index", "velocity_correlation_entropy"):
        row = result["summary"][name]
        yield f"{row['mean']:.2f}", f"{NAMES[name]}, mean of the second half, sd {row['sd']:.2f}"
    yield f"{result['agents']:,}", f"fish in a periodic box of side {result['zones']['box']:.4g}"
    yield f"{result['steps']:,}", f"steps of {result['zones']['dt']:g}; {len(result['time'])} frames saved"


def _sections(result: Mapping[str, Any], frames: Sequence[Frame]) -> Iterator[tuple[str, str]]:
    yield "What to know", "".join(f"<p>{html.escape(warning[:1].upper() + warning[1:])}.</p>" for warning in result["warnings"])
    yield "Animation", _animation(result, frames)
    yield "Start and end", f'<div class="charts">{_seen("Start", result, frames[0])}{_seen("End", result, frames[-1])}</div>'
    charts = _over_time(result, "Order parameters and index", ORDER), _over_time(result, "Entropies", ENTROPIES)
    yield "Order over time", f'<div class="charts">{"".join(charts)}</div>'
    yield "Measures", _measures(result)
    facts = {
        **{name.replace("_", " "): value for name, value in result["zones"].items()},
        "start": result["start"],
        "seed": result["seed"],
        "centroid": result["centroid"],
        "sphere": result["sphere"],
        "small-sample correction": "on" if result["correction"] else "off",
        "versions": ", ".join(f"{name} {number}" for name, number in result["versions"].items()),
    }
    terms = "".join(f"<dt>{html.escape(name.capitalize())}</dt><dd>{html.escape(_text(value))}</dd>" for name, value in facts.items())
    yield "How this was made", f"<dl>{terms}</dl>"


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _animation(result: Mapping[str, Any], frames: Sequence[Frame]) -> str:
    """A canvas and what it plays: positions in 16 bits and headings in 8, of so many fish and frames."""
    box, agents = result["zones"]["box"], result["agents"]
    fish = np.sort(np.random.default_rng(0).permutation(agents)[:SHOWN_FISH])
    numbers = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), SHOWN_FRAMES)).round().astype(int)).tolist()
    chosen = [frames[i] for i in numbers]
    places = np.stack([frame.positions[fish] for frame in chosen])
    headings = np.stack([frame.velocities[fish] for frame in chosen]) / result["zones"]["speed"]
    data = {
        "fish": len(fish),
        "steps": [frame.step for frame in chosen],
        "positions": _packed(np.clip(places / box * 65535, 0, 65535), "<u2"),
        "headings": _packed(np.clip(headings * 127, -127, 127), "<i1"),
        "polarization": [round(result["series"]["polarization"][i], 3) for i in numbers],
        "rotation": [round(result["series"]["rotation"][i], 3) for i in numbers],
    }
    drawn = f"{len(fish)} of the {agents:,} fish" if len(fish) < agents else "every fish"
    return (
        '<div class="school"><canvas width="900" height="640" role="img" aria-label="The school swimming"></canvas>'
        '<p class="controls"><button type="button">Play</button> <label>Frame <input type="range" min="0" value="0"></label>'
        ' <output></output></p></div><p class="note">'
        f"Drawn is {drawn} in {len(chosen)} frames; the colour is the heading: red, green and blue for x, y and z."
        " Drag to turn the box, arrow keys step."
        f'</p><noscript><p class="note">The animation needs JavaScript; the pictures below do not.</p></noscript>'
        f'<script type="application/json" id="school-data">{json.dumps(data)}</script>'
    )


def _packed(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.rint(values).astype(kind).tobytes()).decode()


def _seen(title: str, result: Mapping[str, Any], frame: Frame) -> str:
    """The school from above, every fish an arrow."""
    box = result["zones"]["box"]
    fish = np.sort(np.random.default_rng(0).permutation(result["agents"])[:SHOWN_FISH])
    x, y = frame.positions[fish, :2].T
    u, v = frame.velocities[fish, :2].T / result["zones"]["speed"]
    with svg_axes(f"{title} from above", height=3.9) as (axes, svg):
        axes.quiver(x, y, u, v, color=SERIES[0], angles="xy", scale_units="xy", scale=20 / box, width=0.005, pivot="mid")
        axes.set(xlim=(0, box), ylim=(0, box), xlabel="x", ylabel="y", aspect="equal")
    values = ", ".join(
        f"{NAMES[name]} {result['series'][name][0 if title == 'Start' else -1]:.2f}" for name in ("polarization", "rotation")
    )
    return f"<figure><h3>{title}, step {frame.step:,}</h3>{svg[0]}<figcaption>From above. {values}.</figcaption></figure>"


def _over_time(result: Mapping[str, Any], title: str, names: Sequence[str]) -> str:
    time = np.array(result["time"])
    with svg_axes(title, height=3.4) as (axes, svg):
        for i, name in enumerate(names):
            marker = {"marker": MARKERS[i % len(MARKERS)], "markevery": max(1, len(time) // 6)}
            axes.plot(time, result["series"][name], color=SERIES[i % len(SERIES)], linewidth=1.2, label=NAMES[name], **marker)
        if len(time) > 1:
            axes.axvline(time[len(time) // 2], color=INK, linewidth=0.8, linestyle="--")
        axes.set(ylim=(-0.02, 1.02), xlabel="Time")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, fontsize=8.5, labelcolor=INK)
    return f"<figure><h3>{title}</h3>{svg[0]}<figcaption>Means below are over what is right of the dashed line.</figcaption></figure>"


def _measures(result: Mapping[str, Any]) -> str:
    head = "".join(f'<th scope="col">{text}</th>' for text in ("Measure", "Mean", "SD", "At the end", "Smallest", "Largest"))
    body = "".join(
        f'<tr><th scope="row">{NAMES[name]}</th>{"".join(f"<td>{value:.4f}</td>" for value in result["summary"][name].values())}</tr>'
        for name in METRICS
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    note = "Mean and standard deviation over the second half, smallest and largest over all. Entropies and index: 0 order, 1 disorder."
    return f'<div class="scroll" role="region" aria-label="Measures" tabindex="0">{table}</div><p class="note">{note}</p>'


def write_picture(result: Mapping[str, Any], frames: Sequence[Frame], path: Path) -> Path:
    """Write a small picture of start, end and order over time.

    Args:
        result: from `preceptor.simulation.run.run`.
        frames: of the run.
        path: the PNG file.
    Raises:
        ImportError: matplotlib is missing.
    """
    require("matplotlib", extra="study", purpose="pictures")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    box, time = result["zones"]["box"], np.array(result["time"])
    fish = np.sort(np.random.default_rng(0).permutation(result["agents"])[:SHOWN_FISH])
    figure = Figure(figsize=(9.6, 3.2), dpi=85, layout="constrained")
    for place, (title, shown) in enumerate((("start", frames[0]), ("end", frames[-1])), start=1):
        axes: Any = figure.add_subplot(1, 3, place, projection="3d")
        headings = shown.velocities[fish] / result["zones"]["speed"]
        colours = _colours(headings)
        colours = np.concatenate([colours, np.repeat(colours, 2, axis=0)])  # of the shafts, then of the two strokes of every head
        axes.quiver(*shown.positions[fish].T, *headings.T, length=box / 14, colors=colours, linewidth=0.9)
        axes.set(xlim=(0, box), ylim=(0, box), zlim=(0, box), title=f"{result['case']}, {title}", box_aspect=(1, 1, 1))
        axes.tick_params(labelsize=6, pad=-2)
    axes = figure.add_subplot(1, 3, 3)
    for name, colour, line in zip(ORDER, ("#0072b2", "#c84e00", "#00805d"), ("-", "--", "-."), strict=True):
        axes.plot(time, result["series"][name], color=colour, linestyle=line, linewidth=1.3, label=NAMES[name])
    axes.set(ylim=(-0.02, 1.02), xlabel="time")
    axes.legend(frameon=False, fontsize=7.5)
    axes.grid(color="#d5dbe5", linewidth=0.6)
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return aside.replace(path)


def _colours(headings: np.ndarray) -> np.ndarray:
    """Red, green and blue say how far a fish heads along x, y and z, (N, 3); as in the animation."""
    return 0.45 + 0.38 * headings
