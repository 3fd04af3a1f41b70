"""Directions that split classes."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from preceptor.teachers.projections import fit_projections, subclass_log_probs


@pytest.fixture
def data() -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (60, 8) of unequal spread, labels of 3 classes and the weights of a class head."""
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(60, 8, generator=generator, dtype=torch.double) * torch.arange(1.0, 9.0, dtype=torch.double)
    return embeddings + 5, torch.arange(60) % 3, torch.randn(3, 8, generator=generator, dtype=torch.double)


def fitted(data, **rest):
    embeddings, labels, _ = data
    return fit_projections(embeddings, labels, num_classes=3, num_subclasses=4, generator=torch.Generator().manual_seed(0), **rest)


@pytest.mark.parametrize("directions", ["pca", "random"])
def test_directions_are_orthonormal(data, directions):
    u, means, scale = fitted(data, class_weights=data[2], directions=directions)
    assert (u.shape, means.shape, scale.shape) == ((3, 8, 4), (3, 8), (3,))
    torch.testing.assert_close(u.mT @ u, torch.eye(4, dtype=torch.double).expand(3, 4, 4))


def test_they_span_what_a_plain_decomposition_finds(data):
    embeddings, labels, _ = data
    for rotate in (True, False):
        u = fitted(data, rotate=rotate).directions
        for c in range(3):
            own = embeddings[labels == c]
            v = torch.linalg.eigh((own - own.mean(0)).T @ (own - own.mean(0))).eigenvectors[:, -4:]
            torch.testing.assert_close(u[c] @ u[c].T, v @ v.T)


def test_variances_of_scores(data):
    embeddings, labels, _ = data
    plain, turned = fitted(data, rotate=False, normalize=False), fitted(data, normalize=False)
    for c in range(3):
        own = embeddings[labels == c]
        largest = torch.linalg.svdvals(own - own.mean(0))[:4].square() / len(own)
        variances = [((own - p.means[c]) @ p.directions[c]).square().mean(0) for p in (plain, turned)]
        torch.testing.assert_close(variances[0], largest)
        torch.testing.assert_close(variances[1].sum(), largest.sum())
        assert variances[1].std() < largest.std()
    assert (plain.scale == 1).all()


def test_scores_are_centred_and_of_size_one(data):
    embeddings, labels, _ = data
    u, means, scale = fitted(data)
    for c in range(3):
        z = (embeddings[labels == c] - means[c]) @ u[c] / scale[c]
        assert z.mean(0).abs().max() < 1e-12
        torch.testing.assert_close(z.square().mean(), torch.tensor(1.0, dtype=torch.double))


def test_what_the_class_head_reads_is_left_out(data):
    embeddings, _, weights = data
    found = fitted(data, class_weights=weights)
    assert (weights @ found.directions).abs().max() < 1e-12
    logits = torch.zeros(60, 3, dtype=torch.double)
    shifted = embeddings + torch.randn(60, 3, dtype=torch.double) @ weights
    torch.testing.assert_close(subclass_log_probs(shifted, logits, found), subclass_log_probs(embeddings, logits, found))
    assert (weights @ fitted(data).directions).abs().max() > 0.1


def test_a_class_head_that_leaves_too_little_is_passed_over(data):
    wide = torch.randn(5, 8, dtype=torch.double)  # 3 dimensions would remain for 4 directions
    torch.testing.assert_close(fitted(data, class_weights=wide), fitted(data))


def test_a_common_shift_changes_nothing(data):
    embeddings, labels, _ = data
    logits = torch.randn(60, 3, dtype=torch.double)
    moved = fitted((embeddings + 100, labels, None))
    torch.testing.assert_close(
        subclass_log_probs(embeddings + 100, logits, moved), subclass_log_probs(embeddings, logits, fitted(data)), rtol=1e-8, atol=1e-8
    )


def test_reference(data):
    embeddings, _, _ = data
    logits = torch.randn(60, 3, dtype=torch.double)
    u, means, scale = fitted(data)
    found = subclass_log_probs(embeddings, logits, (u, means, scale), beta=0.7, temperature=2.0)  # pyright: ignore
    for i in range(4):
        p = [math.exp(v / 2) for v in logits[i].tolist()]
        for c in range(3):
            z = [sum((embeddings[i, d] - means[c, d]).item() * u[c, d, s].item() for d in range(8)) / scale[c].item() for s in range(4)]
            parts = [math.exp(v / 0.7) for v in z]
            for s in range(4):
                assert math.isclose(found[i, c, s].exp().item(), p[c] / sum(p) * parts[s] / sum(parts), rel_tol=1e-8)


