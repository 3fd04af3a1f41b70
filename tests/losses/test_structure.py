"""Losses between maps at several depths."""

import json
from pathlib import Path

import pytest
import torch
from tests.parity import check_case, load_adapter

from preceptor.losses.structure import counting_losses, inter_layer, intra_layer, layer_grams

SHAPES = ((2, 9, 12), (3, 5, 6), (4, 3, 3), (1, 3, 3))


def maps(seed=0, num=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(num, *shape, dtype=torch.double, generator=generator) for shape in SHAPES]


def test_equal_maps_have_no_loss():
    torch.testing.assert_close(intra_layer(maps(), maps()), torch.zeros(2, dtype=torch.double))
    assert not inter_layer(maps(), maps()).any()


def test_pixels_by_reference_bounds_and_scale():
    student, teacher = maps(), maps(1)
    loss = intra_layer(student, teacher)
    expected = 0.0
    for s, t in zip(student, teacher, strict=True):
        for i in range(s.shape[2]):
            for j in range(s.shape[3]):
                a, b = s[0, :, i, j], t[0, :, i, j]
                expected += 1 - float(a @ b / (a.norm() * b.norm()))
    torch.testing.assert_close(float(loss[0]), expected)
    torch.testing.assert_close(intra_layer([3 * s for s in student], teacher), loss)
    pixels = sum(s.shape[2] * s.shape[3] for s in student)
    torch.testing.assert_close(intra_layer([-t for t in teacher], teacher), torch.full((2,), 2.0 * pixels, dtype=torch.double))


def test_grams_are_correlations_of_pooled_maps():
    given = maps()
    grams = layer_grams(given, eps=1e-12)
    assert [tuple(g.shape) for g in grams] == [(2, 2, 3), (2, 2, 4), (2, 2, 1), (2, 3, 4), (2, 3, 1), (2, 4, 1)]
    assert all(g.abs().max() <= 1 for g in grams)
    big = torch.full((3, 3), -torch.inf, dtype=torch.double)
    for i in range(9):
        for j in range(12):
            big[i // 4, j // 4] = max(big[i // 4, j // 4], given[0][1, 1, i, j])
    expected = torch.corrcoef(torch.stack([big.flatten(), given[2][1, 3].flatten()]))[0, 1]
    torch.testing.assert_close(grams[1][1, 1, 3], expected)
    assert len(layer_grams(given, pairs="adjacent")) == 3
    torch.testing.assert_close(layer_grams(given, pairs="adjacent")[1], layer_grams(given)[3])


def test_relations_do_not_know_gain_offset_or_the_order_of_pixels():
    student, teacher = (
        [torch.randn(2, c, 4, 4, dtype=torch.double) for c in (3, 2, 1)],
        [torch.randn(2, c, 4, 4).double() for c in (3, 2, 1)],
    )
    loss = inter_layer(student, teacher, eps=1e-12)
    gains = [torch.rand(1, s.shape[1], 1, 1, dtype=torch.double) + 0.5 for s in student]
    torch.testing.assert_close(inter_layer([s * g - 3 * g for s, g in zip(student, gains, strict=True)], teacher, eps=1e-12), loss)
    order = torch.randperm(16)
    moved = [[x.flatten(2)[..., order].reshape(x.shape) for x in each] for each in (student, teacher)]
    torch.testing.assert_close(inter_layer(*moved, eps=1e-12), loss)


def test_examples_are_on_their_own():
    student, teacher = maps(num=3), maps(1, num=3)
    for function in (inter_layer, intra_layer):
        alone = [function([s[i : i + 1] for s in student], [t[i : i + 1] for t in teacher]) for i in range(3)]
        torch.testing.assert_close(function(student, teacher), torch.cat(alone))


def test_gradient_reaches_the_student_alone_and_dead_maps_are_finite():
    teacher = [t.requires_grad_() for t in maps(1)]
    student = [s.requires_grad_() for s in maps()]
    (inter_layer(student, teacher) + intra_layer(student, teacher)).sum().backward()
    assert all(s.grad.any() for s in student)
    assert all(t.grad is None for t in teacher)
    dead = [torch.zeros_like(s).requires_grad_() for s in student]
    (inter_layer(dead, teacher) + intra_layer(dead, teacher)).sum().backward()
    assert all(s.grad.isfinite().all() for s in dead)
    small = [torch.randn(1, 2, 2, 2).double().requires_grad_() for _ in range(2)]
    fixed = [torch.randn(1, 2, 2, 2).double() for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *s: inter_layer(s, fixed, eps=0.1) + intra_layer(s, fixed), small)


def test_counts():
    student, teacher, target = torch.rand(3, 2, 1, 4, 4, dtype=torch.double)
    hard, soft = counting_losses(student, teacher, target)
    torch.testing.assert_close(hard, torch.stack([((student - target)[i] ** 2).sum() for i in range(2)]))
    torch.testing.assert_close(soft, torch.stack([((student - teacher)[i] ** 2).sum() for i in range(2)]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layer_grams(maps()[:1]), "maps: expected at least 2 of shape"),
        (lambda: layer_grams([torch.ones(1, 2, 1, 1)] * 2), "maps: expected at least 2 pixels in the smallest"),
        (lambda: layer_grams([torch.ones(1, 2, 6, 6), torch.ones(1, 2, 4, 4)]), r"maps\[0\]: expected \(4, 4\) times a power of 2"),
        (lambda: intra_layer(maps(), maps()[1:]), "student: expected as many maps as the teacher's 3, at least one, got 4"),
        (lambda: intra_layer([torch.ones(1, 2, 2, 2)], [torch.ones(1, 3, 2, 2)]), r"student\[0\]: expected shape \(1, 3, 2, 2\)"),
        (lambda: inter_layer(maps(), maps(), pairs="some"), "pairs: expected one of dense, adjacent, got 'some'"),
        (lambda: counting_losses(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 3)), r"target: expected shape \(1, 2\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_parity():
    path = Path(__file__).parents[1] / "golden" / "skt.json"
    for case in json.loads(path.read_text())["cases"]:
        line = check_case("skt", "case", case, load_adapter("skt").run)
        assert line.status == "ok", line.reason
