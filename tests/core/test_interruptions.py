"""What may come between: losses that are not finite, and signals."""

import copy
import os
import signal
import threading
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from tests.core.resumable import Wandering, resumable
from tests.core.small import CrossEntropy, assert_identical, batches, checkpoints, lines_of, net, sgd, vector
from torch import nn

from preceptor.core import run as run_module
from preceptor.core.method import Method, NonFinite, Phase, clip_and_step
from preceptor.core.run import train
from preceptor.core.signals import Interrupted


def poisoned(*bad, count=6):
    """Batches of which some hold a NaN."""
    data = batches(count)
    for index in bad:
        data[index]["x"] = data[index]["x"].clone()
        data[index]["x"][3, 1] = torch.nan
    return data


def normalised(seed=0):
    return nn.Sequential(nn.BatchNorm1d(4).double(), net(seed, dropout=0.2))


def test_by_default_the_first_bad_batch_stops_the_run(tmp_path):
    student, data = normalised(), poisoned(2)
    with pytest.raises(NonFinite) as caught:
        train(CrossEntropy(), {"student": student}, data, sgd(student), steps=6, out=tmp_path, checkpoint_every=1)
    folder = tmp_path / "nonfinite" / "step-3"
    assert str(caught.value) == f"loss: expected finite values at step 3, got hard=nan; batch and state kept in {folder}"
    kept = torch.load(folder / "state.pt", weights_only=True)
    assert torch.equal(kept["batch"]["id"], data[2]["id"])
    assert torch.equal(kept["batch"]["x"].nan_to_num(7), data[2]["x"].nan_to_num(7))
    assert str(kept["values"]["hard"]) == "nan"
    assert kept["state"]["step"] == 2
    assert kept["optimizers"].keys() == {"student"}
    assert checkpoints(tmp_path) == [1, 2]
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]
    saved = torch.load(tmp_path / "checkpoints" / "step-2" / "state.pt", weights_only=True)
    for name in ("1.0.weight", "1.3.bias"):  # the weights of before the step
        assert torch.equal(kept["roles"]["student"][name], saved["roles"]["student"][name])


def test_without_out_nothing_is_kept():
    student = net(0)
    with pytest.raises(NonFinite, match=r"at step 1, got hard=nan; nothing kept: train was given no out$"):
        train(CrossEntropy(), {"student": student}, poisoned(0), sgd(student), steps=6)


def test_bad_batches_are_dropped_up_to_a_number(tmp_path):
    student, data, lines = normalised(), poisoned(1, 3, 4), []
    torch.manual_seed(0)
    with pytest.raises(NonFinite, match="at step 3, got hard=nan; batch and state kept in"):
        train(CrossEntropy(), {"student": student}, data, sgd(student), steps=6, out=tmp_path, skip_nonfinite=2, warn=lines.append)
    assert [line.split("; batch dropped ")[0] for line in lines] == [
        f"loss: expected finite values at step {step}, got hard=nan" for step in (2, 3)
    ]
    assert "(1 more may be), batch and state kept in" in lines[0]
    assert "(0 more may be)" in lines[1]
    written = lines_of(tmp_path)
    assert [line["step"] for line in written] == [1, 1, 2, 2]
    assert [line.get("nonfinite") for line in written] == [None, {"hard": "nan"}, None, {"hard": "nan"}]


def test_a_dropped_batch_leaves_no_trace_in_the_networks():
    student, twin = normalised(), normalised()
    optimizer, other = (torch.optim.SGD(model.parameters(), 0.1, momentum=0.9) for model in (student, twin))
    schedules = [torch.optim.lr_scheduler.ExponentialLR(each, 0.9) for each in (optimizer, other)]
    data = poisoned(0, 2)
    student[1][2].p = twin[1][2].p = 0.0  # the random state has moved on, rightly
    lines = []
    options = {"steps": 4, "skip_nonfinite": 2, "warn": lines.append}
    train(CrossEntropy(), {"student": student}, data, optimizer, schedulers=schedules[0], **options)
    train(CrossEntropy(), {"student": twin}, [data[i] for i in (1, 3, 4, 5)], other, schedulers=schedules[1], steps=4)
    assert len(lines) == 2
    assert_identical(student.state_dict(), twin.state_dict())
    assert int(student[0].num_batches_tracked) == 4
    assert_identical(optimizer.state_dict(), other.state_dict())


