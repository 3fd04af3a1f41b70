"""Approximate likelihood matching: a student learns from a teacher with another tokenizer, chunk of text by chunk of text.

Paper: Minixhofer, Vulic, Ponti 2025, Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching (arXiv:2503.20083).
Claim: matching the likelihoods of the smallest chunks that both tokenizers agree on teaches a student in any vocabulary, bytes included,
better than next-token training on the same text, and without its loss.
Equation, with a chunk's tokens i <= u < j of the teacher and k <= u < l of the student, and tau = temperature:
    a = sum_u log p_T(t_u | t_<u),   b = sum_u log p_S(s_u | s_<u),   x = a / tau - epsilon,   y = b / tau - epsilon,
    L = mean over chunks of -(e^x y + (1 - e^x) log(1 - e^y)).
A token also says that the next bytes do not continue it. ``debias`` takes that out: each of a and b gains the log-probability that a new
word (or the end) follows the chunk. ``merge`` keeps a boundary only where the teacher gives that more than this probability.

What a batch carries: besides ``x``, ``y`` and ``mask`` in the student's tokens the same text for the teacher (``teacher_x``, ``teacher_y``,
``teacher_mask``), the chunks (``spans``, (N, C, 4)) and, for ``debias`` and ``merge``, the tokens that begin a word (``boundary``, (1, K),
and ``teacher_boundary``, (1, K')). `preceptor.data.align.aligned_batch` makes all of it from texts. A batch without ``teacher_x`` means one
tokenizer for both: every token is a chunk, and there is nothing to debias or merge. The teacher works in ``prepare``, since merging decides
how many chunks there are; a batch that went through ``prepare`` before is left as it is, so that a user can run the teacher once and keep
one number per chunk.

Deviations: the mean is over merged chunks, where the released code merges the counts a second time. Chunks that one side does not predict
at all are dropped; the code keeps them where it is the student. A merged run does not reach over masked or dropped chunks. The released
losses on pairs of tokens ("unbiased"), on hidden states, and the weighing of two losses by their gradients (GradMag) are left out:
``hard_weight`` is a fixed weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.reduce import num_examples, split
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.data.rows import join
from preceptor.losses.alignment import Divergence, boundary_log_probs, chunk_divergence, chunk_sums, merge_chunks
from preceptor.losses.checks import check_labels, check_unit_interval
from preceptor.losses.divergence import log_probs
from preceptor.methods.ce import CrossEntropy
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.texts import learning_curve, text_world
from preceptor.models.taps import forward

CARD = Card(
    slug="alm",
    title="Distillation between tokenizers by approximate likelihood matching",
    authors="Minixhofer et al. 2025",
    arxiv="2503.20083",
    kind="sequences",
    tasks=("language",),
    needs=("teacher", "logits"),
    equation="L = mean over chunks of -(e^x y + (1 - e^x) log(1 - e^y)), x = log p_T(chunk) / tau, y = log p_S(chunk) / tau",
    cost="one forward pass of the teacher per step",
    headline="Gemma2-2B to the tokenizer of Qwen2, mean of 7 tasks: 55.1 (next-token training 51.6, original 58.0); to bytes 51.3 (46.5)",
)

_TEXTS = 4  # that the teacher reads at a time: its logits are the largest part of a step


@dataclass(frozen=True, kw_only=True)
class ALM(Method):
    """Cross-tokenizer distillation by likelihoods of aligned chunks."""

    temperature: float = 100.0  # tau > 0; Sec. 3 and the released configurations
    divergence: Divergence = "binary_ce"  # see chunk_divergence; Sec. 3
    epsilon: float = 1e-6  # > 0; released code
    debias: bool = True  # add the boundary's log-probability to both sides; Sec. 3, outcome chunk debiasing
    merge: float = 0.1  # gamma in [0, 1): smallest probability of a boundary, 0 merges nothing; Sec. 4 and the released guide
    hard_weight: float = 0.0  # weight of the next-token loss; Sec. 4: pure distillation has none

    def __post_init__(self) -> None:
        """Check the ranges."""
        chunk_divergence(torch.zeros(()), torch.zeros(()), **self._options())
        check_unit_interval(merge=self.merge)
        if self.hard_weight < 0:
            raise ValueError(f"hard_weight: expected a number >= 0, got {self.hard_weight}")

    @torch.no_grad()
    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Run the teacher: add the log-likelihood of every chunk, and which chunks count."""
        if "mask/alm" in batch:
            return batch
        if "teacher_x" in batch:
            needed = ["teacher_y", "spans"]
            needed += ["teacher_boundary"] * bool(self.debias or self.merge) + ["boundary"] * self.debias
            missing = ", ".join(key for key in needed if key not in batch)
            if missing:
                raise ValueError(f"batch: expected {', '.join(needed)} beside teacher_x (see data.align.aligned_batch), got no {missing}")
        parts = split(batch, -(-num_examples(batch) // _TEXTS))
        return {**batch, **join([self._read(part, roles["teacher"]) for part in parts])}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the divergence of every chunk, (N, C), and the next-token loss of every token, (N, T)."""
        log_q = log_probs(forward(roles["student"], batch["x"]).logits)
        tokens = _of_tokens(log_q, batch["y"])
        if "teacher_x" in batch:
            likelihood = self._likelihood(log_q, batch["spans"][..., 2:], batch, "")
        elif log_q.shape[-1] == batch["teacher_vocabulary"]:
            likelihood = tokens
        else:
            sizes = f"{log_q.shape[-1]} tokens of the student and {batch['teacher_vocabulary']} of the teacher"
            raise ValueError(f"batch: expected teacher_x (see data.align.aligned_batch) for {sizes}, got {', '.join(batch)}")
        apart = chunk_divergence(likelihood, batch["teacher_log_likelihood"], **self._options())
        return {"alm": apart, "hard": -self.hard_weight * tokens}

    def _read(self, batch: Batch, teacher: nn.Module) -> Batch:
        """What the teacher says about a few texts."""
        if "teacher_x" not in batch:
            log_p = log_probs(forward(teacher, batch["x"]).logits)
            tokens = _of_tokens(log_p, batch["y"])
            mask = batch.get("mask", torch.ones_like(tokens))
            return {"teacher_log_likelihood": tokens, "teacher_vocabulary": log_p.shape[-1], "mask/alm": mask}
        log_p = log_probs(forward(teacher, batch["teacher_x"]).logits)
        spans = self._merged(log_p, batch)
        likelihood = self._likelihood(log_p, spans[..., :2], batch, "teacher_")
        return {"spans": spans, "teacher_log_likelihood": likelihood, "mask/alm": (spans[..., 1] > 0).to(likelihood.dtype)}

    def _merged(self, log_p: Tensor, batch: Batch) -> Tensor:
        """The chunks that count, joined where the teacher does not expect a boundary."""
        spans = batch["spans"]
        counted = [batch.get(f"{prefix}mask", torch.ones_like(batch[f"{prefix}y"])) != 0 for prefix in ("teacher_", "")]
        seen = [chunk_sums(mask.long(), part) > 0 for mask, part in zip(counted, (spans[..., :2], spans[..., 2:]), strict=True)]
        spans = spans * (seen[0] & seen[1]).unsqueeze(-1)
        keep = torch.ones_like(seen[0])
        if self.merge:
            keep = self._boundary(log_p, spans[..., :2], batch, "teacher_").exp() > self.merge
        return merge_chunks(spans, keep)

    def _likelihood(self, log_p: Tensor, spans: Tensor, batch: Batch, prefix: str) -> Tensor:
        tokens = _of_tokens(log_p, batch[f"{prefix}y"])
        if f"{prefix}mask" in batch:
            tokens = tokens.masked_fill(batch[f"{prefix}mask"] == 0, 0.0)
        sums = chunk_sums(tokens, spans)
        return sums + self._boundary(log_p, spans, batch, prefix) if self.debias else sums

    def _boundary(self, log_p: Tensor, spans: Tensor, batch: Batch, prefix: str) -> Tensor:
        return boundary_log_probs(log_p, spans, batch[f"{prefix}boundary"][0], inputs=batch[f"{prefix}x"].get("attention_mask"))

    def _options(self) -> dict[str, Any]:
        return {"divergence": self.divergence, "temperature": self.temperature, "epsilon": self.epsilon}


def _of_tokens(log_p: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token, (N, T)."""
    check_labels(tokens, log_p)
    return log_p.gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1)


def miniature(seed: int, size: Size) -> Miniature:
    """English, 120 windows of 100 characters: students of bytes learn from a teacher of word pieces, or from the next byte alone.

    "alm-chunks" is the plain loss, without debiasing and merging. ``best`` is the best of the measurements on test windows, which are
    taken every 50 updates: what stopping at the right moment would give.
    """
    full = size == "full"
    world = text_world(seed, size) if full else text_world(seed, size, windows=20)
    arms = {
        "untrained-teacher": (ALM(), world.untrained),
        "sft": (CrossEntropy(), None),
        "alm-chunks": (ALM(debias=False, merge=0.0), world.teacher),
        "alm": (ALM(), world.teacher),
    }
    steps, every = (300, 50) if full else (6, 3)
    curves = {name: learning_curve(method, world, teacher, steps=steps, every=every, seed=seed) for name, (method, teacher) in arms.items()}
    return Miniature(
        arms={name: {"bits_per_byte": curve[-1], "best": min(curve)} for name, curve in curves.items()},
        claims=(
            Claim(
                name="likelihoods of chunks resist over-fitting where text is scarce",
                method="alm",
                baseline="sft",
                metric="bits_per_byte",
                direction="lower",
            ),
            Claim(
                name="likelihoods of chunks teach more than the next byte, both at their best moment",
                method="alm",
                baseline="sft",
                metric="best",
                direction="lower",
            ),
        ),
        notes=(f"{len(world.train['id'])} windows of 100 characters, {steps} updates of every student; bits per byte of held-out text",),
    )
