"""Transformed copies of images."""

from __future__ import annotations

import torch

from preceptor.data.views import transformed


def test_copies_against_their_definition():
    x = torch.randn(6, 2, 5, 7, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    shifted, contrast, noisy = transformed(x)
    for i in range(7):
        torch.testing.assert_close(shifted[..., i], 0.75 * x[..., i] + 0.25 * (x[..., i - 1] if i else 0))
    torch.testing.assert_close(contrast.mean((-2, -1)), x.mean((-2, -1)))
    torch.testing.assert_close(contrast.var((-2, -1)), 2.25 * x.var((-2, -1)))
    assert 0.2 < float((noisy - x).std() / x.std()) < 0.3


def test_noise_depends_on_the_seed_alone_and_is_not_the_callers():
    x = torch.randn(64, 8, 8, generator=torch.Generator().manual_seed(3))
    noise = transformed(x, seed=3)[2] - x
    torch.testing.assert_close(transformed(x + 1, seed=3)[2] - x - 1, noise, rtol=0, atol=1e-5)
    assert not torch.equal(transformed(x, seed=4)[2] - x, noise)
    assert abs(float(torch.corrcoef(torch.stack([noise.flatten(), x.flatten()]))[0, 1])) < 0.1
    assert all(copy.dtype == torch.float16 and copy.shape == (2, 1, 1) for copy in transformed(torch.ones(2, 1, 1).half()))
