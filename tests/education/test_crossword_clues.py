"""Answers, the rules of clues, clues from a text with and without a model, and the verifier."""

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_score, roc_auc_score

from preceptor.education.crossword.answers import Clue, keep_good, leaks, normalize, why_not
from preceptor.education.crossword.clues import BLANK, cloze_clues, extract_from_text, passages, sentences, write_clues
from preceptor.education.crossword.library import library_clues
from preceptor.education.crossword.verifier import (
    ClueVerifier,
    ask_valid,
    chat_solver,
    features,
    gram_solver,
    held_out,
    round_trip,
    shuffled,
    threshold_for,
)
from preceptor.teachers.chat import Chat, Said

FILES = ("argparse.py", "mailbox.py", "imaplib.py", "tarfile.py", "smtplib.py", "threading.py", "ftplib.py", "configparser.py")
TEXT = """La cellula è l'unità vivente più piccola. Il nucleo della cellula contiene il DNA e ne dirige le attività. I mitocondri producono
l'energia per la vita della cellula. Il dott. Rossi osserva i cloroplasti, che catturano la luce del sole. Perché? La membrana separa
l'interno dall'ambiente esterno.

Un titolo senza punto

I ribosomi costruiscono le proteine seguendo le istruzioni del nucleo."""


class Scripted:
    """A model that says what a function makes of the last message."""

    model, batch, parallel = "scripted", 1, 1

    def __init__(self, say):
        self.say, self.asked = say, []

    def answer(self, questions):
        self.asked += [question.messages for question in questions]
        return [Said(text=self.say(question.messages)) for question in questions]


@pytest.mark.parametrize(
    ("written", "letters"),
    [
        ("PERCHÉ L'ALBERO", "PERCHELALBERO"),
        ("perche\u0301", "PERCHE"),
        ("un’amica", "UNAMICA"),
        ("Œuvre straße", "OEUVRESTRASSE"),
        ("ﬁume-Po", "FIUMEPO"),
        ("  città ", "CITTA"),
    ],
)
def test_normalize(written, letters):
    assert normalize(written) == letters
    assert normalize(letters) == letters


@given(st.text(max_size=12))
def test_normalize_is_idempotent_or_refuses(text):
    try:
        letters = normalize(text)
    except ValueError:
        return
    assert normalize(letters) == letters
    assert all("A" <= letter <= "Z" for letter in letters)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "answer: expected letters, got ''"),
        ("'- ", 'answer: expected letters, got "\'- "'),
        ("H2O", "answer: expected letters A to Z, accents, apostrophes, spaces and hyphens, got '2' in 'H2O'"),
        ("рыба", "answer: expected letters A to Z, accents, apostrophes, spaces and hyphens, got 'Р' in 'рыба'"),
    ],
)
def test_what_is_no_answer(answer, message):
    with pytest.raises(ValueError, match="answer") as error:
        normalize(answer)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("clue", "answer", "leak"),
    [
        ("Where frozen food melts", "ICECREAM", False),
        ("A cold ice cream in summer", "ICECREAM", True),
        ("A nice cream of the crop", "ICECREAM", False),
        ("An ice creamery by the sea", "ICECREAM", False),
        ("È un ALBÈRO della foresta", "ALBERO", True),
        ("Gli alberelli del bosco", "ALBERO", True),  # the stem ALBER
        ("Sono albini", "ALBERO", False),
        ("Open source", "OPE", True),
        ("The sopena of it", "OPEN", True),
        ("nothing of it", "OPEN", False),
    ],
)
def test_leaks(clue, answer, leak):
    assert leaks(clue, answer) is leak


def test_rules():
    assert why_not(Clue(answer="nucleo", text="Dirige la cellula"), side=13) == ""
    assert why_not(Clue(answer="re", text="Porta la corona"), side=13) == "fewer than 3 letters"
    assert why_not(Clue(answer="mitocondrio", text="Produce energia"), side=9) == "11 letters, longer than the grid's 9"
    assert why_not(Clue(answer="nucleo", text="Centro"), side=13) == "a clue of 1 words, not 2 to 25"
    assert why_not(Clue(answer="nucleo", text="a " * 26), side=13) == "a clue of 26 words, not 2 to 25"
    assert why_not(Clue(answer="nucleo", text="Il nucleare no"), side=13) == "its clue gives it away"
    assert "got '2'" in why_not(Clue(answer="CO2", text="Un gas serra"), side=13)


