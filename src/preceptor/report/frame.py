"""The frame of every page: head, style sheet, title, tiles, contents, sections. One file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from importlib.resources import files

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def frame(
    *,
    title: str,
    kicker: Sequence[str],
    verdict: str,
    tone: str,
    tiles: Iterable[tuple[str, str]],
    sections: Iterable[tuple[str, str]],
    created: str = "",
    sheets: Sequence[str] = (),
    script: str = "",
) -> str:
    """A page as HTML text. Its content policy forbids requests, and scripts but the one given.

    Args:
        title: plain text.
        kicker: words above it, plain text.
        verdict: the result in one sentence, ready HTML.
        tone: ``good``, ``bad``, ``calm`` or "".
        tiles: numbers to print large, ready HTML, and what they are, plain text.
        sections: headings, plain text, and bodies, ready HTML; an empty body leaves its section out.
        created: when; "" leaves it out.
        sheets: further style sheets of `preceptor.report`, by name.
        script: JavaScript at the end of the body.
    """
    parts = [(html.escape(name), body) for name, body in sections if body]
    links = "".join(f'<a href="#part-{i}">{name}</a>' for i, (name, _) in enumerate(parts))
    body = "\n".join(f'<section id="part-{i}"><h2>{name}</h2>{part}</section>' for i, (name, part) in enumerate(parts))
    large = "".join(f"<li><b>{big}</b>{html.escape(words)}</li>" for big, words in tiles)
    style = "".join(files("preceptor.report").joinpath(name).read_text(encoding="utf-8") for name in ("page.css", *sheets))
    policy = f"{POLICY}; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" if script else POLICY
    name = html.escape(title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="kicker">{" · ".join(map(html.escape, ["preceptor", *kicker]))}</p>
<h1>{name}</h1>
<p class="verdict {tone}">{verdict}</p>
{f'<ul class="tiles">{large}</ul>' if large else ""}
{f'<nav aria-label="Contents">{links}</nav>' if len(parts) > 1 else ""}
</header>
<main>
{body}
</main>
{f"<footer>Created {html.escape(created)}</footer>" if created else ""}
{f"<script>{script}</script>" if script else ""}
</body>
</html>
"""
