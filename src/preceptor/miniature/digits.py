"""A world of small images and convolutional networks, for methods that compare maps of features."""

from __future__ import annotations

import copy
from functools import cache

from torch import nn

from preceptor.data.datasets import load
from preceptor.data.examples import Examples
from preceptor.data.splits import holdout, take
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import Labels, World, fit, seeded
from preceptor.models.reference import CNN


def digits_world(seed: int, size: Size = "full", *, train_images: int = 100) -> World:
    """Handwritten digits of 8 x 8 pixels (`preceptor.data.datasets.digits`), convolutional teacher and students without normalisation.

    The teacher (blocks of 32 and 64 channels, ``block1`` and ``block2``, both of 4 x 4 positions) saw all training images; it is trained
    once per process and is the same for all seeds. The seed chooses the students' images (stratified), their weights (blocks of 4 and 8
    channels) and the order of batches. At a learning rate of 3e-3 a student fits the labels of 100 images within 600 updates of 50.

    Args:
        seed: at least 0.
        size: ``"smoke"`` trains the teacher for a few steps only.
        train_images: what students see.
    Raises:
        ImportError: scikit-learn is missing (one line says what to install).
        ValueError: train_images outside its range.
    """
    pool, valid, test, teacher = _shared(400 if size == "full" else 40)
    return World(
        train=take(pool, train_images, seed=seed, name="train"),
        valid=valid,
        test=test,
        teacher=copy.deepcopy(teacher),
        untrained=seeded(lambda: CNN(channels=(32, 64), grid=2), seed),
        student=lambda: seeded(lambda: CNN(channels=(4, 8), grid=2), seed),
    )


@cache
def _shared(steps: int) -> tuple[Examples, Examples, Examples, nn.Module]:
    """What all seeds share: pool, validation and test parts, and the teacher."""
    data = load("digits")
    pool, valid = holdout(data.train, rate=0.1, seed=0)
    teacher = seeded(lambda: CNN(channels=(32, 64), grid=2), 0)
    fit(Labels(), {"student": teacher}, pool, steps=steps, batch_size=64, learning_rate=3e-3, seed=0)
    return pool, valid, data.test, teacher.eval()