def test_best_clue_of_each_answer_and_no_clue_twice():
    clues = [
        Clue(answer="nucleo", text="Sta al centro", score=0.5),
        Clue(answer="Nucleo", text="Dirige la cellula", score=0.9),
        Clue(answer="DNA", text="dirige la CELLULA!", score=0.8),
        Clue(answer="membrana", text="La membrana separa", score=1.0),
        Clue(answer="linfa", text="Scorre nel fusto"),
    ]
    kept, dropped = keep_good(clues, side=13)
    assert [clue.text for clue in kept] == ["Dirige la cellula", "Scorre nel fusto"]
    assert [(clue.answer, why) for clue, why in dropped] == [("membrana", "its clue gives it away"), ("DNA", "the clue of NUCLEO too")]


def test_sentences_are_not_cut_after_an_abbreviation():
    assert sentences(TEXT)[3].startswith("Il dott. Rossi osserva i cloroplasti")
    assert sentences("Nacque nel 63 a.C. Morì poi. «Basta!» Disse.") == ["Nacque nel 63 a.C. Morì poi.", "«Basta!»", "Disse."]
    assert "Un titolo senza punto" in sentences(TEXT)
    assert sentences("  ") == []


def test_cloze_clues_never_leak_and_use_a_sentence_once():
    clues = cloze_clues(TEXT, lang="it", side=13)
    assert len(clues) >= 5
    assert all(why_not(clue, side=13) == "" for clue in clues)
    assert all(BLANK in clue.text for clue in clues)
    assert len({clue.source for clue in clues}) == len(clues)
    assert all(
        normalize(clue.answer) in map(normalize, clue.source.replace("'", " ").replace(",", "").replace(".", "").split()) for clue in clues
    )
    assert not {"DELLA", "PERCHE"} & {clue.letters for clue in clues}
    long = "Quando " + "molto " * 30 + "nucleo " + "ancora " * 30 + "qui."
    assert any(clue.text.startswith("…") and clue.text.endswith("…") for clue in cloze_clues(long, lang="it", side=13))
    assert cloze_clues("Uno. Due.", lang="it", side=13) == []
    with pytest.raises(ValueError, match=r"^lang: expected 'it' or 'en', got 'de'$"):
        cloze_clues(TEXT, lang="de", side=13)


def test_a_model_finds_clues_and_what_is_not_in_the_text_is_left_out():
    said = [
        {"answer": "nucleo", "clue": "Contiene il DNA della cellula"},
        {"answer": "il nucleo", "clue": "Dirige le attività"},
        {"answer": "tettonica", "clue": "Contiene il DNA della cellula"},
        {"answer": "ribosomi", "clue": "Vecchi stregoni fantastici venuti da lontano"},
        {"answer": "DNA2", "clue": "Sta nel nucleo della cellula"},
    ]
    model = Scripted(lambda messages: f"Here it is:\n```json\n{json.dumps(said)}\n```")
    found = extract_from_text(TEXT, Chat(model), lang="it")
    assert [clue.answer for clue in found.clues] == ["nucleo", "il nucleo"]
    assert found.clues[0].source.startswith("Il nucleo della cellula")
    assert found.failed == ()
    assert "Example" not in model.asked[0][-1]["content"]
    shots = Scripted(lambda messages: "[]")
    extract_from_text(TEXT, Chat(shots), lang="it", shots=[Clue(answer="sole", text="Ci dà luce")])
    assert '{"answer": "sole", "clue": "Ci dà luce"}' in shots.asked[0][-1]["content"]


def test_no_json_three_times_leaves_the_passage_out():
    model = Scripted(lambda messages: "I would rather not")
    found = extract_from_text(TEXT, Chat(model), lang="it")
    assert found.clues == ()
    assert len(model.asked) == 3
    assert len(found.failed) == 1
    assert "expected Pairs, got 'I would rather not'" in found.failed[0]


def test_long_texts_go_in_passages():
    text = " ".join(f"Questa è la frase numero {number} di un testo lungo." for number in range(100))
    parts = list(passages(text))
    assert len(parts) > 2
    assert all(len(part) <= 1500 for part in parts)
    assert " ".join(parts) == text


def test_a_model_writes_clues_for_words():
    model = Scripted(lambda messages: json.dumps(["Brilla di giorno", " "]) if "'sole'" in messages[0]["content"] else "no")
    found = write_clues(["sole", "luna"], Chat(model), lang="it", n=2)
    assert [(clue.answer, clue.text) for clue in found.clues] == [("sole", "Brilla di giorno")]
    assert [line.split(":")[0] for line in found.failed] == ["luna"]
    with pytest.raises(ValueError, match=r"^n: expected at least 1 clue, got 0$"):
        write_clues(["sole"], Chat(model), lang="it", n=0)


