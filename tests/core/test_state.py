"""State and checkpoints: exact, whole or not at all, and never code."""

import errno
import json
import os
import pickle
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.core.small import assert_identical

from preceptor.core.state import CheckpointError, RandomState, State, load_checkpoint, read_weights, save_checkpoint
from preceptor.core.stream import Repeated, Stream, as_stream

IDENTITY = {"method": "LogitKD(alpha=0.9)", "total_steps": 9, "sizes": (1, 2)}


def payload(step):
    return {"weights": {"a": torch.full((300,), float(step)), "b": torch.arange(3)}, "position": step, "names": ["x", None, 2.5, True]}


def write(folder, *numbers, keep=10):
    for number in numbers:
        save_checkpoint(folder, payload(number), step=number, identity=IDENTITY, keep=keep)
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path):
    write(tmp_path / "deep" / "checkpoints", 3)
    assert_identical(load_checkpoint(tmp_path / "deep" / "checkpoints", identity=IDENTITY), payload(3))
    assert names(tmp_path / "deep" / "checkpoints" / "step-3") == ["manifest.json", "state.pt"]


def test_the_newest_counts_as_a_number(tmp_path):
    write(tmp_path, 9, 10, 100, 20)
    assert load_checkpoint(tmp_path, identity=IDENTITY)["position"] == 20  # 100 was newer than what the run then wrote: superseded
    write(tmp_path, 100)
    assert load_checkpoint(tmp_path, identity=IDENTITY)["position"] == 100


def test_nothing_there(tmp_path):
    assert load_checkpoint(tmp_path, identity=IDENTITY) is None
    assert load_checkpoint(tmp_path / "missing", identity=IDENTITY) is None
    (tmp_path / "step-old").mkdir()
    (tmp_path / ".step-4.partial").mkdir()
    assert load_checkpoint(tmp_path, identity=IDENTITY) is None


