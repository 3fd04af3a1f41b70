"""One text in the tokens of two models: the smallest chunks that both tokenizers agree on, and batches that carry them.

A chunk is (i, j, k, l): the tokens i <= u < j of the teacher and k <= u < l of the student spell the same text, and no shorter piece of it
ends at a token of both. Pieces are bytes, so that a token may hold a part of a character.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from preceptor.core.types import Batch

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MISMATCH = 0.01
"""The largest share of a batch's bytes that two tokenizers may spell differently."""

_WORD_STARTS = (b" ", b"\n", b"\t")


def align(teacher: Sequence[bytes], student: Sequence[bytes]) -> NDArray[np.int64]:
    """Align two sequences of pieces that spell the same text.

    Minixhofer, Vulic, Ponti 2025 (arXiv:2503.20083): a chunk ends wherever a token of both sides does.

    Args:
        teacher: what each token spells; ``b""`` for a special token, which then stands in no chunk of its own.
        student: likewise. Special tokens that correspond align when they are given the same piece.

    Returns:
        Chunks, shape (C, 4), int64, in order. Where a text is cut at different places, what lies after the last common end is in none;
        neither are chunks whose sides spell different bytes.
    """
    chunks = align_offsets(_offsets(teacher), _offsets(student))
    if b"".join(teacher) == b"".join(student):
        return chunks
    same = [b"".join(teacher[i:j]) == b"".join(student[k:m]) for i, j, k, m in chunks.tolist()]
    return chunks[np.array(same, dtype=bool)]


def align_offsets(teacher: ArrayLike, student: ArrayLike) -> NDArray[np.int64]:
    """Align two sequences of tokens by where they begin and end in the same text.

    With offsets in characters, tokens that hold a part of a character end where it does and stay in one chunk.

    Args:
        teacher: (begin, end) of each token, shape (T, 2), in characters or bytes; begin = end for a token without text.
        student: likewise.

    Returns:
        Chunks, shape (C, 4), int64, as `align`. Spellings are not compared.

    Raises:
        ValueError: another shape, or ends that fall.
    """
    sides = []
    for name, offsets in (("teacher", np.asarray(teacher)), ("student", np.asarray(student))):
        if not offsets.size:
            return np.empty((0, 4), dtype=np.int64)
        if offsets.ndim != 2 or offsets.shape[1] != 2:
            raise ValueError(f"{name}: expected offsets of shape (tokens, 2), got {offsets.shape}")
        held = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
        ends = offsets[held, 1]
        falls = np.flatnonzero(np.diff(ends) < 0)
        if len(falls):
            raise ValueError(f"{name}: expected ends that do not fall, got {ends[falls[0] + 1]} after {ends[falls[0]]}")
        sides.append((held, ends))
    common = np.intersect1d(sides[0][1], sides[1][1])
    columns = []
    for held, ends in sides:
        after = np.searchsorted(ends, common, side="right")
        first = np.concatenate([np.zeros(1, dtype=np.int64), after])[:-1]
        columns += [held[first], held[after - 1] + 1]
    return np.stack(columns, axis=1).astype(np.int64)


def _offsets(pieces: Sequence[bytes]) -> NDArray[np.int64]:
    ends = np.cumsum([0, *map(len, pieces)])
    return np.stack([ends[:-1], ends[1:]], axis=1)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a tokenizer's ids spell, which is all that alignment needs to know of it."""

    pieces: tuple[bytes, ...]  # by id; b"" for special tokens
    encode: Callable[[str], Sequence[int]]  # a text to ids, without special tokens
    begin: int | None = None  # the token put before every text
    end: int | None = None  # the token put after a text that is not cut

    @property
    def boundary(self) -> Tensor:
        """The ids that begin a new word or end the text: space, newline or tab first, or `end`; shape (K,), int64."""
        ids = [i for i, piece in enumerate(self.pieces) if piece.startswith(_WORD_STARTS) or i == self.end]
        return torch.tensor(ids, dtype=torch.int64)

    def spell(self, text: str) -> tuple[list[int], list[bytes]]:
        """Ids and pieces of a text, without special tokens and without a space that the tokenizer puts before it."""
        ids = list(self.encode(text))
        pieces = [self.pieces[i] for i in ids]
        if pieces and pieces[0].startswith(b" ") and not text.startswith(" "):
            pieces[0] = pieces[0][1:]
        return ids, pieces


