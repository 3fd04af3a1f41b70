"""A student of a model's labels: its loss, its weights, what it mends and what it does not, and what it is compared with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from preceptor.education.agreement import MISSING, agreement
from preceptor.education.comments import Comments
from preceptor.education.label_student import Heads, LabelStudent, WeightedLabels, agreement_weights, distil
from preceptor.education.reliability import reliabilities
from preceptor.education.rubric import parse_rubric

DIGITS = load_digits()
ORDER = np.random.default_rng(0).permutation(len(DIGITS.target))
RUBRIC = parse_rubric({"categories": [{"name": name, "statement": name} for name in ("eight", "odd")]})
TRUTH = np.stack([DIGITS.target == 8, DIGITS.target % 2], 1).astype(int)[ORDER]


def pixels(names):
    return DIGITS.data[ORDER[[int(name) for name in names]]] / 16


def names(rows):
    return [str(row) for row in rows]


def flipped(labels, rate, seed):
    return np.where(np.random.default_rng(seed).random(labels.shape) < rate, 1 - labels, labels)


def test_the_loss_is_that_of_logistic_regression():
    torch.manual_seed(0)
    heads = Heads(3, [2, 2])
    with torch.no_grad():
        for head in heads.heads:
            head.weight.normal_()
            head.first.normal_()
    x, y = torch.randn(5, 3), torch.tensor([[0, 1], [1, MISSING], [1, 0], [0, 0], [1, 1]])
    with torch.no_grad():
        terms = WeightedLabels(weights=(0.5, 2.0), penalty=0.3).loss({"x": x, "y": y}, {}, {"student": heads}, None)
    for row in range(5):
        slow = 0.0
        for c, weight in enumerate((0.5, 2.0)):
            z = float((x[row] @ heads.heads[c].weight - heads.heads[c].first).detach())
            slow += weight * {0: math.log1p(math.exp(z)), 1: math.log1p(math.exp(-z)), MISSING: 0.0}[int(y[row, c])]
        assert terms["labels"][row].item() == pytest.approx(slow, rel=1e-5)
    squares = sum(float((head.weight.detach() ** 2).sum()) for head in heads.heads)
    assert terms["penalty"].item() == pytest.approx(0.15 * squares, rel=1e-5)


def test_it_is_logistic_regression():
    unit = DIGITS.data[ORDER] / np.linalg.norm(DIGITS.data[ORDER], axis=1, keepdims=True)
    student = LabelStudent(embed=lambda given: unit[[int(name) for name in given]], penalty=0.5, steps=400)
    student._scaled = lambda found: torch.from_numpy(found.astype(np.float32))  # without TF-IDF
    mine = student.fit(names(range(400)), TRUTH[:400], counts=[2, 2]).predict(names(range(400, 900)))
    for c in range(2):
        theirs = LogisticRegression(C=2.0, max_iter=2000).fit(unit[:400], TRUTH[:400, c]).predict(unit[400:900])
        assert (mine[:, c] == theirs).mean() > 0.99


def test_random_flips_are_averaged_away_and_systematic_ones_are_not():
    rows, fresh = range(1200), range(1200, 1797)
    said = flipped(TRUTH[:1200], 0.2, 1)
    student = LabelStudent(embed=pixels).fit(names(rows), said, counts=[2, 2])
    right = (student.predict(names(fresh)) == TRUTH[1200:]).mean(0)
    assert (right > (said == TRUTH[:1200]).mean(0) + 0.05).all()
    turned = LabelStudent(embed=pixels).fit(names(rows), 1 - TRUTH[:1200], counts=[2, 2])
    assert ((turned.predict(names(fresh)) == TRUTH[1200:]).mean(0) < 0.2).all()


def test_a_category_with_a_small_weight_is_held_back_and_one_without_is_left_out():
    rows = names(range(300))
    same = np.stack([TRUTH[:300, 1]] * 3, 1)
    student = LabelStudent(embed=pixels, penalty=1.0).fit(rows, same, counts=[2, 2, 2], weights=[1.0, 0.1, 0.0])
    sizes = [float(head.weight.detach().norm()) for head in student._heads.heads]
    assert sizes[0] > 1.5 * sizes[1] > 0
    found = student.predict(rows)
    assert (found[:, 2] == MISSING).all()
    assert (found[:, 0] == same[:, 0]).mean() >= (found[:, 1] == same[:, 1]).mean()
    alone = LabelStudent(embed=pixels, penalty=1.0).fit(rows, same[:, :1], counts=[2])
    assert (alone.predict(rows)[:, 0] == found[:, 0]).mean() > 0.99


def test_levels_and_missing_labels():
    levels = np.minimum(DIGITS.target[ORDER], 4)[:600, None]
    holes = levels.copy()
    holes[::5] = MISSING
    student = LabelStudent(embed=pixels).fit(names(range(600)), holes, counts=[5])
    found = student.predict(names(range(600)))
    assert set(found[:, 0].tolist()) <= set(range(5))
    assert agreement(found[:, 0], levels[:, 0], weights="quadratic", draws=0).kappa.value > 0.4
    assert student.predict([]).shape == (0, 1)
    nothing = LabelStudent(embed=pixels).fit(names(range(30)), np.full((30, 1), MISSING), counts=[2])
    assert (nothing.predict(names(range(5))) == MISSING).all()


def test_texts_are_learned():
    texts = [f"{'thank you for' if i % 2 else 'I dislike'} lecture {i}" for i in range(60)]
    labels = np.array([[i % 2] for i in range(60)])
    student = LabelStudent().fit(texts, labels, counts=[2])
    assert student.predict(["many thanks, thank you", "dislike", ""])[:2, 0].tolist() == [1, 0]
    again = LabelStudent().fit(texts, labels, counts=[2])
    assert torch.equal(again._heads.heads[0].weight, student._heads.heads[0].weight)


def people(count, *, rate=0.02):
    coded = {}
    for seed, name in enumerate(("H1", "H2")):
        given = np.full((1200, 2), MISSING)
        given[:count] = flipped(TRUTH[:count], rate, seed)
        coded[name] = given
    return Comments(ids=tuple(names(range(1200))), texts=tuple(names(range(1200))), about=("",) * 1200, people=coded)


def test_it_learns_from_comments_that_nobody_labelled_and_is_compared_on_the_others():
    comments, said = people(200), flipped(TRUTH[:1200], 0.1, 9)
    said[:200] = TRUTH[:200]  # would show if it learned from these
    found = reliabilities(comments.people, said, RUBRIC, draws=20)
    made = distil(comments, RUBRIC, said, found, LabelStudent(embed=pixels), draws=20)
    assert made.learned_from == 1000
    assert made.weights.tolist() == [one.human_model.value for one in found]
    alone = LabelStudent(embed=pixels).fit(names(range(200, 1200)), said[200:], counts=[2, 2], weights=made.weights.tolist())
    guessed = alone.predict(names(range(200)))
    assert (made.student.predict(names(range(200))) == guessed).all()
    expected = np.mean([agreement(given[:200, 0], guessed[:, 0], draws=0).kappa.value for given in comments.people.values()])
    assert made.reliability[0].human_model.value == pytest.approx(expected)


def test_a_category_in_which_the_model_is_no_better_than_chance_is_not_learned():
    comments, said = people(200), TRUTH[:1200].copy()
    said[:, 1] = 1 - said[:, 1]
    found = reliabilities(comments.people, said, RUBRIC, draws=0)
    made = distil(comments, RUBRIC, said, found, LabelStudent(embed=pixels, steps=20), draws=0)
    assert made.weights[0] > 0.8
    assert made.weights[1] == 0
    assert made.reliability[1] is None
    assert (made.student.predict(["3"])[:, 1] == MISSING).all()
    assert agreement_weights([None, found[0]]).tolist() == [0, found[0].human_model.value]
    with pytest.raises(ValueError, match="student: expected a category in which the model agrees with people, got none"):
        distil(comments, RUBRIC, 1 - TRUTH[:1200], reliabilities(comments.people, 1 - TRUTH[:1200], RUBRIC), LabelStudent(embed=pixels))


def test_without_people_all_categories_count_alike():
    comments = Comments(ids=("a",) * 30, texts=tuple(names(range(30))), about=("",) * 30, people={})
    made = distil(comments, RUBRIC, TRUTH[:30], [None, None], LabelStudent(embed=pixels, steps=5))
    assert made.weights.tolist() == [1, 1]
    assert made.reliability == (None, None)


def test_bad_calls():
    with pytest.raises(ValueError, match=r"labels: expected shape \(1, 2\), at least one text, got \(1, 1\)"):
        LabelStudent().fit(["x"], np.zeros((1, 1), int), counts=[2, 2])
    with pytest.raises(ValueError, match=r"labels: expected 0 to 1 in category 0, -1 for none, got others"):
        LabelStudent().fit(["x"], np.array([[2]]), counts=[2])
    with pytest.raises(ValueError, match=r"weights: expected 1 numbers >= 0, got \[-1.0\]"):
        LabelStudent().fit(["x"], np.array([[1]]), counts=[2], weights=[-1])
    with pytest.raises(ValueError, match="texts: expected labels to learn from in fit, got none"):
        LabelStudent().predict(["x"])
    comments = people(1190)
    with pytest.raises(ValueError, match="student: expected at least 20 comments that the model labelled and no person did, got 10"):
        distil(comments, RUBRIC, TRUTH[:1200], [None, None], LabelStudent())
