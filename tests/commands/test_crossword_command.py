"""``preceptor crossword``: files out, one line and status 2 for bad input."""

import json

import pytest
import typer
from typer.testing import CliRunner

from preceptor.commands.crossword import crossword
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


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, (), "source.txt: expected an existing file, got none"),
        ("  \n", (), "expected a text, got an empty file"),
        ("Il nucleo dirige tutto.", ("--lang", "it"), "clues: expected at least 2 answers with a good clue, got 1 of 1"),
        (TEXT, ("--strict",), "strict: expected a model that solves the clues, got none"),
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