def byte_vocabulary() -> Vocabulary:
    """Bytes of UTF-8 as tokens: ids 0 to 255, 256 before a text and 257 after it."""
    return Vocabulary(pieces=(*(bytes([i]) for i in range(256)), b"", b""), encode=lambda text: text.encode(), begin=256, end=257)


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Read what the tokens of a fast tokenizer of transformers spell: byte-level (GPT-2, Llama 3), or words marked with U+2581 (Llama 2).

    Args:
        tokenizer: of transformers, fast; its ``bos_token`` and ``eos_token`` are put around texts, where it has them.

    Raises:
        TypeError: not a fast tokenizer.
        ValueError: its tokens spell text in another way; `align_offsets` still aligns what it writes.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(f"tokenizer: expected a fast tokenizer of transformers, got {type(tokenizer).__name__}")
    decoder: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {"type": "None"}
    kinds = {step["type"] for step in decoder.get("decoders", [decoder])}
    if "ByteLevel" in kinds:
        byte_of = {letter: byte for byte, letter in enumerate(_byte_letters())}

        def spelled(token: str) -> bytes:
            return bytes(byte_of[letter] for letter in token)
    elif kinds & {"Metaspace", "ByteFallback"}:

        def spelled(token: str) -> bytes:
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                return bytes.fromhex(token[3:5])
            return token.replace("\u2581", " ").encode()
    else:
        raise ValueError(f"tokenizer: expected a byte-level one or one that marks words with U+2581, got a decoder {sorted(kinds)}")
    added = {i: b"" if token.special else token.content.encode() for i, token in tokenizer.added_tokens_decoder.items()}
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return Vocabulary(
        pieces=tuple(added[i] if i in added else spelled(token or "") for i, token in enumerate(tokens)),
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True),
        begin=tokenizer.bos_token_id,
        end=tokenizer.eos_token_id,
    )


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it can be seen, else the next one from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in seen else next(hidden)) for byte in range(256)]


