"""The shelf of methods, read from the files of ``preceptor/methods`` without importing them.

The slug ``nd-loss`` is the file ``methods/nd_loss.py``; there is no other list. `cards` and `read` parse the source, so that listing and
showing methods needs neither torch nor any extra; `load` imports the module of one method.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import io
import tokenize
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from preceptor.core.types import Card

if TYPE_CHECKING:
    from preceptor.core.method import Method

FOLDER = Path(__file__).parent / "methods"
PIECES = {"transform": "transform", "weigh": "weight", "limit": "cap"}
"""Function of a method's class -> the field of a recipe that takes it; see `preceptor.composition`."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One hyper-parameter of a method."""

    name: str
    annotation: str
    default: str  # source text; "" when it must be given
    source: str  # where the default comes from


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the catalogue knows about one method."""

    card: Card
    docstring: str
    class_name: str  # "" for a system that is not a training method
    fields: tuple[Field, ...]
    offers: tuple[str, ...] = ()  # what other methods can take from it in a recipe: "transform", "weight", "cap"


def nearest(name: str, known: object) -> str:
    """Return ``, nearest: 'x'`` for a misspelt name, or nothing when nothing is near."""
    matches = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)  # pyright: ignore[reportGeneralTypeIssues]
    return f", nearest: {matches[0]!r}" if matches else ""


def slugs() -> list[str]:
    """Every slug, sorted."""
    return sorted(path.stem.replace("_", "-") for path in FOLDER.glob("*.py") if path.stem != "__init__")


@cache
def read(slug: str) -> Entry:
    """Read one method's file.

    Raises:
        ValueError: no such slug, or the file has no literal ``CARD``.
    """
    if slug not in slugs():
        raise ValueError(f"method: expected a slug out of `preceptor list`, got {slug!r}{nearest(slug, slugs())}")
    text = (FOLDER / f"{slug.replace('-', '_')}.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    card, class_name, fields, offers = None, "", (), ()
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and ast.unparse(node.targets[0]) == "CARD":
            card = Card(**{word.arg: ast.literal_eval(word.value) for word in node.value.keywords if word.arg})
        if isinstance(node, ast.ClassDef) and {"Method", "LogitMethod"} & {ast.unparse(base) for base in node.bases}:
            class_name = node.name
            offers = tuple(PIECES[line.name] for line in node.body if isinstance(line, ast.FunctionDef) and line.name in PIECES)
            fields = tuple(
                Field(
                    name=ast.unparse(line.target),
                    annotation=ast.unparse(line.annotation),
                    default=ast.unparse(line.value) if line.value is not None else "",
                    source=comments.get(line.lineno, ""),
                )
                for line in node.body
                if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line.annotation)
            )
    if card is None or card.slug != slug:
        raise ValueError(f"methods/{slug.replace('-', '_')}.py: expected CARD = Card(slug={slug!r}, ...) with literal arguments")
    return Entry(card=card, docstring=ast.get_docstring(tree) or "", class_name=class_name, fields=fields, offers=offers)


def list_methods(task: str | None = None) -> list[Card]:
    """The cards of all methods, by slug.

    Args:
        task: only methods that fit it, such as "classification" or "language".
    """
    found = [read(slug).card for slug in slugs()]
    return [card for card in found if task is None or task in card.tasks]


def load(slug: str) -> type[Method]:
    """Import a method: the dataclass whose fields are its hyper-parameters.

    Raises:
        ValueError: no such slug, or the system is not a training method.
    """
    entry = read(slug)
    if not entry.class_name:
        raise ValueError(f"method: {slug!r} is not a training method; see preceptor.methods.{slug.replace('-', '_')}")
    module = importlib.import_module(f"preceptor.methods.{slug.replace('-', '_')}")
    return vars(module)[entry.class_name]


def describe(entry: Entry) -> str:
    """A method for a reader: its docstring, what it needs and costs, hyper-parameters with sources, a recipe that runs."""
    card = entry.card
    lines = [f"{card.title} ({card.slug})", "", entry.docstring, ""]
    lines += [f"{name:9} {text}" for name, text in _facts(card)]
    lines += [f"{'Offers':9} {', '.join(entry.offers)} to other methods"] * bool(entry.offers)
    if entry.fields:
        width = max(len(f"{field.name} = {field.default}") for field in entry.fields)
        lines += ["", "Hyper-parameters", *(f"  {f'{f.name} = {f.default}':{width}}  {f.source}" for f in entry.fields)]
    if entry.class_name and {"classification", "language"} & {*card.tasks}:
        lines += ["", "Recipe", *("  " + line for line in recipe_snippet(entry).splitlines())]
    return "\n".join(lines)


def _facts(card: Card) -> list[tuple[str, str]]:
    return [
        ("Kind", card.kind),
        ("Tasks", ", ".join(card.tasks)),
        ("Needs", ", ".join(card.needs)),
        ("Cost", card.cost),
        ("Headline", card.headline),
    ]


def recipe_snippet(entry: Entry) -> str:
    """A small recipe for ``preceptor distill`` that runs as it stands, but for answers, or a function, that are the user's."""
    if "classification" not in entry.card.tasks:
        return _text_snippet(entry)
    layers = [f"  {f.name}: [block2]" for f in entry.fields if f.name in ("student_layers", "teacher_layers")]
    yours = {"aspects": "aspects.json", "detector": "my_detector:scores"}
    answers = [f"  {f.name}: {yours[f.name]}" for f in entry.fields if f.name in yours]
    large, small = ("cnn, channels: [16, 32]", "cnn, channels: [4, 8]") if layers else ("mlp, hidden: [400, 400]", "mlp, hidden: [16]")
    small += ", subclasses: 4" if "subclasses" in entry.card.needs else ""
    small += ", activation: sigmoid" if "sigmoids" in entry.card.needs else ""
    teacher = ["teacher:", f"  model: {{reference: {large}}}", "  images: 2500", "  train: {epochs: 20, optimizer: Adam}"]
    return "\n".join(
        [
            "data: {name: mnist5k, train_images: 300}",
            *(teacher if "teacher" in entry.card.needs else []),
            f"student: {{reference: {small}}}",
            "method:",
            f"  name: {entry.card.slug}",
            *layers,
            *answers,
            "training: {epochs: 120, optimizer: Adam}",
        ]
    )


