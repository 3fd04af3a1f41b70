"""Files that are whole or not there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from preceptor.core.files import write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_written_replaces_what_was(tmp_path, shared):
    path = tmp_path / "new" / "folder" / "page.html"
    assert write_whole(path, "å\r\n", shared=shared) == path
    assert path.read_bytes() == b"\xc3\xa5\r\n"
    write_whole(path, b"\x00\xff", shared=shared)
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == ["page.html"]


def test_data_reaches_the_disk_before_the_name_does(tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("replace"), replace(*paths)))
    write_whole(tmp_path / ".hidden", "text")
    assert events == [str(tmp_path / ".hidden.partial"), "replace", str(tmp_path)]


@pytest.mark.parametrize("shared", [False, True])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, shared):
    def fail(handle):
        raise OSError("no space left")

    path = write_whole(tmp_path / "result.json", "old")
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="no space left"):
            write_whole(path, "new", shared=shared)
    assert path.read_text() == "old"
    write_whole(path, "new", shared=shared)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["result.json"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_kill_leaves_the_old_file_and_the_next_call_tidies_up(tmp_path, name):
    path = write_whole(tmp_path / "result.json", "old")
    pid = os.fork()
    if not pid:
        setattr(os, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        write_whole(path, "new")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert path.read_text() == "old"
    assert names(tmp_path) == [".result.json.partial", "result.json"]
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["result.json"]


def test_processes_that_share_a_file_do_not_share_what_is_aside(tmp_path, monkeypatch):
    """One is held up between writing and renaming, while the other writes: both end with a whole file."""
    path, replace = tmp_path / "verdicts.json", os.replace

    def held_up(*paths):
        monkeypatch.setattr(os, "replace", replace)
        pid = os.fork()
        if not pid:
            write_whole(path, "other", shared=True)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert path.read_text() == "other"
        replace(*paths)

    monkeypatch.setattr(os, "replace", held_up)
    write_whole(path, "mine", shared=True)
    assert path.read_text() == "mine"
    assert names(tmp_path) == ["verdicts.json"]
