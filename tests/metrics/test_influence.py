"""Influence of training examples on a validation loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from preceptor.metrics.influence import Part, conjugate_gradients, influence_scores, lissa


def generator(seed):
    return torch.Generator().manual_seed(seed)


def squared(targets):
    return lambda logits: ((logits - targets) ** 2).sum(-1) / 2


def entropy(labels):
    return lambda logits: cross_entropy(logits, labels, reduction="none")


def regression(seed=0, count=12, classes=2):
    x, targets = (torch.randn(count, n, generator=generator(seed + n), dtype=torch.double) for n in (3, classes))
    return x, targets


def vector(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def minimise(model, loss, *, steps=12):
    """Newton's method, on a model of few parameters."""
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def objective(flat):
        pieces = flat.split([shape.numel() for shape in shapes.values()])
        weights = {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
        return loss(lambda x: functional_call(model, weights, (x,)), flat)

    flat = torch.zeros_like(vector(model))
    for _ in range(steps):
        gradient = torch.autograd.functional.jacobian(objective, flat)
        flat = flat - torch.linalg.solve(torch.autograd.functional.hessian(objective, flat), gradient)
    nn.utils.vector_to_parameters(flat, model.parameters())
    return model


def ridge(x, targets, weights, damping):
    model = nn.Linear(3, 2).double()
    return minimise(model, lambda f, flat: (weights * squared(targets)(f(x))).mean() + damping / 2 * flat @ flat, steps=2)


@pytest.mark.parametrize("curvature", ["gauss-newton", "exact"])
@pytest.mark.parametrize("solver", ["cg", "lissa"])
def test_it_is_the_derivative_of_the_validation_loss(curvature, solver):
    (x, targets), (x_valid, targets_valid) = regression(), regression(5, 7)
    weights = torch.rand(12, generator=generator(3), dtype=torch.double) + 0.5
    model = ridge(x, targets, weights, 0.1)
    parts = [Part(x[a:b], squared(targets[a:b]), weights[a:b]) for a, b in ((0, 5), (5, 12))]
    valid = [Part(x_valid, squared(targets_valid))]
    scores = influence_scores(model, parts, valid, curvature=curvature, solver=solver, damping=0.1, iterations=2000)
    for i in range(12):
        losses = []
        for sign in (1, -1):
            moved = weights.clone()
            moved[i] += sign * 1e-4
            losses.append(squared(targets_valid)(ridge(x, targets, moved, 0.1)(x_valid)).mean().item())
        assert math.isclose(float(scores[i]) / 12, (losses[0] - losses[1]) / 2e-4, rel_tol=1e-6)


def blobs(seed, count):
    y = torch.randint(0, 3, (count,), generator=generator(seed))
    return torch.randn(count, 2, generator=generator(seed + 1), dtype=torch.double) + torch.eye(3, 2).double()[y], y


def softmax_regression(x, y, weights):
    model = nn.Linear(2, 3).double()
    return minimise(model, lambda f, flat: (weights * entropy(y)(f(x))).mean() + 0.005 * flat @ flat)


def test_leaving_one_out():
    (x, y), (x_valid, y_valid) = blobs(0, 50), blobs(9, 40)
    model = softmax_regression(x, y, torch.ones(50).double())
    scores = influence_scores(model, [Part(x, entropy(y))], [Part(x_valid, entropy(y_valid))], damping=0.01)
    before = entropy(y_valid)(model(x_valid)).mean().item()
    changes = []
    for i in range(25):
        weights = torch.ones(50).double()
        weights[i] = 0
        changes.append(entropy(y_valid)(softmax_regression(x, y, weights)(x_valid)).mean().item() - before)
    pair = torch.stack([torch.tensor(changes), -scores[:25] / 50])
    assert torch.corrcoef(pair)[0, 1] > 0.95


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).double()


def task(count=10, seed=0):
    x = torch.randn(count, 3, generator=generator(seed), dtype=torch.double)
    return x, torch.randint(0, 3, (count,), generator=generator(seed + 1))


def dense(model, x, y, curvature):
    """Gradients of each example and H, from torch's own Jacobians."""
    model.eval()
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def logits(flat):
        pieces = flat.split([shape.numel() for shape in shapes.values()])
        return functional_call(model, {n: p.view(s) for (n, s), p in zip(shapes.items(), pieces, strict=True)}, (x,))

    flat = vector(model)
    each = torch.autograd.functional.jacobian(lambda f: entropy(y)(logits(f)), flat)
    if curvature == "exact":
        hessian = torch.autograd.functional.hessian(lambda f: entropy(y)(logits(f)).mean(), flat)
    else:
        jacobian, p = torch.autograd.functional.jacobian(logits, flat), logits(flat).softmax(-1)
        heights = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        hessian = torch.einsum("nip,nij,njq->pq", jacobian, heights, jacobian) / len(x)
    model.train()
    return each, hessian


