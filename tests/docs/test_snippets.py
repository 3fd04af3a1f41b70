"""Every Python block of the documentation runs and prints what it says."""

import doctest
import re
from pathlib import Path

import pytest
import yaml

from preceptor.recipe import parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(text: str, name: str) -> int:
    """Run the blocks of one page in order, in one namespace; return how many there were."""
    names = {}
    blocks = list(BLOCK.finditer(text))
    for block in blocks:
        line = text[: block.start()].count("\n") + 1
        code = block.group(1)
        if ">>>" not in code:
            exec(compile("\n" * line + code, name, "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(code, names, name, name, line)
        report = []
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append, clear_globs=False)
        assert result.failed == 0, "".join(report)
        names = test.globs
    return len(blocks)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert run(text, str(page)) == text.count("```python")


def test_recipes_in_the_pages_are_valid():
    described = [block for page in PAGES for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)]
    assert described
    for text in described:
        parse(yaml.safe_load(text))


def test_a_block_that_prints_something_else_is_found():
    assert run("```python\n>>> 1 + 1\n2\n\n```\n", "good") == 1
    with pytest.raises(AssertionError, match="Expected"):
        run("```python\nx = 1\n```\n\n```python\n>>> x + 1\n3\n\n```\n", "bad")
