"""A teacher tuned for conditional mutual information."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from preceptor.core.run import fingerprint, train
from preceptor.core.state import State
from preceptor.data.examples import examples_from
from preceptor.data.sources import Source
from preceptor.losses.hard import hard_loss
from preceptor.methods.classic_kd import ClassicKD
from preceptor.methods.mcmi import (
    CARD,
    MCMI,
    Tuning,
    centroids_of,
    class_centroids,
    conditional_mutual_information,
    kl_to_centroid,
    miniature,
)
from preceptor.miniature.worlds import fit
from preceptor.models.reference import CNN, MLP
from preceptor.task import Task
from preceptor.teachers.cache import Cache

LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 0, 3, 3])


@pytest.fixture
def logits() -> Tensor:
    """Logits of 9 examples and 4 classes."""
    return 2 * torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def networks() -> tuple[MLP, MLP]:
    torch.manual_seed(0)
    return MLP(inputs=5, hidden=(12,), classes=3), MLP(inputs=5, hidden=(3,), classes=3)


def data(size: int = 30):
    x = torch.randn(size, 5, generator=torch.Generator().manual_seed(2))
    return examples_from((x, torch.arange(size) % 3), 3)


def test_defaults_are_those_of_the_card():
    method = MCMI()
    assert (method.cmi_weight, method.refresh, method.decay, method.temperature, method.alpha) == (0.15, "epoch", 0.9999, 4.0, 0.9)
    assert (CARD.slug, CARD.kind, CARD.needs) == ("mcmi", "chain", ("teacher", "logits", "labels"))
    assert Tuning() == Tuning(cmi_weight=method.cmi_weight, refresh=method.refresh, decay=method.decay)


def test_reference(logits):
    rows = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in logits.tolist()]
    centroids = []
    for k in range(4):
        own = [p for p, y in zip(rows, LABELS.tolist(), strict=True) if y == k]
        centroids.append([sum(column) / len(own) for column in zip(*own, strict=True)])
    torch.testing.assert_close(class_centroids(logits, LABELS), torch.tensor(centroids, dtype=torch.double))
    terms = kl_to_centroid(logits, LABELS, torch.tensor(centroids, dtype=torch.double)).tolist()
    for p, y, value in zip(rows, LABELS.tolist(), terms, strict=True):
        assert math.isclose(value, sum(a * math.log(a / b) for a, b in zip(p, centroids[y], strict=True)), rel_tol=1e-9)
    assert math.isclose(conditional_mutual_information(logits, LABELS).item(), sum(terms) / 9, rel_tol=1e-12)


def test_it_is_the_spread_of_entropies(logits):
    p, q = logits.softmax(-1), class_centroids(logits, LABELS)
    inside = [torch.special.entr(q[k]).sum() for k in range(4)]
    spread = sum((k == LABELS).double().mean() * (inside[k] - torch.special.entr(p[k == LABELS]).sum(-1).mean()) for k in range(4))
    torch.testing.assert_close(conditional_mutual_information(logits, LABELS), torch.as_tensor(spread))


def test_zero_where_predictions_of_a_class_agree(logits):
    assert conditional_mutual_information(logits[:1].expand(9, 4), LABELS) < 1e-15
    assert conditional_mutual_information(1000 * torch.eye(4)[LABELS], LABELS) == 0


def test_bounds_and_extremes(logits):
    assert 0 < conditional_mutual_information(logits, LABELS) < math.log(4)
    opposite = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
    torch.testing.assert_close(conditional_mutual_information(opposite, torch.tensor([0, 0])), torch.tensor(math.log(2)))
    values = [conditional_mutual_information(logits / t, LABELS).item() for t in (0.01, 1.0, 1000.0)]
    assert values[2] < 1e-5 < values[1]


def test_invariances(logits):
    value = conditional_mutual_information(logits, LABELS)
    torch.testing.assert_close(conditional_mutual_information(logits.flip(0), LABELS.flip(0)), value)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(conditional_mutual_information(logits[:, order], order.argsort()[LABELS]), value)
    torch.testing.assert_close(conditional_mutual_information(logits + torch.arange(9.0)[:, None], LABELS), value)


def test_any_other_centroids_give_more_by_their_own_divergence(logits):
    own = class_centroids(logits, LABELS)
    other = torch.rand(4, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0)).softmax(-1)
    excess = conditional_mutual_information(logits, LABELS, other) - conditional_mutual_information(logits, LABELS)
    share = LABELS.bincount() / 9
    torch.testing.assert_close(excess, (share * (own * (own / other).log()).sum(-1)).sum())


def test_gradient(logits):
    centroids = class_centroids(logits.flip(0), LABELS).requires_grad_()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kl_to_centroid(x, LABELS, centroids.detach()), (logits,))
    loss = kl_to_centroid(logits, LABELS, centroids)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    log_p = logits.detach().log_softmax(-1)
    expected = log_p.exp() * (log_p - centroids.detach().log()[LABELS] - loss.detach()[:, None])
    torch.testing.assert_close(gradient, expected)
    assert centroids.grad is None


def test_absent_classes_keep_their_centroid(logits):
    labels = LABELS.clamp_max(2)
    old = torch.rand(4, 4, dtype=torch.double).softmax(-1)
    assert torch.equal(class_centroids(logits, labels, previous=old)[3], old[3])
    assert class_centroids(logits, labels)[3].tolist() == [0.25] * 4
    torch.testing.assert_close(class_centroids(logits, labels).sum(-1), torch.ones(4, dtype=torch.double))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_stay_finite(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-math.inf, 5.0, 4.0], [0.0, 0.0, 1e4]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([0, 0, 2])
    centroids = class_centroids(logits, labels)
    assert centroids.dtype == torch.float32
    for q in (centroids, torch.eye(3)):
        terms = kl_to_centroid(logits, labels, q)
        assert terms.isfinite().all()
        assert (terms >= 0).all()
        assert torch.autograd.grad(terms.sum(), logits)[0].nan_to_num(posinf=math.nan).isfinite().all()


def test_one_class_one_example_none():
    assert conditional_mutual_information(torch.tensor([[3.0]]), torch.tensor([0])) == 0
    assert kl_to_centroid(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.eye(3)).shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS + 1}, r"labels: expected values in \[0, 3\], got 4"),
        ({"labels": torch.zeros(9, 4).long()}, r"labels: expected shape \(9,\) for logits \(9, 4\), got \(9, 4\)"),
        ({"centroids": torch.ones(3, 4)}, r"centroids: expected shape \(4, 4\) for 4 classes, got \(3, 4\)"),
    ],
)
def test_wrong_input_is_refused(logits, change, message):
    with pytest.raises(ValueError, match=message):
        kl_to_centroid(**({"logits": logits, "labels": LABELS, "centroids": torch.full((4, 4), 0.25)} | change))


def test_centroids_of_a_model_whatever_the_batches():
    torch.manual_seed(0)
    examples = examples_from((torch.randn(20, 1, 6, 6), torch.arange(20) % 3), 4)
    model = CNN(channels=(2,), classes=4, norm="batch")
    before = fingerprint(model)
    found = [centroids_of(model, Source(examples, batch_size=n).scan(), 4) for n in (1, 7, 20)]
    assert fingerprint(model) == before
    assert model.training
    logits = model.eval()(examples.inputs)
    for centroids, cmi in found:
        torch.testing.assert_close(centroids, class_centroids(logits, examples.labels))
        assert math.isclose(cmi, conditional_mutual_information(logits, examples.labels).item(), abs_tol=1e-6)


def tuned(method: Tuning, *, steps: int = 12, micro: int = 1, **rest):
    teacher, _ = networks()
    records = []
    train(
        method,
        {"student": teacher},
        Source(data(), batch_size=10),
        torch.optim.SGD(teacher.parameters(), lr=0.1),
        steps=steps,
        micro=micro,
        progress=records.append,
        **rest,
    )
    return teacher, records


def test_terms():
    teacher, _ = networks()
    batch = data().batch(torch.arange(8))
    state = State(total_steps=1, source=Source(data(), batch_size=10))
    method = Tuning(cmi_weight=0.4)
    with torch.no_grad():
        assert method.prepare(batch, {"student": teacher}, state) is batch
    terms = method.loss(batch, {}, {"student": teacher}, state)
    centroids, cmi = centroids_of(teacher, state.source.scan(), 3)
    torch.testing.assert_close(state.memory["mcmi/centroids"], centroids)
    assert state.log == {"cmi": cmi}
    torch.testing.assert_close(terms["hard"], hard_loss(teacher(batch["x"]), batch))
    torch.testing.assert_close(terms["cmi"], -0.4 * kl_to_centroid(teacher(batch["x"]), batch["y"], centroids))


def test_no_example_counts_more_than_the_bound():
    teacher = nn.Linear(5, 3)
    state = State(total_steps=1)
    state.memory |= {"mcmi/centroids": torch.eye(3), "mcmi/epoch": 0}
    batch = {"x": 100 * torch.randn(20, 5), "y": torch.arange(20) % 3}
    away = -Tuning(cmi_weight=1.0).loss(batch, {}, {"student": teacher}, state)["cmi"]
    assert kl_to_centroid(teacher(batch["x"]), batch["y"], torch.eye(3), floor=1e-6).max() > 10
    assert math.isclose(away.max().item(), math.log(3), rel_tol=1e-6)


@pytest.mark.parametrize(("refresh", "passes"), [("none", [1]), ("epoch", [1, 4, 7, 10]), ("ema", [1])])
def test_when_centroids_are_taken(refresh, passes):
    _, records = tuned(Tuning(refresh=refresh))
    assert [record.step for record in records if "cmi" in record.extras] == passes


def test_moving_centroids():
    teacher, _ = networks()
    batch = {"x": torch.randn(4, 5), "y": torch.tensor([0, 0, 2, 0])}
    state = State(total_steps=1)
    old = torch.full((3, 3), 1 / 3)
    for refresh, decay in (("ema", 0.75), ("epoch", 0.75), ("none", 0.75)):
        state.memory |= {"mcmi/centroids": old, "mcmi/epoch": 0}
        with torch.no_grad():
            Tuning(refresh=refresh, decay=decay).after_step(batch, {}, {"student": teacher}, state)
        new = class_centroids(teacher(batch["x"]), batch["y"], previous=old)
        expected = 0.75 * old + 0.25 * new if refresh == "ema" else old
        torch.testing.assert_close(state.memory["mcmi/centroids"], expected)
    assert torch.equal(expected[1], old[1])


def test_without_a_weight_it_is_cross_entropy():
    weights = [tuned(Tuning(cmi_weight=0.0, refresh=refresh))[0].state_dict() for refresh in ("none", "epoch")]
    teacher, _ = networks()
    source, optimizer = Source(data(), batch_size=10), torch.optim.SGD(teacher.parameters(), lr=0.1)
    for _ in range(12):
        batch = next(source)
        optimizer.zero_grad()
        nn.functional.cross_entropy(teacher(batch["x"]), batch["y"]).backward()
        optimizer.step()
    for found in weights:
        torch.testing.assert_close(found, teacher.state_dict())


def test_tuning_raises_the_mutual_information():
    values = []
    for weight in (0.0, 0.3, 0.6):
        teacher, records = tuned(Tuning(cmi_weight=weight), steps=90)
        values.append(centroids_of(teacher, Source(data(), batch_size=10).scan(), 3)[1])
        assert records[-3].extras["cmi"] > 0
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("refresh", ["epoch", "ema"])
def test_tuning_can_be_split_and_resumed(refresh, tmp_path):
    method = Tuning(refresh=refresh, decay=0.9, cmi_weight=0.5)
    straight = tuned(method)[0].state_dict()
    torch.testing.assert_close(tuned(method, micro=3)[0].state_dict(), straight)

    def stop(roles, state):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        tuned(method, out=tmp_path, checkpoint_every=2, valid=stop, evaluate_every=5)
    resumed = tuned(method, out=tmp_path, resume=True)[0].state_dict()
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())


def test_the_chain():
    teacher, student = networks()
    teacher.requires_grad_(False)
    first, last = MCMI(cmi_weight=0.3, refresh="ema", decay=0.5, temperature=2.0, alpha=0.4).stages(teacher, student)
    assert (first.name, last.name) == ("teacher", "student")
    assert first.method == Tuning(cmi_weight=0.3, refresh="ema", decay=0.5)
    assert last.method == ClassicKD(temperature=2.0, alpha=0.4)
    assert last.student is student
    assert first.student is not teacher
    assert fingerprint(first.student) == fingerprint(teacher)
    assert all(p.requires_grad for p in first.student.parameters())


def test_the_student_learns_from_the_tuned_teacher_and_the_given_one_stays():
    teacher, student = networks()
    twin, before = copy.deepcopy(student), fingerprint(teacher)
    fit(MCMI(cmi_weight=0.5), {"student": student, "teacher": teacher}, data(), steps=9, batch_size=10, seed=4)
    assert fingerprint(teacher) == before
    new = copy.deepcopy(teacher)
    fit(Tuning(cmi_weight=0.5), {"student": new}, data(), steps=9, batch_size=10, seed=4)
    fit(ClassicKD(), {"student": twin, "teacher": new}, data(), steps=9, batch_size=10, seed=4)
    torch.testing.assert_close(student.state_dict(), twin.state_dict(), rtol=0, atol=0)


def test_it_needs_a_network_to_tune():
    _, student = networks()
    with pytest.raises(ValueError, match="teacher: expected a network that can be trained, mcmi tunes it, got none"):
        MCMI().stages(None, student)
    task = Task(train=data(), valid=data(), cache=object.__new__(Cache))
    with pytest.raises(ValueError, match="teacher: expected a network for the chain of trainings of MCMI, got a cache"):
        task.stages(MCMI(), student)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cmi_weight": -0.1}, "cmi_weight: expected a number >= 0, got -0.1"),
        ({"refresh": "batch"}, "refresh: expected one of none, epoch, ema, got 'batch'"),
        ({"decay": 1.5}, r"decay: expected a number in \[0, 1\], got 1.5"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0, got 0.0"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MCMI(**options)


def test_parity():
    for case in json.loads((Path(__file__).parents[1] / "golden" / "mcmi.json").read_text())["cases"]:
        earlier, logits = (torch.tensor(case["inputs"][name], dtype=torch.double) for name in ("centroid_logits", "logits"))
        labels = torch.tensor(case["inputs"]["labels"])
        centroids = class_centroids(earlier, labels)
        torch.testing.assert_close(centroids, torch.tensor(case["outputs"]["centroids"], dtype=torch.double), rtol=0, atol=1e-12)
        cmi = kl_to_centroid(logits, labels, centroids).mean()
        assert math.isclose(cmi.item(), case["outputs"]["cmi_batch"], rel_tol=1e-12)


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {"untrained-teacher", "raw-teacher", "tuned-0", "mcmi-0.15", "mcmi-0.3", "mcmi", "entropy-bonus"}
    assert run.arms["mcmi"]["cmi"] > run.arms["tuned-0"]["cmi"]
    assert run.arms["entropy-bonus"]["teacher_entropy"] > run.arms["tuned-0"]["teacher_entropy"]