@dataclass(frozen=True, kw_only=True)
class TwoPhases(Method):
    """The first phase steps on a batch whose NaN only the second one meets."""

    def first(self, batch, signal, roles, state):
        state.memory["seen"] = state.memory.get("seen", torch.zeros(1)).add_(1)
        return {"hard": F.cross_entropy(roles["student"](batch["x"].nan_to_num()), batch["y"], reduction="none")}

    def second(self, batch, signal, roles, state):
        return {"judge": roles["critic"](batch["x"])[:, 0].square()}

    def phases(self):
        return (
            Phase(name="student", trains=("student",), signal=self.signal, loss=self.first, update=self.update),
            Phase(name="critic", trains=("critic",), signal=self.signal, loss=self.second, update=self.update),
        )


@dataclass(frozen=True, kw_only=True)
class TwoSteps(CrossEntropy):
    """Steps twice on a batch, whose NaN only the second gradient meets."""

    def loss(self, batch, signal, roles, state):
        state.memory["seen"] = state.memory.get("seen", 0) + 1
        return super().loss(batch if state.memory["seen"] % 2 == 0 else {**batch, "x": batch["x"].nan_to_num()}, signal, roles, state)

    def update(self, compute, optimizer, batch, roles, state):
        for _ in range(2):
            compute()
            clip_and_step(optimizer, state)


@pytest.mark.parametrize("method", [TwoPhases(), TwoSteps()], ids=["phases", "steps"])
def test_a_dropped_batch_leaves_no_trace_where_part_of_the_update_was_done(method, tmp_path):
    def run(data, **options):
        roles = {"student": normalised(), "critic": net(3)}
        roles["student"][1][2].p = 0.0
        optimizers = {phase.name: torch.optim.AdamW(roles[phase.name].parameters(), 0.1) for phase in method.phases()}
        schedules = {name: torch.optim.lr_scheduler.ExponentialLR(each, 0.9) for name, each in optimizers.items()}
        state = train(method, roles, data, optimizers, schedulers=schedules, steps=4, **options)
        parts = {"roles": roles, "optimizers": optimizers, "schedules": schedules}
        return {key: {name: each.state_dict() for name, each in part.items()} for key, part in parts.items()} | {"memory": state.memory}

    lines, data = [], poisoned(0, 3)
    dropping = run(data, skip_nonfinite=2, out=tmp_path, warn=lines.append)
    assert len(lines) == 2
    assert_identical(dropping, run([data[i] for i in (1, 2, 4, 5)]))
    kept = torch.load(tmp_path / "nonfinite" / "step-1" / "state.pt", weights_only=True)
    assert_identical(kept["roles"]["student"], normalised().state_dict())  # before the update, so that it can be done again


