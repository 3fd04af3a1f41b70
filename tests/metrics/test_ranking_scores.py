import math
import random

import pytest
import pytrec_eval

from preceptor.metrics.ranking import ndcg

QRELS = {"q": {"a": 3, "b": 1, "c": 0, "d": 2, "never": 3, "bad": -1}}


def test_by_hand():
    run = {"q": {"b": 0.9, "x": 0.8, "a": 0.7, "bad": 0.1}}
    ideal = 3 + 3 / math.log2(3) + 2 / 2 + 1 / math.log2(5)
    assert ndcg(QRELS, run).mean == pytest.approx((1 + 3 / 2) / ideal)
    ideal = 7 + 7 / math.log2(3) + 3 / 2
    assert ndcg(QRELS, run, 3, "exponential").queries["q"] == pytest.approx((1 + 7 / 2) / ideal)


def test_the_ideal_order_is_1_and_monotone_maps_change_nothing():
    run = {"q": {name: float(rel) for name, rel in QRELS["q"].items()}}
    assert ndcg(QRELS, run, 3).mean == 1
    lots = random.Random(0)
    scores = {name: lots.random() for name in QRELS["q"]}
    mapped = {name: math.exp(5 * score) - 7 for name, score in scores.items()}
    for gain in ("linear", "exponential"):
        assert 0 < ndcg(QRELS, {"q": scores}, 4, gain).mean == ndcg(QRELS, {"q": mapped}, 4, gain).mean < 1


def test_of_equal_scores_the_larger_name_comes_first():
    assert ndcg({"q": {"a": 1}}, {"q": {"a": 0.5, "b": 0.5}}, 1).mean == 0
    assert ndcg({"q": {"b": 1}}, {"q": {"a": 0.5, "b": 0.5}}, 1).mean == 1


def test_queries_without_relevance_run_or_judgement():
    qrels, run = {"none": {"a": 0}, "lost": {"a": 1}, "good": {"a": 1}}, {"none": {"a": 1.0}, "good": {"a": 1.0}, "unjudged": {"a": 1.0}}
    found = ndcg(qrels, run)
    assert found.queries == {"none": 0.0, "lost": 0.0, "good": 1.0}
    assert found.mean == pytest.approx(1 / 3)
    assert ndcg({}, run).mean == 0


def test_bad_numbers():
    with pytest.raises(ValueError, match="run: expected a number as score of 'a' for 'q', got nan"):
        ndcg(QRELS, {"q": {"a": math.nan}})
    with pytest.raises(ValueError, match="k: expected at least 1"):
        ndcg(QRELS, {}, 0)


def test_as_trec_eval_counts():
    lots = random.Random(1)
    qrels = {f"q{i}": {f"d{j}": lots.randrange(4) for j in range(12)} for i in range(20)}
    run = {query: {f"d{j}": lots.randrange(8) / 8 for j in range(4, 18)} for query in qrels}
    expected = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.5"}).evaluate(run)
    assert ndcg(qrels, run, 5).queries == pytest.approx({query: found["ndcg_cut_5"] for query, found in expected.items()})
