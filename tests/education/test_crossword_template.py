"""Given patterns: the solver finds exactly the fillings that trying everything finds, and proves that there is none."""

import random
from itertools import product

import pytest

from preceptor.education.crossword import template as module
from preceptor.education.crossword.answers import Clue
from preceptor.education.crossword.make import fill_crossword
from preceptor.education.crossword.puzzle import EMPTY, flaws
from preceptor.education.crossword.template import Filler, NoFilling, fill_template, read_template, template_of
from preceptor.miniature.school_words import SCHOOL_WORDS

PATTERN = ("----#-----", "----------", "----#-----", "#-----#---", "---#------", "-----#----", "----------", "-----#----")


def everything(template, words):
    """All fillings, found by trying every choice of words."""
    signs, found = "".join(template.rows), set()
    for choice in product(*[[word for word in words if len(word) == len(slot.cells)] for slot in template.slots]):
        letters = {cell: sign for cell, sign in enumerate(signs) if sign not in "#-"}
        pairs = [pair for slot, word in zip(template.slots, choice, strict=True) for pair in zip(slot.cells, word, strict=True)]
        if len(set(choice)) == len(choice) and all(letters.setdefault(cell, letter) == letter for cell, letter in pairs):
            found.add(choice)
    return found


def fillings(template, words):
    try:
        found = [tuple(words) for words in Filler(template, words).fillings()]
    except NoFilling:
        return set()
    assert len(set(found)) == len(found)
    return set(found)


def tiny(seed):
    """A pattern with at most six slots, and words of the letters A and B; None where it is no pattern."""
    rng = random.Random(seed)
    height, width = rng.choice([(2, 2), (2, 3), (3, 3), (3, 2)])
    rows = ["".join(rng.choice("-----#A") for _ in range(width)) for _ in range(height)]
    words = sorted({"".join(rng.choice("AB") for _ in range(rng.choice([2, 3]))) for _ in range(rng.randrange(4, 12))})
    try:
        return template_of(rows), words
    except ValueError:
        return None


TINY = [made for made in map(tiny, range(400)) if made]


def planted(seed, extra=300):
    """Words that fill `PATTERN`, made by writing random letters into it, and others."""
    rng = random.Random(seed)
    template = template_of(PATTERN)
    letters = {cell: rng.choice("AEIOLNRST") for slot in template.slots for cell in slot.cells}
    words = ["".join(letters[cell] for cell in slot.cells) for slot in template.slots]
    assert len(set(words)) == len(words)
    words += ["".join(rng.choice("AEIOLNRST") for _ in range(rng.randrange(2, 11))) for _ in range(extra)]
    rng.shuffle(words)
    return template, words


def test_slots_are_the_runs_of_white_cells():
    template = template_of(["a--", "-#-", "---"])
    runs = {(slot.direction, slot.row, slot.column, slot.cells) for slot in template.slots}
    assert runs == {("across", 0, 0, (0, 1, 2)), ("across", 2, 0, (6, 7, 8)), ("down", 0, 0, (0, 3, 6)), ("down", 0, 2, (2, 5, 8))}
    assert template.rows[0] == "A--"
    assert template.longest == 3


def test_all_fillings_are_those_that_trying_everything_finds():
    solvable = searched = 0
    for template, words in TINY:
        expected = everything(template, words)
        assert fillings(template, words) == expected
        if expected:
            solvable += 1
            puzzle = fill_template(template, words)
            at = {(e.direction, e.row, e.column): e.answer for e in puzzle.entries}
            top, left = (min(slot.row for slot in template.slots), min(slot.column for slot in template.slots))
            assert tuple(at[s.direction, s.row - top, s.column - left] for s in template.slots) in expected
            continue
        with pytest.raises(NoFilling, match="template: ") as error:
            fill_template(template, words)
        assert error.value.proven
        searched += "dead ends prove" in str(error.value)
    assert solvable > 50
    assert searched > 3  # where arc consistency alone does not see it


def test_the_mirror_image_has_the_mirrored_fillings():
    for template, words in TINY[:100]:
        mirror = template_of(["".join(column) for column in zip(*template.rows, strict=True)])
        turned = {"across": "down", "down": "across"}
        places = [
            next(
                i
                for i, slot in enumerate(template.slots)
                if (slot.direction, slot.row, slot.column) == (turned[m.direction], m.column, m.row)
            )
            for m in mirror.slots
        ]
        assert fillings(mirror, words) == {tuple(found[i] for i in places) for found in fillings(template, words)}


def test_more_words_lose_no_filling():
    rng = random.Random(1)
    for template, words in TINY[:100]:
        assert fillings(template, words) <= fillings(template, [*words, "".join(rng.choice("AB") for _ in range(3))])


def test_a_given_letter_leaves_the_fillings_that_have_it():
    for template, words in TINY[:100]:
        rows = [row.replace("A", "-") for row in template.rows]
        first = template.slots[0]
        given = [row[: first.column] + "B" + row[first.column + 1 :] if r == first.row else row for r, row in enumerate(rows)]
        assert fillings(template_of(given), words) == {found for found in fillings(template_of(rows), words) if found[0][0] == "B"}


