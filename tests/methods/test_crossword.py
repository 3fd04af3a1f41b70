"""The grid: every run is a word, everything hangs together, and the bit sets find the same places as a plain look at every cell."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor.education.crossword.board import Board
from preceptor.education.crossword.grid import _begin, build_grid
from preceptor.education.crossword.puzzle import EMPTY, flaws, puzzle_of, stats_of
from preceptor.methods.crossword import guess_solver, miniature, top_share
from preceptor.miniature.school_words import SCHOOL_WORDS

WORDS = st.lists(st.text(alphabet="ABCDE", min_size=2, max_size=7), min_size=1, max_size=12)


def places(spots, word, height, width):
    """From the rules, cell by cell: where a word may stand, and how many words it crosses there."""
    letter, owners = {}, {}
    for answer, row, column, direction in spots:
        for i, one in enumerate(answer):
            cell = (row + i, column) if direction == "down" else (row, column + i)
            letter[cell] = one
            owners.setdefault(cell, set()).add(direction)
    found = {}
    for direction, dr, dc in (("across", 0, 1), ("down", 1, 0)):
        for row in range(height - dr * (len(word) - 1)):
            for column in range(width - dc * (len(word) - 1)):
                cells = [(row + dr * i, column + dc * i) for i in range(len(word))]
                before, after = (row - dr, column - dc), (row + dr * len(word), column + dc * len(word))
                if before in letter or after in letter:
                    continue
                crossed = [cell for cell in cells if cell in letter]
                if any(letter[cell] != one for cell, one in zip(cells, word, strict=True) if cell in letter):
                    continue
                if any(direction in owners[cell] for cell in crossed):
                    continue
                beside = [(r + s * dc, c + s * dr) for r, c in cells if (r, c) not in letter for s in (-1, 1)]
                if crossed and not any(cell in letter for cell in beside):
                    found[row, column, direction] = len(crossed)
    return found


@pytest.mark.parametrize("seed", range(16))
def test_bit_sets_find_what_a_look_at_every_cell_finds(seed):
    rng = random.Random(seed)
    height, width = rng.choice([(13, 13), (9, 15), (15, 8)])
    words = [word for word in SCHOOL_WORDS if len(word) <= max(height, width)]
    if seed >= 10:  # two letters: words that cross three others and more
        words = list(dict.fromkeys("".join(rng.choice("AB") for _ in range(rng.randrange(2, 9))) for _ in range(60)))
    grid = Board(words, height, width, frozenset())
    _begin(grid, rng, 1.0)
    grid.load(dict(list(grid.places.items())[: rng.randrange(1, len(grid.places) + 1)]))
    for number, word in enumerate(words):
        if number in grid.places:
            continue
        expected = places(grid.spots(), word, height, width)
        for direction, name in enumerate(("across", "down")):
            mine = {key: count for key, count in expected.items() if key[2] == name}
            some, best = grid.fits(number, direction)
            got = {(bit // grid.row - 1, bit % grid.row - 1, name) for bit in range(some.bit_length()) if some >> bit & 1}
            assert got == set(mine)
            most = {key for key, count in mine.items() if count == max(mine.values())}
            assert {(bit // grid.row - 1, bit % grid.row - 1, name) for bit in range(best.bit_length()) if best >> bit & 1} == most


@settings(max_examples=60, deadline=None)
@given(words=WORDS, size=st.tuples(st.integers(2, 8), st.integers(2, 8)), seed=st.integers(0, 99))
def test_a_grid_has_no_flaw_whatever_the_words(words, size, seed):
    puzzle = build_grid(words, size=size, restarts=2, patience=5, seed=seed)
    assert flaws(puzzle) == []
    placed = [entry.answer for entry in puzzle.entries]
    assert sorted([*placed, *puzzle.left_out]) == sorted(set(words))
    assert set(puzzle.too_long) == {word for word in words if len(word) > max(size)} <= set(puzzle.left_out)
    assert len(puzzle.rows) <= size[0]
    assert all(len(row) <= size[1] for row in puzzle.rows)


def test_statistics_are_those_of_the_cells():
    puzzle = build_grid(SCHOOL_WORDS, restarts=2, patience=30)
    text = "".join(puzzle.rows)
    letters = len(text) - text.count(EMPTY)
    owners = {}
    for entry in puzzle.entries:
        for cell in entry.cells():
            owners.setdefault(cell, []).append(entry.direction)
    linked = sum(len(both) == 2 for both in owners.values())
    stats = puzzle.stats
    assert (stats.words, stats.letters, stats.linked, stats.area) == (len(puzzle.entries), letters, linked, len(text))
    assert stats.score == pytest.approx((len(puzzle.entries) + linked / 2) * letters / len(text) * linked / letters)
    assert stats == stats_of(puzzle.entries)
    for entry in puzzle.entries:
        assert "".join(puzzle.rows[r][c] for r, c in entry.cells()) == entry.answer


def test_the_search_judges_a_grid_as_its_cells_do():
    for seed in range(8):
        grid = Board(SCHOOL_WORDS, 13, 11, frozenset(range(10)))
        _begin(grid, random.Random(seed), 0.5)
        assert grid.score() == pytest.approx(puzzle_of(grid.spots(), preferred=SCHOOL_WORDS[:10]).stats.score)


def test_the_mirror_image_is_as_good():
    puzzle = build_grid(SCHOOL_WORDS, size=(9, 14), restarts=3, patience=0)
    mirror = puzzle.transposed()
    assert flaws(mirror) == []
    assert mirror.rows == tuple("".join(column) for column in zip(*puzzle.rows, strict=True))
    assert stats_of(mirror.entries) == puzzle.stats
    assert mirror.transposed() == puzzle


def test_same_seed_same_puzzle_and_restarts_never_harm():
    assert build_grid(SCHOOL_WORDS, restarts=3, patience=20, seed=4) == build_grid(SCHOOL_WORDS, restarts=3, patience=20, seed=4)
    assert build_grid(SCHOOL_WORDS, restarts=3, patience=0, seed=4) != build_grid(SCHOOL_WORDS, restarts=3, patience=0, seed=5)
    scores = [build_grid(SCHOOL_WORDS, restarts=count, patience=10, seed=1).stats.score for count in (1, 2, 4, 8, 16)]
    assert scores == sorted(scores)
    assert scores[-1] > scores[0]


def test_a_search_by_time_can_be_repeated_without_a_clock():
    timed = build_grid(SCHOOL_WORDS, restarts=None, seconds=0.15, patience=20, seed=2)
    again = build_grid(SCHOOL_WORDS, restarts=timed.tries, rounds=timed.rounds, patience=20, seed=2)
    assert again == timed
    whole = build_grid(SCHOOL_WORDS, restarts=2, patience=5, seed=2)  # as if the time had been up when the third try had begun
    third = build_grid(SCHOOL_WORDS, restarts=3, rounds=whole.rounds, patience=5, seed=2)
    assert (third.tries, third.rounds) == (3, whole.rounds)


def test_restarts_matter_more_than_one_good_try():
    single = [build_grid(SCHOOL_WORDS, restarts=1, patience=0, seed=seed).stats.score for seed in range(60)]
    best = build_grid(SCHOOL_WORDS, restarts=60, patience=0).stats.score
    assert best > 1.4 * np.mean(single)


def test_repair_takes_out_no_word_that_others_hang_on():
    rng = random.Random(3)
    grid = Board(SCHOOL_WORDS, 13, 13, frozenset())
    for _ in range(20):
        _begin(grid, rng, 1.0)
        left = grid.without_some(len(grid.places) // 3, rng)
        assert len(left) == len(grid.places) - len(grid.places) // 3
        grid.load(left)
        assert flaws(puzzle_of(grid.spots())) == []


def test_preferred_words_are_worth_their_share():
    few = SCHOOL_WORDS[:12]
    dense, all_of_them = (build_grid(few, restarts=4, patience=40, preferred=preferred) for preferred in ((), few))
    assert all_of_them.stats.words == len(few) >= dense.stats.words
    assert all_of_them.stats.score == pytest.approx(10 + stats_of(all_of_them.entries).score)


def test_words_that_find_no_place_are_reported_and_none_is_cut():
    puzzle = build_grid(["ABCD", "EFGH", "ABCDEFGHIJKLMN"], size=6)
    assert [entry.answer for entry in puzzle.entries] in (["ABCD"], ["EFGH"])
    assert puzzle.too_long == ("ABCDEFGHIJKLMN",)
    assert len(puzzle.left_out) == 2
    assert build_grid([]).rows == ()
    assert build_grid(["CASA", "CASA"]).rows == ("CASA",)
    tall = build_grid(["CASALE", "CASA"], size=(8, 4), restarts=20, patience=0, preferred=["CASALE"])
    assert "CASALE" in [entry.answer for entry in tall.entries]


def test_the_search_ends_when_it_has_what_was_asked_for():
    puzzle = build_grid(SCHOOL_WORDS, restarts=5000, patience=0, target_words=14)
    assert puzzle.stats.words >= 14
    assert puzzle.tries < 100
    assert build_grid(SCHOOL_WORDS, restarts=5000, patience=0, target_words=5, target_fill=0.4).stats.fill >= 0.4


def test_flaws_are_found():
    good = build_grid(SCHOOL_WORDS, restarts=1, patience=0)
    assert flaws(good) == []
    first = good.entries[0]
    wrong_letter = replace(good, rows=(*good.rows[:-1], good.rows[-1].replace(EMPTY, "Z", 1)))
    assert flaws(wrong_letter)
    assert flaws(replace(good, entries=(replace(first, number=9), *good.entries[1:])))
    assert any("stands twice" in flaw for flaw in flaws(replace(good, entries=(*good.entries, first))))
    apart = puzzle_of([("ABC", 0, 0, "across"), ("DEF", 2, 0, "across")])
    assert flaws(apart) == ["the words do not all hang together"]
    touching = puzzle_of([("ABC", 0, 0, "across"), ("DEF", 1, 0, "across")])
    assert len(flaws(touching)) == 4  # three runs down that nobody placed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 1}, "size: expected at least 2 cells, got 1 x 1"),
        ({"restarts": 0}, "restarts: expected at least 1, got 0"),
        ({"restarts": None}, "restarts: expected a limit of restarts, rounds or seconds, got none"),
        ({"patience": -1}, "patience: expected at least 0, got -1"),
        ({"seconds": float("nan")}, "seconds: expected a number >= 0, got nan"),
        ({"greedy": 1.5}, r"greedy: expected a number in \[0, 1\], got 1.5"),
        ({"words": ["Casa"]}, "words: expected letters A to Z, got 'Casa'"),
        ({"words": [""]}, "words: expected letters A to Z, got ''"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        build_grid(**{"words": ["CASA", "ALA"], **options})


def test_letters_that_disagree():
    with pytest.raises(ValueError, match=r"^grid: expected one letter in row 0, column 0, got A and X$"):
        puzzle_of([("AB", 0, 0, "across"), ("XY", 0, 0, "down")])


def test_top_share_and_guesses():
    assert top_share(np.array([0.9, 0.8, 0.1, 0.2]), np.array([True, False, True, True]), share=0.5) == 0.5
    solve = guess_solver(["AAA", "BBB", "CC"], seed=0)
    assert [sorted(answers) for answers in solve([("x", 3), ("y", 2), ("z", 9)], 5)] == [["AAA", "BBB"], ["CC"], []]


def test_miniature():
    found = miniature(0, "smoke")
    assert found == miniature(0, "smoke")
    assert found.arms["crossword"]["words"] > 5
