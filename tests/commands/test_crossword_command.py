"""``preceptor crossword``: files out, one line and status 2 for bad input."""

import json

import pytest
import typer
from typer.testing import CliRunner

from preceptor.commands.crossword import crossword
from preceptor.education.open_answers import char_ngrams
from preceptor.teachers.chat import Chat, Said

TEXT = """Il nucleo della cellula contiene il DNA. I mitocondri producono energia per le piante. La membrana separa l'interno.
I ribosomi costruiscono proteine per ogni tessuto. Le radici assorbono acqua e minerali. Il fusto sostiene i rami e le foglie."""

app = typer.Typer()
app.command()(crossword)


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_text_becomes_a_page(tmp_path):
    source = tmp_path / "la_cellula.txt"
    source.write_text(TEXT, encoding="utf-8")
    result = run(source, "--out", tmp_path / "out", "--lang", "it", "--restarts", 3, "--size", 12)
    assert result.exit_code == 0, result.output
    assert "words" in result.output
    assert "<title>la cellula</title>" in (tmp_path / "out" / "crossword.html").read_text(encoding="utf-8")
    again = run(source, "--out", tmp_path / "two", "--lang", "it", "--restarts", 3, "--size", 12, "--json")
    assert json.loads(again.stdout) == json.loads((tmp_path / "out" / "crossword.json").read_text(encoding="utf-8"))


def test_a_list_says_what_was_left_out(tmp_path):
    source = tmp_path / "words.csv"
    source.write_text("answer,clue\ncasa,Ci si abita\nscala,Porta in alto\nH2O,Si beve sempre\nxyz,Tre lettere\n", encoding="utf-8")
    result = run(source, "--out", tmp_path / "out", "--lang", "it", "--seconds", 0)
    assert result.exit_code == 0, result.output
    assert "2 words" in result.output
    assert "left out: H2O: answer: expected letters A to Z" in result.output
    assert "left out: xyz: no place in the grid" in result.output


class Model:
    model, batch, parallel = "fake", 1, 1

    def answer(self, questions):
        texts = [question.messages[0]["content"] for question in questions]
        return [Said(text='{"valid": true}' if "valid" in text.split("schema")[0] else '["Una cosa bella", "Due cose"]') for text in texts]


def test_a_model_writes_the_clues(tmp_path, monkeypatch):
    monkeypatch.setattr("preceptor.teachers.chat.open_chat", lambda model, **rest: Chat(Model(), journal=rest["journal"]))
    source = tmp_path / "words.csv"
    source.write_text("answer\ncasa\nscala\n", encoding="utf-8")
    result = run(source, "--out", tmp_path / "out", "--lang", "it", "--seconds", 0, "--model", "fake", "--no-checks")
    assert "model: 2 answers" in result.output
    assert result.exit_code == 0, result.output
    texts = (tmp_path / "out" / "crossword.txt").read_text(encoding="utf-8")
    assert "Una cosa bella" in texts  # both words got the same two clues, and each took one
    assert "Due cose" in texts
    source.write_text("answer,clue\ncasa,\nscala,Porta in alto\n", encoding="utf-8")
    result = run(source, "--out", tmp_path / "out", "--lang", "it", "--seconds", 0, "--model", "fake")
    assert result.exit_code == 0, result.output
    assert "2 words" in result.output
    assert run(source, "--out", tmp_path / "out", "--seconds", 0, "--model", "fake", "--strict").exit_code == 2


def test_a_model_that_writes_no_json_is_named(tmp_path, monkeypatch):
    class Rambling(Model):
        def answer(self, questions):
            return [Said(text="The cell is small.") for _ in questions]

    monkeypatch.setattr("preceptor.teachers.chat.open_chat", lambda model, **rest: Chat(Rambling(), journal=rest["journal"]))
    source = tmp_path / "cell.txt"
    source.write_text(TEXT, encoding="utf-8")
    result = run(source, "--out", tmp_path / "out", "--lang", "it", "--model", "fake")
    assert result.exit_code == 1
    assert "error: model: expected clues, got none: passage 'Il nucleo" in result.output
    assert "expected Pairs, got 'The cell is small.'" in result.output


def test_a_pattern_is_filled(tmp_path):
    source, pattern = tmp_path / "words.csv", tmp_path / "pattern.txt"
    words = ("abc", "adg", "cfi", "ghi", "xyz")
    source.write_text("answer,clue\n" + "".join(f"{word},clue of number {i}\n" for i, word in enumerate(words)), encoding="utf-8")
    pattern.write_text("---\n-#-\n--I\n", encoding="utf-8")
    options = (source, "--template", pattern, "--out", tmp_path / "out")
    result = run(*options, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] in (["ABC", "D.F", "GHI"], ["ADG", "B.H", "CFI"])
    assert "xyz" not in run(*options).stdout  # a word that the pattern does not need
    source.write_text("answer,clue\nabc,one of them\nghi,two of them\n", encoding="utf-8")
    result = run(source, "--template", pattern, "--out", tmp_path / "none")
    assert (result.exit_code, result.output) == (2, "error: template: expected 4 words of 3 letters, got 2\n")
    assert not (tmp_path / "none").exists()
    result = run(*options, "--size", 9)
    assert (result.exit_code, result.output) == (2, "error: size: expected none with a template, got 9\n")


