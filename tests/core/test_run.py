"""train: what it writes, evaluation, best weights, early stopping, averages."""

import copy
import json

import pytest
import torch
from accelerate import Accelerator
from tests.core.small import CrossEntropy, accuracy, assert_identical, batches, checkpoints, lines_of, net, sgd, vector
from torch import nn

from preceptor.core.run import train


def scores(*values):
    """A validation that returns the given accuracies one after the other."""
    left = iter(values)
    return lambda roles, state: {"accuracy": next(left), "nll": 0.5}


def test_what_is_written(tmp_path):
    student, seen = net(0), []
    valid = scores(0.25, 0.5, 0.75)
    train(
        CrossEntropy(),
        {"student": student},
        batches(2),
        sgd(student),
        steps=5,
        valid=valid,
        evaluate_every=2,
        out=tmp_path / "deep" / "run",
        progress=seen.append,
    )
    out = tmp_path / "deep" / "run"
    lines = lines_of(out)
    assert [(line["step"], "valid" in line) for line in lines] == [
        *((1, False), (2, False), (2, True), (3, False), (4, False), (4, True), (5, False), (5, True))
    ]
    first = lines[0]
    assert first == {
        "step": 1,
        "epoch": 0,
        "losses": seen[0].losses,
        "items": 8,
        "learning_rate": 0.1,
        "gradient_norm": seen[0].gradient_norm,
    }
    assert lines[2] == {"step": 2, "valid": {"accuracy": 0.25, "nll": 0.5}}
    timings = [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()]
    assert [line["step"] for line in timings] == [1, 2, 3, 4, 5]
    assert all(line["seconds"] > 0 and line["peak_memory_mb"] > 10 for line in timings)
    assert checkpoints(out) == [4, 5]  # by default at validations and at the end, the last two


def test_nothing_is_written_without_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student = net(0)
    train(CrossEntropy(), {"student": student}, batches(2), sgd(student), steps=2, valid=scores(1.0))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_another_run_is_refused(tmp_path):
    student = net(0)
    train(CrossEntropy(), {"student": student}, batches(2), sgd(student), steps=2, out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="holds another run; resume it, or choose another folder"):
        train(CrossEntropy(), {"student": student}, batches(2), sgd(student), steps=2, out=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_best_weights_are_loaded_and_the_checkpoint_goes_on_from_the_last(tmp_path):
    student, history = net(0), []

    def valid(roles, state):
        history.append(vector(roles["student"]))
        return {"accuracy": [0.1, 0.9, 0.9, 0.3][len(history) - 1]}

    state = train(CrossEntropy(), {"student": student}, batches(2), sgd(student), steps=4, valid=valid, evaluate_every=1, out=tmp_path)
    assert torch.equal(vector(student), history[1])  # of equals the first
    assert (state.best["step"], state.best["value"], state.best["metrics"]) == (2, 0.9, {"accuracy": 0.9})
    saved = torch.load(tmp_path / "checkpoints" / "step-4" / "state.pt", weights_only=True)
    twin = net(0)
    twin.load_state_dict(saved["roles"]["student"])
    assert torch.equal(vector(twin), history[3])


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 4)])
def test_monitor_and_mode(mode, best):
    student = net(0)
    values = iter([0.5, 0.9, 0.4, 0.2])
    options = {"valid": lambda roles, state: {"loss": next(values)}, "evaluate_every": 1, "monitor": "loss", "mode": mode}
    assert train(CrossEntropy(), {"student": student}, batches(2), sgd(student), steps=4, **options).best["step"] == best
    with pytest.raises(ValueError, match=r"monitor: expected one of \['accuracy', 'nll'\], got 'acuracy'"):
        train(CrossEntropy(), {"student": student}, batches(2), sgd(student), steps=1, valid=scores(1.0), monitor="acuracy")


def test_a_nan_is_never_best():
    student = net(0)
    valid = scores(float("nan"), 0.2, float("nan"), 0.1)
    state = train(CrossEntropy(), {"student": student}, batches(2), sgd(student), steps=4, valid=valid, evaluate_every=1)
    assert (state.best["step"], state.best["value"]) == (2, 0.2)