def _text_snippet(entry: Entry) -> str:
    written = "generation" in entry.card.needs
    shorter = [f"  {f.name}: 16" for f in entry.fields if f.name == "max_new_tokens"]
    return "\n".join(
        [
            f"text: {{documents: python, length: 64, rows: 32, valid_rows: 2, test_rows: 2{', prompt: 16' if written else ''}}}",
            "teacher: {model: smollm2}",
            "student: {keep_layers: 4}",
            "method:",
            f"  name: {entry.card.slug}",
            *shorter,
            "training: {epochs: 1, batch_size: 4, monitor: nll, learning_rate: 0.0003}",
        ]
    )


def catalogue_page() -> str:
    """``docs/methods.md``: a table of all methods, then each with its equation and hyper-parameters."""
    entries = [read(slug) for slug in slugs()]
    lines = [
        "# Methods",
        "",
        "Written by `preceptor docs` from the card of each method; not by hand.",
        "",
        "| method | kind | needs | paper |",
        "|---|---|---|---|",
    ]
    for entry in entries:
        card = entry.card
        paper = f"[{card.authors}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else card.authors
        lines.append(f"| [{card.slug}](#{card.slug}) | {card.kind} | {', '.join(card.needs)} | {paper} |")
    for entry in entries:
        card = entry.card
        lines += ["", f"## {card.slug}", "", f"{card.title}.", "", "```text", card.equation, "```", ""]
        lines += [f"- {name}: {text}" for name, text in _facts(card)]
        lines += [f"- Offers: {', '.join(entry.offers)} to other methods"] * bool(entry.offers)
        if entry.fields:
            lines += ["", "| hyper-parameter | default | source |", "|---|---|---|"]
            lines += [f"| `{f.name}` | `{f.default}` | {f.source.replace('|', chr(92) + '|')} |" for f in entry.fields]
    return "\n".join(lines) + "\n"