def test_a_search_that_ends_without_a_proof_can_be_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr("preceptor.education.crossword.template.PATIENCE", 1)
    source, pattern = tmp_path / "words.csv", tmp_path / "pattern.txt"
    words = ("aba", "bab", "abb", "baa", "aab", "bba")  # a square takes all six, and each corner that is tried comes to an end
    source.write_text("answer,clue\n" + "".join(f"{word},clue of number {i}\n" for i, word in enumerate(words)), encoding="utf-8")
    pattern.write_text("---\n---\n---\n", encoding="utf-8")
    result = run(source, "--template", pattern, "--out", tmp_path / "out", "--restarts", 1)
    assert result.exit_code == 1
    assert result.output.startswith("error: template: expected a filling in 1 tries, got 1 dead ends in 1 tries; there may be one: give")
    result = run(source, "--template", pattern, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "error: template: these words cannot fill it, as " in result.output


def test_judged_clues_fit_a_verifier(tmp_path):
    source, judged = tmp_path / "words.csv", tmp_path / "judged.csv"
    rows = [
        (f"{stem}{end}", f"{stem}s {end} of it")
        for stem in ("cas", "por", "mon", "lag", "tor", "val")
        for end in ("ina", "one", "ere", "ura")
    ]
    bad = [(answer, rows[(7 * i + 5) % len(rows)][1]) for i, (answer, _) in enumerate(rows)]
    table = [*((*row, "yes") for row in rows), *((*row, "no") for row in bad)]
    judged.write_text("\n".join(["answer,clue,good", *(",".join(row) for row in table)]), encoding="utf-8")
    clues = "answer,clue\nscalina,scals ina per salire\nmarone,mars one di acqua\nlama,qui non si dice\n"
    source.write_text(clues, encoding="utf-8")
    options = (source, "--out", tmp_path / "out", "--lang", "it", "--seconds", 0, "--judged", judged)
    result = run(*options)
    assert result.exit_code == 0, result.output
    assert "verifier: 100% of the held-out clues that it accepts are good, 100% of the good pass" in result.output
    assert "left out: lama: good with a chance of 0." in result.output
    made = json.loads((tmp_path / "out" / "crossword.json").read_text(encoding="utf-8"))
    assert [(row["answer"], row["why"][:21]) for row in made["unused"] if row["answer"] == "lama"] == [("lama", "good with a chance of")]
    result = run(*options, "--flag")
    assert "doubtful: lama: good with a chance of 0." in result.output
    made = json.loads((tmp_path / "out" / "crossword.json").read_text(encoding="utf-8"))
    assert [entry["written"] for entry in made["entries"] if entry["doubt"]] == ["lama"]
    result = run(*options, "--precision", 1.5)
    assert (result.exit_code, result.output) == (2, "error: precision: expected a number in (0, 1], got 1.5\n")
    result = run(*options, "--encoder", "minlm")
    assert (result.exit_code, result.output) == (2, "error: encoder: expected minilm or a folder, got 'minlm'\n")


def test_an_encoder_judges_by_meaning_too(tmp_path, monkeypatch):
    asked = []

    def opened(folder):
        asked.append(folder)
        return char_ngrams

    monkeypatch.setattr("preceptor.education.open_answers.sentence_embedder", opened)
    source, judged = tmp_path / "words.csv", tmp_path / "judged.csv"
    rows = [(f"{stem}ina", f"{stem}s ina of it") for stem in ("cas", "por", "mon", "lag", "tor", "val", "sol", "lun")]
    table = [*((*row, "yes") for row in rows), *((answer, "qqq www zzz", "no") for answer, _ in rows)]
    judged.write_text("\n".join(["answer,clue,good", *(",".join(row) for row in table)]), encoding="utf-8")
    source.write_text("answer,clue\nscala,scals cala e la\nmarina,mars ina grande\n", encoding="utf-8")
    for name, folder in (("minilm", None), (str(tmp_path), tmp_path)):
        result = run(source, "--out", tmp_path / "out", "--lang", "it", "--seconds", 0, "--judged", judged, "--encoder", name)
        assert result.exit_code == 0, result.output
        assert asked.pop() == folder


def test_a_long_list_of_what_is_left_out_is_cut(tmp_path):
    source = tmp_path / "words.csv"
    bad = "".join(f"x{i},clue of a number\n" for i in range(30))
    source.write_text(f"answer,clue\ncasa,Ci si abita\nscala,Porta in alto\n{bad}", encoding="utf-8")
    result = run(source, "--out", tmp_path / "out", "--seconds", 0)
    assert result.output.count("left out: x") == 20
    assert "left out: 10 more" in result.output
    assert len(json.loads((tmp_path / "out" / "crossword.json").read_text(encoding="utf-8"))["unused"]) == 30


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, (), "source.txt: expected an existing file, got none"),
        ("  \n", (), "expected a text, got an empty file"),
        ("Il nucleo dirige tutto.", ("--lang", "it"), "clues: expected at least 2 answers with a good clue, got 1 of 1"),
        (TEXT, ("--strict",), "strict: expected a model that solves the clues, got none"),
        (TEXT, ("--encoder", "minilm"), "encoder: expected --judged, the clues to fit a verifier to, got --encoder minilm alone"),
        (TEXT, ("--flag",), "flag: expected --judged or a model that checks the clues, got neither"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, content, options, message):
    source = tmp_path / "source.txt"
    if content is not None:
        source.write_text(content, encoding="utf-8")
    result = run(source, "--out", tmp_path / "out", "--seconds", 0, *options)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