def truncate(path):
    os.truncate(path / "state.pt", (path / "state.pt").stat().st_size // 2)


def flip(path):
    data = bytearray((path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.pt").write_bytes(data)


def manifest_of(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))


DAMAGE = {
    "truncated": (truncate, "state.pt is torn or was altered"),
    "flipped": (flip, "state.pt is torn or was altered"),
    "empty": (lambda path: (path / "state.pt").write_bytes(b""), "state.pt is torn or was altered"),
    "no state": (lambda path: (path / "state.pt").unlink(), "state.pt"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "manifest.json"),
    "torn manifest": (lambda path: os.truncate(path / "manifest.json", 40), ""),
    "another identity": (lambda path: manifest_of(path, identity={"method": "other"}), "manifest.json was altered"),
    "another step": (lambda path: manifest_of(path, step=7), "manifest.json was altered"),
    "no digest": (lambda path: (path / "manifest.json").write_text("{}"), "digest"),
    "not a manifest": (lambda path: (path / "manifest.json").write_text("[1]"), "manifest.json was altered"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_skipped(tmp_path, damage):
    write(tmp_path, 1, 2, 3)
    harm, reason = DAMAGE[damage]
    harm(tmp_path / "step-3")
    lines = []
    assert_identical(load_checkpoint(tmp_path, identity=IDENTITY, warn=lines.append), payload(2))
    assert len(lines) == 1
    assert lines[0].startswith(f"checkpoint {tmp_path / 'step-3'}: skipped, ")
    assert reason in lines[0]
    assert "\n" not in lines[0]
    harm(tmp_path / "step-2")
    harm(tmp_path / "step-1")
    with pytest.raises(CheckpointError, match="none of 3 is intact; move them away to start over"):
        load_checkpoint(tmp_path, identity=IDENTITY)
    assert names(tmp_path) == ["step-1", "step-2", "step-3"]  # reading removes nothing


def test_every_byte_of_a_checkpoint_is_covered(tmp_path):
    write(tmp_path, 1)
    file, draws = tmp_path / "step-1" / "state.pt", random.Random(0)
    data = file.read_bytes()
    for place in [0, len(data) - 1, *draws.sample(range(len(data)), 50)]:
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << draws.randrange(8)]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match="none of 1 is intact"):
            load_checkpoint(tmp_path, identity=IDENTITY)


def test_another_run_is_refused_by_field(tmp_path):
    write(tmp_path, 1)
    other = {**IDENTITY, "total_steps": 10}
    with pytest.raises(CheckpointError, match=r"step-1: total_steps was 9 when this run began, got 10$"):
        load_checkpoint(tmp_path, identity=other)
    with pytest.raises(CheckpointError, match="augment was None when this run began, got 'crop'"):
        load_checkpoint(tmp_path, identity={**IDENTITY, "augment": "crop"})
    with pytest.raises(CheckpointError, match=r"sizes was .* when this run began, got None"):
        load_checkpoint(tmp_path, identity={key: value for key, value in IDENTITY.items() if key != "sizes"})


class Harm:
    """Would write a file when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle", "noise", "empty"])
def test_code_is_refused(tmp_path, how):
    file, harm = tmp_path / "state.pt", Harm(tmp_path / "harm")
    if how == "pickle":
        file.write_bytes(pickle.dumps(harm, protocol=2))
    elif how == "noise":
        file.write_bytes(bytes(range(256)) * 9)
    elif how == "empty":
        file.write_bytes(b"")
    else:
        torch.save({"a": harm}, file, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(CheckpointError, match=r"state.pt: refused, expected tensors and plain values only .*safetensors") as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_a_checkpoint_with_code_and_a_right_manifest_is_refused(tmp_path):
    save_checkpoint(tmp_path, {"a": Harm(tmp_path / "harm")}, step=1, identity=IDENTITY)
    with pytest.raises(CheckpointError, match="refused"):
        load_checkpoint(tmp_path, identity=IDENTITY)
    assert not (tmp_path / "harm").exists()


def test_the_newest_k_are_kept(tmp_path):
    write(tmp_path, 1, 2, 3, 4, 5, keep=2)
    assert names(tmp_path) == ["step-4", "step-5"]
    write(tmp_path, 6, keep=1)
    assert names(tmp_path) == ["step-6"]


def test_a_torn_newer_one_goes_once_superseded(tmp_path):
    write(tmp_path, 1, 2, 4)
    truncate(tmp_path / "step-4")
    (tmp_path / ".step-4.partial").mkdir()
    write(tmp_path, 3)
    assert names(tmp_path) == ["step-1", "step-2", "step-3"]
    truncate(tmp_path / "step-3")
    write(tmp_path, 3)  # the same step again
    assert load_checkpoint(tmp_path, identity=IDENTITY)["position"] == 3


@pytest.mark.parametrize("last", ["state.pt", "manifest.json", "rename"])
def test_no_room_leaves_the_older_one(tmp_path, monkeypatch, last):
    write(tmp_path, 1)
    opened, renamed = Path.open, Path.rename

    def full_open(self, mode="r", *args, **kwargs):
        return opened(Path("/dev/full") if self.name == last else self, mode, *args, **kwargs)

    def full_rename(self, target):
        if last == "rename":
            raise OSError(errno.ENOSPC, "No space left on device")
        return renamed(self, target)

    monkeypatch.setattr(Path, "open", full_open)
    monkeypatch.setattr(Path, "rename", full_rename)
    with pytest.raises(CheckpointError) as caught:
        write(tmp_path, 2)
    newest = f"newest intact one: {tmp_path / 'step-1'}"
    assert str(caught.value) == f"checkpoint {tmp_path / 'step-2'}: not written, no space left on the device; {newest}"
    monkeypatch.undo()
    assert names(tmp_path) == ["step-1"]
    assert_identical(load_checkpoint(tmp_path, identity=IDENTITY), payload(1))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_full_file_system(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("this root may not mount")
    try:
        write(tmp_path, 1)
        large = {"weights": torch.zeros(200_000)}
        with pytest.raises(CheckpointError, match=r"step-2: not written, no space left on the device; newest intact one: .*step-1$"):
            save_checkpoint(tmp_path, large, step=2, identity=IDENTITY)
        assert names(tmp_path) == ["step-1"]
        assert_identical(load_checkpoint(tmp_path, identity=IDENTITY), payload(1))
        write(tmp_path, 3)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_no_permission(public_folder, unprivileged):
    write(public_folder, 1)
    public_folder.chmod(0o555)
    with unprivileged(), pytest.raises(CheckpointError, match=r"step-2: not written, .*Permission denied.*; newest intact one: .*step-1$"):
        write(public_folder, 2)
    public_folder.chmod(0o755)
    assert names(public_folder) == ["step-1"]


def test_data_reaches_the_disk_before_the_name_does(tmp_path, monkeypatch):
    events = []
    sync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle)))
    monkeypatch.setattr(Path, "rename", lambda self, target: (events.append("rename"), rename(self, target)))
    write(tmp_path, 1)
    aside = tmp_path / ".step-1.partial"
    assert events == [str(aside / "state.pt"), str(aside / "manifest.json"), "rename", str(tmp_path)]


def draw(state):
    return (
        torch.rand(3),
        torch.rand(3, generator=state.rng),
        random.random(),
        np.random.rand(3).tolist(),
        next(state.source)["x"],
        next(state.streams["valid"])["x"],
    )


def numbered(count):
    return as_stream([{"x": torch.tensor([i])} for i in range(count)])


def test_state_takes_up_where_it_was(tmp_path):
    state = State(total_steps=9, seed=3, source=numbered(5), streams={"valid": numbered(3)})
    draw(state)
    np.random.randn()  # NumPy keeps a second normal draw back
    state.step, state.epoch, state.dropped = 4, 1, 2
    state.memory |= {"bank": torch.ones(2), "rate": 0.25, "count": 3}
    state.best = {"step": 2, "value": 0.5, "metrics": {"accuracy": 0.5}, "weights": {"a": torch.ones(1)}, "stale": 1}
    save_checkpoint(tmp_path, {"state": state.state_dict()}, step=4, identity={})
    expected = [draw(state), draw(state), np.random.randn()]

    other = State(total_steps=9, seed=8, source=numbered(5), streams={"valid": numbered(3)})
    draw(other)
    draw(other)
    other.load_state_dict(load_checkpoint(tmp_path, identity={})["state"])
    assert (other.step, other.epoch, other.dropped) == (4, 1, 2)
    assert_identical(other.memory, state.memory)
    assert_identical(other.best, state.best)
    assert_identical([draw(other), draw(other), np.random.randn()], expected)


def test_random_state_replays():
    generator = torch.Generator().manual_seed(1)
    kept = RandomState.capture(generator)
    first = torch.rand(2), torch.rand(2, generator=generator)
    kept.restore(generator)
    assert_identical((torch.rand(2), torch.rand(2, generator=generator)), first)


def test_repeated_batches():
    stream = as_stream([{"x": torch.tensor([i])} for i in range(3)])
    assert isinstance(stream, Stream)
    assert as_stream(stream) is stream
    seen = [next(stream) for _ in range(7)]
    assert [(int(batch["x"]), batch["epoch"]) for batch in seen] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 2)]
    other = as_stream([{"x": torch.tensor([i])} for i in range(3)])
    other.load_state_dict(stream.state_dict())
    for _ in range(5):
        assert_identical(next(other), next(stream))
    before = stream.state_dict()
    assert [int(batch["x"]) for batch in stream.scan()] == [0, 1, 2]
    assert stream.state_dict() == before


def test_going_to_the_start_draws_no_random_number():
    class Drawing:
        def __iter__(self):
            order = torch.randperm(4)
            return iter([{"x": order[i : i + 1]} for i in range(4)])

    straight, resumed = Repeated(Drawing()), Repeated(Drawing())
    resumed.load_state_dict(straight.state_dict())
    torch.manual_seed(0)
    expected = [next(straight) for _ in range(4)]
    torch.manual_seed(0)
    assert_identical([next(resumed) for _ in range(4)], expected)


def test_a_partial_folder_of_a_killed_run_is_cleared(tmp_path):
    write(tmp_path, 1)
    shutil.copytree(tmp_path / "step-1", tmp_path / ".step-2.partial")
    assert load_checkpoint(tmp_path, identity=IDENTITY)["position"] == 1
    write(tmp_path, 2)
    assert names(tmp_path) == ["step-1", "step-2"]
