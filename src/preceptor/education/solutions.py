"""Logs of a tutor as solutions: who solved what problem by which row of knowledge components (KCs), and vectors of all of them.

The way of Shakya et al. 2023 (arXiv:2308.03892): steps -> mastery -> a graph of students, problems and KCs -> Node2Vec -> a vector for
every solution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preceptor.education.sequences import Windows
from preceptor.education.strategies import mastery_edges, steps_of
from preceptor.education.walks import graph_of, node2vec

COLUMNS = ("student", "problem", "component", "correct")


@dataclass(frozen=True, kw_only=True)
class Solutions:
    """n solutions in order of time.

    Attributes:
        student: (n,) in [0, num_students).
        problem: (n,) in [0, num_problems).
        strategies: the KCs of each, in [0, num_components), one per step; may be empty.
        correct: for each step 1 where its first attempt was right, else 0.
        num_students: U.
        num_problems: P.
        num_components: K.
    """

    student: np.ndarray
    problem: np.ndarray
    strategies: Sequence[Sequence[int]]
    correct: Sequence[Sequence[int]]
    num_students: int
    num_problems: int
    num_components: int

    def __len__(self) -> int:
        return len(self.student)

    def take(self, rows: np.ndarray) -> Solutions:
        """Some of them, of the same students, problems and KCs."""
        kept = [int(row) for row in rows]
        return Solutions(
            student=self.student[rows],
            problem=self.problem[rows],
            strategies=[self.strategies[row] for row in kept],
            correct=[self.correct[row] for row in kept],
            num_students=self.num_students,
            num_problems=self.num_problems,
            num_components=self.num_components,
        )

    def steps(self) -> Windows:
        """Every student's steps one after the other, one window each; a student without any has an empty one."""
        rows = [
            (u, k, c)
            for u, ks, cs in zip(self.student.tolist(), self.strategies, self.correct, strict=True)
            for k, c in zip(ks, cs, strict=True)
        ]
        user, component, correct = np.array(rows, np.int64).reshape(-1, 3).T
        order = np.argsort(user, kind="stable")
        lengths = np.bincount(user, minlength=self.num_students)
        place = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        laid = np.full((2, self.num_students, max(1, int(lengths.max(initial=0)))), -1)
        laid[:, user[order], place] = component[order], correct[order]
        return steps_of(*laid)

    def components(self) -> list[list[int]]:
        """The KCs that occur in solutions of each problem, in order."""
        found: list[set[int]] = [set() for _ in range(self.num_problems)]
        for problem, strategy in zip(self.problem.tolist(), self.strategies, strict=True):
            found[problem].update(strategy)
        return [sorted(own) for own in found]


def solutions_from(rows: Sequence[Mapping[str, Any]], source: str = "rows") -> Solutions:
    """Solutions from steps in order of time; names are numbered in the order of the alphabet.

    Args:
        rows: one per step, with ``student``, ``problem``, ``component`` and ``correct`` (0 or 1: the first attempt). Steps of a student
            at the same problem with none at another between them are one solution.
        source: for the message of an error.
    Raises:
        ValueError: no row, an empty name, or ``correct`` that is neither 0 nor 1; the row is named.
    """
    if not rows:
        raise ValueError(f"{source}: expected at least one step, got none")
    found: list[tuple[str, str, list[str], list[int]]] = []
    latest: dict[str, int] = {}  # student -> the solution that is going on
    for number, row in enumerate(rows, start=1):
        student, problem, component, correct = (str(row[name]).strip() for name in COLUMNS)
        if not (student and problem and component):
            raise ValueError(
                f"{source}: expected a student, a problem and a component in row {number}, got {student!r}, {problem!r}, {component!r}"
            )
        if correct not in ("0", "1"):
            raise ValueError(f"{source}: expected correct to be 0 or 1 in row {number}, got {correct!r}")
        place = latest.get(student)
        if place is None or found[place][1] != problem:
            latest[student] = place = len(found)
            found.append((student, problem, [], []))
        found[place][2].append(component)
        found[place][3].append(int(correct))
    students, problems = sorted({row[0] for row in found}), sorted({row[1] for row in found})
    components = sorted({component for row in found for component in row[2]})
    at = [{name: number for number, name in enumerate(names)} for names in (students, problems, components)]
    return Solutions(
        student=np.array([at[0][row[0]] for row in found]),
        problem=np.array([at[1][row[1]] for row in found]),
        strategies=[[at[2][component] for component in row[2]] for row in found],
        correct=[row[3] for row in found],
        num_students=len(students),
        num_problems=len(problems),
        num_components=len(components),
    )


def split_last(solutions: Solutions, rate: float = 0.33) -> tuple[Solutions, Solutions]:
    """The earlier and the last solutions of every student, who keeps at least one of the earlier.

    Args:
        solutions: in order of time.
        rate: share of a student's solutions in the second part, rounded, in (0, 1).
    Raises:
        ValueError: rate out of range, or no student with enough solutions for the second part.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate: expected a share in (0, 1), got {rate}")
    counts = np.bincount(solutions.student, minlength=solutions.num_students)
    order = np.argsort(solutions.student, kind="stable")
    place = np.empty(len(solutions), np.int64)
    place[order] = np.arange(len(solutions)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = np.minimum(np.rint(rate * counts), counts - 1)
    last = place >= (counts - held)[solutions.student]
    if not last.any():
        raise ValueError(f"solutions: expected a student with enough to hold out {rate:g} of them, got at most {counts.max(initial=0)}")
    return solutions.take(np.flatnonzero(~last)), solutions.take(np.flatnonzero(last))


def embed(seen: Solutions, mastered: np.ndarray, *, threshold: float = 0.6, seed: int = 0, **walking: Any) -> np.ndarray:
    """Vectors (U + P + K, D) of students, problems and KCs; 0 for one that no edge leads to.

    Args:
        seen: at least one solution; what is to be predicted later must not be among them.
        mastered: (U, K), from `preceptor.education.strategies.mastery`.
        threshold: mastery from which a student is joined to a KC.
        seed: of everything drawn.
        walking: options of `preceptor.education.walks.node2vec`, such as ``dim`` and ``q``.
    Raises:
        ValueError: no solution, or mastery of another shape.
    """
    if not len(seen):
        raise ValueError("seen: expected at least one solution, got none")
    if mastered.shape != (seen.num_students, seen.num_components):
        raise ValueError(f"mastered: expected shape {(seen.num_students, seen.num_components)}, got {mastered.shape}")
    edges = mastery_edges(mastered, seen.components(), np.stack([seen.student, seen.problem], 1), threshold=threshold)
    graph = graph_of(edges, nodes=seen.num_students + seen.num_problems + seen.num_components)
    return node2vec(graph, seed=seed, **walking).numpy()
