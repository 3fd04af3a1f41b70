"""ALP-GMM: a teacher that sets tasks where the student's returns change, up or down.

Paper: Portelas, Colas, Hofmann, Oudeyer 2019, Teacher algorithms for curriculum learning of Deep RL in continuously parameterized
environments (arXiv:1910.07224).
Claim: sampling tasks by absolute learning progress lets a student master more of a space of tasks than random tasks do, also where most
tasks cannot be learned at all.
Equation, r_k the return of task x_k and nn(k) the nearest earlier task:
    alp_k = |r_k - r_nn(k)|;   every 250 tasks mixtures of 2 to 10 Gaussians are fitted to the last 250 points (x, alp), that of the lowest
    AIC is kept;   x ~ N(mu_j, Sigma_j) with P(j) in proportion to component j's mean alp, with probability 0.2 uniform instead.
It is no training method and knows no student: `preceptor.teachers.tasks` has what all teachers share (``sample``, ``update``,
``state_dict``), random tasks, a window moved by hand (Oracle), and named parameters of any kind; `preceptor.teachers.mixtures` ALP-GMM and
Covar-GMM; `preceptor.teachers.riac` RIAC. Whatever gives a return for a task can be the student, `preceptor.miniature.toy_grid` does.
Deviations: tasks are scaled to the unit cube, in the released code distances are in raw units. Draws outside the box are repeated up to ten
times before they are cut. RIAC's score of a cut has the factor n1 n2 that it was to have, the released constant is an option. The paper's
order of teachers belongs to deep reinforcement learning: on the grid, where returns mostly rise, Covar-GMM and RIAC are ahead of ALP-GMM.
Noise of returns is progress to ALP: average episodes where there is much of it.
"""

from __future__ import annotations

from collections.abc import Callable

from preceptor.core.types import Card
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.toy_grid import ToyGrid, teach
from preceptor.teachers.mixtures import MixtureTeacher
from preceptor.teachers.riac import RIACTeacher
from preceptor.teachers.tasks import Box, OracleTeacher, RandomTeacher, TaskTeacher

CARD = Card(
    slug="alp-gmm",
    title="ALP-GMM: tasks where absolute learning progress is large",
    authors="Portelas et al. 2019",
    arxiv="1910.07224",
    kind="curriculum",
    tasks=("reinforcement",),
    needs=(),
    equation="alp_k = |r_k - r_nn(k)|; x ~ N(mu_j, Sigma_j), P(j) in proportion to the mean alp of component j, 0.2 uniform",
    cost="no training; a nearest neighbour for each task, nine small mixtures every 250 tasks",
    headline="Stump Tracks after 20 M steps: 39.6 % mastered with ALP-GMM, 33.3 Covar-GMM, 32.1 RIAC, 18.2 Random (as quoted elsewhere)",
)

Make = Callable[[Box, int], TaskTeacher]


def miniature(seed: int, size: Size) -> Miniature:
    """The paper's toy grid, 10 x 10 skills, for 10,000 tasks, and the same with three quarters of all tasks out of reach.

    ``mastered`` and ``mastered_quarter`` are percentages of the skills, ``counter`` the mean counter of a skill on the first grid. "oracle"
    knows where the grid begins: its window, a third of each side, moves by 0.05 when 50 tasks return 0.75 on average.
    """
    full = size == "full"
    episodes, n, fit_rate = (10_000, 10, 250) if full else (300, 2, 100)
    makers: dict[str, Make] = {
        "random": lambda box, seed: RandomTeacher(box, seed=seed),
        "oracle": lambda box, seed: OracleTeacher(box, step=[0.05, 0.05], threshold=0.75, window=1 / 3, seed=seed),
        "riac": lambda box, seed: RIACTeacher(box, seed=seed),
        "covar-gmm": lambda box, seed: MixtureTeacher(box, progress="covariance", fit_rate=fit_rate, seed=seed),
        "alp-gmm": lambda box, seed: MixtureTeacher(box, fit_rate=fit_rate, seed=seed),
    }
    arms = {"untrained": _measured(makers["random"], seed, n=n, episodes=0)}
    arms |= {name: _measured(make, seed, n=n, episodes=episodes) for name, make in makers.items()}
    return Miniature(
        arms=arms,
        claims=(
            Claim(name="more of the grid is mastered than by random tasks", method="alp-gmm", baseline="random", metric="mastered"),
            Claim(name="and where three quarters cannot be learned too", method="alp-gmm", baseline="random", metric="mastered_quarter"),
        ),
        notes=(f"{n} x {n} skills, {episodes} tasks",),
    )


def _measured(make: Make, seed: int, *, n: int, episodes: int) -> dict[str, float]:
    whole, quarter = ToyGrid(n, 2), ToyGrid(n, 2, extent=0.5)
    for grid in (whole, quarter):
        teach(make(grid.box, seed), grid, episodes=episodes)
    return {"mastered": whole.mastered, "mastered_quarter": quarter.mastered, "counter": float(whole.counters.mean())}
