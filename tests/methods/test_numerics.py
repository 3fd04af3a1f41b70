"""Every method of logits in the catalogue, at numbers that break careless losses: found by scanning, there is no list."""

import pytest
import torch

from preceptor.catalog import load, read, slugs
from preceptor.composition import LogitMethod
from preceptor.core.state import State
from preceptor.core.stream import as_stream

METHODS = [slug for slug in slugs() if read(slug).class_name and issubclass(load(slug), LogitMethod)]
REFUSE_ONE_CLASS = ("ldr", "logit-standardization")  # they divide by a logarithm or a spread of the classes that is 0
CLASSES = {
    "large": lambda n, c: torch.randn(n, c).sign() * 1e4,
    "equal": torch.zeros,
    "sure": lambda n, c: 1e4 * torch.eye(c)[torch.arange(n) % c],
    "ordinary": lambda n, c: 3 * torch.randn(n, c),
}


def terms(slug, student, teacher, labels):
    """All terms of a batch, and the gradient of their sum; weights of examples are not in it."""
    student = student.clone().requires_grad_()
    batch = {"x": student.detach(), "y": labels, "id": torch.arange(len(labels))}
    state = State(total_steps=10)
    state.source = as_stream([batch])
    hard, soft = load(slug)().items(student, {"logits": teacher}, batch, state)
    found = {**hard, **soft}
    for name, value in found.items():
        assert value.shape == labels.shape or value.ndim == 0, name
    total = sum(value.sum() for value in found.values())
    if total.requires_grad:
        total.backward()
    return found, student.grad if student.grad is not None else torch.zeros_like(student)


def check(found, gradient):
    for name, value in found.items():
        assert value.isfinite().all(), name
    assert gradient.isfinite().all()


@pytest.mark.parametrize("slug", METHODS)
@pytest.mark.parametrize("student", CLASSES)
@pytest.mark.parametrize("teacher", CLASSES)
def test_finite_at_any_size_of_logits(slug, student, teacher):
    torch.manual_seed(0)
    check(*terms(slug, CLASSES[student](6, 5), CLASSES[teacher](6, 5), torch.tensor([0, 1, 2, 3, 4, 0])))


@pytest.mark.parametrize("slug", METHODS)
def test_masked_classes_on_both_sides_or_on_one_stay_finite(slug):
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    for masked in ((student,), (teacher,), (student, teacher)):
        given = [x.clone() for x in (student, teacher)]
        for x, was in zip(given, (student, teacher), strict=True):
            if any(was is m for m in masked):
                x[:, 4] = -torch.inf
        check(*terms(slug, *given, labels))


@pytest.mark.parametrize("slug", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_what_single_precision_gives_of_the_same_numbers(slug, dtype):
    torch.manual_seed(0)
    student, teacher, labels = 3 * torch.randn(6, 5), 3 * torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    halves, gradient = terms(slug, student.to(dtype), teacher.to(dtype), labels)
    wholes, wanted = terms(slug, student.to(dtype).float(), teacher.to(dtype).float(), labels)
    for name, value in wholes.items():
        torch.testing.assert_close(halves[name].float(), value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.float(), wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("slug", METHODS)
def test_a_batch_of_one_is_a_row_of_a_larger_batch_and_none_is_none(slug):
    torch.manual_seed(0)
    student, teacher, labels = 3 * torch.randn(6, 5), 3 * torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    if not load(slug)().coupled:
        whole, _ = terms(slug, student, teacher, labels)
        one, _ = terms(slug, student[:1], teacher[:1], labels[:1])
        for name, value in one.items():
            torch.testing.assert_close(value, whole[name][:1] if value.ndim else value)
    check(*terms(slug, student[:1], teacher[:1], labels[:1]))
    check(*terms(slug, student[:0], teacher[:0], labels[:0]))


@pytest.mark.parametrize("slug", METHODS)
def test_one_class_is_finite_or_refused_in_one_line(slug):
    given = torch.randn(3, 1), torch.randn(3, 1), torch.zeros(3, dtype=torch.int64)
    if slug in REFUSE_ONE_CLASS:
        with pytest.raises(ValueError, match=r"^[^\n]*class[^\n]*$"):
            terms(slug, *given)
    else:
        check(*terms(slug, *given))
