"""`distill`: what it gives back is what it saved, whatever the global random state, broken off or not; bad input leaves nothing behind."""

import json
import math
from copy import deepcopy

import pytest
import torch
from torch import nn

import preceptor
from preceptor.data.examples import examples_from
from preceptor.distillation import make_method, make_task, make_training
from preceptor.methods.classic_kd import ClassicKD
from preceptor.models.folder import load_student
from preceptor.training import Training


def points(count, seed):
    """Inputs whose class is the largest of the first three."""
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].argmax(1)


def teacher():
    model = nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(4 * torch.eye(3, 6))
    return model


def student(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return model


def run(**changes):
    given = {
        **{name: make() for name, make in {"teacher": teacher, "student": student}.items() if name not in changes},
        "train": points(80, 1),
        "test": points(50, 2),
        "training": {"steps": 12, "batch_size": 16, "evaluate_every": 3, "checkpoint_every": 2, "learning_rate": 0.02},
        "say": lambda line: None,
    }
    return preceptor.distill(**{**given, **changes})


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_the_numbers_are_those_of_the_saved_student(tmp_path):
    given = student()
    result = run(student=given, out=tmp_path / "run")
    assert result.student is given
    assert not given.training
    saved = load_student(tmp_path / "run" / "student", model=student(seed=9))
    x, y = points(50, 2)
    with torch.no_grad():
        logits, taught = saved(x).double(), teacher()(x).double()
    log_q, log_p = logits.log_softmax(1), taught.log_softmax(1)
    expected = {
        "accuracy": float((logits.argmax(1) == y).double().mean()),
        "nll": -sum(float(log_q[i, label]) for i, label in enumerate(y.tolist())) / 50,
        "agreement": float((logits.argmax(1) == taught.argmax(1)).double().mean()),
        "kl_to_teacher": float((log_p.exp() * (log_p - log_q)).sum(1).mean()),
    }
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    row = next(row for row in written["rows"] if row["role"] == "method")
    for name, value in expected.items():
        assert math.isclose(result.metrics[name], value, rel_tol=1e-5), name
        assert row["seeds"][0]["metrics"][name] == row["summary"][name]["mean"] == result.metrics[name]
    assert result.result == written
    assert result.teacher_metrics["accuracy"] == float((taught.argmax(1) == y).double().mean())


def test_neither_reads_nor_moves_the_global_random_state():
    def mutual(**options):  # draws a peer
        networks = {"teacher": teacher(), "student": student()}
        before = torch.get_rng_state()
        result = run(method="mutual", **networks, **options)
        assert torch.equal(torch.get_rng_state(), before)
        return weights(result.student)

    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(mutual())
    assert torch.equal(*found)
    assert not torch.equal(found[0], mutual(seed=1))


def test_without_a_test_part_the_validation_part_is_measured_and_that_is_said():
    valid = points(30, 3)
    result = run(valid=valid, test=None)
    with torch.no_grad():
        assert result.metrics["accuracy"] == pytest.approx(float((result.student(valid[0]).argmax(1) == valid[1]).double().mean()))
    assert "the validation part: no test part was given (30 examples)" in result.result["notes"][0]
    assert "the test part, read once" in run().result["notes"][0]


def test_the_validation_part_is_a_stratified_tenth_by_seed():
    x, y = points(300, 1)
    first, same, other = (make_task((x, y), None, None, teacher=None, seed=seed) for seed in (0, 0, 1))
    assert (len(first.train), len(first.valid)) == (270, 30)
    assert torch.equal(first.valid.ids, same.valid.ids)
    assert not torch.equal(first.valid.ids, other.valid.ids)
    counts, whole = torch.bincount(first.valid.labels), torch.bincount(y)
    assert all(abs(int(a) - int(b) / 10) < 1 for a, b in zip(counts, whole, strict=True))


class BrokenOffError(Exception):
    """Ends a run in the middle."""


def test_broken_off_and_resumed_it_ends_like_the_straight_run(tmp_path):
    straight = run(out=tmp_path / "a")

    def stop(record, total):
        if record.step == 7:
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        run(out=tmp_path / "b", progress=stop)
    assert not (tmp_path / "b" / "result.json").exists()
    resumed = run(student=student(seed=5), out=tmp_path / "b", resume=True)  # other first weights, replaced by those of the checkpoint
    assert torch.equal(weights(straight.student), weights(resumed.student))
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()
    assert straight.metrics == resumed.metrics
    assert straight.result["curves"] == resumed.result["curves"]
    again = run(student=student(seed=5), out=tmp_path / "b", resume=True)  # a finished run is read back
    assert (again.metrics, again.result["curves"]) == (straight.metrics, straight.result["curves"])


def test_a_run_directory_is_not_used_twice(tmp_path):
    run(out=tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"^out: expected a new or empty directory, got .*run, which holds another run"):
        run(out=tmp_path / "run")
    with pytest.raises(ValueError, match="train"):
        run(out=tmp_path / "run", resume=True, train=points(80, 7))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


x, y = points(80, 1)
whole = examples_from((x, y))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"test": (x.clone(), y.clone())},
            r"^test: expected examples other than those of train or valid, got 80 ",
        ),
        ({"valid": (x[:20].clone(), y[:20])}, r"^valid: expected examples other than those of train, got 20 "),
        ({"valid": points(30, 3), "test": points(30, 3)}, r"^test: expected examples other than those of train or valid, got 30 "),
        (
            {"train": whole.subset(range(60)), "test": whole.subset(range(59, 80))},
            "^test: expected no example of (train|valid), got 1 ",
        ),
        (
            {"method": ClassicKD(), "options": {"temperature": 2.0}},
            r"^options: expected none beside a method object, got \[",
        ),
        ({"method": "classic-kd", "options": {"temprature": 2.0}}, r"^method\.temprature: expected .* nearest: 'temperature'$"),
        ({"method": "clasic-kd"}, "nearest: 'classic-kd'"),
        ({"training": {"stepz": 3}}, "stepz"),
        ({"test": (x[:5], torch.tensor([0, 1, 2, 3, 0]))}, r"^test: expected labels in \[0, 3\), got 3 in example 3$"),
        ({"student": nn.Linear(5, 3)}, "^model: expected Linear to take the data, got: "),
        ({"student": nn.Linear(6, 2)}, "^teacher: expected 2 classes like the student, got 3$"),
        ({"teacher": nn.Linear(6, 3, bias=False).requires_grad_(False)}, "^teacher: expected "),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(changes, message, tmp_path):
    if isinstance(changes.get("teacher"), nn.Linear):
        with torch.no_grad():
            changes["teacher"].weight.zero_()
    given = student()
    before = deepcopy(given.state_dict())
    with pytest.raises(ValueError, match=message):
        run(**{"student": given, **changes}, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


def test_a_few_shared_inputs_are_said_and_noted():
    said = []
    valid, test = points(30, 3), points(50, 2)
    valid[0][:2] = points(80, 1)[0][:2]
    test[0][:3] = valid[0][10:13]
    result = run(valid=valid, test=test, say=said.append)
    lines = ["valid: 2 of 30 inputs stand in train too, byte for byte", "test: 3 of 50 inputs stand in train or valid too, byte for byte"]
    assert said[:2] == [f"data: {line}" for line in lines]
    assert [note for note in result.result["notes"] if note in lines] == lines


def test_epochs_overrule_the_training_settings():
    settings = make_training(Training(steps=7, batch_size=10), 3)
    assert (settings.epochs, settings.steps, settings.total_steps(4)) == (3.0, None, 12)
    assert make_training({"steps": 7}, None).total_steps(4) == 7
    assert run(training={"batch_size": 24}, epochs=2).result["rows"][1]["seeds"][0]["steps"] == 6  # 72 of 80 examples in 3 batches


def test_lists_of_a_recipe_become_tuples():
    assert make_method("fitnets", {"student_layers": ["a"], "teacher_layers": ["b"]}).student_layers == ("a",)