def test_early_stopping_and_resuming_after_it(tmp_path):
    student, asked = net(0), []
    values = [0.1, 0.5, 0.4, 0.5, 0.9]

    def valid(roles, state):
        asked.append(state.step)
        return {"accuracy": values[len(asked) - 1]}

    options = {"steps": 20, "valid": valid, "evaluate_every": 2, "patience": 2, "out": tmp_path}
    state = train(CrossEntropy(), {"student": student}, batches(3), sgd(student), **options)
    assert asked == [2, 4, 6, 8]
    assert (state.step, state.best["step"]) == (8, 4)
    assert checkpoints(tmp_path)[-1] == 8
    metrics = (tmp_path / "metrics.jsonl").read_bytes()

    other = net(5)
    again = train(CrossEntropy(), {"student": other}, batches(3), sgd(other), **options, resume=True)
    assert asked == [2, 4, 6, 8]  # it has stopped, and stays so
    assert again.step == 8
    assert torch.equal(vector(other), vector(student))
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_numbers_that_are_not_finite_are_strict_json(tmp_path):
    student = net(0)
    metrics = {"accuracy": 0.5, "a": torch.nan, "b": torch.inf, "c": -torch.inf}
    train(CrossEntropy(), {"student": student}, batches(1), sgd(student), steps=1, valid=lambda *_: metrics, out=tmp_path)
    assert lines_of(tmp_path)[-1] == {"step": 1, "valid": {"accuracy": 0.5, "a": "nan", "b": "inf", "c": "-inf"}}


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    student, other = net(0), net(3)
    train(CrossEntropy(), {"student": student}, batches(3), sgd(student), steps=4, out=tmp_path)
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    train(CrossEntropy(), {"student": other}, batches(3), sgd(other), steps=4, out=tmp_path, resume=True)
    assert torch.equal(vector(other), vector(student))
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_validation_does_not_change_the_course():
    runs = []
    for every in (None, 1):
        student = net(0, dropout=0.5)
        modes = []

        def valid(roles, state, modes=modes):
            modes.append((roles["student"].training, torch.is_grad_enabled()))
            torch.rand(5), torch.rand(5, generator=state.rng)
            return {"accuracy": float(state.step)}

        torch.manual_seed(1)
        train(CrossEntropy(), {"student": student}, batches(3), sgd(student), steps=4, valid=valid, evaluate_every=every)
        runs.append(vector(student))
        assert set(modes) == {(False, False)}
        assert student.training
    assert torch.equal(*runs)


def test_average_is_evaluated_and_kept(tmp_path):
    student = nn.Sequential(net(0), nn.BatchNorm1d(3).double())
    ema, weights, judged = copy.deepcopy(student), [vector(student)], []

    def valid(roles, state):
        judged.append(copy.deepcopy(roles["student"]))
        assert roles["student"] is ema
        return {"accuracy": accuracy(roles["student"], batches(1, 30, seed=4))}

    data = batches(3)
    options = {"steps": 3, "valid": valid, "evaluate_every": 3, "ema": 0.7, "out": tmp_path}
    roles = {"student": student, "ema": ema}
    train(CrossEntropy(), roles, data, sgd(student, rate=0.5), **options, progress=lambda record: weights.append(vector(student)))
    closed = 0.7**3 * weights[0] + sum(0.3 * 0.7 ** (3 - s) * weights[s] for s in (1, 2, 3))
    torch.testing.assert_close(vector(judged[0]), closed, rtol=1e-12, atol=1e-14)
    assert torch.equal(vector(student), vector(judged[0]))  # the student that comes back is the one that was judged
    assert_identical(dict(ema.named_buffers()), dict(student.named_buffers()))
    saved = torch.load(tmp_path / "checkpoints" / "step-3" / "state.pt", weights_only=True)["roles"]
    assert_identical(saved["ema"], ema.state_dict())
    assert not torch.equal(saved["student"]["0.0.weight"], saved["ema"]["0.0.weight"])
    with pytest.raises(ValueError, match=r"roles: ema=0.7 needs a role 'ema' \(a copy of the student\), got roles \['student'\]"):
        train(CrossEntropy(), {"student": student}, data, sgd(student), **options)


@pytest.mark.parametrize("name", ["keep", "patience", "evaluate_every", "checkpoint_every"])
def test_counts_start_at_one(name):
    student = net(0)
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        train(CrossEntropy(), {"student": student}, batches(1), sgd(student), steps=1, **{name: 0})
    assert torch.equal(vector(student), vector(net(0)))


def test_trackers_hear_of_everything(monkeypatch):
    accelerator, heard, student = Accelerator(), [], net(0)
    monkeypatch.setattr(accelerator, "log", lambda values, step: heard.append((step, values)))
    train(
        CrossEntropy(), {"student": student}, batches(1), sgd(student), steps=2, valid=scores(0.5), accelerator=accelerator, trackers=True
    )
    assert [(step, set(values)) for step, values in heard] == [
        (1, {"hard", "total", "learning_rate"}),
        (2, {"hard", "total", "learning_rate"}),
        (2, {"valid/accuracy", "valid/nll"}),
    ]
