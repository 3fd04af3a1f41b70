"""Students measured beside their teacher's class means: direction, norm, and nearest-mean classification of their embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from preceptor.core.method import Method, evaluating
from preceptor.data.examples import Examples
from preceptor.miniature.worlds import World, fit, measure, seeded
from preceptor.models.embeddings import embed
from preceptor.models.reference import MLP, build
from preceptor.teachers.means import means_by_class


def beside_means(
    world: World, arms: Mapping[str, tuple[Method, nn.Module | None]], *, steps: int, seed: int
) -> dict[str, dict[str, float]]:
    """Train one student per arm on equal budget, as `preceptor.miniature.worlds.side_by_side`, and measure its embeddings too.

    Args:
        world: the task.
        arms: name -> (method, its teacher). A method's role ``projector``, where it has one, maps the student's embeddings.
        steps: updates of each student.
        seed: the same for all arms.
    Returns:
        arm -> metric -> value, as `preceptor.miniature.worlds.measure`, and on the test part ``cosine``: mean cosine of an embedding with
        the teacher's mean of its class over the training part; ``norm_ratio``: its mean length over the teacher's; ``nearest_mean``:
        accuracy of naming the class whose mean of the student's own embeddings has the largest cosine.
    """
    measured = {}
    for name, (method, teacher) in arms.items():
        student = world.student()
        roles = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            roles = {**method.extra_roles(roles, _all(world.train)), **roles}
        fit(method, roles, world.train, steps=steps, seed=seed, valid=world.valid)
        measured[name] = measure(student, world) | _embeddings(student, roles.get("projector", nn.Identity()), world)
    return measured


def as_wide(world: World, seed: int) -> World:
    """The same task with students, MLPs, whose embeddings are as wide as the teacher's."""
    student, teacher = world.student(), world.teacher
    assert isinstance(student, MLP)
    assert isinstance(teacher, MLP)
    config = {**student.config, "hidden": [*student.config["hidden"], teacher.config["hidden"][-1]]}
    return replace(world, student=lambda: seeded(lambda: build(config), seed))


def _all(part: Examples) -> dict:
    return part.batch(torch.arange(len(part)))


def _embeddings(student: nn.Module, projector: nn.Module, world: World) -> dict[str, float]:
    test = _all(world.test)
    labels = test["y"]
    with torch.no_grad(), evaluating(student), evaluating(projector):
        own, projected, taught = (
            read(test["x"])
            for read in (
                lambda x: embed(student, x)[1],
                lambda x: projector(embed(student, x)[1]),
                lambda x: embed(world.teacher, x)[1],
            )
        )
    classes = world.train.num_classes
    means, _ = means_by_class(world.teacher, [_all(world.train)], lambda x: embed(world.teacher, x)[1], classes)
    own_means, _ = means_by_class(student, [_all(world.train)], lambda x: embed(student, x)[1], classes)
    nearest = (F.normalize(own, dim=1) @ F.normalize(own_means, dim=1).T).argmax(dim=1)
    cosine = torch.cosine_similarity(projected, means[labels], dim=1) if projected.shape == taught.shape else torch.zeros(1)
    return {
        "cosine": float(cosine.mean()),
        "norm_ratio": float((projected.norm(dim=1) / taught.norm(dim=1).clamp_min(1e-12)).mean()),
        "nearest_mean": float((nearest == labels).float().mean()),
    }
