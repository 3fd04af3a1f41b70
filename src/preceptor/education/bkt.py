"""Bayesian knowledge tracing: one hidden bit for each student and skill, learned once and never forgotten.

Corbett and Anderson 1995, Knowledge tracing: Modeling the acquisition of procedural knowledge. With P = P(L), slip s, guess g, and the
chance tau to learn at each step:
    predict  P (1 - s) + (1 - P) g
    observe  P(L | correct) = P (1 - s) / (P (1 - s) + (1 - P) g),   P(L | wrong) = P s / (P s + (1 - P) (1 - g))
    learn    P <- P(L | observed) + (1 - P(L | observed)) tau.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Skills:
    """Parameters of K skills, arrays (K,), all in [0, 1]; slip and guess below 0.5, else a skill would mean its opposite."""

    start: np.ndarray
    learn: np.ndarray
    slip: np.ndarray
    guess: np.ndarray


def observe(known: np.ndarray, correct: np.ndarray, skills: Skills, skill: np.ndarray) -> np.ndarray:
    """P(L) after an answer and the step of learning; arrays of one shape, ``skill`` says which parameters."""
    slip, guess, learn = skills.slip[skill], skills.guess[skill], skills.learn[skill]
    if_known, if_not = np.where(correct == 1, 1 - slip, slip), np.where(correct == 1, guess, 1 - guess)
    evidence = known * if_known + (1 - known) * if_not
    after = np.where(evidence > 0, known * if_known / np.maximum(evidence, _TINY), known)
    return after + (1 - after) * learn


def predict(known: np.ndarray, skills: Skills, skill: np.ndarray) -> np.ndarray:
    """P(correct) of the next answer."""
    return known * (1 - skills.slip[skill]) + (1 - known) * skills.guess[skill]


def trace(tags: np.ndarray, correct: np.ndarray, skills: Skills) -> np.ndarray:
    """P(correct) of every step from the steps before it.

    Args:
        tags: (N, T, M) skills of each step, padded with -1; a step without any is skipped, and gets 0.5.
        correct: (N, T) 0 or 1, anything where there is no step.
        skills: of K skills.
    Returns:
        (N, T); for a question with several tags the mean of their predictions, made before any of them sees the answer.
    """
    rows, steps, width = tags.shape
    known = np.repeat(skills.start[None], rows, 0)
    found = np.full((rows, steps), 0.5)
    everyone = np.repeat(np.arange(rows)[:, None], width, 1)
    for step in range(steps):
        present = tags[:, step] >= 0
        skill = np.where(present, tags[:, step], 0)
        count = present.sum(1)
        said = predict(known[everyone, skill], skills, skill)
        found[:, step] = np.where(count > 0, (said * present).sum(1) / np.maximum(count, 1), 0.5)
        after = observe(known[everyone, skill], np.repeat(correct[:, step, None], width, 1), skills, skill)
        known[everyone[present], skill[present]] = after[present]
    return found


def fit(tags: np.ndarray, correct: np.ndarray, *, num_skills: int, iterations: int = 20) -> tuple[Skills, list[float]]:
    """Fit every skill by expectation and maximisation (Baum and Welch), each student's answers to it being one sequence.

    Args:
        tags: (N, T, M), see `trace`.
        correct: (N, T).
        num_skills: K; a skill that nobody met keeps the starting values.
        iterations: of EM, >= 1.
    Returns:
        The parameters, and the mean log-likelihood of an answer at each iteration.
    """
    skills = Skills(
        start=np.full(num_skills, 0.4), learn=np.full(num_skills, 0.15), slip=np.full(num_skills, 0.1), guess=np.full(num_skills, 0.25)
    )
    skill, answers, mask = _by_skill(tags, correct)
    likelihood = []
    for _ in range(iterations if len(skill) else 0):
        counts, total = _expect(skill, answers, mask, skills)
        likelihood.append(total)
        skills = _maximise(counts, skills)
    return skills, likelihood


def _by_skill(tags: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row per (student, skill): its skill (R,), answers (R, S) and mask (R, S)."""
    row, step, place = np.nonzero(tags >= 0)
    skill, answer = tags[row, step, place].astype(np.int64), correct[row, step]
    order = np.lexsort((step, skill, row))
    row, skill, answer = row[order], skill[order], answer[order]
    begins = np.flatnonzero((np.diff(row, prepend=-1) != 0) | (np.diff(skill, prepend=-1) != 0))
    lengths = np.diff(begins, append=len(row))
    where = np.repeat(np.arange(len(begins)), lengths), np.arange(len(row)) - np.repeat(begins, lengths)
    answers = np.zeros((len(begins), lengths.max(initial=0)), np.int8)
    mask = np.zeros(answers.shape, bool)
    answers[where], mask[where] = answer, True
    return skill[begins], answers, mask


