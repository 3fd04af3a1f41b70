"""A world of real English for methods that teach across tokenizers: a teacher of word pieces, students that read and write bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn

from preceptor.core.method import Method, evaluating
from preceptor.core.optional import require
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch, Record
from preceptor.data.align import Vocabulary, aligned_batch, byte_vocabulary, vocabulary_of
from preceptor.data.rows import take
from preceptor.losses.hard import hard_loss
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import Labels, seeded
from preceptor.models.taps import forward


@dataclass(frozen=True, kw_only=True)
class TextWorld:
    """One task of one seed. Batches hold windows of text in both vocabularies (`preceptor.data.align.aligned_batch`)."""

    train: Batch
    test: Batch
    teacher: nn.Module  # trained, in eval mode
    untrained: nn.Module  # built like the teacher, with random weights
    student: Callable[[], nn.Module]  # a new student at each call, always with the same weights: those of the seed


def text_world(seed: int, size: Size = "full", *, windows: int = 120) -> TextWorld:
    """The reference topics that ship with Python (``pydoc_data``, 465,000 characters), every fifth document held out.

    The teacher, a Llama of 2 layers and 96 units over byte-level word pieces (256 letters and 200 merges), is trained once per process
    on all training documents and is the same for all seeds. The seed chooses the students' windows of 100 characters and their weights
    (2 layers of 64 units, bytes).

    Args:
        seed: at least 0.
        size: ``"smoke"`` trains the teacher for a few steps on little text.
        windows: training windows of a student, at least 1.
    Raises:
        ImportError: transformers is missing (one line says what to install).
    """
    words, held, vocabulary, teacher = _shared(size)

    def both(text: str, number: int, draw: int) -> Batch:
        starts = torch.randint(len(text) - _WINDOW, (number,), generator=torch.Generator().manual_seed(draw)).tolist()
        texts = [text[start : start + _WINDOW] for start in starts]
        return {**aligned_batch(texts, student=_BYTES, teacher=vocabulary), "id": torch.arange(number)}

    return TextWorld(
        train=both(words, windows, seed),
        test=both(held, 100 if size == "full" else 10, 0),
        teacher=teacher,
        untrained=seeded(lambda: _llama(len(vocabulary.pieces), 96), seed).eval(),
        student=lambda: seeded(lambda: _llama(len(_BYTES.pieces), 64), seed),
    )


def bits_per_byte(student: nn.Module, batch: Batch) -> float:
    """Mean cost of a byte in the student's own prediction, in bits."""
    with torch.no_grad(), evaluating(student):
        loss = hard_loss(forward(student, batch["x"]).logits, batch)
    return float((loss * batch["mask"]).sum() / batch["mask"].sum() / math.log(2))


def learning_curve(
    method: Method, world: TextWorld, teacher: nn.Module | None, *, steps: int, every: int, batch_size: int = 10, seed: int
) -> list[float]:
    """Train a student of the world with AdamW at 3e-3 and measure `bits_per_byte` on test windows after every few updates.

    Args:
        method: what to train by. Its ``prepare`` runs once, on all training windows: it must leave alone what it prepared before.
        world: the task.
        teacher: of the method; None for one without.
        steps: updates in all.
        every: updates between measurements.
        batch_size: windows in a batch, at most as many as the world has.
        seed: of the order of windows.
    """
    student = world.student()
    roles = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
    with torch.no_grad():
        prepared = method.prepare(world.train, roles, State(total_steps=steps))
    generator = torch.Generator().manual_seed(seed)
    number = len(world.train["id"])
    order = torch.cat([torch.randperm(number, generator=generator) for _ in range(-(-steps * batch_size // number))])
    batches = [take(prepared, rows) for rows in order.split(batch_size)[:steps]]
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    curve = []

    def look(record: Record) -> None:
        if record.step % every == 0:
            curve.append(bits_per_byte(student, world.test))

    train(method, roles, batches, optimizer, steps=steps, clip=1.0, seed=seed, progress=look)
    return curve


_WINDOW = 100
_BYTES = replace(byte_vocabulary(), end=None)  # a window is no whole text


@cache
def _shared(size: Size) -> tuple[str, str, Vocabulary, nn.Module]:
    """What all seeds share: training and held-out text, the teacher's vocabulary, the teacher."""
    from pydoc_data.topics import topics  # 600 kB

    documents = [topics[name] for name in sorted(topics)]
    held = "\n".join(documents[::5])
    words = "\n".join(document for number, document in enumerate(documents) if number % 5)
    steps = 300
    if size == "smoke":
        words, held, steps = words[:20_000], held[:20_000], 3
    vocabulary = _word_pieces(words)
    teacher = seeded(lambda: _llama(len(vocabulary.pieces), 96), 0)
    ids = torch.tensor(vocabulary.spell(words)[0])
    starts = torch.randint(len(ids) - 64, (steps, 16, 1), generator=torch.Generator().manual_seed(0))
    rows = ids[starts + torch.arange(64)]
    begin = torch.zeros(16, 1, dtype=torch.int64)  # the first token of the vocabulary
    batches = [{"x": {"input_ids": torch.cat([begin, row[:, :-1]], dim=1), "use_cache": False}, "y": row} for row in rows]
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 20, 1.0) * (1 - step / steps))
    train(Labels(), {"student": teacher}, batches, optimizer, steps=steps, schedulers=rate, clip=1.0)
    return words, held, vocabulary, teacher.eval()


def _word_pieces(text: str) -> Vocabulary:
    """A byte-level vocabulary of 256 letters, 200 merges and a first token, made from a text."""
    tokenizers = require("tokenizers", extra="llm", purpose="texts in miniature")
    transformers = require("transformers", extra="llm", purpose="texts in miniature")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=457, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return vocabulary_of(transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>"))


def _llama(vocabulary: int, units: int) -> nn.Module:
    transformers = require("transformers", extra="llm", purpose="texts in miniature")
    sizes = {"hidden_size": units, "intermediate_size": 4 * units, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=vocabulary, max_position_embeddings=256, **sizes))
