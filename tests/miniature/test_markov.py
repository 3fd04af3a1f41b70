"""Made-up languages and the n-gram models that learn them."""

import math

import numpy as np
import pytest

from preceptor.miniature.markov import SYMBOLS, Grams, drawn, random_chain, spelled, symbols_of, tempered, true_texts


def test_chains_are_probabilities_and_temperature_sharpens_them():
    chain = random_chain(np.random.default_rng(0))
    assert chain.shape == (SYMBOLS,) * 3
    assert np.allclose(chain.sum(-1), 1)
    assert np.allclose(tempered(chain, 1.0), chain)
    cold = tempered(chain, 0.1)
    assert np.allclose(cold.sum(-1), 1)
    assert (cold.max(-1) >= chain.max(-1) - 1e-12).all()
    assert np.allclose(tempered(chain, 1e9)[chain > 1e-3], 1 / SYMBOLS, atol=1e-6)


def test_texts_follow_their_chain():
    draws = np.random.default_rng(1)
    chain = random_chain(draws)
    texts = drawn(chain, np.tile([3, 7], (40_000, 1)), 3, draws)
    assert np.allclose(np.bincount(texts[:, 2], minlength=SYMBOLS) / len(texts), chain[3, 7], atol=0.01)
    assert true_texts(chain, 5, 9, draws).shape == (5, 9)
    begun = draws.integers(SYMBOLS, size=(6, 4))
    assert (drawn(chain, begun, 20, draws)[:, :4] == begun).all()


def test_spelling_goes_there_and_back():
    texts = np.random.default_rng(2).integers(SYMBOLS, size=(4, 6))
    assert (symbols_of(spelled(texts)) == texts).all()


@pytest.mark.parametrize("order", [2, 3])
def test_a_model_is_its_recursion(order):
    texts = np.random.default_rng(3).integers(SYMBOLS, size=(30, 8))
    flat = [list(text) for text in texts]

    def count(gram):
        return sum(text[i : i + len(gram)] == list(gram) for text in flat for i in range(8 - len(gram) + 1))

    def followed(gram):
        return sum(count((*gram, c)) for c in range(SYMBOLS))

    def probability(context, c):
        shorter = 1 / SYMBOLS if context is None else probability(None if not context else context[1:], c)
        if context is None:
            return shorter
        return (count((*context, c)) + 0.5 * shorter) / (followed(context) + 0.5)

    model = Grams.fit(texts, order=order, smoothing=0.5)
    assert np.allclose(model.table.sum(-1), 1)
    for a, b, c in ((0, 1, 2), tuple(flat[0][:3]), (5, 5, 5)):
        assert model.table[a, b, c] == pytest.approx(probability((a, b)[3 - order :], c))
    text = texts[:1]
    assert model.log_probs(text)[0, 0] == pytest.approx(math.log(model.table[tuple(text[0, :3])]))
    assert model.log_probs(texts).shape == (30, 6)


def test_many_texts_teach_the_chain():
    draws = np.random.default_rng(4)
    chain = random_chain(draws)
    test = true_texts(chain, 2000, 20, draws)
    few, many = (Grams.fit(true_texts(chain, count, 20, draws)).accuracy(test) for count in (8, 2000))
    best = (chain.argmax(-1)[test[:, :-2], test[:, 1:-1]] == test[:, 2:]).mean()
    assert few < 0.6 * best
    assert many == pytest.approx(best, abs=0.02)
