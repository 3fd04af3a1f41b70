"""One text in the tokens of two models."""

from __future__ import annotations

import warnings
from pydoc_data.topics import topics

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor.data.align import Vocabulary, align, align_offsets, aligned_batch, byte_vocabulary, vocabulary_of
from preceptor.models.language import load_tokenizer


def cut(text: bytes, places: set[int]) -> list[bytes]:
    """A text in pieces that end at these places."""
    ends = [*sorted(place for place in places if 0 < place < len(text)), len(text)]
    return [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def word_pieces(*pieces: str, begin: int | None = None, end: int | None = None) -> Vocabulary:
    """A vocabulary that takes the longest piece that fits."""
    table = [piece.encode() for piece in pieces]

    def encode(text: str) -> list[int]:
        ids, rest = [], text
        while rest:
            fitting = [i for i, piece in enumerate(pieces) if piece and rest.startswith(piece)]
            ids.append(max(fitting, key=lambda i: len(pieces[i])))
            rest = rest[len(pieces[ids[-1]]) :]
        return ids

    return Vocabulary(pieces=tuple(table), encode=encode, begin=begin, end=end)


WORDS = word_pieces("", "", "the", " c", "at", " cat", "s", " ", begin=0, end=1)
LETTERS = word_pieces("", "", *"theca s", begin=1, end=0)


places = st.sets(st.integers(0, 40))


@given(st.binary(min_size=1, max_size=40), places, places)
@settings(max_examples=200, deadline=None)
def test_chunks_cover_the_text_spell_the_same_and_are_minimal(text, teacher_places, student_places):
    teacher, student = cut(text, teacher_places), cut(text, student_places)
    chunks = align(teacher, student).tolist()
    for first, stop, sides in ((0, 1, teacher), (2, 3, student)):
        assert [chunk[first] for chunk in chunks] == [0, *(chunk[stop] for chunk in chunks[:-1])]
        assert chunks[-1][stop] == len(sides)
    for i, j, k, m in chunks:
        assert b"".join(teacher[i:j]) == b"".join(student[k:m])
        inner = [{len(b"".join(side[start:u])) for u in range(start + 1, stop)} for side, start, stop in ((teacher, i, j), (student, k, m))]
        assert not inner[0] & inner[1]  # no common end strictly inside
    assert align(student, teacher)[:, [2, 3, 0, 1]].tolist() == chunks


@given(st.binary(min_size=1, max_size=40), places)
@settings(max_examples=50, deadline=None)
def test_the_same_tokenizer_gives_one_to_one(text, places):
    pieces = cut(text, places)
    assert align(pieces, pieces).tolist() == [[u, u + 1, u, u + 1] for u in range(len(pieces))]


@given(st.lists(st.sampled_from([b"", b"a", b"bc"]), max_size=12), st.lists(st.sampled_from([b"", b"ab", b"c"]), max_size=12))
@settings(max_examples=200, deadline=None)
def test_reference(teacher, student):
    expected = [c for c in walk(teacher, student) if b"".join(teacher[c[0] : c[1]]) == b"".join(student[c[2] : c[3]])]
    assert align(teacher, student).tolist() == expected


def walk(teacher: list[bytes], student: list[bytes]) -> list[list[int]]:
    """Two pointers: the side that has spelled less moves on, over tokens without text."""
    sides = [[(u, len(piece)) for u, piece in enumerate(side) if piece] for side in (teacher, student)]
    chunks, taken, at, size = [], ([], []), [0, 0], [0, 0]
    while True:
        side = int(size[0] > size[1])
        if at[side] == len(sides[side]):
            return chunks
        token, length = sides[side][at[side]]
        at[side] += 1
        size[side] += length
        taken[side].append(token)
        if size[0] == size[1]:
            chunks.append([taken[0][0], taken[0][-1] + 1, taken[1][0], taken[1][-1] + 1])
            taken = ([], [])


def test_tokens_without_text_stand_in_no_chunk_of_their_own():
    assert align([b"", b"ab", b"", b"c"], [b"a", b"b", b"c", b""]).tolist() == [[1, 2, 0, 2], [3, 4, 2, 3]]
    assert align([], [b"a"]).shape == align([b""], [b"", b""]).shape == (0, 4)


def test_special_tokens_that_are_given_the_same_piece_align():
    teacher, student = [b"<bos>", b"ab", b"<eos>"], [b"<bos>", b"a", b"b", b"<eos>"]
    assert align(teacher, student).tolist() == [[0, 1, 0, 1], [1, 2, 1, 3], [2, 3, 3, 4]]


def test_a_ragged_end_is_in_no_chunk():
    assert align([b"ab", b"cd"], [b"a", b"b", b"c"]).tolist() == [[0, 1, 0, 2]]


def test_chunks_that_spell_differently_are_left_out():
    assert align([b"a", b"X", b"c"], [b"a", b"b", b"c"]).tolist() == [[0, 1, 0, 1], [2, 3, 2, 3]]


def test_parts_of_a_character():
    smile = "\U0001f600".encode()
    assert align([b"a" + smile[:1], smile[1:]], [b"a", smile[:1], smile[1:3], smile[3:]]).tolist() == [[0, 1, 0, 2], [1, 2, 2, 4]]


def test_offsets_in_characters_keep_the_parts_of_a_character_together():
    teacher, student = [(0, 0), (0, 2), (1, 2), (2, 3)], [(0, 1), (1, 2), (2, 3), (0, 0)]
    assert align_offsets(teacher, student).tolist() == [[1, 3, 0, 2], [3, 4, 2, 3]]


def test_bad_offsets_are_refused():
    with pytest.raises(ValueError, match=r"student: expected offsets of shape \(tokens, 2\), got \(3,\)"):
        align_offsets([(0, 1)], np.arange(3))
    with pytest.raises(ValueError, match="teacher: expected ends that do not fall, got 1 after 2"):
        align_offsets([(1, 2), (0, 1)], [(0, 1)])


def test_a_batch():
    batch = aligned_batch(["the cat", "at"], student=LETTERS, teacher=WORDS)
    assert batch["x"]["input_ids"].tolist() == [[1, 2, 3, 4, 7, 5, 6, 2], [1, 6, 2, 0, 0, 0, 0, 0]]
    assert batch["x"]["attention_mask"].tolist() == [[1] * 8, [1] * 3 + [0] * 5]
    assert batch["y"].tolist() == [[2, 3, 4, 7, 5, 6, 2, 0], [6, 2, 0, 0, 0, 0, 0, 0]]
    assert batch["mask"].tolist() == [[1] * 8, [1] * 3 + [0] * 5]
    assert batch["teacher_x"]["input_ids"].tolist() == [[0, 2, 5], [0, 4, 0]]
    assert batch["teacher_y"].tolist() == [[2, 5, 1], [4, 1, 0]]
    assert batch["teacher_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["spans"].tolist() == [[[1, 2, 1, 4], [2, 3, 4, 8], [3, 4, 8, 9]], [[1, 2, 1, 3], [2, 3, 3, 4], [0, 0, 0, 0]]]
    assert batch["boundary"].tolist() == [[0, 7]]
    assert batch["teacher_boundary"].tolist() == [[1, 3, 5, 7]]


def test_a_text_is_cut_at_the_last_chunk_that_fits_both():
    whole = aligned_batch(["the cats"], student=LETTERS, teacher=WORDS, student_length=9, teacher_length=4)
    assert whole["teacher_y"].tolist() == [[2, 5, 6, 1]]
    for student_length, teacher_length in ((8, 4), (9, 3)):
        batch = aligned_batch(["the cats"], student=LETTERS, teacher=WORDS, student_length=student_length, teacher_length=teacher_length)
        assert batch["teacher_x"]["input_ids"].tolist() == [[0, 2, 5]]
        assert batch["teacher_y"].tolist() == [[2, 5, 0]]  # the last has no target, and there is no end to predict
        assert batch["teacher_mask"].tolist() == [[1, 1, 0]]
        assert batch["mask"].sum() == 7
        assert batch["spans"].tolist() == [[[1, 2, 1, 4], [2, 3, 4, 8]]]
    with pytest.raises(ValueError, match="student_length, teacher_length: expected room for one chunk of the text, got 3 and None"):
        aligned_batch(["the cats"], student=LETTERS, teacher=WORDS, student_length=3)


def test_without_a_first_token_the_chunk_that_nobody_predicts_is_left_out():
    batch = aligned_batch(["thecat"], student=word_pieces(*"theca "), teacher=word_pieces("th", "e", "c", "at", begin=None))
    assert batch["spans"].tolist() == [[[1, 2, 2, 3], [2, 3, 3, 4], [3, 4, 4, 6]]]
    assert batch["y"].tolist() == [[1, 2, 3, 4, 0, 0]]
    assert batch["mask"].tolist() == [[1, 1, 1, 1, 1, 0]]
    one = aligned_batch(["thecat"], student=LETTERS, teacher=word_pieces("th", "e", "c", "at"))
    assert one["spans"].tolist() == [[[1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 7]]]


def test_tokenizers_that_spell_differently():
    missing = word_pieces("", *"thecas ", "?", begin=0)
    other = Vocabulary(pieces=missing.pieces, encode=lambda text: missing.encode(text.replace("s", "?")), begin=0)
    long = "the cat " * 12 + "s" + " the cat" * 12
    with pytest.warns(UserWarning, match="2 of 386 bytes are spelled differently by the two tokenizers and left out"):
        batch = aligned_batch([long], student=other, teacher=WORDS)
    assert (batch["spans"][0, :, 1] > 0).sum() == len(WORDS.encode(long)) - 1
    with pytest.raises(ValueError, match=r"texts: expected two tokenizers that spell the same bytes, got other ones for 12.5% of them"):
        aligned_batch(["the cats"], student=other, teacher=WORDS)


@pytest.mark.parametrize("texts", [[], ["the", ""]])
def test_empty_texts_are_refused(texts):
    with pytest.raises(ValueError, match="texts: expected at least one, none of them empty, got"):
        aligned_batch(texts, student=LETTERS, teacher=WORDS)


def test_bytes():
    vocabulary = byte_vocabulary()
    ids, pieces = vocabulary.spell("\u00e9 x")
    assert ids == [0xC3, 0xA9, 0x20, 0x78]
    assert b"".join(pieces).decode() == "\u00e9 x"
    assert vocabulary.boundary.tolist() == [9, 10, 32, 257]


@pytest.fixture(scope="module")
def smollm2():
    """A real vocabulary of 49,152 word pieces."""
    return vocabulary_of(load_tokenizer("smollm2"))


ODD = [
    "na\u00efve \U0001f600\U0001f468\u200d\U0001f469 caf\u00e9\u0301 \u4f60\u597d\n\t  x",
    "  two spaces before",
    "<|im_end|> is text <|im_start|>",
    "\r\n",
]


def test_real_word_pieces_spell_real_text(smollm2):
    assert len(smollm2.pieces) == 49_152
    for text in [*ODD, *list(topics.values())[:12]]:
        assert b"".join(smollm2.spell(text)[1]).decode() == text
    boundary = set(smollm2.boundary.tolist())
    assert 2 in boundary  # the end
    assert {i for i, piece in enumerate(smollm2.pieces) if piece[:1] in (b" ", b"\n", b"\t")} | {2} == boundary


def test_real_text_between_real_tokenizers(smollm2):
    texts = [text[start : start + 400] for text in list(topics.values())[::8] for start in (0, len(text) // 2)] + ODD
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = aligned_batch(texts, student=byte_vocabulary(), teacher=smollm2)
    pieces = {"teacher_": smollm2.pieces, "": byte_vocabulary().pieces}
    torch.manual_seed(0)
    log_probs = {prefix: -torch.rand(batch[f"{prefix}y"].shape, dtype=torch.double) for prefix in pieces}
    for row, text in enumerate(texts):
        spelled = []
        chunks = [chunk for chunk in batch["spans"][row].tolist() if any(chunk)]
        for prefix, first in (("teacher_", 0), ("", 2)):
            tokens = [batch[f"{prefix}x"]["input_ids"][row, 0].item(), *batch[f"{prefix}y"][row].tolist()]
            spelled.append([b"".join(pieces[prefix][u] for u in tokens[c[first] : c[first + 1]]) for c in chunks])
            counted = int(batch[f"{prefix}mask"][row].sum())
            assert [c[first] for c in chunks] == [1, *(c[first + 1] for c in chunks[:-1])]
            assert chunks[-1][first + 1] == counted + 1
            parts = [log_probs[prefix][row, c[first] - 1 : c[first + 1] - 1].sum() for c in chunks]
            torch.testing.assert_close(torch.stack(parts).sum(), log_probs[prefix][row, :counted].sum())
        assert spelled[0] == spelled[1]
        assert b"".join(spelled[0]).decode() == text


def test_other_tokenizers():
    model = tokenizers.models.BPE(
        vocab={"<unk>": 0, "<s>": 1, "<0xC3>": 2, "<0xA9>": 3, "\u2581": 4, "a": 5, "\u2581a": 6},
        merges=[("\u2581", "a")],
        byte_fallback=True,
    )
    marked = tokenizers.Tokenizer(model)
    marked.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    marked.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.Replace("\u2581", " "), tokenizers.decoders.ByteFallback()])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=marked, bos_token="<s>", unk_token="<unk>")
    vocabulary = vocabulary_of(fast)
    assert vocabulary.pieces == (b"", b"", b"\xc3", b"\xa9", b" ", b"a", b" a")
    assert (vocabulary.begin, vocabulary.end) == (1, None)
    assert vocabulary.spell("a\u00e9 a") == ([6, 2, 3, 6], [b"a", b"\xc3", b"\xa9", b" a"])  # the space put before is not of the text
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.decoder = tokenizers.decoders.WordPiece()
    with pytest.raises(ValueError, match=r"or one that marks words with U\+2581, got a decoder \['WordPiece'\]"):
        vocabulary_of(transformers.PreTrainedTokenizerFast(tokenizer_object=words))
    with pytest.raises(TypeError, match="tokenizer: expected a fast tokenizer of transformers, got object"):
        vocabulary_of(object())
