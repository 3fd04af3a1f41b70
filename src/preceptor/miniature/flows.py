"""Flows that are known exactly: mixtures of Gaussians as teachers, and one-step students beside a solver of many steps."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.data.priors import Prior
from preceptor.losses.checks import check_counts
from preceptor.metrics.transport import sliced_wasserstein
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import seeded
from preceptor.teachers.flow import FlowMap, PointFlow, jump, solve

_BATCH = 192
_WIDTHS = {"": 64, "_narrow": 16}


class GaussianMixture(nn.Module):
    """The exact velocity towards equal Gaussians N(m_k, s^2 I), s >= 0, in closed form; no weights.

    With v = (1 - t)^2 s^2 + t^2 and the posterior w_k of x_t under N((1 - t) m_k, v I):
        u(x, t) = sum_k w_k (m_k + ((1 - t) s^2 - t) / v (x - (1 - t) m_k)).
    At t = 0 with s = 0 it is singular.

    Args:
        means: shape (K, D).
        deviation: s.
    """

    means: Tensor

    def __init__(self, means: Tensor, deviation: float) -> None:
        super().__init__()
        self.register_buffer("means", means)
        self.deviation = deviation

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        """Points (N, D) and times (N,) to velocities (N, D)."""
        t = times[:, None].to(x.dtype)
        means = self.means.to(x.dtype)
        variance = (1 - t).square() * self.deviation**2 + t.square()
        away = x[:, None] - (1 - t[..., None]) * means
        weights = (-away.square().sum(dim=-1) / (2 * variance)).softmax(dim=1)
        mean = weights @ means
        return mean + ((1 - t) * self.deviation**2 - t) / variance * (x - (1 - t) * mean)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Points of the mixture itself."""
        chosen = torch.randint(len(self.means), (count,), generator=generator)
        return self.means[chosen] + self.deviation * torch.randn(count, self.means.shape[1], generator=generator)


def ring(count: int = 8, *, radius: float = 2.0, deviation: float = 0.15) -> GaussianMixture:
    """Gaussians at equal distances on a circle."""
    check_counts(count=count)
    angles = 2 * math.pi * torch.arange(count) / count
    return GaussianMixture(radius * torch.stack([angles.cos(), angles.sin()], dim=1), deviation)


def beside_solver(methods: Mapping[str, Method], *, seed: int, size: Size) -> tuple[dict[str, dict[str, float]], tuple[str, ...]]:
    """Flow maps of the ring by each method, of two widths, beside the solver in one step of Euler and an untrained student.

    Args:
        methods: arm -> method.
        seed: of weights, noise and test points.
        size: see `preceptor.miniature.run.Size`.
    Returns:
        For each arm ``w2``, the sliced W2 of its samples to fresh points of the ring, and ``path_error``, the root mean squared distance
        from where 200 steps of Heun lead from the same noise; the same of students of width 16 under ``_narrow``. And notes.
    """
    steps, points, solver_steps = (1000, 8000, 200) if size == "full" else (5, 200, 10)
    teacher = ring()
    draws = torch.Generator().manual_seed(10_000 + seed)
    noise, fresh = torch.randn(points, 2, generator=draws), teacher.draw(points, draws)
    reached = solve(teacher, noise, steps=solver_steps)

    def measure(samples: Tensor) -> dict[str, float]:
        return {
            "w2": sliced_wasserstein(samples, fresh, generator=torch.Generator().manual_seed(0)),
            "path_error": float((samples - reached).square().sum(dim=1).mean().sqrt()),
        }

    def students() -> dict[str, nn.Module]:
        made = {name: lambda width=width: FlowMap(PointFlow(2, width=width), "time", width) for name, width in _WIDTHS.items()}
        return {name: seeded(make, seed) for name, make in made.items()}

    def named(samples: Mapping[str, Tensor]) -> dict[str, float]:
        return {metric + name: value for name, points in samples.items() for metric, value in measure(points).items()}

    arms = {
        "untrained-student": named({name: jump(student, noise) for name, student in students().items()}),
        "euler-1": named(dict.fromkeys(_WIDTHS, solve(teacher, noise, steps=1, euler=True))),
        "heun-200": named(dict.fromkeys(_WIDTHS, reached)),  # its w2 is the noise floor
    }
    for arm, method in methods.items():
        trained = {}
        for name, student in students().items():
            auxiliary = seeded(lambda: PointFlow(2), seed + 1)
            distil(method, {"student": student, "teacher": teacher, "auxiliary": auxiliary}, steps=steps, seed=seed)
            trained[name] = jump(student, noise)
        arms[arm] = named(trained)
    return arms, (
        f"{steps} updates of batches of {_BATCH}, Adam 2e-3; {points} test points; the auxiliary network has width 64",
        "the auxiliary network starts at random, as the teacher has no weights",
    )


def distil(method: Method, roles: Mapping[str, nn.Module], *, steps: int, seed: int) -> None:
    """Train in place on standard normal noise with Adam."""
    source = Prior((2,), batch_size=_BATCH, seed=seed)
    optimizers = {
        phase.name: torch.optim.Adam([p for role in phase.trains for p in roles[role].parameters()], lr=2e-3) for phase in method.phases()
    }
    roles = {name: role for name, role in roles.items() if name == "teacher" or any(name in phase.trains for phase in method.phases())}
    train(method, roles, source, optimizers, steps=steps, seed=seed)
