"""nDCG of ranked documents, as trec_eval counts it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from preceptor.losses.checks import check_choice, check_counts

Gain = Literal["linear", "exponential"]
"""What a document of relevance rel is worth: rel, as in trec_eval's ``ndcg_cut``, or 2^rel - 1."""


@dataclass(frozen=True, kw_only=True)
class Ndcg:
    """nDCG@k by query, in [0, 1], and the mean over judged queries; 0 without any."""

    queries: dict[str, float]

    @property
    def mean(self) -> float:
        """Over all judged queries, those that retrieved nothing included."""
        return math.fsum(self.queries.values()) / max(len(self.queries), 1)


def ndcg(qrels: Mapping[str, Mapping[str, float]], run: Mapping[str, Mapping[str, float]], k: int = 10, gain: Gain = "linear") -> Ndcg:
    """Normalised discounted cumulative gain of the first k documents.

    Järvelin and Kekäläinen 2002:
        DCG@k = sum_(r = 1..k) gain(rel of the document at rank r) / log2(r + 1),   nDCG = DCG / IDCG,
    IDCG of all judged documents of the query in their best order, also those that were not retrieved. Unjudged documents and negative
    relevance gain 0, and so does a query without relevant documents or without a run.

    Args:
        qrels: query -> document -> relevance.
        run: query -> document -> score; of equal scores the larger document name comes first. Queries that are not judged are left out.
        k: at least 1.
        gain: see `Gain`.
    Raises:
        ValueError: k < 1, an unknown gain, or a score that is not a number.
    """
    check_counts(k=k)
    check_choice(Gain, gain=gain)
    return Ndcg(queries={query: _ndcg(judged, _ranked(query, run.get(query, {})), k, gain) for query, judged in qrels.items()})


def _ranked(query: str, scores: Mapping[str, float]) -> list[str]:
    for document, score in scores.items():
        if math.isnan(score):
            raise ValueError(f"run: expected a number as score of {document!r} for {query!r}, got nan")
    return sorted(scores, key=lambda document: (scores[document], document), reverse=True)


def _ndcg(judged: Mapping[str, float], ranked: Sequence[str], k: int, gain: Gain) -> float:
    def dcg(relevances: Sequence[float]) -> float:
        gains = (max(rel, 0.0) if gain == "linear" else 2.0 ** max(rel, 0.0) - 1 for rel in relevances[:k])
        return sum(value / math.log2(rank + 1) for rank, value in enumerate(gains, start=1))

    ideal = dcg(sorted(judged.values(), reverse=True))
    return dcg([judged.get(document, 0.0) for document in ranked]) / ideal if ideal > 0 else 0.0
