"""ALP-GMM and Covar-GMM: teachers that fit mixtures of Gaussians to tasks and what was learned on them.

The interface is `preceptor.teachers.tasks.TaskTeacher`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from preceptor.core.optional import require
from preceptor.losses.checks import check_choice, check_counts, check_unit_interval
from preceptor.teachers.tasks import Box, normalised, proportional

_BUFFER = 500  # tasks searched one by one before they join the tree

Progress = Literal["alp", "covariance", "absolute covariance"]
"""What makes a component interesting: mean absolute learning progress, or covariance of time and return (its size)."""
Criterion = Literal["aic", "bic", "aicc"]
"""How the number of components is chosen; the smallest value wins."""


class LearningProgress:
    """Absolute learning progress, |r - r of the nearest earlier task|, 0 while there are few.

    Portelas et al. 2019 (arXiv:1910.07224), Eq. 1. The nearest is exact, by Euclidean distance, the earlier one of two.

    Args:
        min_history: earlier tasks that are needed, at least 1.
        max_size: tasks kept when the tree is built anew, which happens every 500 tasks; None keeps all.
    """

    def __init__(self, *, min_history: int = 6, max_size: int | None = None) -> None:
        check_counts(min_history=min_history, max_size=1 if max_size is None else max_size)
        self.min_history, self.max_size = min_history, max_size
        self.tasks: list[list[float]] = []
        self.returns: list[float] = []
        self.in_tree, self.tree = 0, None

    def __call__(self, task: np.ndarray, r: float) -> float:
        """Return the progress of a task (d,) with return r, then remember both."""
        found = abs(r - self.returns[self._nearest(task)]) if len(self.tasks) >= self.min_history else 0.0
        self.tasks.append(task.tolist())
        self.returns.append(float(r))
        if len(self.tasks) - self.in_tree >= _BUFFER:
            keep = len(self.tasks) if self.max_size is None else self.max_size
            self.tasks, self.returns = self.tasks[-keep:], self.returns[-keep:]
            self._build(len(self.tasks))
        return found

    def _build(self, count: int) -> None:
        tree = require("scipy.spatial", extra="study", purpose="learning progress").cKDTree
        self.in_tree, self.tree = count, tree(np.array(self.tasks[:count])) if count else None

    def _nearest(self, task: np.ndarray) -> int:
        best, place = np.inf, 0
        if self.tree is not None:
            best, place = self.tree.query(task)
        if rest := self.tasks[self.in_tree :]:
            distances = np.linalg.norm(np.array(rest) - task, axis=1)
            nearest = int(distances.argmin())
            if distances[nearest] < best:
                place = self.in_tree + nearest
        return int(place)

    def state_dict(self) -> dict[str, Any]:
        """All tasks and returns."""
        return {"tasks": [list(task) for task in self.tasks], "returns": list(self.returns), "in_tree": self.in_tree}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.tasks, self.returns = [list(task) for task in state["tasks"]], list(state["returns"])
        self._build(state["in_tree"])


class MixtureTeacher:
    """ALP-GMM, and Covar-GMM.

    Portelas et al. 2019 (arXiv:1910.07224), Algorithm 1; Covar-GMM after Moulin-Frier, Nguyen, Oudeyer 2014. Every ``fit_rate`` tasks
    mixtures are fitted to as many last points, (task, progress) or (task, time in [0, 1), return), and the best number of components is
    taken. A task is uniform with probability ``random_rate`` and before the first fit; else a component is drawn in proportion to its
    interest, by its weight in no way, and a task from it.

    Deviations: tasks are scaled to the unit cube. A draw outside the box is repeated up to ten times before it is cut, so that less of them
    ends on the border. The penalty of "aicc" counts the parameters of the joint points; the released code those of the tasks alone.

    Args:
        box: the tasks.
        progress: see `Progress`.
        fit_rate: tasks between fits, at least 2. With more than 20 sides raise it, or take diagonal covariances.
        ks: numbers of components to choose from; half as many as points at most.
        criterion: see `Criterion`.
        random_rate: share in [0, 1] of uniform tasks.
        covariance: "full" or "diag"; the latter for "alp" only.
        max_history: see `LearningProgress`.
        return_range: ends that are brought to 0 and 1; None leaves returns as they are.
        seed: of the draws.

    Raises:
        ValueError: a number outside its range.
        ImportError: scikit-learn is missing (one line says what to install).
    """

    def __init__(
        self,
        box: Box,
        *,
        progress: Progress = "alp",
        fit_rate: int = 250,
        ks: Sequence[int] = tuple(range(2, 11)),
        criterion: Criterion = "aic",
        random_rate: float = 0.2,
        covariance: Literal["full", "diag"] = "full",
        max_history: int | None = None,
        return_range: tuple[float, float] | None = None,
        seed: int,
    ) -> None:
        check_choice(Progress, progress=progress)
        check_choice(Criterion, criterion=criterion)
        check_choice(Literal["full", "diag"], covariance=covariance)
        check_unit_interval(random_rate=random_rate)
        check_counts(ks=min(ks, default=0), fit_rate=fit_rate - 1)
        if progress != "alp" and covariance == "diag":
            raise ValueError(f"covariance: expected 'full' for progress {progress!r}, which is one of its entries, got 'diag'")
        self.progress: Progress = progress
        self.criterion: Criterion = criterion
        self.box, self.fit_rate, self.ks = box, fit_rate, tuple(ks)
        self.random_rate, self.covariance, self.return_range = random_rate, covariance, return_range
        self.rng = np.random.default_rng(seed)
        self.alp = LearningProgress(max_size=max_history)
        self.points: list[list[float]] = []
        self.means, self.covariances, self.interests = np.zeros((0, 0)), np.zeros((0, 0, 0)), np.zeros(0)
        self.mixture = require("sklearn.mixture", extra="education", purpose="mixtures of tasks").GaussianMixture

    def sample(self) -> np.ndarray:
        """Draw a task."""
        if not len(self.interests) or self.rng.random() < self.random_rate:
            return self.box.from_unit(self.rng.random(self.box.dimensions))
        j, d = proportional(self.interests, self.rng), self.box.dimensions
        mean, covariance = self.means[j, :d], self.covariances[j, :d, :d]  # the marginal: the other coordinates are dropped
        u = mean
        for _ in range(10):
            u = self.rng.multivariate_normal(mean, covariance, method="eigh")
            if ((u >= 0) & (u <= 1)).all():
                break
        return self.box.from_unit(np.clip(u, 0, 1))

    def update(self, x: np.ndarray, r: float) -> None:
        """Hear the return of a task; fit where it is time."""
        u, r = self.box.to_unit(x), normalised(r, self.return_range)
        found = [self.alp(u, r)] if self.progress == "alp" else [len(self.points) / self.fit_rate, r]
        self.points.append([*u.tolist(), *found])
        if len(self.points) == self.fit_rate:
            self._fit(np.array(self.points))
            self.points = []

    def _fit(self, points: np.ndarray) -> None:
        fits = []
        limits = require("threadpoolctl", extra="education", purpose="mixtures of tasks").threadpool_limits
        with warnings.catch_warnings(), limits(1):  # a fit is small: further threads cost more than they bring
            warnings.simplefilter("ignore", require("sklearn.exceptions", extra="education", purpose="mixtures").ConvergenceWarning)
            for k in sorted({min(k, len(points) // 2) for k in self.ks}):
                seed = int(self.rng.integers(2**31))
                fits.append(self.mixture(k, covariance_type=self.covariance, reg_covar=1e-6, random_state=seed).fit(points))
        best = min(fits, key=lambda fit: criterion_of(fit, points, self.criterion))
        self.means, found = best.means_, best.covariances_
        self.covariances = np.stack([np.diag(row) for row in found]) if self.covariance == "diag" else found
        self.interests = interests(self.means, self.covariances, self.progress)

    def state_dict(self) -> dict[str, Any]:
        """History, points since the last fit, and the mixture."""
        return {
            "rng": self.rng.bit_generator.state,
            "alp": self.alp.state_dict(),
            "points": [list(point) for point in self.points],
            **{name: getattr(self, name).tolist() for name in ("means", "covariances", "interests")},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.rng.bit_generator.state = state["rng"]
        self.alp.load_state_dict(state["alp"])
        self.points = [list(point) for point in state["points"]]
        self.means, self.covariances, self.interests = (np.array(state[name]) for name in ("means", "covariances", "interests"))


def interests(means: np.ndarray, covariances: np.ndarray, progress: Progress) -> np.ndarray:
    """How interesting components are, (k,), >= 0.

    Args:
        means: (k, D).
        covariances: (k, D, D).
        progress: see `Progress`. The last coordinate is the progress, or the last two are time and return.
    """
    if progress == "absolute covariance":
        return np.abs(covariances[:, -2, -1])
    return np.maximum(means[:, -1] if progress == "alp" else covariances[:, -2, -1], 0)


def criterion_of(fit: Any, points: np.ndarray, name: Criterion) -> float:
    """AIC, BIC, or AICc = AIC + 2 q (q + 1) / (n - q - 1) of a fitted mixture with q parameters; infinite where n <= q + 1."""
    if name == "bic":
        return float(fit.bic(points))
    value, (n, d) = float(fit.aic(points)), points.shape
    if name == "aicc":
        each = d * (d - 1) // 2 + 2 * d + 1 if fit.covariance_type == "full" else 2 * d + 1
        q = fit.n_components * each - 1
        value = value + 2 * q * (q + 1) / (n - q - 1) if n > q + 1 else np.inf
    return value