@pytest.mark.parametrize("seed", range(3))
def test_a_filled_pattern_obeys_every_crossing(seed):
    template, words = planted(seed)
    puzzle = fill_template(template, words, seconds=60, seed=seed)
    assert flaws(puzzle) == []  # every run of the grid is the word that its entry says, and none stands twice
    answers = [entry.answer for entry in puzzle.entries]
    assert len(answers) == len(template.slots)
    assert sorted([*answers, *puzzle.left_out]) == sorted(set(words))
    assert [[letter == EMPTY for letter in row] for row in puzzle.rows] == [[sign == "#" for sign in row] for row in PATTERN]
    assert fill_template(template, words, seconds=60, seed=seed) == puzzle
    letter = puzzle.rows[1][4]
    given = template_of([PATTERN[0], f"----{letter}-----", *PATTERN[2:]])
    assert fill_template(given, words, seconds=60).rows[1][4] == letter


def test_another_seed_finds_another_filling():
    pattern, words = template_of(["--", "--"]), ["".join(pair) for pair in product("ABCDE", repeat=2)]
    assert len({fill_template(pattern, words, seed=seed).rows for seed in range(5)}) > 1


def test_what_no_search_is_needed_for_is_said_by_its_place():
    square = template_of(["---", "-#-", "---"])
    for words, message in (
        (["ABC", "CDE"], "template: expected 4 words of 3 letters, got 2"),
        (["ABC", "ADE", "CFG", "XYZ"], "template: expected a word that all crossings allow for the 3 cells "),
    ):
        with pytest.raises(NoFilling) as error:
            fill_template(square, words)
        assert str(error.value).startswith(message)
        assert error.value.proven
    with pytest.raises(NoFilling, match=r"^template: expected a word Q-- for the 3 cells across from row 1, column 1, got none$"):
        fill_template(template_of(["q--", "-#-", "---"]), ["ABC", "ADE", "CFG", "EHG"])


def test_limits_end_the_search_and_prove_nothing(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 1)
    template, words = next((t, w) for t, w in TINY if not everything(t, w) and not _seen_at_once(t, w))
    with pytest.raises(NoFilling, match=r"^template: expected a filling in 1 tries, got 1 dead ends in 1 tries; there may be one") as error:
        fill_template(template, words, restarts=1)
    assert not error.value.proven
    with pytest.raises(NoFilling, match=r"^template: expected a filling in 0 seconds, got 1 dead ends in 1 tries") as error:
        fill_template(template, words, seconds=0)
    assert not error.value.proven
    with pytest.raises(NoFilling, match=r"^template: these words cannot fill it, as \d+ dead ends prove$") as error:
        fill_template(template, words)
    assert error.value.proven


def _seen_at_once(template, words):
    try:
        Filler(template, words)
    except NoFilling:
        return True
    return False


def test_read_template(tmp_path):
    path = tmp_path / "pattern.txt"
    path.write_text("\n---\r\n-#-\n---  \n\n")
    assert read_template(path) == template_of(["---", "-#-", "---"])
    path.write_text("- -\n---\n")
    with pytest.raises(
        ValueError, match=r"pattern.txt: template: expected # \(black\), - \(white\) or a letter A to Z in row 1, column 2, got ' '$"
    ):
        read_template(path)
    with pytest.raises(ValueError, match=r"none.txt: expected an existing file, got none$"):
        read_template(tmp_path / "none.txt")
    path.write_bytes(b"\xff\xfe-")
    with pytest.raises(ValueError, match=r"pattern.txt: 'utf-8' codec"):
        read_template(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["---", "--"], "template: expected 3 cells in row 2 as in row 1, got 2"),
        (["-.-"], r"template: expected # \(black\), - \(white\) or a letter A to Z in row 1, column 2, got '.'"),
        (["-#", "#-"], r"template: expected white cells \(-\) side by side, got 2 rows of 2 without"),
        ([], r"template: expected white cells \(-\) side by side, got 0 rows of 0 without"),
        (["--#-", "--##"], "template: expected white cells that all hang together, got row 1, column 4 apart from the first"),
        (["---", "###", "---"], "template: expected white cells that all hang together, got row 3, column 1 apart from the first"),
    ],
)
def test_what_is_no_pattern(rows, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        template_of(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": -1.0}, "seconds: expected a number >= 0, got -1.0"),
        ({"restarts": 0}, "restarts: expected at least 1, got 0"),
        ({"words": ["Casa"]}, "words: expected letters A to Z, got 'Casa'"),
        ({"words": [""]}, "words: expected letters A to Z, got ''"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        fill_template(template_of(["--"]), **{"words": ["AB"], **options})


def test_a_crossword_of_a_pattern_has_a_clue_for_every_word():
    clues = [Clue(answer=word, text=f"clue number {i}") for i, word in enumerate(SCHOOL_WORDS)]
    lengths = sorted(map(len, SCHOOL_WORDS))
    template = template_of(["-----", "-####", "-####", "-####", "-####"])
    made = fill_crossword([*clues, Clue(answer="H2O", text="Si beve")], template, title="x", lang="it", seconds=None)
    assert lengths.count(5) >= 2
    assert sorted(made.clues) == sorted(entry.answer for entry in made.puzzle.entries)
    assert [clue.answer for clue, _ in made.unused if len(clue.answer) <= 5] == ["H2O"]
    with pytest.raises(ValueError, match=r"^clues: expected at least 2 answers with a good clue, got 1 of 1$"):
        fill_crossword(clues[:1], template_of(["-" * len(SCHOOL_WORDS[0])]), title="x", lang="it")
