"""The loop: reduction, phases, schedulers, records, errors."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from tests.core.small import CrossEntropy, assert_identical, assert_same_weights, batches, net, records_of, sgd, vector

from preceptor.core.loop import steps
from preceptor.core.method import Method, NonFinite, Phase
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.stream import as_stream
from preceptor.core.types import total_loss


@dataclass(frozen=True, kw_only=True)
class Masked(Method):
    """Two terms with masks of their own and a scalar regulariser."""

    def loss(self, batch, signal, roles, state):
        logits = roles["student"](batch["x"])
        return {
            "hard": F.cross_entropy(logits, batch["y"], reduction="none"),
            "soft": logits.square(),
            "decay": 0.1 * sum(p.square().sum() for p in roles["student"].parameters()),
        }


def uneven(count):
    draws = torch.Generator().manual_seed(3)
    return [
        {
            **batch,
            "mask": (torch.rand(8, 3, generator=draws) < 0.4).double(),
            "mask/hard": torch.tensor([1, 1, 1, 0, 0, 0, 1, 0]),
        }
        for batch in batches(count)
    ]


@pytest.mark.parametrize("micro", [2, 3, 4, 8])
def test_microbatches_change_nothing(micro):
    runs = []
    for parts in (1, micro):
        student = net(0)
        runs.append((student, records_of(Masked(), {"student": student}, uneven(5), {"student": sgd(student)}, total=5, micro=parts)))
    assert_same_weights(runs[0][0], runs[1][0])
    for one, many in zip(runs[0][1], runs[1][1], strict=True):
        assert one.losses.keys() == many.losses.keys() == {"hard", "soft", "decay", "total"}
        assert many.losses == pytest.approx(one.losses, rel=1e-12)
        assert (one.items, one.step) == (many.items, many.step)


def test_reduction_by_hand():
    student, (batch,) = net(0), uneven(1)
    (record,) = records_of(Masked(), {"student": student}, [batch], {"student": sgd(student)}, total=1, micro=4)
    twin = net(0)
    logits = twin(batch["x"])
    hard = F.cross_entropy(logits, batch["y"], reduction="none")[[0, 1, 2, 6]].mean()
    soft = logits.square()[batch["mask"].bool()].mean()
    decay = 0.1 * sum(p.square().sum() for p in twin.parameters())
    (hard + soft + decay).backward()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.sub_(0.1 * parameter.grad)
    assert_same_weights(student, twin)
    expected = {"hard": hard.item(), "soft": soft.item(), "decay": decay.item(), "total": (hard + soft + decay).item()}
    assert record.losses == pytest.approx(expected, rel=1e-12)


def test_an_empty_mask_steps_with_a_zero_gradient():
    student, (batch,) = net(0), batches(1)
    optimizer = torch.optim.SGD(student.parameters(), 0.1, weight_decay=0.5)
    data = [{**batch, "mask": torch.zeros(8)}]
    (record,) = records_of(CrossEntropy(), {"student": student}, data, {"student": optimizer}, total=1, micro=2)
    assert record.losses == {"hard": 0.0, "total": 0.0}
    assert record.gradient_norm == 0.0
    assert all(torch.count_nonzero(p.grad) == 0 for p in student.parameters())
    torch.testing.assert_close(vector(student), vector(net(0)) * (1 - 0.1 * 0.5), rtol=1e-14, atol=0)  # decay is not part of the loss


@dataclass(frozen=True, kw_only=True)
class Spoiling(CrossEntropy):
    """Replaces and removes entries of the batch it is given."""

    def prepare(self, batch, roles, state):
        batch["y"] = batch["y"].flip(0)
        batch["extra"] = torch.ones(len(batch["y"]))
        del batch["id"]
        return batch


def test_the_batch_of_the_source_is_not_edited():
    student, data = net(0), batches(2)
    before = [{key: value.clone() for key, value in batch.items()} for batch in data]
    records_of(Spoiling(), {"student": student}, data, {"student": sgd(student)}, total=4)
    assert_identical(data, before)


def test_records():
    student, data = net(0), batches(3)
    data[2] = {key: value[:5] for key, value in data[2].items()}

    @dataclass(frozen=True, kw_only=True)
    class Logging(CrossEntropy):
        def after_step(self, batch, records, roles, state):
            state.log["largest"] = float(batch["x"].max())
            assert records["student"]["hard"].ndim == 0
            assert not records["student"]["hard"].requires_grad

    optimizer = sgd(student, rate=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    roles = {"student": student}
    records = records_of(Logging(), roles, data, {"student": optimizer}, total=4, schedulers={"student": schedule})
    assert [record.step for record in records] == [1, 2, 3, 4]
    assert [record.epoch for record in records] == [0, 0, 0, 1]
    assert [record.items for record in records] == [8, 8, 5, 8]
    assert [record.learning_rate for record in records] == [0.5, 0.25, 0.125, 0.0625]  # the rate of this update, not of the next
    assert [record.extras["largest"] for record in records[:3]] == [float(batch["x"].max()) for batch in data]
    twin = net(0)
    F.cross_entropy(twin(data[0]["x"]), data[0]["y"]).backward()
    norm = torch.cat([p.grad.reshape(-1) for p in twin.parameters()]).norm()
    assert records[0].gradient_norm == pytest.approx(norm.item(), rel=1e-12)


@dataclass(frozen=True, kw_only=True)
class Timetable(Method):
    """Two phases at their own times."""

    every: int = 1
    start: int = 0
    stop: int | None = None
    ran: list = field(default_factory=list, repr=False)

    def phases(self):
        hooks: dict[str, Any] = {"signal": self.signal, "update": self.update}
        return (
            Phase(name="student", trains=("student",), loss=self.of("student"), **hooks),
            Phase(name="critic", trains=("critic",), loss=self.of("critic"), every=self.every, start=self.start, stop=self.stop, **hooks),
        )

    def of(self, name):
        def loss(batch, signal, roles, state):
            self.ran.append((name, state.step))
            return {"hard": F.cross_entropy(roles[name](batch["x"]), batch["y"], reduction="none")}

        return loss


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"every": 3}, [0, 3, 6]),
        ({"start": 2}, [2, 3, 4, 5, 6]),
        ({"stop": 2}, [0, 1]),
        ({"every": 2, "start": 1, "stop": 5}, [1, 3]),
    ],
)
def test_phases_run_when_they_should(when, expected):
    student, critic, method = net(0), net(1), Timetable(**when)
    optimizers = {"student": sgd(student), "critic": sgd(critic)}
    schedules = {name: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) for name, optimizer in optimizers.items()}
    roles = {"student": student, "critic": critic}
    records = records_of(method, roles, batches(7), optimizers, total=7, schedulers=schedules)
    assert [step for name, step in method.ran if name == "critic"] == expected
    assert [step for name, step in method.ran if name == "student"] == list(range(7))
    assert [record.step - 1 for record in records if "critic/hard" in record.losses] == expected
    assert optimizers["critic"].param_groups[0]["lr"] == 0.1 * 0.5 ** len(expected)  # a schedule moves with its own phase
    assert optimizers["student"].param_groups[0]["lr"] == 0.1 * 0.5**7


def test_training_does_not_depend_on_the_callers_gradient_mode():
    student, twin = net(0), net(0)
    with torch.no_grad():
        train(CrossEntropy(), {"student": student}, batches(3), sgd(student), steps=3)
    train(CrossEntropy(), {"student": twin}, batches(3), sgd(twin), steps=3)
    assert_identical(student.state_dict(), twin.state_dict())


@dataclass(frozen=True, kw_only=True)
class Coupled(CrossEntropy):
    coupled = True


def test_bad_arguments_are_named():
    student = net(0)
    roles, optimizers = {"student": student}, {"student": sgd(student)}
    with pytest.raises(ValueError, match="micro: Coupled relates the items of a batch and cannot be split, expected 1, got 2"):
        records_of(Coupled(), roles, batches(1), optimizers, total=1, micro=2)
    with pytest.raises(ValueError, match="micro: expected at least 1, got 0"):
        records_of(CrossEntropy(), roles, batches(1), optimizers, total=1, micro=0)
    with pytest.raises(ValueError, match=r"roles: phase 'student' trains \['student'\], got roles \['teacher'\]"):
        records_of(CrossEntropy(), {"teacher": student}, batches(1), optimizers, total=1)
    with pytest.raises(ValueError, match=r"optimizers: expected one for phase 'student', got \[\]"):
        records_of(CrossEntropy(), roles, batches(1), {}, total=1)
    with pytest.raises(ValueError, match=r"optimizers: expected phases out of \['student'\], got \['critic'\]"):
        records_of(CrossEntropy(), roles, batches(1), {**optimizers, "critic": sgd(student)}, total=1)
    with pytest.raises(NotImplementedError, match="Method overrides neither loss nor phases"):
        records_of(Method(), roles, batches(1), optimizers, total=1)
    with pytest.raises(ValueError, match="source: expected at least one batch per pass, got none"):
        records_of(CrossEntropy(), roles, [], optimizers, total=1)
    assert torch.equal(vector(student), vector(net(0)))
    assert len(records_of(Coupled(), roles, batches(1), optimizers, total=1)) == 1


def test_a_bad_loss_stops_before_the_step():
    student, data = net(0), batches(3)
    data[1]["x"] = data[1]["x"] * torch.nan
    optimizer = sgd(student)
    turn = steps(
        CrossEntropy(), {"student": student}, as_stream(data), {"student": optimizer}, state=State(total_steps=3), accelerator=Accelerator()
    )
    next(turn)
    weights = vector(student)
    with pytest.raises(NonFinite, match="loss: expected finite values at step 2, got hard=nan") as caught:
        next(turn)
    assert torch.equal(vector(student), weights)
    assert caught.value.step == 1
    assert torch.equal(caught.value.batch["id"], data[1]["id"])


def test_the_total_loss_is_the_only_one_or_the_students():
    assert total_loss({"hard": 1.0, "total": 1.0}) == 1.0
    assert total_loss({"student/total": 2.0, "ratio/total": 3.0}) == 2.0
    assert math.isnan(total_loss({}))