def test_library_clues():
    clues = library_clues(FILES)
    assert len(clues) > 100
    assert all(3 <= len(clue.letters) <= 14 and 4 <= len(clue.text.split()) <= 30 for clue in clues)
    start = next(clue for clue in clues if clue.answer == "start" and clue.source == "threading.py")
    assert start.text == "Start the thread's activity."
    assert len({(clue.answer, clue.text) for clue in clues}) == len(clues)


def test_features_by_hand():
    (row,) = features([Clue(answer="ABCDE", text="xABC yCDE, zz")])
    #      pairs AB BC CD DE: all; triples ABC, CDE of 3; fours: none of 2; longest 3 of 5; back: XAB ABC YCD CDE of which 2
    assert row.tolist() == pytest.approx([1, 2 / 3, 0, 3 / 5, 2 / 4])
    assert features([Clue(answer="ABC", text="zz")])[0].tolist() == [0, 0, 0, 0, 0]


def test_the_verifier_knows_real_clues_from_shuffled_ones():
    real = [clue for clue in library_clues(FILES) if not leaks(clue.text, clue.letters)]
    clues = [*real, *shuffled(real, seed=0)]
    labels = [True] * len(real) + [False] * len(real)
    assert all(a.letters == b.letters and a.text != b.text for a, b in zip(real, shuffled(real, seed=1), strict=True))
    test = held_out(clues, 0.4, seed=3)
    train = [number for number, held in enumerate(test) if not held]
    assert not {clues[i].letters for i in train} & {clue.letters for clue, held in zip(clues, test, strict=True) if held}
    verifier = ClueVerifier.fit([clues[i] for i in train], [labels[i] for i in train])
    scores = verifier.score(clues)
    assert roc_auc_score(np.array(labels)[test], np.array(scores)[test]) > 0.75
    assert verifier.score([]) == []
    phi, z = features(clues[:1])[0], verifier.bias
    for value, centre, scale, weight in zip(phi, verifier.centre, verifier.scale, verifier.weights, strict=True):
        z += weight * (value - centre) / scale
    assert scores[0] == pytest.approx(1 / (1 + np.exp(-z)))


def test_threshold_keeps_the_precision():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 20, 300) / 20
    labels = rng.random(300) < scores
    for wanted in (0.6, 0.8, 0.9):
        threshold = threshold_for(scores, labels, wanted)
        assert precision_score(labels, scores >= threshold) >= wanted
        lower = [value for value in np.unique(scores) if value < threshold]
        assert all(precision_score(labels, scores >= value) < wanted for value in lower)
    assert threshold_for(np.array([0.5, 0.4]), np.array([False, True]), 0.9) == float("inf")


def test_bad_labels():
    clues = [Clue(answer="abc", text="x y"), Clue(answer="abd", text="x y")]
    with pytest.raises(ValueError, match=r"^labels: expected 2 like clues, got 1$"):
        ClueVerifier.fit(clues, [True])
    with pytest.raises(ValueError, match=r"^labels: expected good and bad clues in the training part, got"):
        ClueVerifier.fit(clues, [True, True])
    with pytest.raises(ValueError, match=r"^clues: expected at least two answers, got 1$"):
        shuffled(clues[:1], seed=0)


def test_round_trip():
    clues = [Clue(answer="sole", text="a b"), Clue(answer="luna", text="c d"), Clue(answer="mare", text="e f")]
    said = [["LUNA", "SOLE"], ["LUNA"], ["A", "B", "MARE"]]
    assert round_trip(clues, lambda asked, k: said, k=2) == [0.5, 1.0, 0.0]
    with pytest.raises(ValueError, match=r"^k: expected at least 1, got 0$"):
        round_trip(clues, lambda asked, k: said, k=0)
    with pytest.raises(ValueError, match=r"^solver: expected answers to 3 clues, got 1$"):
        round_trip(clues, lambda asked, k: said[:1])
    real = [clue for clue in library_clues(FILES) if not leaks(clue.text, clue.letters)]
    answers = [clue.letters for clue in real]
    found = np.mean([rank > 0 for rank in round_trip(real, gram_solver(answers))])
    rng = random.Random(0)
    chance = np.mean([clue.letters in rng.sample(answers, 5) for clue in real])
    assert found > chance + 0.3


def test_a_model_as_judge_and_solver():
    clues = [Clue(answer="città", text="Roma o Milano", source="Roma è una città."), Clue(answer="sole", text="Pesce")]
    judge = Scripted(lambda messages: '{"valid": true}' if "Roma" in messages[0]["content"] else "unsure")
    assert ask_valid(clues, Chat(judge)) == [True, None]
    solver = chat_solver(Chat(Scripted(lambda messages: '["paese", "CITTÀ", "citta", "x2"]')), lang="it")
    assert solver([("Roma o Milano", 5)], 5) == [["PAESE", "CITTA"]]
