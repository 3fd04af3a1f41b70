"""CoMD: teacher and student compete; the training set grows where the student loses.

Paper: Li et al. 2023, Unlock the Power: Competitive Distillation for Multi-Modal Large Language Models (arXiv:2311.08213).
Claim: instruction tuning goes one way. Where an assessor finds the questions about images that the student answers worse than its
teacher, and an augmentor writes new ones like them, a small student learns more from as many questions, within four rounds.
Equation, with scores J in [0, 10] of the answers of teacher and student to instruction x about image v:
    d = J(v, x, a_T) - J(v, x, a_S),   difficult: d >= tau,   D_r = replay(D_{r-1}) + {(v', x', a_T(v', x'))},
    L = -(1 / |a|) sum_t log P_S(a_t | v, x, a_<t),
with x' written after difficult instructions. The sign of d matters: what the student answers better is no difficulty. The loss is `ce`
on the teacher's answers with image and instruction masked; `preceptor.teachers.competition` is the loop around it.
Deviations: no code was found: assessor, augmentor and filter are those of adversarial distillation of texts (Lion, arXiv:2305.12870), a
reconstruction. The stages that join a vision tower to a language model are not here: whoever answers is a callable. The paper's student
surpasses its teacher on ScienceQA, which the miniature does not try.
"""

from __future__ import annotations

import math
from functools import partial

from preceptor.core.types import Card
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.two_digits import TwoDigitsWorld, loop_of, untrained_teacher
from preceptor.teachers.competition import Report

CARD = Card(
    slug="comd",
    title="CoMD: competitive distillation",
    authors="Li et al. 2023",
    arxiv="2311.08213",
    kind="curriculum",
    tasks=("language", "images"),
    needs=("teacher", "generation"),
    equation="D_r = replay(D_{r-1}) + {(v', x', a_T)}, x' like instructions with J(a_T) - J(a_S) >= tau",
    cost="each round both answer a pool and an assessor scores it twice, an augmentor writes new instructions and the teacher answers them",
    headline="ScienceQA 91.94 % after four rounds, a 7B student (its 13B teacher LLaVA about 90.9); SEED-Bench 50.9 (InstructBLIP 58.8)",
)


def measured(reports: list[Report]) -> dict[str, float]:
    """The accuracy after the last round, and how the last competition went: shares of the pool."""
    last = reports[-1]
    answered = max(sum(last.outcomes.values()), 1)
    return {
        "accuracy": last.scores["accuracy"],
        "first_accuracy": reports[0].scores["accuracy"],
        "hard": last.hard / answered,
        "student_wins": last.student_wins,
        "trained_on": float(len(last.trained)),
    }


def miniature(seed: int, size: Size) -> Miniature:
    """Questions of eight types about two digits: 1,500 given, then four rounds of 500 new ones and 300 updates, by where they come from.

    "random" writes new ones after any of the pool, "half" half of them after difficult ones and the rest anew; "untrained-teacher" is the
    whole loop with a teacher that knows nothing. All arms see as many new questions and take as many updates.
    """
    world = TwoDigitsWorld(seed, size)
    arms = {
        "untrained-teacher": world.compete(loop_of(size), teacher=untrained_teacher(seed)),
        "random": world.compete(loop_of(size, tau=-math.inf)),
        "half": world.compete(loop_of(size, hard_share=0.5)),
        "comd": world.compete(loop_of(size)),
    }
    claim = partial(Claim, method="comd", metric="accuracy")
    return Miniature(
        arms={name: measured(reports) for name, reports in arms.items()},
        claims=(
            claim(name="new questions like the lost ones teach 1.2 points more than others", baseline="random", margin=0.012),
            claim(name="a trained teacher matters", baseline="untrained-teacher"),
        ),
        notes=(f"{len(world.given)} questions given, {len(world.test)} of the test, images of test digits in none of the training",),
    )