def test_parts_sum_to_the_classes_and_limits_of_beta(data):
    embeddings, _, _ = data
    logits = 3 * torch.randn(60, 3, dtype=torch.double)
    found = fitted(data)
    p = (logits / 4).softmax(-1)
    for beta in (0.1, 1.0, 10.0):
        torch.testing.assert_close(subclass_log_probs(embeddings, logits, found, beta=beta, temperature=4.0).exp().sum(-1), p)
    equal = subclass_log_probs(embeddings, logits, found, beta=1e9, temperature=4.0).exp()
    torch.testing.assert_close(equal, (p / 4)[..., None].expand(60, 3, 4))
    hard = subclass_log_probs(embeddings, logits, found, beta=1e-9, temperature=4.0).exp()
    torch.testing.assert_close(hard.amax(-1), p)


def test_one_subclass_is_plain_distillation(data):
    embeddings, labels, _ = data
    found = fit_projections(embeddings, labels, num_classes=3, num_subclasses=1)
    logits = torch.randn(60, 3, dtype=torch.double)
    torch.testing.assert_close(subclass_log_probs(embeddings, logits, found).squeeze(-1), logits.log_softmax(-1))


def test_hidden_blobs_are_found():
    generator = torch.Generator().manual_seed(0)
    blob = torch.arange(400) % 4
    labels = (torch.arange(400) // 4) % 2
    centres = 6 * torch.randn(2, 4, 20, generator=generator)
    centres[..., 0] = torch.tensor([-10.0, 10.0])[:, None]  # the axis that the class head reads
    embeddings = centres[labels, blob] + torch.randn(400, 20, generator=generator)
    weights = torch.eye(20)[:1] * torch.tensor([[1.0], [-1.0]])
    found = fit_projections(embeddings, labels, num_classes=2, num_subclasses=4, class_weights=weights, generator=generator)
    part = subclass_log_probs(embeddings, torch.zeros(400, 2), found)[torch.arange(400), labels].argmax(-1)
    purity = sum((part[(labels == c) & (blob == b)].bincount().max().item()) for c in range(2) for b in range(4)) / 400
    pairs = {(c, b): int(part[(labels == c) & (blob == b)].mode().values) for c in range(2) for b in range(4)}
    assert purity > 0.9
    assert all(len({pairs[c, b] for b in range(4)}) >= 2 for c in range(2))


def test_the_same_generator_gives_the_same_and_order_does_not_matter(data):
    embeddings, labels, _ = data
    torch.testing.assert_close(fitted(data), fitted(data), rtol=0, atol=0)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(fitted((embeddings[order], labels[order], None)), fitted(data))


def test_a_class_of_few_examples_gets_random_directions_and_a_warning(data):
    embeddings, labels, weights = data
    labels = labels.clone()
    labels[labels == 2] = 1
    labels[:2] = 2
    with pytest.warns(UserWarning, match="class 2 spans 1 of 4 directions, the rest are random"):
        u = fitted((embeddings, labels, None), class_weights=weights).directions
    torch.testing.assert_close(u[2].T @ u[2], torch.eye(4, dtype=torch.double))
    assert (weights @ u[2]).abs().max() < 1e-12
    labels[1] = 0
    with pytest.warns(UserWarning, match="class 2 spans 0 of 4"):
        scale = fitted((embeddings, labels, None)).scale
    assert scale[2] == 1


def test_half_precision_is_decomposed_in_double(data):
    embeddings, labels, _ = data
    found = fitted((embeddings.bfloat16(), labels, None))
    assert {each.dtype for each in found} == {torch.float32}
    logs = subclass_log_probs(embeddings.bfloat16(), torch.zeros(60, 3, dtype=torch.bfloat16), found)
    torch.testing.assert_close(logs.exp().sum((1, 2)), torch.ones(60))


def test_bad_input_is_refused(data):
    embeddings, labels, _ = data
    with pytest.raises(ValueError, match="embeddings: expected examples of all 4 classes, got none of class 3"):
        fit_projections(embeddings, labels, num_classes=4, num_subclasses=2)
    with pytest.raises(ValueError, match=r"num_subclasses: expected a number in \[1, 8\], got 9"):
        fit_projections(embeddings, labels, num_classes=3, num_subclasses=9)
    with pytest.raises(ValueError, match=r"class_weights: expected shape \(classes, 8\) like the embeddings, got \(3, 5\)"):
        fitted(data, class_weights=torch.zeros(3, 5))
    with pytest.raises(ValueError, match="directions: expected one of pca, random, got 'ica'"):
        fitted(data, directions="ica")
    with pytest.raises(ValueError, match=r"beta: expected a finite number > 0, got 0.0"):
        subclass_log_probs(embeddings, torch.zeros(60, 3), fitted(data), beta=0.0)


def test_nothing_is_warned_of_where_directions_suffice(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(data, directions="random")