def aligned_batch(
    texts: Sequence[str],
    *,
    student: Vocabulary,
    teacher: Vocabulary,
    student_length: int | None = None,
    teacher_length: int | None = None,
) -> Batch:
    """Make a batch for distillation between two tokenizers (`preceptor.methods.alm`).

    Both sides get their `Vocabulary.begin`, the text, cut at the last chunk that fits both, and, where both have one and nothing was cut,
    their `Vocabulary.end`, which correspond. Chunks that hold a text's first token are left out when it stands for text, since nobody
    predicts it.

    Args:
        texts: one per row.
        student: its vocabulary.
        teacher: its vocabulary.
        student_length: the most tokens that the student reads; None: no limit.
        teacher_length: the most tokens that the teacher reads.

    Returns:
        ``x``, ``y`` and ``mask`` as in every batch of language, in the student's tokens, padded on the right; ``teacher_x``,
        ``teacher_y`` and ``teacher_mask`` in the teacher's; ``spans`` (N, C, 4), int64, chunks padded with zeros, token 0 being the first
        of a row; ``boundary`` (1, K) and ``teacher_boundary`` (1, K'), the tokens that begin a word. The last input of a text that was cut
        has no target: its mask is 0.

    Raises:
        ValueError: no texts, an empty one, or more than `MISMATCH` of all bytes spelled differently. Fewer are left out with a warning.
    """
    if not texts or not all(texts):
        raise ValueError(f"texts: expected at least one, none of them empty, got {list(texts)[:3]}")
    vocabularies, limits = (teacher, student), (teacher_length, student_length)
    rows, covered, total = [], 0, 0
    for text in texts:
        spelled = [vocabulary.spell(text) for vocabulary in vocabularies]
        pieces = [side[1] for side in spelled]
        chunks = align(*pieces)
        total += sum(len(piece) for side in pieces for piece in side)
        covered += sum(len(piece) for i, j, k, m in chunks.tolist() for piece in (*pieces[0][i:j], *pieces[1][k:m]))
        rows.append(_row([side[0] for side in spelled], chunks, vocabularies, limits))
    if total - covered > MISMATCH * total:
        raise ValueError(
            f"texts: expected two tokenizers that spell the same bytes, got other ones for {1 - covered / total:.1%} of them"
            " (one that normalises unicode, adds spaces or has no token for a letter?)"
        )
    if covered < total:
        warnings.warn(f"{total - covered} of {total} bytes are spelled differently by the two tokenizers and left out", stacklevel=2)
    batch: Batch = {}
    for side, prefix in ((1, ""), (0, "teacher_")):
        inputs, targets = ([torch.tensor(row[side][part]) for row in rows] for part in (0, 1))
        x, y = (pad_sequence(tokens, batch_first=True) for tokens in (inputs, targets))
        length = x.shape[1]
        read, counted = (pad_sequence([torch.ones_like(tokens) for tokens in part], batch_first=True) for part in (inputs, targets))
        batch[f"{prefix}x"] = {"input_ids": x, "attention_mask": read, "use_cache": False}
        batch[f"{prefix}y"] = F.pad(y, (0, length - y.shape[1]))
        batch[f"{prefix}mask"] = F.pad(counted, (0, length - y.shape[1])).float()
        batch[f"{prefix}boundary"] = vocabularies[side].boundary.unsqueeze(0)
    batch["spans"] = pad_sequence([torch.from_numpy(row[2]) for row in rows], batch_first=True)
    return batch


def _row(
    tokens: Sequence[list[int]], chunks: NDArray[np.int64], vocabularies: Sequence[Vocabulary], limits: Sequence[int | None]
) -> tuple[tuple[list[int], list[int]], tuple[list[int], list[int]], NDArray[np.int64]]:
    """Inputs and targets of the teacher, those of the student, and the chunks of one text; teacher first everywhere."""
    begins = [[] if vocabulary.begin is None else [vocabulary.begin] for vocabulary in vocabularies]
    room = [len(ids) if limit is None else limit - len(begin) for ids, limit, begin in zip(tokens, limits, begins, strict=True)]
    whole = all(len(ids) <= most for ids, most in zip(tokens, room, strict=True))
    if not whole:
        chunks = chunks[(chunks[:, [1, 3]] <= room).all(axis=1)]
        if not len(chunks):
            raise ValueError(f"student_length, teacher_length: expected room for one chunk of the text, got {limits[1]} and {limits[0]}")
        tokens = [ids[:stop] for ids, stop in zip(tokens, chunks[-1, [1, 3]], strict=True)]
    inputs = [begin + ids for begin, ids in zip(begins, tokens, strict=True)]
    spans = chunks + np.array([len(begins[0]), len(begins[0]), len(begins[1]), len(begins[1])])
    spans = spans[(spans[:, [0, 2]] > 0).all(axis=1)]
    ends: list[list[int]] = [[], []]
    if whole and None not in (vocabularies[0].end, vocabularies[1].end):
        ends = [[vocabulary.end] for vocabulary in vocabularies if vocabulary.end is not None]
        last = [len(ids) for ids in inputs]
        spans = np.concatenate([spans, [[last[0], last[0] + 1, last[1], last[1] + 1]]])
    sides = [(ids, ids[1:] + end) for ids, end in zip(inputs, ends, strict=True)]
    return sides[0], sides[1], spans
