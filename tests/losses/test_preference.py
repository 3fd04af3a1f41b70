"""Log-probabilities of texts, and direct preference optimisation."""

from __future__ import annotations

import math

import pytest
import torch

from preceptor.losses.preference import dpo_loss, preference_margin, sequence_log_probs


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))


def labels() -> torch.Tensor:
    return torch.tensor([[-100, -100, 3, 1, 0], [-100, 2, 4, -100, -100], [-100, -100, -100, -100, -100]])


def test_sums_and_means_are_those_of_a_loop():
    logits = drawn(3, 5, 6)
    expected, counts = [0.0, 0.0, 0.0], [0, 0, 0]
    for n in range(3):
        for t in range(4):
            label = int(labels()[n, t + 1])
            if label != -100:
                expected[n] += float(logits[n, t].log_softmax(0)[label])
                counts[n] += 1
    torch.testing.assert_close(sequence_log_probs(logits, labels()), torch.tensor(expected, dtype=torch.double))
    mean = [total / max(count, 1) for total, count in zip(expected, counts, strict=True)]
    torch.testing.assert_close(sequence_log_probs(logits, labels(), mean=True), torch.tensor(mean, dtype=torch.double))


def test_the_first_label_and_masked_positions_change_nothing():
    logits = drawn(3, 5, 6).requires_grad_()
    first = labels()
    first[:, 0] = 5
    torch.testing.assert_close(sequence_log_probs(logits, first), sequence_log_probs(logits, labels()))
    sequence_log_probs(logits, labels()).sum().backward()
    assert logits.grad is not None
    silent = torch.ones(3, 5, dtype=torch.bool)
    silent[:, :-1] = labels()[:, 1:] == -100
    assert (logits.grad[silent] == 0).all()
    assert (logits.grad[~silent] != 0).any()


def test_a_policy_like_its_reference_has_log_2_and_opposite_gradients():
    chosen, rejected = drawn(4).requires_grad_(), drawn(4).neg().requires_grad_()
    loss = dpo_loss(chosen, rejected, chosen, rejected, beta=0.3)
    torch.testing.assert_close(loss, torch.full((4,), math.log(2), dtype=torch.double))
    loss.sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    torch.testing.assert_close(chosen.grad, torch.full((4,), -0.15, dtype=torch.double))
    torch.testing.assert_close(rejected.grad, -chosen.grad)


def test_the_gradient_is_the_closed_form():
    given = [drawn(4).mul(k).requires_grad_() for k in (1, 2, 3, 4)]
    dpo_loss(*given, beta=0.7).sum().backward()
    h = preference_margin(*given).detach()
    assert given[0].grad is not None
    torch.testing.assert_close(given[0].grad, -0.7 * torch.sigmoid(-0.7 * h))
    assert given[2].grad is None


def test_one_text_twice_has_no_net_gradient():
    logits = drawn(1, 5, 6).requires_grad_()
    said = sequence_log_probs(logits, labels()[:1])
    dpo_loss(said, said, said.detach(), said.detach()).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits))


def test_smoothing_half_knows_no_side_and_one_turns_the_pair():
    pair, reference = (drawn(4), drawn(4).mul(2)), (drawn(4).mul(3), drawn(4).mul(4))
    straight, turned = dpo_loss(*pair, *reference, smoothing=1.0), dpo_loss(*pair[::-1], *reference[::-1])
    torch.testing.assert_close(straight, turned)
    torch.testing.assert_close(dpo_loss(*pair, *reference, smoothing=0.5), dpo_loss(*pair[::-1], *reference[::-1], smoothing=0.5))


def test_far_apart_stays_finite():
    loss = dpo_loss(torch.tensor([-1e4, 0.0]), torch.tensor([0.0, -1e4]), torch.zeros(2), torch.zeros(2), beta=1.0)
    torch.testing.assert_close(loss, torch.tensor([1e4, 0.0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, r"beta: expected a finite number > 0, got 0"),
        ({"smoothing": 1.5}, r"smoothing: expected a number in \[0, 1\], got 1.5"),
    ],
)
def test_bad_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dpo_loss(*[torch.zeros(2)] * 4, **options)


def test_shapes_and_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"labels: expected shape \(N, T\) for logits \(N, T, V\), got \(3, 4\) for \(3, 5, 6\)"):
        sequence_log_probs(drawn(3, 5, 6), labels()[:, 1:])
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 3\], got 4"):
        sequence_log_probs(drawn(3, 5, 4), labels())
    with pytest.raises(ValueError, match=r"rejected: expected shape \(2,\) like chosen, got \(3,\)"):
        dpo_loss(torch.zeros(2), torch.zeros(3), torch.zeros(2), torch.zeros(2))
