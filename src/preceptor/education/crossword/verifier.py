"""Is a clue a clue of its answer? A light classifier on shared letters, the round trip, and a language model's word."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import BaseModel, RootModel

from preceptor.core.optional import require
from preceptor.education.crossword.answers import Clue, normalize, words_of
from preceptor.education.crossword.clues import Lang, check_lang
from preceptor.education.open_answers import Embed
from preceptor.teachers.chat import Chat, Settings

Solver = Callable[[Sequence[tuple[str, int]], int], Sequence[Sequence[str]]]
"""Clues with the length of their answers, and k, to k answers for each (letters A-Z, best first)."""

FEATURES = ("pairs", "triples", "fours", "longest", "back")


class Judgement(BaseModel):
    """What a model says of a clue."""

    valid: bool


class Guesses(RootModel[list[str]]):
    """Answers that a model would try."""


@dataclass(frozen=True, kw_only=True)
class ClueVerifier:
    """P(ok | clue, answer) = sigmoid(w . phi + b), phi `features`, standardised.

    Attributes:
        weights, bias: w and b.
        centre, scale: of the features in training.
        embed: the encoder of its features; None: they are shares of letters alone.
        threshold: least score that is accepted; infinite where no score reached the precision.
        held: clues that the threshold was set on.
        precision: the share of those accepted that are good; NaN where none is accepted.
        recall: the share of the good ones that are accepted.
    """

    weights: tuple[float, ...]
    bias: float
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    embed: Embed | None = None
    threshold: float = 0.5
    held: int = 0
    precision: float = float("nan")
    recall: float = float("nan")

    @classmethod
    def fit(
        cls,
        clues: Sequence[Clue],
        labels: Sequence[bool],
        *,
        precision: float = 0.9,
        share: float = 0.25,
        seed: int = 0,
        embed: Embed | None = None,
    ) -> ClueVerifier:
        """Learn from judged clues, and set the threshold on a part of the answers that was held out.

        Args:
            clues: N.
            labels: N, whether each is acceptable.
            precision: wanted of what is accepted, in (0, 1].
            share: of the answers, for the threshold, in (0, 1).
            seed: of that choice.
            embed: texts to vectors, see `features`.
        Raises:
            ValueError: lengths differ, a number is out of its range, or a part lacks one of the two labels.
            ImportError: scikit-learn is missing.
        """
        if len(labels) != len(clues):
            raise ValueError(f"labels: expected {len(clues)} like clues, got {len(labels)}")
        if not 0 < share < 1:
            raise ValueError(f"share: expected a number in (0, 1), got {share}")
        if not 0 < precision <= 1:
            raise ValueError(f"precision: expected a number in (0, 1], got {precision}")
        x, y = features(clues, embed=embed), np.asarray(labels, dtype=bool)
        held = held_out(clues, share, seed=seed)
        for name, part in (("training", ~held), ("validation", held)):
            if len(set(y[part].tolist())) < 2:
                raise ValueError(f"labels: expected good and bad clues in the {name} part, got {int(y[part].sum())} good of {part.sum()}")
        linear = require("sklearn.linear_model", extra="education", purpose="the verifier of clues")
        centre, scale = x[~held].mean(0), np.maximum(x[~held].std(0), 1e-9)
        model = linear.LogisticRegression().fit((x[~held] - centre) / scale, y[~held])
        made = cls(
            weights=tuple(model.coef_[0].tolist()),
            bias=float(model.intercept_[0]),
            centre=tuple(centre.tolist()),
            scale=tuple(scale.tolist()),
            embed=embed,
        )
        scores, good = made._scores(x[held]), y[held]
        threshold = threshold_for(scores, good, precision)
        accepted = scores >= threshold
        return replace(
            made,
            threshold=threshold,
            held=len(good),
            precision=float(good[accepted].mean()) if accepted.any() else float("nan"),
            recall=float(accepted[good].mean()),
        )

    def score(self, clues: Sequence[Clue]) -> list[float]:
        """P(ok) of each clue."""
        return self._scores(features(clues, embed=self.embed)).tolist() if clues else []

    def _scores(self, x: np.ndarray) -> np.ndarray:
        z = (x - np.array(self.centre)) / np.array(self.scale) @ np.array(self.weights) + self.bias
        return 1 / (1 + np.exp(-z))


def features(clues: Sequence[Clue], *, embed: Embed | None = None) -> np.ndarray:
    """Shares of what answer and clue have in common, (N, 5), each in [0, 1], and with an encoder (N, 6): the cosine of the two.

    Of the answer's runs of 2, 3 and 4 letters those that some word of the clue contains; its longest run in a word of the clue, by its
    length; of the clue's runs of 3 letters those that the answer contains.

    Args:
        clues: N.
        embed: texts to vectors (N, D), such as `preceptor.education.open_answers.sentence_embedder`.
    """
    rows = np.zeros((len(clues), len(FEATURES)))
    for row, clue in zip(rows, clues, strict=True):
        answer, words = clue.letters, words_of(clue.text)
        for i, n in enumerate((2, 3, 4)):
            own = grams(answer, n)
            row[i] = len(own & {gram for word in words for gram in grams(word, n)}) / max(1, len(own))
        row[3] = next((n for n in range(len(answer), 0, -1) if any(gram in word for gram in grams(answer, n) for word in words)), 0) / len(
            answer
        )
        theirs = {gram for word in words for gram in grams(word, 3)}
        row[4] = len(theirs & grams(answer, 3)) / max(1, len(theirs))
    if embed is None:
        return rows
    said, asked = embed([clue.answer.lower() for clue in clues]), embed([clue.text for clue in clues])
    lengths = np.linalg.norm(said, axis=1) * np.linalg.norm(asked, axis=1)
    return np.column_stack([rows, (said * asked).sum(1) / np.where(lengths > 0, lengths, 1)])


def grams(word: str, n: int) -> set[str]:
    """Every run of ``n`` letters."""
    return {word[i : i + n] for i in range(len(word) - n + 1)}


def held_out(clues: Sequence[Clue], share: float, *, seed: int) -> np.ndarray:
    """(N,) bool: clues whose answer is among a random share of the answers, so that no answer is on both sides."""
    answers = sorted({clue.letters for clue in clues})
    random.Random(seed).shuffle(answers)
    kept = set(answers[: max(1, round(share * len(answers)))])
    return np.array([clue.letters in kept for clue in clues], dtype=bool)


def threshold_for(scores: np.ndarray, labels: np.ndarray, precision: float) -> float:
    """The least score above which at least ``precision`` of the clues are good, lowered halfway to the next; infinite where there is none.

    Args:
        scores: (N,).
        labels: (N,) bool.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, good = scores[order], np.cumsum(labels[order]) / np.arange(1, len(order) + 1)
    last = np.append(ranked[1:] < ranked[:-1], True)  # equal scores are accepted together
    enough = np.flatnonzero((good >= precision) & last)
    if not len(enough):
        return float("inf")
    return float(ranked[enough[-1] : enough[-1] + 2].mean())


