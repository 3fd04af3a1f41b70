"""The promises that every loss keeps: one table of losses, one test per promise."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from preceptor.core.reduce import global_counts, reduce_terms, split
from preceptor.losses.divergence import (
    DIVERGENCES,
    forward_kl,
    generalized_jsd,
    js_distance,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    symmetric_kl,
    total_variation,
)
from preceptor.losses.features import attention_transfer, hint_loss
from preceptor.losses.hard import hard_loss
from preceptor.losses.numeric import upcast
from preceptor.losses.relations import rkd_angle, rkd_distance
from preceptor.methods.dkd import decoupled_kl


def _target_kl(student: Tensor, teacher: Tensor, **options: float) -> Tensor:
    return decoupled_kl(student, teacher, _first_class(student), **options)[0]


def _others_kl(student: Tensor, teacher: Tensor, **options: float) -> Tensor:
    return decoupled_kl(student, teacher, _first_class(student), **options)[1]


def _first_class(logits: Tensor) -> Tensor:
    return torch.zeros(logits.shape[:-1], dtype=torch.int64)


def _cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    return hard_loss(student, {"y": _first_class(student)})


def _soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    return hard_loss(student, {"targets": torch.softmax(torch.nan_to_num(upcast(teacher), neginf=-1e30), -1)})


@dataclass(frozen=True)
class Loss:
    """One row of the table; inputs are made by ``shape`` with the number of examples in front."""

    name: str
    function: Callable[..., Tensor]
    shape: tuple[int, ...]
    divergence: bool = True  # 0 at agreement
    logits: bool = True  # the last axis holds classes
    coupled: bool = False  # relates the items of a batch
    pieces: int = 1  # how many KLs it adds, for the size of rounding

    def make(self, n: int = 6, dtype: torch.dtype = torch.double, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        student, teacher = 2 * torch.randn(2, n, *self.shape, generator=generator, dtype=torch.double)
        return student.to(dtype).requires_grad_(), teacher.to(dtype)


_DIVERGENCES = [
    *((name, function) for name, function in DIVERGENCES.items()),
    ("forward_kl T=4", functools.partial(forward_kl, temperature=4.0)),
    ("reverse_kl T=0.5", functools.partial(reverse_kl, temperature=0.5)),
    ("skew_forward_kl 0", functools.partial(skew_forward_kl, skew=0.0)),
    ("skew_forward_kl 1", functools.partial(skew_forward_kl, skew=1.0)),
    ("skew_reverse_kl 0", functools.partial(skew_reverse_kl, skew=0.0)),
    ("skew_reverse_kl 1", functools.partial(skew_reverse_kl, skew=1.0)),
    ("jsd 0", functools.partial(generalized_jsd, beta=0.0)),
    ("jsd 0.1 T=2", functools.partial(generalized_jsd, beta=0.1, temperature=2.0)),
    ("jsd 1", functools.partial(generalized_jsd, beta=1.0)),
    ("js_distance 0", functools.partial(js_distance, student_share=0.0)),
    ("js_distance 1", functools.partial(js_distance, student_share=1.0)),
    ("symmetric_kl 0.3", functools.partial(symmetric_kl, reverse_share=0.3)),
    ("total_variation T=3", functools.partial(total_variation, temperature=3.0)),
    ("dkd target", _target_kl),
    ("dkd others", _others_kl),
]
LOSSES = [
    *(Loss(name, function, (5,)) for name, function in _DIVERGENCES),
    Loss("forward_kl tokens", forward_kl, (3, 5)),
    Loss("hard_loss", _cross_entropy, (5,), divergence=False),
    Loss("hard_loss targets", _soft_cross_entropy, (5,), divergence=False),
    Loss("hint_loss", hint_loss, (3, 4), logits=False),
    Loss("attention_transfer", attention_transfer, (3, 4, 2), logits=False),
    Loss("attention_transfer p=4", functools.partial(attention_transfer, p=4), (3, 4, 2), logits=False),
    Loss("rkd_distance", rkd_distance, (4,), logits=False, coupled=True),
    Loss("rkd_distance squared", functools.partial(rkd_distance, squared=True), (4,), logits=False, coupled=True),
    Loss("rkd_angle", rkd_angle, (4,), logits=False, coupled=True),
]
CONSTANT = ("skew_forward_kl 1", "skew_reverse_kl 1", "js_distance 0", "js_distance 1")  # 0 everywhere by definition


def each(losses: list[Loss]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("loss", losses, ids=lambda loss: loss.name)


def grad(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value.sum(), inputs)


def test_every_divergence_is_in_the_table():
    assert {loss.name for loss in LOSSES} >= DIVERGENCES.keys()


@each(LOSSES)
def test_item_axis_sign_and_graph(loss):
    student, teacher = loss.make()
    value = loss.function(student, teacher)
    assert value.shape == student.shape[:-1] if loss.logits else value.shape == (6,)
    assert (value >= 0).all()
    assert value.dtype == torch.double
    (gradient,) = grad(value, student)
    assert torch.isfinite(gradient).all()
    assert (gradient.abs().sum() == 0) == (loss.name in CONSTANT)


@each([loss for loss in LOSSES if loss.divergence])
@pytest.mark.parametrize("dtype", [torch.double, torch.float], ids=str)
def test_zero_at_agreement(loss, dtype):
    student, _ = loss.make(dtype=dtype)
    value = loss.function(student, student.detach().clone())
    rounding = 8 * torch.finfo(dtype).eps
    assert (value >= 0).all()
    assert value.max() <= rounding
    assert grad(value, student)[0].abs().max() <= rounding


@each([loss for loss in LOSSES if loss.divergence and loss.name not in CONSTANT])
def test_positive_where_the_two_differ(loss):
    student, teacher = loss.make()
    assert (loss.function(student, teacher) > 1e-4).all()


@each([loss for loss in LOSSES if loss.logits])
def test_shift_invariance_of_either_side(loss):
    student, teacher = loss.make()
    shift = torch.linspace(-30, 30, 6, dtype=torch.double).reshape(-1, *[1] * (student.ndim - 1))
    value = loss.function(student, teacher)
    torch.testing.assert_close(loss.function(student + shift, teacher), value, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(loss.function(student, teacher + shift), value, rtol=1e-11, atol=1e-13)
    assert grad(value, student)[0].sum(-1).abs().max() < 1e-13  # the same fact, for the gradient


@each([loss for loss in LOSSES if loss.logits and not loss.name.startswith("dkd") and loss.name != "hard_loss"])
def test_classes_may_be_renamed(loss):
    student, teacher = loss.make()
    order = torch.randperm(student.shape[-1], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss.function(student[..., order], teacher[..., order]), loss.function(student, teacher))


@each([loss for loss in LOSSES if not loss.coupled])
def test_items_do_not_see_each_other(loss):
    student, teacher = loss.make()
    value = loss.function(student, teacher)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(loss.function(student[order], teacher[order]), value[order])
    for i in range(6):
        torch.testing.assert_close(loss.function(student[i : i + 1], teacher[i : i + 1]), value[i : i + 1])


@each([loss for loss in LOSSES if loss.coupled])
def test_relations_follow_a_permutation_of_the_batch(loss):
    student, teacher = loss.make()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(loss.function(student[order], teacher[order]), loss.function(student, teacher)[order])


@each(LOSSES)
def test_teacher_is_constant(loss):
    student, teacher = loss.make()
    teacher.requires_grad_()
    loss.function(student, teacher).sum().backward()
    assert teacher.grad is None or loss.name == "hard_loss targets"  # those targets are made from it by the test


@each([loss for loss in LOSSES if not loss.coupled])
def test_masked_items_cost_nothing_and_change_nothing(loss):
    student, teacher = loss.make()
    value = loss.function(student, teacher)
    mask = torch.tensor([1.0, 0, 1, 1, 0, 1], dtype=torch.double).reshape(6, *[1] * (value.ndim - 1)).expand_as(value)
    batch = {"x": student.detach(), "mask": mask}
    total = reduce_terms({"loss": value}, batch, global_counts(batch), 1)["loss"]
    (gradient,) = grad(total, student)
    assert (gradient[[1, 4]] == 0).all()
    kept = loss.function(student, teacher)[[0, 2, 3, 5]].mean()
    torch.testing.assert_close(total, kept)
    torch.testing.assert_close(gradient, *grad(kept, student))
    garbage = student.detach().clone()
    garbage[[1, 4]] = torch.tensor([1e4, -1e4, 3, 0, 7], dtype=torch.double)[: student.shape[-1]]
    garbage.requires_grad_()
    spoiled = reduce_terms({"loss": loss.function(garbage, teacher)}, batch, global_counts(batch), 1)["loss"]
    torch.testing.assert_close(spoiled, total)
    torch.testing.assert_close(grad(spoiled, garbage)[0], gradient)


@each([loss for loss in LOSSES if not loss.coupled])
def test_a_fully_masked_batch_is_zero_with_a_gradient(loss):
    student, teacher = loss.make()
    value = loss.function(student, teacher)
    batch = {"x": student.detach(), "mask": torch.zeros_like(value)}
    total = reduce_terms({"loss": value}, batch, global_counts(batch), 1)["loss"]
    assert total == 0
    assert (grad(total, student)[0] == 0).all()


@each([loss for loss in LOSSES if not loss.coupled])
@pytest.mark.parametrize("parts", [2, 4])
def test_batch_split_and_accumulation(loss, parts):
    student, teacher = loss.make(n=7)
    weights = torch.tensor([1.0, 0, 1, 1, 0, 1, 1], dtype=torch.double)
    value = loss.function(student, teacher)
    mask = weights.reshape(7, *[1] * (value.ndim - 1)).expand_as(value)
    batch = {"student": student, "teacher": teacher, "mask": mask}
    counts = global_counts(batch)
    whole = reduce_terms({"loss": value}, batch, counts, 1)["loss"]
    pieces = split(batch, parts)
    assert len(pieces) == parts
    sums = [reduce_terms({"loss": loss.function(b["student"], b["teacher"])}, b, counts, parts)["loss"] for b in pieces]
    torch.testing.assert_close(torch.stack(sums).sum(), whole, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(grad(torch.stack(sums).sum(), student), grad(whole, student), rtol=1e-12, atol=1e-14)


@each([loss for loss in LOSSES if loss.logits])
def test_vocabulary_padding_changes_nothing(loss):
    student, teacher = loss.make()
    value = loss.function(student, teacher)
    padding = torch.full((*student.shape[:-1], 3), -torch.inf, dtype=torch.double)
    padded = loss.function(torch.cat([student, padding], -1), torch.cat([teacher, padding], -1))
    torch.testing.assert_close(padded, value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(grad(padded, student), grad(value, student), rtol=1e-12, atol=1e-14)


@each(LOSSES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float, 2e-5), (torch.bfloat16, 2e-5), (torch.float16, 2e-5)],  # the sums run in float32 for all three
    ids=str,
)
def test_low_precision_is_computed_in_float32(loss, dtype, tolerance):
    student, teacher = loss.make(dtype=dtype)
    value = loss.function(student, teacher)
    exact = loss.function(student.detach().double(), teacher.double())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=tolerance, atol=tolerance)
    assert grad(value, student)[0].dtype == dtype


@each(LOSSES)
@pytest.mark.parametrize("dtype", [torch.double, torch.float, torch.bfloat16, torch.float16], ids=str)
def test_extreme_values_stay_finite(loss, dtype):
    student, teacher = loss.make(dtype=dtype)
    student = (student.detach().sign() * 1e4).to(dtype)
    value, extreme = loss.function(student.requires_grad_(), teacher), loss.function(student, (-teacher.sign() * 1e4).to(dtype))
    for items in (value, extreme):
        assert torch.isfinite(items).all()
        assert (items >= 0).all()
        assert torch.isfinite(grad(items, student)[0]).all()


@each([loss for loss in LOSSES if loss.logits])
@pytest.mark.parametrize("side", ["both", "student", "teacher", "different", "all but one", "all"])
@pytest.mark.parametrize("dtype", [torch.double, torch.float, torch.bfloat16, torch.float16], ids=str)
def test_masked_classes_are_never_nan(loss, side, dtype):
    student, teacher = (x.detach() for x in loss.make(dtype=dtype))
    columns = {"all": slice(None), "all but one": slice(1, None)}.get(side, slice(3, None))
    if side != "teacher":
        student[..., columns] = -torch.inf
    if side == "different":
        teacher[..., 1] = -torch.inf
    elif side != "student":
        teacher[..., columns] = -torch.inf
    student.requires_grad_()
    value = loss.function(student, teacher)
    (gradient,) = grad(value, student)
    assert torch.isfinite(value).all()
    assert (value >= 0).all()
    assert torch.isfinite(gradient).all()
    assert (gradient[torch.isneginf(student)] == 0).all()


@each([loss for loss in LOSSES if loss.logits])
def test_one_class_is_zero(loss):
    student, teacher = torch.randn(4, 1, dtype=torch.double, requires_grad=True), torch.randn(4, 1, dtype=torch.double)
    value = loss.function(student, teacher)
    assert (value == 0).all()
    assert (grad(value, student)[0] == 0).all()


@each(LOSSES)
@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny_batches(loss, n):
    student, teacher = loss.make(n=n)
    value = loss.function(student, teacher)
    assert len(value) == n
    (gradient,) = grad(value, student)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    if loss.coupled and n == 1:
        assert (value == 0).all()
        assert (gradient == 0).all()


@each(LOSSES)
def test_inputs_are_not_edited(loss):
    student, teacher = loss.make()
    copies = student.detach().clone(), teacher.clone()
    loss.function(student, teacher).sum().backward()
    assert torch.equal(student, copies[0])
    assert torch.equal(teacher, copies[1])


@each(LOSSES)
def test_gradient(loss):
    student, teacher = loss.make(n=4)
    if loss.name in CONSTANT:
        assert (loss.function(student, teacher) == 0).all()
        return
    upstream = torch.linspace(0.5, 2, 4, dtype=torch.double)

    def weighted(x: Tensor) -> Tensor:
        value = loss.function(x, teacher)
        return (value * upstream.reshape(4, *[1] * (value.ndim - 1))).sum()

    assert torch.autograd.gradcheck(weighted, (student,))


@each([loss for loss in LOSSES if loss.divergence])
def test_other_shapes_are_refused_by_name(loss):
    student, teacher = loss.make()
    with pytest.raises(ValueError, match="teacher: expected"):
        loss.function(student, teacher[:5])
    with pytest.raises(TypeError, match="teacher: expected a floating-point tensor"):
        loss.function(student, teacher.long())
    if loss.logits:
        with pytest.raises(ValueError, match="teacher: expected 5 classes like student, got 4"):
            loss.function(student, teacher[..., :4])


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperatures_are_positive(name, temperature):
    logits = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"temperature: expected a finite number > 0"):
        DIVERGENCES[name](logits, logits, temperature=temperature)
    with pytest.raises(ValueError, match=r"temperature: expected a finite number > 0"):
        DIVERGENCES[name](logits, logits, teacher_temperature=temperature)
