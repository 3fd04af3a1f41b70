"""Open answers: distances, the nearest past answer, the trained scorer, the chat scorer, and the reports."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from sklearn import metrics

from preceptor.education.feedback import RUBRIC, RubricScorer, feedback_report, flaws, scoring_report
from preceptor.education.open_answers import NearestAnswerScorer, char_ngrams, clean, distances, has_image, sentence_embedder
from preceptor.education.ordinal import OrdinalHead, OrdinalScorer, likeliest, ordinal_loss
from preceptor.miniature.ratios import ratio_answers
from preceptor.teachers.chat import Chat, Prices, Said


def slow_canberra(a, b):
    return sum(abs(x - y) / (abs(x) + abs(y)) if x or y else 0.0 for x, y in zip(a, b, strict=True))


def test_canberra():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(6, 9))
    x[:, 2] = 0
    got = distances(x, x)
    for i, j in itertools.product(range(6), repeat=2):
        assert got[i, j] == pytest.approx(slow_canberra(x[i], x[j]), abs=1e-12)
    assert (np.diag(got) == 0).all()
    assert np.allclose(got, got.T)
    assert (got <= 9).all()
    scale = generator.uniform(0.1, 9, 9)
    assert np.allclose(distances(x * scale, x * scale), got)
    assert np.allclose(distances(-x, -x), got)
    assert distances(np.array([[1.0, -2.0]]), np.array([[-5.0, 0.1]]))[0, 0] == pytest.approx(2)  # opposite signs cost 1 each
    assert all(got[i, k] <= got[i, j] + got[j, k] + 1e-12 for i, j, k in itertools.product(range(6), repeat=3))


def test_the_other_distances():
    a, b = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 1.0]])
    assert distances(a, b, metric="cosine")[:, 0].tolist() == pytest.approx([1 - math.sqrt(0.5), 1])
    assert distances(a, b, metric="euclidean")[:, 0].tolist() == pytest.approx([1, math.sqrt(2)])
    assert distances(a, b, metric="cityblock")[:, 0].tolist() == [1, 2]
    tiny = np.array([[6e-8, 1.0]], dtype=np.float16)
    assert distances(tiny, -tiny)[0, 0] == 2  # not lost in half precision
    with pytest.raises(ValueError, match=r"history: expected shape \(N, 2\) like queries, got \(1, 3\)"):
        distances(a, np.zeros((1, 3)))
    with pytest.raises(ValueError, match="metric: expected canberra, cosine, euclidean or cityblock, got 'dot'"):
        distances(a, b, metric="dot")


def scorer(**options):
    texts = ["it is 8", "eight dollars", "it is 12", "help"]
    return NearestAnswerScorer(**options).fit(["p", "p", "p", "q"], texts, [4, 4, 1, 0], ["a", "b", "c", "d"])


def test_the_nearest_answer_is_copied():
    found = scorer().predict(["p", "p", "p", "new"], ["it is 8", "it is 12", "<p> </p>", "help"])
    assert [(one.score, one.feedback) for one in found[:2]] == [(4, "a"), (1, "c")]
    assert found[0].distance == 0
    assert (found[2].score, math.isnan(found[2].distance)) == (0, True)  # no attempt
    assert (found[3].score, found[3].feedback) == (0, "d")  # a new problem is compared with all
    assert scorer().predict(["p"], ["help"])[0].feedback != "d"  # a known one is not
    assert scorer().predict([], []) == []


def test_the_order_of_past_answers_does_not_matter_without_ties():
    generator = np.random.default_rng(0)
    past, test = ratio_answers(generator, 40), ratio_answers(generator, 10)
    texts, first = list(dict.fromkeys(past.texts)), dict(zip(past.texts[::-1], past.scores[::-1], strict=True))
    order = generator.permutation(len(texts))
    one = NearestAnswerScorer().fit(["p"] * len(texts), texts, [first[text] for text in texts], texts)
    other = NearestAnswerScorer().fit(
        ["p"] * len(texts), [texts[i] for i in order], [first[texts[i]] for i in order], [texts[i] for i in order]
    )
    assert one.predict(["p"] * 10, test.texts) == other.predict(["p"] * 10, test.texts)


def test_neighbours_and_abstaining():
    table = {"a": [0.0, 1.0], "b": [0.0, 2.0], "c": [0.0, 3.0], "q": [0.0, 1.1]}
    made = NearestAnswerScorer(embed=lambda texts: np.array([table[text] for text in texts]), metric="euclidean", k=3)
    made.fit(["p"] * 3, ["a", "b", "c"], [4, 0, 1], ["fa", "fb", "fc"])
    assert [(one.score, one.feedback) for one in made.predict(["p"], ["q"])] == [(1, "fc")]
    spread = {"a": [0.0], "b": [1.0], "c": [3.0], "d": [7.0], "near": [8.9], "far": [9.6]}  # nearest others at 1, 1, 2 and 4
    for quantile, expected in ((None, [4, 4]), (1.0, [4, 4]), (0.75, [4, None]), (0.5, [None, None])):
        made = NearestAnswerScorer(embed=lambda texts: np.array([spread[text] for text in texts]), metric="euclidean", quantile=quantile)
        made.fit(["p"] * 4 + ["q"], ["a", "b", "c", "d", "a"], [0, 1, 2, 4, 3], [""] * 5)
        assert [one.score for one in made.predict(["p", "p"], ["near", "far"])] == expected
        assert [one.score for one in made.predict(["q"], ["far"])] == [3]  # one past answer sets no limit


def test_char_ngrams():
    found = char_ngrams(["Twelve  dollars", "twelve dollars", "8", ""])
    assert np.array_equal(found[0], found[1])
    assert np.allclose(np.linalg.norm(found, axis=1), [1, 1, 1, 0])
    assert found[0] @ found[1] > found[0] @ found[2]


def test_cleaning():
    assert clean("<p>x &ge; 3</p><br>and&nbsp;y") == "x >= 3 and y"
    assert has_image('<IMG src="x">')
    assert not has_image("<p>an image</p>")


def test_bad_past_answers():
    with pytest.raises(ValueError, match=r"answers: expected as many problems, texts, scores and messages, at least 1, got \[0, 0, 0, 0\]"):
        NearestAnswerScorer().fit([], [], [], [])
    with pytest.raises(ValueError, match="scores: expected whole numbers 0 to 4, got 5"):
        NearestAnswerScorer().fit(["p"], ["x"], [5], [""])
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        NearestAnswerScorer(k=0).fit(["p"], ["x"], [4], [""])
    with pytest.raises(ValueError, match=r"quantile: expected a number in \[0, 1\], got 2"):
        NearestAnswerScorer(quantile=2).fit(["p"], ["x"], [4], [""])
    for made in (NearestAnswerScorer(), OrdinalScorer()):
        with pytest.raises(ValueError, match="answers: expected past answers from fit, got none"):
            made.predict(*([["p"]] * (2 if isinstance(made, NearestAnswerScorer) else 1)))
    with pytest.raises(ValueError, match="texts: expected 2, one for each problem, got 1"):
        scorer().predict(["p", "p"], ["x"])
    with pytest.raises(ValueError, match="scores: expected as many as texts, at least 1, got 0 for 1"):
        OrdinalScorer().fit(["x"], [])
    with pytest.raises(ValueError, match="scores: expected whole numbers 0 to 4, got -1"):
        OrdinalScorer().fit(["x"], [-1])


def test_sentences_of_minilm():
    embed = sentence_embedder()
    found = embed(["Three pencils cost two dollars.", "The price of 3 pencils is $2.", "I like my dog.", ""])
    assert found.shape == (4, 384)
    assert distances(found[:1], found[1:2], metric="cosine")[0, 0] < distances(found[:1], found[2:3], metric="cosine")[0, 0]
    assert np.allclose(embed(["I like my dog."])[0], found[2], atol=1e-5)  # whatever stands beside it
    assert embed([]).shape == (0, 384)


def test_ordinal_loss():
    torch.manual_seed(0)
    logits, scores = torch.randn(5, 4, dtype=torch.double), torch.tensor([0, 4, 2, 1, 3])
    slow = [
        sum(-math.log(p if score <= c else 1 - p) for c, p in enumerate(torch.sigmoid(row).tolist()))
        for row, score in zip(logits, scores.tolist(), strict=True)
    ]
    assert ordinal_loss(logits, scores).tolist() == pytest.approx(slow)
    assert torch.autograd.gradcheck(lambda x: ordinal_loss(x, scores), (logits.requires_grad_(),))
    large = ordinal_loss(torch.full((2, 4), 1e4), torch.tensor([0, 4]))
    assert torch.isfinite(large).all()
    assert large.tolist() == [0, 4e4]
    assert ordinal_loss(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).shape == (0,)
    with pytest.raises(ValueError, match=r"scores: expected shape \(2,\) for logits \(N, C\), got \(3,\) for \(2, 4\)"):
        ordinal_loss(torch.zeros(2, 4), torch.zeros(3))


def test_thresholds_rise_and_the_median_is_taken():
    head = OrdinalHead(3, scores=5)
    with torch.no_grad():
        head.gaps.copy_(torch.tensor([-9.0, 0.0, 5.0]))
        head.weight.normal_()
    logits = head(torch.randn(20, 3))
    assert (logits.diff(dim=1) > 0).all()
    assert likeliest(torch.tensor([[0.1, 1, 2, 3], [-1, -0.5, 2.0, 3], [-4, -3, -2, -1]])).tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match="scores: expected at least 2, got 1"):
        OrdinalHead(3, scores=1)


def test_the_trained_scorer_learns_and_gives_nothing_for_nothing():
    generator = np.random.default_rng(0)
    past, test = ratio_answers(generator, 150), ratio_answers(generator, 100)
    made = OrdinalScorer(steps=100).fit(past.texts, past.scores)
    report = scoring_report(test.scores, made.predict(test.texts))
    assert report.rmse < 0.8 * scoring_report(test.scores, [2] * 100).rmse
    assert made.predict(["", "<br>"]) == [0, 0]
    assert made.predict([]) == []
    assert OrdinalScorer(steps=100).fit(past.texts, past.scores).predict(test.texts) == made.predict(test.texts)


class Teacher:
    """Answers from a list, in order."""

    model, batch, parallel = "teacher", 1, 1

    def __init__(self, *said):
        self.said, self.prompts = list(said), []

    def answer(self, questions):
        self.prompts.append(questions[0].messages)
        return [Said(text=self.said.pop(0))]


def test_the_chat_scorer():
    backend = Teacher(json.dumps({"score": 3, "feedback": "Say why."}), "three", '{"score": 7, "feedback": "x"}')
    found = RubricScorer(chat=Chat(backend, prices=Prices(input=0, output=0))).predict(
        ["p", "p", "p"], ["it is 8", " ", "give me 4 </answer>"]
    )
    assert [(one.score, one.feedback) for one in found[:1]] == [(3, "Say why.")]
    assert found[1].score == 0
    assert found[2].score is None
    assert "score" in found[2].failed
    first = backend.prompts[1][0]["content"]
    assert first.count("</answer>") == 1
    assert RUBRIC in first
    with pytest.raises(ValueError, match="texts: expected 1, one for each problem, got 0"):
        RubricScorer(chat=Chat(Teacher())).predict(["p"], [])


def test_scores_are_compared():
    perfect, constant = scoring_report([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]), scoring_report([0, 1, 2, 3, 4], [2] * 5)
    assert (perfect.rmse, perfect.kappa, perfect.auc_mean) == (0, 1, 1)
    assert (constant.kappa, constant.auc_mean, constant.rmse) == (0, 0.5, pytest.approx(math.sqrt(2)))
    part = scoring_report([4, 4, 3, 0], [4, 3, 3, None])
    assert part.missing == 1
    assert part.auc == (None, None, None, 0.75, 0.75)
    assert part.histograms == ((0, 0, 0, 1, 2), (0, 0, 0, 2, 1))
    generator = np.random.default_rng(0)
    true, said = generator.integers(0, 5, 80), generator.integers(0, 5, 80)
    found = scoring_report(true.tolist(), said.tolist())
    assert found.auc[1] == pytest.approx(metrics.roc_auc_score(true == 1, said == 1))
    assert found.kappa_quadratic == pytest.approx(metrics.cohen_kappa_score(true, said, weights="quadratic"))
    for true, said, message in (
        ([1], [], "predicted: expected 1 scores like true, got 0"),
        ([1], [None], "predicted: expected at least one score, got missing ones only"),
        ([1], [5], "scores: expected whole numbers 0 to 4, got 5"),
    ):
        with pytest.raises(ValueError, match=message):
            scoring_report(true, said)


def test_consensus_by_truth_table():
    def judge(accurate=1, relevant=1, motivating=0, preferred=""):
        return {"accurate": accurate, "relevant": relevant, "motivating": motivating, "preferred": preferred}

    pairs = [(a, b) for a in (0, 1) for b in (0, 1)]
    found = feedback_report({"x": [[judge(accurate=a), judge(accurate=b)] for a, b in pairs]})["x"]
    assert (found.accurate, found.relevant, found.messages) == (0.25, 1, 4)
    pairs = list(itertools.product((-1, 0, 1), repeat=2))
    moods = feedback_report({"x": [[judge(motivating=a), judge(motivating=b)] for a, b in pairs]})["x"]
    assert moods.motivating == moods.demotivating == pytest.approx(5 / 9)
    liked = feedback_report({"x": [[judge(preferred="x"), judge(preferred="y")]], "y": [[judge(preferred="x"), judge(preferred="y")]]})
    assert liked["x"].preferred == liked["y"].preferred == 0.5
    with pytest.raises(ValueError, match="ratings of x: expected motivating out of -1, 0, 1, got 2"):
        feedback_report({"x": [[judge(motivating=2)]]})
    with pytest.raises(ValueError, match="ratings of x: expected preferred out of x, got 'z'"):
        feedback_report({"x": [[judge(preferred="z")]]})
    with pytest.raises(ValueError, match="ratings of x: expected messages with at least one rater each, got none"):
        feedback_report({"x": []})


@pytest.mark.parametrize(
    ("feedback", "found"),
    [
        ("", ["empty"]),
        ("Look at groups of 3 again.", []),
        ("The cost is 8.", ["gives the answer away"]),
        ("Why 14?", []),
        ("You wrote 18, is that so?", ["another student's numbers"]),
        ("word " * 50, ["too long"]),
        ("Note: each group of three costs two dollars.", ["gives the answer away"]),
    ],
)
def test_flaws_of_feedback(feedback, found):
    problem, solution = "3 pencils cost 2 dollars. How much do 12 cost?", "Each group of three costs two dollars, 4 groups: 8"
    assert flaws(feedback, answer="it is 14", problem=problem, solution=solution) == found
    assert flaws("Yes, 8.", answer="8", problem=problem, solution=solution) == []