def shuffled(clues: Sequence[Clue], *, seed: int) -> list[Clue]:
    """Every answer with the clue of another answer.

    Raises:
        ValueError: fewer than two answers.
    """
    if len({clue.letters for clue in clues}) < 2:
        raise ValueError(f"clues: expected at least two answers, got {len({clue.letters for clue in clues})}")
    rng = random.Random(seed)
    made = []
    for clue in clues:
        other = rng.choice(clues)
        while other.letters == clue.letters:
            other = rng.choice(clues)
        made.append(replace(clue, text=other.text, source=other.source))
    return made


def round_trip(clues: Sequence[Clue], solver: Solver, *, k: int = 5) -> list[float]:
    """Give a solver the clue and the length: 1 / the place of the answer among its first ``k``, 0 where it is not there.

    Args:
        clues: N.
        solver: see `Solver`; all clues are given at once.
        k: at least 1.
    Returns:
        N reciprocal ranks.
    Raises:
        ValueError: k < 1, or the solver answered another number of clues.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    said = solver([(clue.text, len(clue.letters)) for clue in clues], k)
    if len(said) != len(clues):
        raise ValueError(f"solver: expected answers to {len(clues)} clues, got {len(said)}")
    ranks = []
    for clue, answers in zip(clues, said, strict=True):
        first = list(answers[:k])
        ranks.append(1 / (1 + first.index(clue.letters)) if clue.letters in first else 0.0)
    return ranks


def gram_solver(answers: Sequence[str]) -> Solver:
    """A solver that knows some answers, and ranks those of the right length by the runs of 2 and 3 letters they share with the clue."""
    known: dict[int, list[tuple[str, set[str]]]] = {}
    for answer in dict.fromkeys(answers):
        known.setdefault(len(answer), []).append((answer, grams(answer, 2) | grams(answer, 3)))

    def solve(asked: Sequence[tuple[str, int]], k: int) -> list[list[str]]:
        found = []
        for text, length in asked:
            theirs = {gram for word in words_of(text) for n in (2, 3) for gram in grams(word, n)}
            ranked = sorted(known.get(length, []), key=lambda one: (-len(one[1] & theirs) / max(1, len(one[1])), one[0]))
            found.append([answer for answer, _ in ranked[:k]])
        return found

    return solve


def chat_solver(chat: Chat, *, lang: Lang, settings: Settings = Settings()) -> Solver:  # noqa: B008
    """A solver that asks a model; what is no answer of the right length is left out."""
    check_lang(lang)

    def solve(asked: Sequence[tuple[str, int]], k: int) -> list[list[str]]:
        language = {"it": "Italian", "en": "English"}[lang]
        prompts = [
            f"Crossword in {language}. Clue: {text!r}. The answer has {length} letters. "
            f"A JSON list of the {k} likeliest answers, best first."
            for text, length in asked
        ]
        return [_guesses(said.value, length) for said, (_, length) in zip(chat.structured(prompts, Guesses, settings), asked, strict=True)]

    return solve


def ask_valid(clues: Sequence[Clue], chat: Chat, *, settings: Settings = Settings()) -> list[bool | None]:  # noqa: B008
    """Ask a model whether each clue is a true and fair clue of its answer, by its source where there is one; None: it did not say."""
    prompts = [
        (f"Text: {clue.source}\n" if clue.source else "")
        + f"Crossword clue: {clue.text}\nAnswer: {clue.answer}\nIs this a correct, understandable clue of exactly this answer? "
        'JSON: {"valid": true} or {"valid": false}.'
        for clue in clues
    ]
    return [None if said.value is None else said.value.valid for said in chat.structured(prompts, Judgement, settings)]


def _guesses(said: Guesses | None, length: int) -> list[str]:
    found = []
    for text in said.root if said else []:
        try:
            letters = normalize(text)
        except ValueError:
            continue
        if len(letters) == length and letters not in found:
            found.append(letters)
    return found
