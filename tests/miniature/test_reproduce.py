"""Running seeds: the journal, the file of verdicts, and what is refused."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from preceptor.miniature.claim import Claim, decide
from preceptor.miniature.run import Measurements, Miniature, read_verdicts, reproduce

MODULE = """
import os, random, signal
from pathlib import Path
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature

CALLS = Path(__file__).with_suffix(".calls")

def miniature(seed, size):
    with CALLS.open("a") as file:
        file.write(f"{seed} {size}\\n")
    if Path(__file__).with_name(f"kill-{seed}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    noise = random.Random(seed)
    arms = {arm: {"accuracy": base + noise.gauss(0, 0.01), "nll": 1 - base} for arm, base in [("null", 0.1), ("ce", 0.8), ("kd", 0.85)]}
    claim = Claim(name="kd beats ce", method="kd", baseline="ce", metric="accuracy")
    return Miniature(arms=arms, claims=(claim,), notes=("300 steps",))
"""


@pytest.fixture
def toy(tmp_path):
    return write_module(tmp_path / "toy_method.py", MODULE)


def write_module(path, text):
    path.write_text(text)
    return load(path)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def calls(tmp_path):
    return (tmp_path / "toy_method.calls").read_text().split("\n")[:-1]


def test_measurements_hold_every_value_and_the_rule_s_verdict(toy, tmp_path):
    lines = []
    result = reproduce(toy, seeds=range(5), journal=tmp_path / "journal", progress=lines.append)
    assert (result.slug, result.size, result.seeds, result.notes) == ("toy-method", "full", (0, 1, 2, 3, 4), ("300 steps",))
    for seed in range(5):
        expected = toy.miniature(seed, "full")
        assert {arm: by_seed[seed] for arm, by_seed in result.arms.items()} == expected.arms
    assert result.verdicts == decide(result.claims, result.arms)
    assert result.verdicts[0].verdict == "shown"
    assert set(result.versions) == {"python", "preceptor", "torch", "numpy"}
    assert len(lines) == 5
    assert lines[2].startswith("toy-method seed 2 (3 of 5): accuracy null 0.")


def test_json_returns_the_same_measurements(toy, tmp_path):
    result = reproduce(toy, seeds=[3, 1, 7], journal=tmp_path / "journal")
    saved = json.loads(json.dumps(result.to_json()))
    assert Measurements.from_json(saved) == result
    assert saved["arms"]["ce"]["accuracy"] == [result.arms["ce"][s]["accuracy"] for s in (3, 1, 7)]


def test_a_second_call_runs_only_the_seeds_that_are_missing(toy, tmp_path):
    journal = tmp_path / "journal"
    few = reproduce(toy, seeds=range(3), journal=journal)
    lines = []
    more = reproduce(toy, seeds=range(5), journal=journal, progress=lines.append)
    assert calls(tmp_path) == [f"{s} full" for s in range(5)]
    assert [line.endswith("from the journal") for line in lines] == [True, True, True, False, False]
    assert all(more.arms[arm][s] == few.arms[arm][s] for arm in few.arms for s in range(3))
    reproduce(toy, seeds=range(5), size="smoke", journal=journal)
    assert calls(tmp_path)[5:] == [f"{s} smoke" for s in range(5)]


def test_the_journal_of_other_code_is_not_used(toy, tmp_path):
    reproduce(toy, seeds=[0], journal=tmp_path / "journal")
    changed = write_module(tmp_path / "toy_method.py", MODULE.replace('("kd", 0.85)', '("kd", 0.95)'))
    result = reproduce(changed, seeds=[0], journal=tmp_path / "journal")
    assert calls(tmp_path) == ["0 full", "0 full"]
    assert result.arms["kd"][0]["nll"] == pytest.approx(0.05)


def test_sigkill_loses_one_seed(toy, tmp_path):
    journal = tmp_path / "journal"
    straight = reproduce(toy, seeds=range(4), journal=tmp_path / "straight")
    (tmp_path / "toy_method.calls").unlink()
    (tmp_path / "kill-2").touch()
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import toy_method; from pathlib import Path\n"
        "from preceptor.miniature.run import reproduce; reproduce(toy_method, seeds=range(4), journal=Path(sys.argv[2]))"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path), str(journal)], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    (tmp_path / "kill-2").unlink()
    resumed = reproduce(toy, seeds=range(4), journal=journal)
    assert calls(tmp_path) == ["0 full", "1 full", "2 full", "2 full", "3 full"]
    assert resumed == straight


def test_a_write_that_fails_leaves_the_old_file(toy, tmp_path, monkeypatch):
    verdicts = tmp_path / "verdicts.json"
    reproduce(toy, seeds=range(5), journal=tmp_path / "journal", verdicts=verdicts)
    before = verdicts.read_bytes()
    reproduce(toy, seeds=range(6), journal=tmp_path / "journal")

    def fail(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        reproduce(toy, seeds=range(6), journal=tmp_path / "journal", verdicts=verdicts)
    assert verdicts.read_bytes() == before


def test_verdicts_are_replaced_by_slug_and_the_others_kept(toy, tmp_path):
    verdicts = tmp_path / "docs" / "verdicts.json"
    other = write_module(tmp_path / "another.py", MODULE)
    reproduce(toy, seeds=range(5), journal=tmp_path / "journal", verdicts=verdicts)
    second = reproduce(other, seeds=range(6), journal=tmp_path / "journal", verdicts=verdicts)
    first = reproduce(toy, seeds=range(7), journal=tmp_path / "journal", verdicts=verdicts)
    assert read_verdicts(verdicts) == {"another": second, "toy-method": first}
    assert list(json.loads(verdicts.read_text())) == ["another", "toy-method"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": []}, "seeds: expected at least one"),
        ({"seeds": [1, 2, 1]}, "seeds: expected at least one, each once"),
        ({"seeds": [0], "size": "big"}, "size: expected 'smoke' or 'full', got 'big'"),
        ({"seeds": [0], "size": "smoke", "verdicts": Path("v.json")}, "size: expected 'full' to write v.json"),
    ],
)
def test_arguments_are_refused_before_anything_runs(toy, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        reproduce(toy, journal=tmp_path / "journal", **arguments)
    assert not (tmp_path / "toy_method.calls").exists()


def test_an_unknown_slug_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a slug out of `preceptor list`, got 'no-such-method'"):
        reproduce("no-such-method", seeds=[0], journal=tmp_path)


def test_a_value_that_is_not_finite_names_the_seed_and_is_not_kept(tmp_path):
    bad = write_module(tmp_path / "toy_method.py", MODULE.replace('"nll": 1 - base', '"nll": 1 - base if seed < 2 else float("nan")'))
    with pytest.raises(ValueError, match="seed 2: expected a finite nll of null, got nan"):
        reproduce(bad, seeds=range(4), journal=tmp_path / "journal")
    assert sorted(p.name for p in (tmp_path / "journal/toy-method/full").iterdir()) == ["seed-0.json", "seed-1.json"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('[("null", 0.1)', '[("null" if seed else "nothing", 0.1)', "seed 1: expected the arms and metrics of the first seed"),
        ('name="kd beats ce"', 'name=f"kd beats ce {seed}"', "seed 1: expected the claims of the first seed"),
    ],
)
def test_seeds_that_measure_different_things_are_refused(tmp_path, old, new, message):
    module = write_module(tmp_path / "toy_method.py", MODULE.replace(old, new))
    with pytest.raises(ValueError, match=message):
        reproduce(module, seeds=range(2), journal=tmp_path / "journal")


CLAIM = Claim(name="kd beats ce", method="kd", baseline="ce", metric="accuracy")


@pytest.mark.parametrize(
    ("arms", "claims", "message"),
    [
        (("ce", "kd"), (CLAIM,), "arms: expected at least a null baseline"),
        (("null", "ce", "kd"), (), "claims: expected at least one"),
        (("null", "ce", "dkd"), (CLAIM,), "claim 'kd beats ce': expected one of the arms .*, got 'kd'"),
        (
            ("null", "ce", "kd"),
            (Claim(name="n", method="kd", baseline="ce", metric="nll"),),
            r"claim 'n': expected one of kd's metrics \['accuracy'\], got 'nll'",
        ),
    ],
)
def test_a_miniature_is_checked(arms, claims, message):
    with pytest.raises(ValueError, match=message):
        Miniature(arms={arm: {"accuracy": 0.5} for arm in arms}, claims=claims)
