"""Crossword: clues for answers, a filter that keeps the acceptable ones, and a grid of them.

Paper: Zeinalipour et al. 2023, Italian Crossword Generator: Enhancing Education through Interactive Word Puzzles (arXiv:2311.15723).
Claim: clues can be written by a language model for a keyword or from a text, a small classifier and a round trip keep the good ones, and
what is left makes a grid. The paper's quality of clues needs its models and people's judgement; what can be measured here is the filter, on
real clues against shuffled ones, and the grid.
Equation, of a grid with FW words, LL cells in two words, L cells in all and the area of the rectangle around them:
    score = (FW + LL / 2) FR LR,   FR = L / area,   LR = LL / L,
and of a clue, phi five shares of letters that it has in common with its answer: P(ok) = sigmoid(w . phi + b).
Everything is in `preceptor.education.crossword`, and ``preceptor crossword`` is its command; a pattern of black squares that is given is
another problem than a free grid, and is filled by `preceptor.education.crossword.template`.
Deviations: the abstract is what could be read of the paper, so prompts, features and rules are ours. The score is that of the group's
Arabic system, from memory. Clues are written by a model as it is: the fine-tuning of one is not here. A text route without any model is
added: keywords by TF-IDF, and their sentences with the keyword left out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from preceptor.core.types import Card
from preceptor.education.crossword.answers import leaks
from preceptor.education.crossword.grid import build_grid
from preceptor.education.crossword.library import library_clues
from preceptor.education.crossword.puzzle import Puzzle
from preceptor.education.crossword.verifier import FEATURES, ClueVerifier, Solver, features, gram_solver, held_out, round_trip, shuffled
from preceptor.education.scores import auc
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.school_words import SCHOOL_WORDS

CARD = Card(
    slug="crossword",
    title="Crosswords for learning: clues from a text, a verifier, a grid, a page to play",
    authors="Zeinalipour et al. 2023",
    arxiv="2311.15723",
    kind="measurement",
    tasks=("education", "language"),
    needs=(),
    equation="score = (FW + LL / 2) FR LR;   P(ok | clue, answer) = sigmoid(w . phi + b)",
    cost="a grid of 13 x 13 from 75 words: a millisecond a try, half of that a repair; clues: one question to a model per passage",
    headline="the abstract says that quality is very promising, and gives no number",
)

BUDGET = 1500
"""Grids begun or repaired, of every arm that searches."""

_SMOKE_FILES = ("argparse.py", "mailbox.py", "imaplib.py")


def top_share(scores: np.ndarray, labels: np.ndarray, *, share: float = 0.3) -> float:
    """Of the best ``share`` of the clues by score, the share that is good.

    Args:
        scores: (N,).
        labels: (N,) bool.
        share: in (0, 1].
    """
    count = max(1, round(share * len(scores)))
    return float(np.asarray(labels)[np.argsort(-np.asarray(scores), kind="stable")[:count]].mean())


def guess_solver(answers: Sequence[str], *, seed: int) -> Solver:
    """A solver that guesses among the answers of the right length: chance for the round trip."""
    rng = random.Random(seed)
    known: dict[int, list[str]] = {}
    for answer in dict.fromkeys(answers):
        known.setdefault(len(answer), []).append(answer)

    def solve(asked: Sequence[tuple[str, int]], k: int) -> list[list[str]]:
        return [rng.sample(known.get(length, []), min(k, len(known.get(length, [])))) for _, length in asked]

    return solve


def miniature(seed: int, size: Size) -> Miniature:
    """Seventy-five Italian school words in 13 x 13 cells, and the docstrings of the standard library as clues of their functions.

    Every arm is a grid and a filter. ``score``, ``words``, ``fill`` and ``links`` are of the grid, see `Stats`; those of ``untrained`` and
    ``single`` are means over single tries, the other three arms have equal budgets of grids begun or repaired. Clues are the real ones and
    as many shuffled ones, all without a leak; on answers that were not trained on, ``auc`` is the chance that a real clue gets the higher
    score, ``top`` the share of real clues among the best 30 %, ``round_trip`` that of real clues whose answer is among five guesses.
    """
    budget = BUDGET if size == "full" else 12
    grids = _grids(seed, budget)
    real = [clue for clue in library_clues(None if size == "full" else _SMOKE_FILES) if not leaks(clue.text, clue.letters)]
    clues = [*real, *(clue for clue in shuffled(real, seed=seed) if not leaks(clue.text, clue.letters))]
    labels = np.arange(len(clues)) < len(real)
    test = held_out(clues, 0.3, seed=seed + 1)
    asked = [clue for clue, good, held in zip(clues, labels, test, strict=True) if good and held]
    answers = [clue.letters for clue in real]
    phi = features(clues)
    verifier = ClueVerifier.fit([clue for clue, held in zip(clues, test, strict=True) if not held], labels[~test].tolist(), seed=seed)
    scores = {
        "untrained": phi[test] @ np.random.default_rng(seed).normal(size=len(FEATURES)),
        "single": phi[test, FEATURES.index("pairs")],
        "random-restarts": phi[test, FEATURES.index("triples")],
        "greedy-restarts": phi[test, FEATURES.index("longest")],
        "crossword": np.array(verifier.score([clue for clue, held in zip(clues, test, strict=True) if held])),
    }
    solvers = {"untrained": guess_solver(answers, seed=seed), "clever": gram_solver(answers)}
    solved = {name: float(np.mean([rank > 0 for rank in round_trip(asked, solver)])) for name, solver in solvers.items()}
    arms = {
        name: {
            **_mean(grids[name]),
            "auc": auc(scores[name], labels[test]),
            "top": top_share(scores[name], labels[test]),
            "round_trip": solved["untrained" if name == "untrained" else "clever"],
        }
        for name in grids
    }
    claims = (
        ("a search scores higher than a single grid", "single", "score", 0.0),
        ("repair scores higher than restarts alone", "greedy-restarts", "score", 0.0),
        ("repair scores higher than restarts with random places", "random-restarts", "score", 0.0),
        ("repair places more words than restarts alone", "greedy-restarts", "words", 0.0),
        ("five features know real clues better than the longest shared run", "greedy-restarts", "auc", 0.0),
        ("of the best 30 % by score more are real than by chance, by 0.4", "untrained", "top", 0.4),
        ("the round trip finds 40 of 100 answers more than guesses do", "untrained", "round_trip", 0.4),
    )
    return Miniature(
        arms=arms,
        claims=tuple(
            Claim(name=name, method="crossword", baseline=baseline, metric=metric, margin=margin)
            for name, baseline, metric, margin in claims
        ),
        notes=(
            f"{budget} grids begun or repaired in 13 x 13 cells, {len(SCHOOL_WORDS)} words",
            f"{len(real)} real clues without a leak; they depend on the version of Python",
        ),
    )


def _grids(seed: int, budget: int) -> dict[str, list[Puzzle]]:
    """The grids of every arm."""
    singles = {
        name: [build_grid(SCHOOL_WORDS, restarts=1, patience=0, greedy=greedy, seed=1000 * seed + i) for i in range(min(60, budget))]
        for name, greedy in (("untrained", 0.0), ("single", 1.0))
    }
    repaired = build_grid(SCHOOL_WORDS, restarts=None, rounds=budget, seed=seed)
    tries = repaired.tries + repaired.rounds
    return {
        **singles,
        "random-restarts": [build_grid(SCHOOL_WORDS, restarts=tries, patience=0, greedy=0.0, seed=seed + 10**6)],
        "greedy-restarts": [build_grid(SCHOOL_WORDS, restarts=tries, patience=0, seed=seed)],
        "crossword": [repaired],
    }


def _mean(puzzles: Sequence[Puzzle]) -> dict[str, float]:
    return {name: fmean(getattr(puzzle.stats, name) for puzzle in puzzles) for name in ("score", "words", "fill", "links")}
