"""Broken off and resumed: the same run to the bit, and only the same run."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.core.resumable import Wandering, resumable
from tests.core.small import CrossEntropy, assert_identical, batches, checkpoints, lines_of, net, sgd, vector
from torch import nn

from preceptor.core.run import train
from preceptor.core.state import CheckpointError


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5])
def test_broken_off_and_resumed_is_the_straight_run(tmp_path, stop_at):
    roles, optimizer, state = resumable(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        resumable(tmp_path / "broken", stop_at=stop_at)
    again, resumed, other = resumable(tmp_path / "broken", resume=True)
    for name in roles:
        assert_identical(again[name].state_dict(), roles[name].state_dict())
    assert_identical(resumed.state_dict(), optimizer.state_dict())
    assert_identical(other.memory, state.memory)
    assert (tmp_path / "broken" / "metrics.jsonl").read_bytes() == (tmp_path / "straight" / "metrics.jsonl").read_bytes()


def test_only_the_same_run_is_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        resumable(tmp_path, stop_at=3, identity={"recipe": {"epochs": 3}})
    again = {"resume": True, "identity": {"recipe": {"epochs": 3}}}
    with pytest.raises(CheckpointError, match=r"method was 'Wandering\(noise=0.1\)' when this run began, got 'Wandering\(noise=0.2\)'"):
        resumable(tmp_path, method=Wandering(noise=0.2), **again)
    with pytest.raises(CheckpointError, match="total_steps was 6 when this run began, got 7"):
        resumable(tmp_path, steps=7, **again)
    with pytest.raises(CheckpointError, match=r"recipe was {'epochs': 3} when this run began, got {'epochs': 4}"):
        resumable(tmp_path, resume=True, identity={"recipe": {"epochs": 4}})
    with pytest.raises(CheckpointError, match=r"teacher was '.*' when this run began, got '.*'"):
        resumable(tmp_path, teacher=net(9), **again)
    assert resumable(tmp_path, **again)[2].step == 6
    with pytest.raises(ValueError, match="resume: expected out, the folder to resume from, got None"):
        resumable(None, resume=True)


def test_a_method_that_holds_a_function_can_be_resumed(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Attacked(Wandering):
        attack: object

    functions = [eval("lambda x: x") for _ in range(2)]  # another address, as in another process
    assert repr(functions[0]) != repr(functions[1])
    with pytest.raises(KeyboardInterrupt):
        resumable(tmp_path, stop_at=3, method=Attacked(attack=functions[0]))
    assert resumable(tmp_path, method=Attacked(attack=functions[1]), resume=True)[2].step == 6


def test_a_torn_checkpoint_is_named_and_the_older_one_taken(tmp_path):
    straight, _, _ = resumable(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        resumable(tmp_path / "b", stop_at=5)
    file = tmp_path / "b" / "checkpoints" / "step-4" / "state.pt"
    file.write_bytes(file.read_bytes()[:-100])
    lines = []
    again, _, _ = resumable(tmp_path / "b", resume=True, warn=lines.append)
    assert [line.split(": skipped")[0] for line in lines] == [f"checkpoint {file.parent}"]
    assert_identical(again["student"].state_dict(), straight["student"].state_dict())
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()


def deeper(**options):
    return nn.Sequential(*net(0, dropout=0.3, **options), nn.Linear(3, 3).double())


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (net(0, hidden=7), "0.weight: expected shape (6, 4) as when this run began, got shape (7, 4); 2 more tensors differ"),
        (deeper(), "4.weight: expected none as when this run began, got shape (3, 3); 1 more tensors differ"),
        (net(0)[:1], "3.weight: expected shape (3, 6) as when this run began, got none; 1 more tensors differ"),
    ],
)
def test_another_architecture_is_refused_in_one_line(tmp_path, student, said):
    with pytest.raises(KeyboardInterrupt):
        resumable(tmp_path, stop_at=3)
    before = vector(student)
    with pytest.raises(CheckpointError) as caught:
        resumable(tmp_path, resume=True, student=student)
    assert str(caught.value) == f"{tmp_path / 'checkpoints' / 'step-2'}: role 'student': {said}"
    assert torch.equal(vector(student), before)


def test_a_role_that_is_gone_is_refused_in_one_line(tmp_path):
    student, average = net(0), net(0)
    train(CrossEntropy(), {"student": student, "ema": average}, batches(2), sgd(student), steps=2, ema=0.9, out=tmp_path)
    with pytest.raises(
        CheckpointError, match=r"step-2: role 'ema': 0.weight: expected shape \(6, 4\) as when this run began, got none; 3 more"
    ):
        train(CrossEntropy(), {"student": student}, batches(2), sgd(student), steps=2, out=tmp_path, resume=True)


def test_a_shortened_journal_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        resumable(tmp_path, stop_at=3)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: expected the [0-9]+ bytes that the checkpoint was saved with, got 0"):
        resumable(tmp_path, resume=True)


def test_resuming_before_the_first_checkpoint_starts_over(tmp_path):
    straight, _, _ = resumable(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        resumable(tmp_path / "b", stop_at=1)
    assert lines_of(tmp_path / "b")
    again, _, _ = resumable(tmp_path / "b", resume=True)
    assert_identical(again["student"].state_dict(), straight["student"].state_dict())
    assert [line["step"] for line in lines_of(tmp_path / "b")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("where", ["metrics.jsonl", "timings.jsonl"])
def test_no_room_for_the_journal(tmp_path, monkeypatch, where):
    with pytest.raises(KeyboardInterrupt):
        resumable(tmp_path / "b", stop_at=3)
    straight, _, _ = resumable(tmp_path / "a")
    opened = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *args, **keys: opened(Path("/dev/full") if self.name == where else self, *args, **keys))
        with pytest.raises(CheckpointError, match=r"out: cannot write to .*b, no space left on device$"):
            resumable(tmp_path / "b", resume=True)
    assert checkpoints(tmp_path / "b") == [2]
    again, _, _ = resumable(tmp_path / "b", resume=True)
    assert_identical(again["student"].state_dict(), straight["student"].state_dict())


def test_no_permission_to_write(public_folder, unprivileged):
    public_folder.chmod(0o555)
    with unprivileged(), pytest.raises(CheckpointError, match=r"out: cannot write to .*run, permission denied$"):
        resumable(public_folder / "run")
    assert list(public_folder.iterdir()) == []
