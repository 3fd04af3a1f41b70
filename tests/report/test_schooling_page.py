"""The page of a school: self-contained, its script allowed by its hash alone, and what it plays."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest

from preceptor.report.schooling import SHOWN_FISH, SHOWN_FRAMES, headline, lines, render, write_picture
from preceptor.simulation.order import METRICS
from preceptor.simulation.record import Plan
from preceptor.simulation.run import run
from preceptor.simulation.zones import CASES, Case


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    case = Case(zones=CASES["torus"].zones, agents=SHOWN_FISH + 50, steps=SHOWN_FRAMES + 20, ring=6.0)
    return run(Plan(name="torus", case=case, seed=0, every=1), tmp_path_factory.mktemp("run"))


def test_the_page_plays_what_was_simulated(made):
    result, frames = made
    page = render(*made)
    data = json.loads(re.search(r'<script type="application/json" id="school-data">(.*?)</script>', page)[1])
    steps = data["steps"]
    assert (data["fish"], len(steps), steps[0], steps[-1]) == (SHOWN_FISH, SHOWN_FRAMES, 0, SHOWN_FRAMES + 20)
    places = np.frombuffer(base64.b64decode(data["positions"]), "<u2").reshape(SHOWN_FRAMES, SHOWN_FISH, 3) / 65535 * 25
    headings = np.frombuffer(base64.b64decode(data["headings"]), "<i1").reshape(SHOWN_FRAMES, SHOWN_FISH, 3) / 127
    for i in (0, 70, SHOWN_FRAMES - 1):
        frame = next(f for f in frames if f.step == steps[i])
        nearest = np.abs(places[i][:, None] - frame.positions).max(axis=2)
        assert nearest.min(axis=1).max() < 25 / 65535
        np.testing.assert_allclose(headings[i], frame.velocities[nearest.argmin(axis=1)], atol=0.5 / 127 + 1e-12)
        assert data["polarization"][i] == round(result["series"]["polarization"][steps[i]], 3)


def test_the_page_is_one_file_and_runs_its_own_script_only(made):
    page = render(*made)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    assert not re.search(r"<(?:script|img|link)[^>]* (?:src|href)=", page)
    assert page == render(*made)


def test_a_name_is_escaped(made):
    result, frames = made
    page = render({**result, "case": "<b>x</b>"}, frames)
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x" in page


def test_warnings_stand_on_the_page(made):
    result, frames = made
    assert "What to know" not in render(result, frames)
    assert "<p>Box: too small.</p>" in render({**result, "warnings": ["box: too small"]}, frames)


def test_lines_name_every_measure(made, tmp_path):
    result, frames = made
    shown = list(lines(result))
    assert shown[0] == headline(result)
    assert len(shown) == 1 + len(METRICS)
    assert write_picture(result, frames, tmp_path / "a.png").read_bytes() == write_picture(result, frames, tmp_path / "b.png").read_bytes()
