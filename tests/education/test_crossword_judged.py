"""Verifiers of clues between a list and a grid: a classifier fitted to judged clues, a model, and what happens to what they reject."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from preceptor.education.crossword.answers import Clue, keep_good, why_not
from preceptor.education.crossword.export import as_json
from preceptor.education.crossword.library import library_clues
from preceptor.education.crossword.make import check_clues, make_crossword, read_judged, trained_verifier, verified
from preceptor.education.crossword.verifier import ClueVerifier, features, held_out, shuffled
from preceptor.education.open_answers import char_ngrams
from preceptor.teachers.chat import Chat, Said

FILES = ("argparse.py", "mailbox.py", "imaplib.py", "tarfile.py", "smtplib.py", "threading.py", "ftplib.py", "configparser.py")
REAL = [clue for clue in library_clues(FILES) if not why_not(clue, side=14)]
CLUES = [*REAL, *shuffled(REAL, seed=0)]
LABELS = [True] * len(REAL) + [False] * len(REAL)


class Judge:
    """A model that calls a clue wrong where it holds a word, and solves none."""

    model, batch, parallel = "judge", 1, 1

    def __init__(self, wrong):
        self.wrong, self.asked = wrong, []

    def answer(self, questions):
        self.asked += [question.messages[0]["content"] for question in questions]
        texts = [question.messages[0]["content"] for question in questions]
        return [Said(text=json.dumps({"valid": self.wrong not in text} if '"valid"' in text else ["nothing"])) for text in texts]


@pytest.fixture(scope="module")
def judged_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("judged") / "judged.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["answer", "clue", "good"])
        writer.writerows([clue.answer, clue.text, ("no", "yes")[good]] for clue, good in zip(CLUES, LABELS, strict=True))
    return path


def test_judged_clues_are_read(judged_file, tmp_path):
    clues, labels = read_judged(judged_file)
    assert labels == LABELS
    assert [clue.letters for clue in clues] == [clue.letters for clue in CLUES]
    path = tmp_path / "few.jsonl"
    path.write_text('{"answer": "sole", "clue": "Brilla", "good": true}\n{"answer": "luna", "clue": "Di notte", "good": 0}\n')
    assert read_judged(path)[1] == [True, False]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("sole,,yes", "few.csv: expected a clue in row 1, got none"),
        (",Brilla,yes", "few.csv: expected an answer in row 1, got none"),
        ("sole,Brilla,maybe", "few.csv: expected yes or no in column 'good' of row 1, got 'maybe'"),
        ("H2O,Si beve,yes", "few.csv, row 1: answer: expected letters A to Z, accents, apostrophes, spaces and hyphens, got '2' in 'H2O'"),
    ],
)
def test_judged_rows_that_do_not_pass(tmp_path, row, message):
    path = tmp_path / "few.csv"
    path.write_text(f"answer,clue,good\n{row}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected") as error:
        read_judged(path)
    assert str(error.value).endswith(message)


def test_a_verifier_tells_what_it_reached_on_clues_held_out(judged_file, tmp_path):
    verifier = trained_verifier(judged_file, precision=0.85, seed=1)
    held = held_out(CLUES, 0.25, seed=1)
    good = np.array(LABELS)[held]
    accepted = np.array(verifier.score(CLUES))[held] >= verifier.threshold
    assert verifier.held == held.sum()
    assert verifier.precision == pytest.approx(good[accepted].mean())
    assert verifier.recall == pytest.approx(accepted[good].mean())
    assert verifier.precision >= 0.85
    assert 0 < verifier.recall < 1
    noise = tmp_path / "noise.csv"  # labels that no letter tells
    rows = [f"{'ABCDEFGH'[i % 8]}{'IJKLMNOP'[i // 8]}Q,a clue of it,{'yes' if i % 3 == 0 else 'no'}" for i in range(64)]
    noise.write_text("\n".join(["answer,clue,good", *rows]), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"^precision: expected a threshold above which 0.99 of the 16 clues held out of .*noise.csv are good, got"
    ):
        trained_verifier(noise, precision=0.99)


def test_verdicts_are_those_of_the_threshold(judged_file):
    verifier = trained_verifier(judged_file, precision=0.85)
    some = [Clue(answer=clue.answer, text=clue.text, score=0.5) for clue in CLUES]
    chances = verifier.score(some)
    for (clue, why), given, chance in zip(verified(some, verifier), some, chances, strict=True):
        assert clue.score == pytest.approx(0.5 * chance)
        assert clue.answer == given.answer
        assert (why == "") == (chance >= verifier.threshold)
        assert why in ("", f"good with a chance of {chance:.2f}, below {verifier.threshold:.2f}")


def test_what_is_rejected_is_left_out_or_flagged(judged_file):
    verifier = trained_verifier(judged_file, precision=0.85)
    broken = [Clue(answer="H2O", text="Water of course"), Clue(answer="sun", text="sun sun")]
    kept, refused = check_clues([*broken, *CLUES], side=14, lang="en", verifier=verifier)
    judged = [clue for clue in CLUES if not why_not(clue, side=14)]
    unruly = [*broken, *(clue for clue in CLUES if why_not(clue, side=14))]
    accepted = len(kept) - len(unruly)
    assert kept[accepted:] == unruly  # not judged, and refused by the rules when the grid is made
    assert accepted + len(refused) == len(judged)
    assert all(clue.score >= verifier.threshold for clue in kept[:accepted])
    assert all("good with a chance of" in why and clue.score < verifier.threshold for clue, why in refused)
    flagged, none = check_clues([*broken, *CLUES], side=14, lang="en", verifier=verifier, flag=True)
    assert none == []
    assert len(flagged) == len(judged) + len(unruly)
    assert [(clue, clue.doubt) for clue in flagged if clue.doubt] == [(replace(clue, doubt=why), why) for clue, why in refused]
    wrong = Clue(answer="sun", text="of the night")
    with pytest.raises(
        ValueError, match=r"^clues: expected at least 2 that the verifiers accept, got 0: 'of the night' of 'sun', good with a"
    ):
        check_clues([wrong], side=14, lang="en", verifier=verifier)


def test_a_model_is_asked_only_of_what_the_classifier_accepts(judged_file):
    verifier = trained_verifier(judged_file, precision=0.85)
    accepted, _ = check_clues(REAL, side=14, lang="en", verifier=verifier)
    word = accepted[0].text.split()[0]
    judge = Judge(word)
    kept, refused = check_clues(REAL, side=14, lang="en", verifier=verifier, chat=Chat(judge))
    asked = [text for text in judge.asked if '"valid"' in text]
    assert len(asked) == len(accepted)
    assert all(any(clue.text in text for text in asked) for clue in accepted)
    assert {why for _, why in refused if "chance" not in why} == {"the model calls it wrong"}
    assert all(word not in clue.text for clue in kept)
    assert all(clue.score == pytest.approx(verifier.score([clue])[0] / 2) for clue in kept)  # and no round trip succeeded
    both, _ = check_clues(REAL, side=14, lang="en", verifier=verifier, chat=Chat(Judge(word)), strict=True, flag=True)
    assert any(clue.doubt.startswith("good with a chance of") and clue.doubt.endswith("; not among 5 guesses") for clue in both)


def test_an_answer_takes_a_clue_without_doubt_first():
    clues = [Clue(answer="sun", text="of the day", doubt="hm", score=0.9), Clue(answer="sun", text="it shines bright", score=0.2)]
    assert keep_good(clues, side=9)[0] == [clues[1]]
    assert keep_good(clues[:1], side=9)[0] == [clues[0]]
    made = make_crossword([clues[0], Clue(answer="sea", text="salt water")], title="x", lang="en", size=5, seconds=0)
    assert {entry["answer"]: entry["doubt"] for entry in as_json(made)["entries"]} == {"SUN": "hm", "SEA": ""}


def test_an_encoder_adds_the_cosine_of_clue_and_answer():
    clues = [Clue(answer="Start", text="start the activity"), Clue(answer="stop", text="qqq zzz"), Clue(answer="go", text="")]
    plain, more = features(clues), features(clues, embed=char_ngrams)
    assert (more[:, :5] == plain).all()
    said, asked = char_ngrams(["start", "stop", "go"]), char_ngrams([clue.text for clue in clues])
    assert more[:, 5].tolist() == pytest.approx((said * asked).sum(1).tolist())
    assert more[2, 5] == 0
    verifier = ClueVerifier.fit(CLUES, LABELS, embed=char_ngrams)
    assert len(verifier.weights) == 6
    assert verifier.score(CLUES[:3]) == pytest.approx(verifier.score(CLUES)[:3])
