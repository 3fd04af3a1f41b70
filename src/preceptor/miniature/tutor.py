"""A tutor's made-up log: students solve problems by the first way whose components they master or, as a control, by one dealt to them.

Students are of a few kinds, the common ones mastering more components than the rare ones. A step of component k is right with the chance
    sigma(ability_{u,k}),   ability_{u,k} = 2 where u's kind masters k, else -1, plus noise.
A problem belongs to a family with three ways of solution, the last of which a student takes who masters none of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from preceptor.education.solutions import Solutions

COMPONENTS, FAMILIES, PROBLEMS = 12, 4, 20
_SHARES = (0.5, 0.2, 0.12, 0.08, 0.05, 0.05)  # of each kind of student
_MASTERED = (9, 8, 7, 6, 5, 4)  # components of each kind
_WAYS, _DRILLS = 3, 3  # of a family; of each component for each student, before any problem
_OTHERWISE = 0.05  # chance of any way at all


@dataclass(frozen=True, kw_only=True)
class Log:
    """``solutions``, drills first, and what no log says: ``ability`` (U, K) in logits and the ``kind`` of each student, (U,).

    The drill of component k is problem 20 + k; ``drill`` (n,) marks them.
    """

    solutions: Solutions
    drill: np.ndarray
    ability: np.ndarray
    kind: np.ndarray


def log(students: int, attempts: int, *, seed: int, depends: bool = True) -> Log:
    """Every student is drilled in every component, then solves ``attempts`` different problems, the students taking turns.

    Args:
        students: U.
        attempts: of each, at most 20.
        seed: of everything.
        depends: False: the ways are dealt anew over all solutions of a family, so that they keep their shares and say nothing of students.
    """
    random = np.random.default_rng(seed)
    ways = [[random.choice(COMPONENTS, random.integers(2, 5), replace=False).tolist() for _ in range(_WAYS)] for _ in range(FAMILIES)]
    kind = random.choice(len(_SHARES), students, p=_SHARES)
    masters = np.array([random.permutation(COMPONENTS) < count for count in _MASTERED])[kind]
    ability = np.where(masters, 2.0, -1.0) + 0.5 * random.standard_normal((students, COMPONENTS))
    problem = np.stack([random.permutation(PROBLEMS)[:attempts] for _ in range(students)], 1).ravel()
    student = np.tile(np.arange(students), attempts)
    family = problem % FAMILIES
    able = np.array([[[masters[u, way].all() for way in own] for own in ways] for u in range(students)])
    able[..., -1] = True
    chosen = able[student, family].argmax(1)
    chosen = np.where(random.random(len(chosen)) < _OTHERWISE, random.integers(0, _WAYS, len(chosen)), chosen)
    if not depends:
        for number in range(FAMILIES):
            chosen[family == number] = random.permutation(chosen[family == number])
    drilled = np.tile(np.repeat(np.arange(COMPONENTS), students), _DRILLS)
    student = np.concatenate([np.tile(np.arange(students), COMPONENTS * _DRILLS), student])
    strategies = [[int(k)] for k in drilled] + [ways[f][way] for f, way in zip(family, chosen, strict=True)]
    chance = 1 / (1 + np.exp(-ability))
    solutions = Solutions(
        student=student,
        problem=np.concatenate([PROBLEMS + drilled, problem]),
        strategies=strategies,
        correct=[(random.random(len(s)) < chance[u, s]).astype(int).tolist() for u, s in zip(student, strategies, strict=True)],
        num_students=students,
        num_problems=PROBLEMS + COMPONENTS,
        num_components=COMPONENTS,
    )
    return Log(solutions=solutions, drill=np.arange(len(student)) < len(drilled), ability=ability, kind=kind)
