"""A build killed with SIGKILL at any moment and called again: nothing asked twice, and the same bytes as without the kill."""

import os
import random
import shutil
import signal
import sys
import time
import traceback

import pytest
import torch
from tests.teachers.answers import contents, examples, made, said, texts

from preceptor.core.signals import Interrupted
from preceptor.teachers import shards

KINDS = {
    "compact": {"kind": "top-k", "k": 5, "precision": "compact"},
    "sample": {"kind": "sample", "k": 4, "precision": "compact"},
    "logits": {},
}


def batches_of(kind):
    return examples(rows=36, batch_size=6) if kind == "logits" else texts(rows=24, batch_size=4)


def start(folder, kind, asked, harm=None, pause=0.0):
    """Build in a forked child; every question to the teacher is noted in the file ``asked``. ``harm`` is called in the child first."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        os.fsync = lambda handle: None  # a kill loses nothing that was written, and the disk is slow

        def answer(batch):
            with asked.open("a") as file:
                file.write(f"{int(batch['id'][0])}\n")
            time.sleep(pause)
            return said(batch)

        if harm is not None:
            harm()
        made(folder, batches_of(kind), answer=answer, shard_bytes=2000, **KINDS[kind])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def end_of(pid):
    """Exit code of a child, -9 for a killed one."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(scope="module", params=KINDS)
def straight(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    made(folder / "warm", batches_of(request.param), **KINDS[request.param])  # what is loaded here need not be in every child
    assert end_of(start(folder / "cache", request.param, folder / "asked")) == 0
    questions = (folder / "asked").read_text().split()
    assert len(questions) == len(set(questions)) == 6
    assert len(list((folder / "cache").glob("*.arrow"))) > 1
    return request.param, contents(folder / "cache")


def killed_at(number, name):
    """Harm that kills the process before call ``number`` of os.``name``."""

    def harm():
        genuine, calls = getattr(os, name), 0

        def deadly(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return genuine(*args, **kwargs)

        setattr(os, name, deadly)

    return harm


@pytest.mark.parametrize("straight", ["compact"], indirect=True)
@pytest.mark.parametrize("name", ["fsync", "rename", "replace", "unlink"])
def test_killed_before_every_call_that_writes(straight, tmp_path, name):
    kind, expected = straight
    for number in range(1, 200):
        folder, asked = tmp_path / str(number), tmp_path / f"asked-{number}"
        code = end_of(start(folder, kind, asked, killed_at(number, name)))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        again = tmp_path / f"again-{number}"
        assert end_of(start(folder, kind, again)) == 0
        assert contents(folder) == expected
        first, second = (path.read_text().split() if path.exists() else [] for path in (asked, again))
        assert len({*first, *second}) == 6
        assert len(first) + len(second) <= 7  # none twice but the one that was on its way to the disk
    assert number > {"fsync": 15, "rename": 2, "replace": 1, "unlink": 2}[name]


def test_killed_three_times_and_more_in_one_build(straight, tmp_path):
    """The same folder, killed again and again a few calls later."""
    kind, expected = straight
    draws, kills, total = random.Random(0), 0, 0
    while True:
        asked = tmp_path / f"asked-{kills}"
        code = end_of(start(tmp_path / "cache", kind, asked, killed_at(draws.randint(3, 7), "fsync")))
        total += len(asked.read_text().split()) if asked.exists() else 0
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills >= 3
    assert contents(tmp_path / "cache") == expected
    assert total <= 6 + kills


def test_killed_at_random_moments(straight, tmp_path):
    kind, expected = straight
    draws = random.Random(1)
    for trial in range(3):
        folder, kills = tmp_path / str(trial), 0
        while True:
            pid = start(folder, kind, tmp_path / "asked", pause=0.01)
            if kills < 4:
                time.sleep(draws.uniform(0.02, 0.15))
                os.kill(pid, signal.SIGKILL)
            if end_of(pid) == 0:
                break
            kills += 1
        assert contents(folder) == expected


def test_what_a_power_cut_left_of_the_last_batch_is_done_again(straight, tmp_path):
    """Journal lines whose batch never reached the disk, or only in part, do not count."""
    kind, expected = straight
    for number in range(12, 20):  # until the kill falls on a shard that has begun
        folder = tmp_path / str(number)
        assert end_of(start(folder, kind, tmp_path / "asked", killed_at(number, "fsync"))) == -signal.SIGKILL
        found = list(folder.glob(".*.arrow.partial"))
        if found:
            break
    (partial,) = found
    whole = partial.read_bytes()
    for damage in (whole[:-5], whole[: len(whole) // 2], whole[:-100] + bytes(100), whole + b"torn", b"", None):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        if damage is None:
            (copy / partial.name).unlink()
        else:
            (copy / partial.name).write_bytes(damage)
        with (copy / shards.JOURNAL).open("a") as file:
            file.write('{"rows": 4, "it')
        assert end_of(start(copy, kind, tmp_path / "asked")) == 0
        assert contents(copy) == expected


def test_a_closed_shard_that_is_altered_before_the_end_is_named(tmp_path):
    folder = tmp_path / "cache"
    kill = killed_at(2, "rename")
    assert end_of(start(folder, "logits", tmp_path / "asked", kill)) == -signal.SIGKILL
    path = folder / "shard-00000.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard-00000\.arrow was altered while the cache was being built"):
        made(folder, batches_of("logits"), shard_bytes=2000)


def test_other_batches_or_another_cache_are_refused(tmp_path):
    batches = batches_of("logits")

    class StopError(Exception):
        pass

    def stop(rows):
        if rows == 18:
            raise StopError

    with pytest.raises(StopError):
        made(tmp_path / "c", batches, progress=stop)
    other = [{**batches[0], "id": batches[0]["id"] + 1}, *batches[1:]]
    with pytest.raises(ValueError, match=r"batches: expected those of the interrupted build in .*, got other ids in batch 0"):
        made(tmp_path / "c", other)
    with pytest.raises(ValueError, match=r"batches: expected the 3 of the interrupted build in .*, got 2"):
        made(tmp_path / "c", batches[:2])
    with pytest.raises(ValueError, match="precision was 'float32' when this run began, got 'float16'"):
        made(tmp_path / "c", batches, precision="float16")
    seen = []
    assert made(tmp_path / "c", batches, progress=seen.append).items == 36
    assert seen == [18, 24, 30, 36]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_build_after_a_batch(tmp_path, number):
    def strike(rows):
        if rows == 12:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=f"{number.name} after step 2") as stop:
        made(tmp_path / "c", batches_of("logits"), progress=strike)
    assert stop.value.exit_code == 128 + number
    assert made(tmp_path / "c", batches_of("logits")).items == 36