def test_how_many_were_dropped_survives_resuming(tmp_path):
    def run(out, stop_at=None, resume=False):
        def progress(record):
            if record.step == stop_at:
                raise KeyboardInterrupt

        student = normalised()
        options = {"steps": 6, "skip_nonfinite": 1, "checkpoint_every": 1, "warn": lambda line: None}
        torch.manual_seed(4)
        train(CrossEntropy(), {"student": student}, poisoned(1, 4), sgd(student), out=out, progress=progress, resume=resume, **options)

    with pytest.raises(NonFinite, match="at step 4"):
        run(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", stop_at=3)
    with pytest.raises(NonFinite, match="at step 4"):
        run(tmp_path / "broken", resume=True)
    assert (tmp_path / "straight" / "metrics.jsonl").read_bytes() == (tmp_path / "broken" / "metrics.jsonl").read_bytes()


@dataclass(frozen=True, kw_only=True)
class Steep(Method):
    """A finite loss whose gradient overflows on one batch."""

    def loss(self, batch, signal, roles, state):
        logits = roles["student"](batch["x"])
        loss = F.cross_entropy(logits, batch["y"], reduction="none")
        return {"hard": loss + (logits[:, 0] - logits[:, 0].detach()).abs().sqrt() if state.step == 1 else loss}


def test_a_bad_gradient_is_a_bad_batch_too(tmp_path):
    student, lines = net(0), []
    weights = []

    def progress(record):
        weights.append(vector(student))

    options = {"steps": 3, "skip_nonfinite": 1, "out": tmp_path, "warn": lines.append, "progress": progress}
    with pytest.raises(NonFinite, match="gradient: expected finite values at step 2, got norm=nan"):
        train(Steep(), {"student": student}, batches(3), sgd(student), **options)
    assert len(lines) == 1
    assert len(weights) == 1
    assert torch.equal(vector(student), weights[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_can_be_resumed(tmp_path, number):
    straight, optimizer, _ = resumable(tmp_path / "straight")
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}

    @dataclass(frozen=True, kw_only=True, repr=False)
    class Struck(Wandering):
        """Named like the straight run's method; the signal comes in the middle of a step."""

        def __repr__(self):
            return "Wandering(noise=0.1)"

        def loss(self, batch, signal, roles, state):
            if state.step == 2:
                os.kill(os.getpid(), number)
            return super().loss(batch, signal, roles, state)

    with pytest.raises(Interrupted) as caught:
        resumable(tmp_path / "b", method=Struck())
    assert caught.value.exit_code == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert str(caught.value) == f"{number.name} after step 3, saved in {tmp_path / 'b'}"
    assert checkpoints(tmp_path / "b") == [2, 3]
    assert {each: signal.getsignal(each) for each in before} == before
    again, resumed, _ = resumable(tmp_path / "b", resume=True)
    assert_identical(again["student"].state_dict(), straight["student"].state_dict())
    assert_identical(resumed.state_dict(), optimizer.state_dict())
    assert (tmp_path / "b" / "metrics.jsonl").read_bytes() == (tmp_path / "straight" / "metrics.jsonl").read_bytes()


def strike(record, step=2):
    if record.step == step:
        os.kill(os.getpid(), signal.SIGTERM)


def test_without_out_the_signal_says_that_nothing_is_saved():
    student = net(0)
    with pytest.raises(Interrupted, match=r"^SIGTERM after step 2, not saved: there is no out$"):
        train(CrossEntropy(), {"student": student}, batches(2), sgd(student), steps=5, progress=strike)


@pytest.fixture
def interruptible():
    """Python's own answer to Ctrl-C, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_is_not_held_back(tmp_path, interruptible):
    student, reached = net(0), []

    def twice(record):
        if record.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("first")
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("second")

    with pytest.raises(KeyboardInterrupt):
        train(CrossEntropy(), {"student": student}, batches(2), sgd(student), steps=5, progress=twice, out=tmp_path)
    assert reached == ["first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_at_the_very_end_is_not_lost(tmp_path, monkeypatch):
    student = net(0)
    saved = run_module.save_checkpoint

    def save(*args, **keys):
        os.kill(os.getpid(), signal.SIGTERM)
        return saved(*args, **keys)

    monkeypatch.setattr(run_module, "save_checkpoint", save)
    with pytest.raises(Interrupted, match="SIGTERM after step 3, saved in"):
        train(CrossEntropy(), {"student": student}, batches(2), sgd(student), steps=3, out=tmp_path)
    assert checkpoints(tmp_path) == [3]


@dataclass(frozen=True, kw_only=True)
class Nested(CrossEntropy):
    """Trains a copy in prepare, where the signal comes."""

    def prepare(self, batch, roles, state):
        client = copy.deepcopy(roles["student"])

        def progress(record):
            if state.step == 1:
                strike(record)

        train(CrossEntropy(), {"student": client}, [batch], sgd(client), steps=3, progress=progress)
        roles["student"].load_state_dict(client.state_dict())
        return batch


def test_a_signal_inside_an_inner_run_ends_the_outer_one_saved(tmp_path):
    student, twin = net(0), net(0)
    with pytest.raises(Interrupted, match=r"SIGTERM after step 2, saved in"):
        train(Nested(), {"student": student}, batches(2), sgd(student), steps=4, out=tmp_path)
    assert checkpoints(tmp_path) == [2]
    for batch in batches(2):
        train(CrossEntropy(), {"student": twin}, [batch], sgd(twin), steps=4)
    assert torch.equal(vector(student), vector(twin))


def test_in_another_thread_signals_are_left_alone():
    student, errors = net(0), []
    before = signal.getsignal(signal.SIGTERM)

    def work():
        try:
            train(CrossEntropy(), {"student": student}, batches(2), sgd(student), steps=2)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
    assert signal.getsignal(signal.SIGTERM) is before