@pytest.mark.parametrize(("curvature", "damping"), [("gauss-newton", 0.01), ("exact", 2.0)])
def test_a_network_against_dense_matrices(curvature, damping):
    model = network()
    x, y = task()
    each, hessian = dense(model, x, y, curvature)
    upward = each[:4].mean(0)
    expected = -each @ torch.linalg.solve(hessian + damping * torch.eye(len(hessian)), upward)
    parts = [Part(x[:3], entropy(y[:3])), Part(x[3:], entropy(y[3:]))]
    for solver in ("cg", "lissa"):
        options = {"curvature": curvature, "solver": solver, "damping": damping, "iterations": 5000}
        scores = influence_scores(model, parts, [Part(x[:4], entropy(y[:4]))], **options)
        torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-9)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_identity_is_the_alignment_of_gradients():
    model = network()
    x, y = task()
    each, _ = dense(model, x, y, "gauss-newton")
    scores = influence_scores(model, [Part(x, entropy(y))], [Part(x[:4], entropy(y[:4]))], curvature="identity")
    torch.testing.assert_close(scores, -each @ each[:4].mean(0))


def test_the_last_layer_alone():
    model, frozen = network(), network()
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad_(name.startswith("3."))
    x, y = task()
    parts, valid = [Part(x, entropy(y))], [Part(x[:4], entropy(y[:4]))]
    last = influence_scores(model, parts, valid, layers="last")
    torch.testing.assert_close(last, influence_scores(frozen, parts, valid))
    assert not torch.allclose(last, influence_scores(model, parts, valid))


def test_helpful_and_harmful():
    x, y = task(40)
    y = x.argmax(1)
    model = minimise(nn.Linear(3, 3).double(), lambda f, flat: entropy(y)(f(x)).mean() + 0.05 * flat @ flat)
    point = x[:1]
    for label in range(3):
        scores = influence_scores(model, [Part(point, entropy(torch.tensor([label])))], [Part(point, entropy(y[:1]))])
        assert (float(scores[0]) < 0) == (label == int(y[0]))


def test_order_and_repetition():
    model = network()
    x, y = task()
    valid = Part(x[:4], entropy(y[:4]))
    scores = influence_scores(model, [Part(x, entropy(y))], [valid])
    order = torch.randperm(10, generator=generator(2))
    torch.testing.assert_close(influence_scores(model, [Part(x[order], entropy(y[order]))], [valid]), scores[order])
    torch.testing.assert_close(influence_scores(model, [Part(x, entropy(y))], [valid, valid]), scores)
    heavy = valid._replace(weights=torch.arange(4.0).double())
    torch.testing.assert_close(influence_scores(model, [Part(x, entropy(y))], [heavy]), scores)  # weights are of training examples


def test_half_precision():
    model = network()
    x, y = task()
    expected = influence_scores(model, [Part(x, entropy(y))], [Part(x, entropy(y))])
    x = x.bfloat16()
    scores = influence_scores(model.bfloat16(), [Part(x, entropy(y))], [Part(x, entropy(y))])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, rtol=0.1, atol=0.1)


def test_solvers():
    root = torch.randn(6, 6, generator=generator(0), dtype=torch.double)
    matrix, target = root @ root.T + torch.eye(6), torch.arange(6).double()
    expected = torch.linalg.solve(matrix, target)
    for solve in (conjugate_gradients, lissa):
        torch.testing.assert_close(solve(lambda v: matrix @ v, target, iterations=3000), expected)
        assert not solve(lambda v: matrix @ v, torch.zeros(6).double(), iterations=5).any()
    with pytest.raises(ValueError, match="curvature: expected positive, got -"):
        conjugate_gradients(lambda v: -v, target, iterations=3)


def test_where_curvature_is_not_positive_gradients_may_stop_before():
    target = torch.tensor([1.0, 2.0, 3.0]).double()
    assert torch.equal(conjugate_gradients(lambda v: -v, target, iterations=3, truncate=True), target)
    saddle = torch.tensor([1.0, 0.5, -0.01]).double()
    found = conjugate_gradients(lambda v: saddle * v, target, iterations=9, truncate=True)
    assert found @ target > 0
    assert found @ (saddle * found) > 0  # the last step it took was down


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curvature": "fisher"}, "curvature: expected one of gauss-newton, exact, identity, got 'fisher'"),
        ({"solver": "lu"}, "solver: expected one of cg, lissa"),
        ({"layers": "first"}, "layers: expected one of all, last"),
        ({"damping": 0.0}, "damping: expected a finite number > 0"),
        ({"iterations": 0}, "iterations: expected at least 1"),
        ({"train": []}, "train: expected at least one example, got none"),
        ({"valid": []}, "valid: expected at least one example, got none"),
        ({"model": network().requires_grad_(False)}, "model: expected a parameter that requires grad, got none in Sequential"),
    ],
)
def test_bad_input_is_refused(changes, message):
    x, y = task()
    given = {"model": network(), "train": [Part(x, entropy(y))], "valid": [Part(x, entropy(y))]} | changes
    with pytest.raises(ValueError, match=message):
        influence_scores(given.pop("model"), given.pop("train"), given.pop("valid"), **given)
