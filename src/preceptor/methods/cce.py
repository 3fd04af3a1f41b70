"""Cut cross-entropy: a language model learns its labels, and no matrix of tokens times vocabulary ever exists.

Paper: Wijmans, Huval, Hertzberg, Koltun, Krähenbühl 2024, Cut Your Losses in Large-Vocabulary Language Models (arXiv:2411.09009).
Claim: training with it converges as with the plain loss, at a small part of the memory.
Equation, for hidden states e_i, output layer c and next tokens y_i, with a = e c^T:
    L_i = lse_i - a_{i, y_i} + z lse_i^2,   lse_i = log sum_v exp a_iv;
only some rows of a exist at a time (`preceptor.losses.linear`).
Deviations: rows are cut, not the vocabulary: on a processor the products of whole rows are faster, and gradients form in the same pass.
Gradients are filtered by mass with what is left out projected back, not by dropping blocks under a threshold; off by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.optional import require
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_unit_interval
from preceptor.losses.linear import linear_cross_entropy
from preceptor.methods.ce import CrossEntropy
from preceptor.metrics.cost import peak_tensor_mb
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import seeded
from preceptor.models.heads import head, hidden_states

if TYPE_CHECKING:
    from collections.abc import Iterator

CARD = Card(
    slug="cce",
    title="Cut cross-entropy: the loss of a large vocabulary without its logits",
    authors="Wijmans et al. 2024",
    arxiv="2411.09009",
    kind="losses",
    tasks=("language",),
    needs=("labels",),
    equation="L_i = lse_i - a_iy + z lse_i^2, lse_i = log sum_v exp a_iv, some rows of a = e c^T at a time",
    cost="the products of cross-entropy, in chunks of rows; memory for one chunk of logits",
    headline="Gemma 2 2B, 8,192 tokens, vocabulary of 256,000: memory of the loss 24 GB -> 1 MB, equal speed, equal curves",
)


@dataclass(frozen=True, kw_only=True)
class CutCrossEntropy(Method):
    """Training of a language model with labels alone; no teacher. The model has hidden states and a linear output layer."""

    label_smoothing: float = 0.0  # share in [0, 1] of the label spread over all tokens; off in the paper
    z_loss: float = 0.0  # weight >= 0 of the squared log-normaliser; an option of the released code
    filter_mass: float = 0.0  # share in [0, 1) of a chunk's gradient that may be approximated; 0: exact
    chunk_rows: int | None = None  # rows whose logits exist at a time, at least 1; None: what was measured as fast

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_unit_interval(label_smoothing=self.label_smoothing)
        if self.z_loss < 0:
            raise ValueError(f"z_loss: expected a number >= 0, got {self.z_loss}")
        if not 0 <= self.filter_mass < 1:
            raise ValueError(f"filter_mass: expected a number in [0, 1), got {self.filter_mass}")
        if self.chunk_rows is not None and self.chunk_rows < 1:
            raise ValueError(f"chunk_rows: expected at least 1, got {self.chunk_rows}")

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the cross-entropy of every token, (N, T)."""
        layer = head(roles["student"])
        found = linear_cross_entropy(
            hidden_states(roles["student"], batch["x"]),
            layer,
            batch["y"],
            mask=batch.get("mask"),
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            filter_mass=self.filter_mass,
            chunk_rows=self.chunk_rows,
        )
        return {"hard": found}


_LONGEST, _VOCABULARY = 200, {"smoke": 500, "full": 8_000}


def miniature(seed: int, size: Size) -> Miniature:
    """A small Llama reads the reference topics of Python by the byte, with a vocabulary that is far too large.

    Both arms see the same texts in the same order. ``memory_mb`` is the most that tensors of one step hold; ``nll``, of the next byte of
    other texts, is in nats.
    """
    steps = 100 if size == "full" else 3
    texts = list(_texts(seed, steps + 8))
    held = texts[steps:]

    def student() -> nn.Module:
        return seeded(lambda: _llama(_VOCABULARY[size]), seed)

    arms = {"untrained": {"nll": _nll(student(), held), "memory_mb": 0.0}}
    for name, method in (("ce", CrossEntropy()), ("cce", CutCrossEntropy(chunk_rows=256))):
        taught = student()
        optimizer = torch.optim.AdamW(taught.parameters(), lr=3e-3)
        train(method, {"student": taught}, texts[:steps], optimizer, steps=steps, clip=1.0, seed=seed)
        optimizer.zero_grad()
        memory = peak_tensor_mb(lambda taught=taught, method=method: _step(method, taught, texts[0]))
        arms[name] = {"nll": _nll(taught, held), "memory_mb": memory}
    return Miniature(
        arms=arms,
        claims=(
            Claim(
                name="it trains as the plain loss does, to a thousandth of a nat",
                method="cce",
                baseline="ce",
                metric="nll",
                direction="lower",
                margin=-1e-3,
            ),
            Claim(name="a step holds less memory", method="cce", baseline="ce", metric="memory_mb", direction="lower"),
        ),
        notes=(f"{steps} updates of 8 texts of at most {_LONGEST} bytes; vocabulary {_VOCABULARY[size]:,}, gradients included in memory",),
    )


def _texts(seed: int, number: int) -> Iterator[Batch]:
    """Batches of 8 passages of Python's reference topics, each cut at a length of its own and padded to the longest."""
    from pydoc_data.topics import topics  # 600 kB

    letters = torch.tensor(list("\n".join(topics[name] for name in sorted(topics)).encode()))
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, 8 * number, 8):
        lengths = torch.randint(_LONGEST // 2, _LONGEST + 1, (8, 1), generator=generator)
        starts = torch.randint(len(letters) - _LONGEST - 1, (8, 1), generator=generator)
        rows = letters[starts + torch.arange(int(lengths.max()) + 1)]
        mask = (torch.arange(rows.shape[1] - 1) < lengths).float()
        yield {"x": {"input_ids": rows[:, :-1], "use_cache": False}, "y": rows[:, 1:], "mask": mask, "id": torch.arange(first, first + 8)}


def _llama(vocabulary: int) -> nn.Module:
    transformers = require("transformers", extra="llm", purpose="the experiment of cce")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=vocabulary, max_position_embeddings=256, **sizes))


def _step(method: Method, student: nn.Module, batch: Batch) -> Tensor:
    terms = method.loss(batch, {}, {"student": student}, State(total_steps=1))
    loss = (terms["hard"] * batch["mask"]).mean()
    loss.backward()
    return loss


@torch.no_grad()
def _nll(student: nn.Module, batches: list[Batch]) -> float:
    """Mean over all tokens that count, in nats."""
    total = sum(float(CutCrossEntropy().loss(batch, {}, {"student": student}, State(total_steps=1))["hard"].sum()) for batch in batches)
    return total / float(sum(batch["mask"].sum() for batch in batches))
