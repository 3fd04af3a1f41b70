"""A world of small images whose teacher is a transformer over patches and whose students are convolutional."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn

from preceptor.data.datasets import load
from preceptor.data.examples import Examples
from preceptor.data.splits import holdout, take
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import Labels, World, fit, seeded
from preceptor.models.reference import CNN


class PatchTransformer(nn.Module):
    """A transformer over the 16 patches, of 2 x 2 pixels, of images (N, 1, 8, 8): four ``blocks`` of width 48, ``norm`` and a mean."""

    def __init__(self, *, classes: int = 10, width: int = 48) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(4)
        )
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.fc(self.norm(tokens).mean(dim=1))


def patches_world(seed: int, size: Size, *, train_images: int = 1000) -> World:
    """Handwritten digits of 8 x 8 pixels; the teacher saw all training images, is trained once per process, the same for all seeds.

    The students' blocks of 8 and 16 channels both give maps of 4 x 4 positions. The seed chooses their images, weights and order.
    """
    pool, valid, test, teacher = _shared(1000 if size == "full" else 10)
    return World(
        train=take(pool, train_images, seed=seed, name="train"),
        valid=valid,
        test=test if size == "full" else take(test, 60, seed=seed, name="test"),
        teacher=copy.deepcopy(teacher),
        untrained=seeded(PatchTransformer, seed),
        student=lambda: seeded(lambda: CNN(channels=(8, 16), grid=2), seed),
    )


@cache
def _shared(steps: int) -> tuple[Examples, Examples, Examples, nn.Module]:
    data = load("digits")
    pool, valid = holdout(data.train, rate=0.1, seed=0)
    teacher = seeded(PatchTransformer, 0)
    fit(Labels(), {"student": teacher}, pool, steps=steps, batch_size=64, learning_rate=1e-3, seed=0)
    return pool, valid, data.test, teacher.eval()