def _expect(skill: np.ndarray, answers: np.ndarray, mask: np.ndarray, skills: Skills) -> tuple[dict[str, np.ndarray], float]:
    """Expected counts per skill, by the forward and backward passes, scaled at each step."""
    rows, steps = answers.shape
    slip, guess, learn = skills.slip[skill][:, None], skills.guess[skill][:, None], skills.learn[skill]
    says = np.stack([np.where(answers == 1, guess, 1 - guess), np.where(answers == 1, 1 - slip, slip)], -1)  # (R, S, 2)
    says = np.where(mask[..., None], says, 1.0)
    forward, scale = np.empty((rows, steps, 2)), np.empty((rows, steps))
    state = np.stack([1 - skills.start[skill], skills.start[skill]], -1)
    for step in range(steps):
        joint = state * says[:, step]
        scale[:, step] = np.maximum(joint.sum(1), _TINY)
        forward[:, step] = joint / scale[:, step, None]
        state = np.stack([forward[:, step, 0] * (1 - learn), forward[:, step, 1] + forward[:, step, 0] * learn], -1)
    backward = np.ones((rows, 2))
    at = np.empty((rows, steps, 2))
    moved, stayed = np.zeros(rows), np.zeros(rows)
    at[:, -1] = forward[:, -1]
    for step in range(steps - 2, -1, -1):
        ahead = says[:, step + 1] * backward / scale[:, step + 1, None]
        both = mask[:, step + 1]
        moves = forward[:, step, 0] * learn * ahead[:, 1]
        stays = forward[:, step, 0] * (1 - learn) * ahead[:, 0]
        moved, stayed = moved + both * moves, stayed + both * stays
        backward = np.stack([(1 - learn) * ahead[:, 0] + learn * ahead[:, 1], ahead[:, 1]], -1)
        at[:, step] = forward[:, step] * backward
    size = len(skills.start)

    def per_skill(values: np.ndarray) -> np.ndarray:
        return np.bincount(skill, values, minlength=size)

    right, wrong = mask & (answers == 1), mask & (answers == 0)
    counts = {
        "rows": per_skill(np.ones(rows)),
        "start": per_skill(at[:, 0, 1]),
        "moved": per_skill(moved),
        "left": per_skill(moved + stayed),
        "slipped": per_skill((at[..., 1] * wrong).sum(1)),
        "known": per_skill((at[..., 1] * mask).sum(1)),
        "guessed": per_skill((at[..., 0] * right).sum(1)),
        "unknown": per_skill((at[..., 0] * mask).sum(1)),
    }
    return counts, float(np.log(scale)[mask].sum() / mask.sum())


def _maximise(counts: dict[str, np.ndarray], before: Skills) -> Skills:
    def share(part: str, whole: str, old: np.ndarray, largest: float) -> np.ndarray:
        found = np.where(counts[whole] > 1e-9, counts[part] / np.maximum(counts[whole], 1e-9), old)
        return found.clip(1e-4, largest)

    return Skills(
        start=share("start", "rows", before.start, 1 - 1e-4),
        learn=share("moved", "left", before.learn, 1 - 1e-4),
        slip=share("slipped", "known", before.slip, 0.499),
        guess=share("guessed", "unknown", before.guess, 0.499),
    )
