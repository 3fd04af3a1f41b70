"""Answers to yes/no questions about images, from any model that gives a probability of "yes", kept by the example's id."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from preceptor.core.files import write_whole
from preceptor.core.types import Batch

YES, NO = ("yes", "no")


def yes_probability(logits: Tensor, yes_ids: Sequence[int], no_ids: Sequence[int]) -> Tensor:
    """The probability of "yes" of an answer that is yes or no: sigmoid(log sum exp of the yes tokens - the same of the no tokens).

    Args:
        logits: of the first token of the answer, shape (..., vocabulary).
        yes_ids: tokens of all spellings of yes; at least one.
        no_ids: tokens of all spellings of no; at least one.

    Returns:
        Shape (...), in [0, 1], at least float32; 0.5 where the model can say neither.

    Raises:
        ValueError: no token on one side, or one that is not in the vocabulary.
    """
    sides = []
    for name, ids in (("yes_ids", yes_ids), ("no_ids", no_ids)):
        if not ids or not all(0 <= i < logits.shape[-1] for i in ids):
            raise ValueError(f"{name}: expected tokens in [0, {logits.shape[-1]}), at least one, got {list(ids)}")
        chosen = logits[..., torch.tensor(ids, device=logits.device)]
        sides.append((chosen.float() if chosen.dtype in (torch.float16, torch.bfloat16) else chosen).logsumexp(dim=-1))
    yes, no = sides
    return torch.where(torch.isneginf(yes) & torch.isneginf(no), 0.5, torch.sigmoid(yes - no))


def yes_of_top(top: Mapping[str, float]) -> float | None:
    """The same from the log-probabilities of a server's most probable first tokens, summed over spellings ("Yes", " yes", ...).

    Args:
        top: token -> log-probability.

    Returns:
        In [0, 1]; None where neither answer is among them: take 0.5, and count how often.
    """
    mass = {answer: sum(math.exp(value) for token, value in top.items() if token.strip().lower() == answer) for answer in (YES, NO)}
    total = mass[YES] + mass[NO]
    return mass[YES] / total if total > 0 else None


def yes_of_answers(answers: Iterable[str]) -> float:
    """The same from sampled answers, where no log-probabilities are told: (yes + 1) / (yes + no + 2)."""
    said = [answer.strip().lower().rstrip(".!") for answer in answers]
    return (said.count(YES) + 1) / (said.count(YES) + said.count(NO) + 2)


@dataclass(frozen=True, eq=False)
class AspectBank:
    """Probabilities of "yes" by example and question.

    Args:
        questions: Q of them, each once.
        ids: int64 (M,), the examples' ids, each once.
        probs: (M, Q), in [0, 1]; NaN for a question that was not answered.
    Raises:
        ValueError: shapes do not fit, a probability is out of range, or a question or id stands twice.
    """

    questions: tuple[str, ...]
    ids: Tensor
    probs: Tensor

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or self.probs.shape != (len(self.ids), len(self.questions)):
            raise ValueError(
                f"probs: expected shape {(len(self.ids), len(self.questions))} for {len(self.ids)} examples and {len(self.questions)}"
                f" questions, got {tuple(self.probs.shape)}"
            )
        wrong = (self.probs < 0) | (self.probs > 1)
        if wrong.any():
            example = int(self.ids[wrong.any(dim=1)][0])
            raise ValueError(f"probs: expected numbers in [0, 1], got {float(self.probs[wrong][0])} in example {example}")
        if len(set(self.questions)) < len(self.questions) or len(self.ids.unique()) < len(self.ids):
            raise ValueError("questions, ids: expected each once, got some twice")
        order = self.ids.argsort()
        object.__setattr__(self, "ids", self.ids[order])
        object.__setattr__(self, "probs", self.probs[order])

    def __repr__(self) -> str:
        """Counts and a digest: two banks that read the same are the same."""
        digest = hashlib.sha256(json.dumps([self.questions, self.ids.tolist(), self.probs.tolist()]).encode()).hexdigest()[:12]
        return f"AspectBank({len(self.questions)} questions, {len(self.ids)} examples, {digest})"

    def lookup(self, ids: Tensor) -> Tensor:
        """Probabilities (N, Q) of examples (N,), on their device; NaN for what the bank does not know."""
        wanted = ids.cpu()
        if not len(self.ids):
            return self.probs.new_full((len(wanted), len(self.questions)), torch.nan).to(ids.device)
        place = torch.searchsorted(self.ids, wanted).clamp_max(len(self.ids) - 1)
        known = (self.ids[place] == wanted)[:, None]
        return torch.where(known, self.probs[place], torch.nan).to(ids.device)

    def informative(self, *, spread: float = 0.01) -> AspectBank:
        """The bank without questions that are always answered alike: whose standard deviation is below ``spread``."""
        known = ~self.probs.isnan()
        counts = known.sum(dim=0).clamp_min(1)
        means = self.probs.nan_to_num(0.0).sum(dim=0) / counts
        deviation = (torch.where(known, self.probs - means, 0.0).square().sum(dim=0) / counts).sqrt()
        kept = (deviation >= spread).nonzero().flatten().tolist()
        return AspectBank(tuple(self.questions[i] for i in kept), self.ids, self.probs[:, kept])

    def save(self, path: str | Path) -> None:
        """Write JSON: ``{"questions": [...], "answers": {id: [...]}}``; null for a question that was not answered."""
        answers = {
            str(i): [None if math.isnan(p) else p for p in row] for i, row in zip(self.ids.tolist(), self.probs.tolist(), strict=True)
        }
        write_whole(Path(path), json.dumps({"questions": self.questions, "answers": answers}, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> AspectBank:
        """Read what `save` wrote, or the same table made elsewhere.

        Raises:
            ValueError: no such file, or another content, in one line.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            questions, answers = tuple(found["questions"]), found["answers"]
            ids = torch.tensor([int(i) for i in answers], dtype=torch.int64)
            rows = [[math.nan if p is None else float(p) for p in row] for row in answers.values()]
            probs = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), -1 if rows else len(questions)).float()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {str(error).splitlines()[0]}"
            raise ValueError(f"aspects: expected JSON with questions and answers by id, got {str(path)!r} ({why})") from None
        return cls(questions, ids, probs)


def collect_aspects(ask: Callable[[Tensor, str], float], batches: Iterable[Batch], questions: Sequence[str]) -> AspectBank:
    """Ask every question about every image of one pass.

    Args:
        ask: (image, question) -> probability of "yes".
        batches: with ``x`` (N, ...), a tensor, and ``id``, such as ``source.scan()``; images without augmentation.
        questions: Q of them.
    """
    ids: list[int] = []
    rows: list[list[float]] = []
    for batch in batches:
        for image, number in zip(batch["x"], batch["id"].tolist(), strict=True):
            ids.append(number)
            rows.append([float(ask(image, question)) for question in questions])
    return AspectBank(tuple(questions), torch.tensor(ids, dtype=torch.int64), torch.tensor(rows).reshape(len(rows), len(questions)))
