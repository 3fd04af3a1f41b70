"""Settings of the documentation: ``sphinx-build -W -b html docs docs/_build/html`` builds it without network."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from preceptor import __version__ as release

project = "preceptor"
author = "The preceptor authors"
copyright = "The preceptor authors, Apache-2.0"
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = f"preceptor {release}"
default_role = "literal"  # the names in docstrings
highlight_language = "text"  # the equations in docstrings
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"show-inheritance": True}
autosummary_generate_overwrite = True
napoleon_numpy_docstring = False
suppress_warnings = ["ref.python"]  # a name that stands in two modules

_SECTION = re.compile(r"(Args|Returns|Raises|Attributes|Yields):$")
_TABLE = re.compile(r"=+( +=+)+$")


def _plain_to_rst(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings here are plain text: indented blocks are equations, and stars, bars and underscores stand for themselves.

    Tables and lists keep their meaning, and from the first section on everything is left to napoleon.
    """
    # napoleon would take what stands before a colon in the first line of an attribute for its type
    converted: list[str] = ["..", ""] if what in ("data", "attribute", "property") else []
    prose, block, table, item = True, False, False, False
    for line in lines:
        if _SECTION.match(line):
            prose = False
            converted.append("")
        indented = line.startswith(" ")
        if _TABLE.match(line):
            table = not table
        if line and not indented:
            item = line.startswith("- ")
        starts = prose and indented and not (block or table or item)
        if starts:
            converted += ["", "::", ""]
        elif block and line and not indented:
            converted.append("")
        block = starts or (block and prose and (indented or not line))
        converted.append(line if block or _TABLE.match(line) else _escape(line))
    lines[:] = converted


def _escape(line: str) -> str:
    """Outside of backticks and of bold, take from ``*``, ``|`` and a trailing ``_`` their meaning in reStructuredText."""
    parts = re.split(r"(``.*?``|`.*?`|\*\*\w.*?\w\*\*)", re.sub("::$", ":", line))
    return "".join(part if i % 2 else re.sub(r"\*|\||(?<=\w)_(?!\w)", r"\\\g<0>", part) for i, part in enumerate(parts))


def setup(app) -> None:
    """Convert docstrings before napoleon reads their sections."""
    app.connect("autodoc-process-docstring", _plain_to_rst, priority=400)
