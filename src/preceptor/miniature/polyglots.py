"""Simulated teachers who write in made-up languages, and all that it takes to tell the good ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from preceptor.metrics.perplexity import Pair
from preceptor.miniature.markov import Grams, drawn, random_chain, spelled, symbols_of, tempered, true_texts
from preceptor.miniature.run import Size
from preceptor.teachers.chat import Prompt

LENGTH = 20
"""Symbols in a text; a prompt is the first four."""

_START, _TEACHERS, _LANGUAGES = 4, 10, ("one", "two", "three")
_SIZES = {"full": {"texts": 300, "known": 4000, "test": 1000}, "smoke": {"texts": 30, "known": 200, "test": 50}}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a teacher is in one language.

    Attributes:
        quality: share of the true chain in what it writes, in [0, 1].
        starts: different beginnings it knows.
        temperature: of its draws.
        size: means nothing.
        taste: how far the judge's opinion of it lies from its quality, in points of the rubric.
    """

    quality: float
    starts: int
    temperature: float
    size: float
    taste: float


class PolyglotWorld:
    """Ten teachers in three languages, each a second-order Markov chain; its truth is known.

    Attributes:
        facts: of a teacher in a language.
        base: by language, a trigram model of 8 true texts.
        reference: by language, one of 600.
        wrote: the texts of every teacher and language that was asked.
    """

    def __init__(self, seed: int, size: Size) -> None:
        self._draws, self._sizes = np.random.default_rng(seed), _SIZES[size]
        self.languages = _LANGUAGES
        self.teachers = {f"teacher {number}": f"teacher {number}" for number in range(_TEACHERS)}
        self._true, self._false = ({one: random_chain(self._draws) for one in _LANGUAGES} for _ in range(2))
        self.base, self.reference = ({one: Grams.fit(self._texts(one, count)) for one in _LANGUAGES} for count in (8, 600))
        self._fluent = {one: Grams.fit(self._texts(one, self._sizes["known"])) for one in _LANGUAGES}
        self._test = {one: self._texts(one, self._sizes["test"]) for one in _LANGUAGES}
        self.facts = {(teacher, language): self._facts() for teacher in self.teachers for language in _LANGUAGES}
        self.wrote: dict[tuple[str, str], np.ndarray] = {}
        self._now = ("", "")

    def make_data(self, teacher: str, language: str) -> list[Pair]:
        """Let a teacher go on from its starts."""
        known = self.facts[teacher, language]
        chain = known.quality * self._true[language] + (1 - known.quality) * self._false[language]
        starts = self._texts(language, known.starts)[:, :_START]
        begun = starts[self._draws.integers(known.starts, size=self._sizes["texts"])]
        texts = drawn(tempered(chain, known.temperature), begun, LENGTH, self._draws)
        self._now = (teacher, language)
        self.wrote[self._now] = texts
        return [(text[:_START], text[_START:]) for text in spelled(texts)]

    def train_student(self, pairs: Sequence[Pair], language: str) -> dict[str, Grams]:
        """A trigram model of what was written."""
        return {language: Grams.fit(symbols_of(["".join(pair) for pair in pairs]))}

    def foretold(self, model: Mapping[str, Grams], language: str) -> dict[str, float]:
        """The benchmark: the share of the symbols of true texts that are the likeliest."""
        return {language: model[language].accuracy(self._test[language])}

    def judge(self, prompts: Sequence[Prompt]) -> list[str]:
        """Judge what was written last: 1 + 4 quality, moved by the judge's taste and by a noise of 1 for each text."""
        known = self.facts[self._now]
        scores = 1 + 4 * known.quality + known.taste + self._draws.normal(size=len(prompts))
        return [f"[RESULT] {score}" for score in np.clip(np.round(scores), 1, 5).astype(int)]

    def log_probs(self, pairs: Sequence[Pair]) -> list[np.ndarray]:
        """Of responses under a trigram model of true texts in the language that was written last."""
        found = self._fluent[self._now[1]].log_probs(symbols_of(["".join(pair) for pair in pairs]))
        return list(found[:, _START - 2 :])

    def other_result(self, teacher: str, language: str) -> float:
        """The benchmark of a student of another family, a bigram model of what a teacher wrote."""
        return Grams.fit(self.wrote[teacher, language], order=2).accuracy(self._test[language])

    def _texts(self, language: str, count: int) -> np.ndarray:
        return true_texts(self._true[language], count, LENGTH, self._draws)

    def _facts(self) -> Facts:
        draws = self._draws
        return Facts(
            quality=draws.uniform(),
            starts=int(np.exp(draws.uniform(np.log(3), np.log(300)))),
            temperature=draws.uniform(0.5, 1.5),
            size=draws.uniform(),
            taste=draws.normal(scale=0.8),
        )
