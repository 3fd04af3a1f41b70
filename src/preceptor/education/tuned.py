"""A language model that learns a teacher's scores and messages by low-rank adapters, and then scores and answers by itself."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.data.rollout import GenerateSampler
from preceptor.data.sources import Source
from preceptor.data.text import Texts
from preceptor.education.feedback import MAX_WORDS, RUBRIC, rating_prompt
from preceptor.education.open_answers import NO_ATTEMPT, SCORES, Rating, check_scores, clean
from preceptor.losses.linear import linear_cross_entropy
from preceptor.models.folder import save_student
from preceptor.models.heads import head, hidden_states
from preceptor.models.language import context_length, load_language

Progress = Callable[[int, int], None]
"""Called with how many are done, and of how many."""

_FORM = 'Write two lines: "Score: " and the number, then "Feedback: " and your message.'
_TOGETHER = 8  # answers written at one time
_ASKS = ((1.0, 1e-6), (0.5, 0.5))  # temperature and top-p: the likeliest text, then once more as the paper draws


def written_rating(text: str) -> tuple[int, str] | None:
    """Score and message of a text: the first whole number after the word "score", and what follows "Feedback:".

    Returns:
        None where no number 0 to 4 follows; a message of "" where there is none.
    """
    found = re.search(r"\bscore\b(?:\s*\([^()]*\))?[^\d\n-]{0,12}(\d+)(?![.,]?\d)", text, re.IGNORECASE)
    if found is None or int(found[1]) not in SCORES:
        return None
    said = re.search(r"\bfeedback\s*:(.*)", text[found.end() :], re.IGNORECASE | re.DOTALL)
    return int(found[1]), "" if said is None else said[1].strip()


@dataclass(frozen=True, kw_only=True)
class RatingTuning(Method):
    """Cross-entropy of the tokens of ratings, a model's output layer never applied to those of prompts."""

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """The loss of every token, (N, T), 0 where it does not count."""
        hidden = hidden_states(roles["student"], batch["x"])
        return {"rating": linear_cross_entropy(hidden, head(roles["student"]), batch["y"], mask=batch["mask"])}


@dataclass(kw_only=True)
class TunedScorer:
    """Scores answers and writes feedback as a teacher did, by a causal language model of transformers. An empty answer gets 0.

    Baral et al. 2024 (arXiv:2411.08910) tune Mistral-7B in this way. Without `fit` the model is asked as it is. Where it writes no score
    it is asked once more, with temperature and top-p 0.5 as in the paper, whose limit to the 30 likeliest tokens is left out.

    Args:
        model: trained in place; after `fit` the adapters are part of its weights.
        tokenizer: of the model, with an end-of-text token; its chat template is used where it has one.
        rubric: what each score stands for.
        max_words: that feedback should have.
        lora: arguments of peft's ``LoraConfig``; None: all weights are trained.
        epochs: passes over the past answers; this and the next three as in the paper.
        learning_rate: the largest, of AdamW; it falls as a cosine.
        warmup: updates in which it rises, at most half of them.
        batch_size: answers per update.
        seed: of the adapters, the order, and draws.
    """

    model: nn.Module
    tokenizer: Any
    rubric: str = RUBRIC
    max_words: int = MAX_WORDS
    lora: Mapping[str, Any] | None = field(default_factory=lambda: {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"})
    epochs: int = 4
    learning_rate: float = 2e-4
    warmup: int = 10
    batch_size: int = 4
    seed: int = 0

    def fit(
        self,
        problems: Sequence[str],
        texts: Sequence[str],
        scores: Sequence[int],
        feedback: Sequence[str],
        *,
        out: Path | None = None,
        progress: Progress | None = None,
    ) -> TunedScorer:
        """Train on N answers; empty ones are left out. A message of "" teaches the score alone.

        Args:
            problems: their texts.
            texts: the answers.
            scores: whole numbers 0 to 4.
            feedback: the messages, as a teacher or a larger model wrote them.
            out: folder for checkpoints, one an epoch; a call that was stopped goes on from there.
            progress: called after every update.
        Raises:
            ValueError: different lengths, no answers, a score outside 0 to 4, an answer that does not fit the model's context, or other
                answers or settings than those of the run in ``out``.
            ImportError: peft is missing.
            Interrupted: a signal came; the checkpoint is saved.
        """
        if not len(problems) == len(texts) == len(scores) == len(feedback) or not any(map(clean, texts)):
            lengths = [len(problems), len(texts), len(scores), len(feedback)]
            raise ValueError(f"answers: expected as many problems, texts, scores and messages, at least 1 not empty, got {lengths}")
        check_scores(scores)
        kept = [i for i, text in enumerate(texts) if clean(text)]
        rows = [(self._prompt(problems[i], texts[i]), self._rating(scores[i], feedback[i])) for i in kept]
        examples = self._examples(rows)
        source = Source(examples, batch_size=self.batch_size, seed=self.seed, augment=_trimmed)
        steps = self.epochs * source.batches_per_epoch
        if self.lora is not None:
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                self.model = load_language({"lora": dict(self.lora), "of": self.model})
        optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=self.learning_rate)
        rising = min(self.warmup, steps // 2)
        settings = [self.lora and dict(self.lora), self.epochs, self.learning_rate, self.warmup, self.batch_size]
        train(
            RatingTuning(),
            {"student": self.model},
            source,
            optimizer,
            steps=steps,
            schedulers=LambdaLR(optimizer, lambda step: _factor(step, rising, steps)),
            clip=1.0,
            seed=self.seed,
            out=out,
            resume=out is not None,
            identity={"ratings": hashlib.sha256(json.dumps([rows, settings], default=str).encode()).hexdigest()},
            checkpoint_every=source.batches_per_epoch,
            progress=progress and (lambda record: progress(record.step, steps)),
        )
        if self.lora is not None:
            merged: Any = self.model
            self.model = merged.merge_and_unload().requires_grad_(True)
        return self

    def predict(self, problems: Sequence[str], texts: Sequence[str], *, progress: Progress | None = None) -> list[Rating]:
        """Rate M answers.

        Raises:
            ValueError: different lengths.
        """
        if len(problems) != len(texts):
            raise ValueError(f"texts: expected {len(problems)}, one for each problem, got {len(texts)}")
        found: list[Rating] = [Rating(score=0, feedback=NO_ATTEMPT)] * len(texts)
        prompts = {i: self._prompt(problems[i], texts[i]) for i in range(len(texts)) if clean(texts[i])}
        context = context_length(self.model)
        for i in [i for i, prompt in prompts.items() if context is not None and len(prompt) >= context]:
            found[i] = Rating(score=None, failed=f"prompt: expected fewer than {context} tokens, got {len(prompts.pop(i))}")
        left, total = sorted(prompts, key=lambda i: len(prompts[i])), len(prompts)
        for temperature, top_p in _ASKS:
            for start in range(0, len(left), _TOGETHER):
                part = left[start : start + _TOGETHER]
                for i, text in zip(part, self._written([prompts[i] for i in part], temperature, top_p), strict=True):
                    read = written_rating(text)
                    found[i] = Rating(score=None, failed=f'expected "Score:" and a whole number 0 to 4, got {text[:60]!r}')
                    if read is not None:
                        found[i] = Rating(score=read[0], feedback=read[1])
                if progress is not None:
                    progress(total - len(left) + start + len(part), total)
            left = [i for i in left if found[i].score is None]
        return found

    def save(self, folder: Path) -> None:
        """Write model and tokenizer, for ``hf:FOLDER`` of `preceptor.models.language.load_language` or any other program."""
        card = {"method": "math-feedback", "task": "scores 0 to 4 and feedback for open answers in mathematics"}
        save_student(self.model, folder, card, tokenizer=self.tokenizer)

    def _prompt(self, problem: str, answer: str) -> list[int]:
        text = f"{rating_prompt(problem, answer, rubric=self.rubric, max_words=self.max_words)}\n{_FORM}"
        if getattr(self.tokenizer, "chat_template", None):
            asked = [{"role": "user", "content": text}]
            return list(self.tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=True, return_dict=False))
        return list(self.tokenizer.encode(f"{text}\n"))

    def _rating(self, score: int, feedback: str) -> list[int]:
        text = f"Score: {score}\nFeedback: {feedback.strip()}" if feedback.strip() else f"Score: {score}"
        return [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]

    def _examples(self, rows: Sequence[tuple[list[int], list[int]]]) -> Texts:
        """Rows padded on the right; only the tokens of ratings count."""
        context, longest = context_length(self.model), max(len(prompt) + len(rating) for prompt, rating in rows)
        if context is not None and longest > context:
            raise ValueError(f"answers: expected at most {context} tokens with prompt and rating, got {longest}")
        tokens = torch.full((len(rows), longest), self.tokenizer.eos_token_id)
        counts = torch.zeros(len(rows), longest, dtype=torch.bool)
        for row, count, (prompt, rating) in zip(tokens, counts, rows, strict=True):
            row[: len(prompt) + len(rating)] = torch.tensor([*prompt, *rating])
            count[len(prompt) : len(prompt) + len(rating)] = True
        places = torch.arange(longest - 1).expand(len(rows), -1)
        return Texts(tokens[:, :-1], places, tokens[:, 1:], counts[:, 1:], vocabulary=len(self.tokenizer), tokenizer=self.tokenizer)

    def _written(self, prompts: Sequence[list[int]], temperature: float, top_p: float) -> list[str]:
        """What the model writes after each of some prompts."""
        width, end = max(map(len, prompts)), self.tokenizer.eos_token_id
        device = next(self.model.parameters()).device
        context = context_length(self.model)
        most = 8 * self.max_words if context is None else min(8 * self.max_words, context - width)
        sampler = GenerateSampler(stop=(end,))
        sampler.sync(self.model)
        said = sampler.sample(
            {
                "input_ids": torch.tensor([[end] * (width - len(row)) + row for row in prompts], device=device),
                "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device),
            },
            max_new_tokens=most,
            temperature=temperature,
            top_p=top_p,
            seed=self.seed,
        )
        written = zip(said.ids.tolist(), said.mask.tolist(), strict=True)
        kept = [[token for token, counts in zip(ids, mask, strict=True) if counts] for ids, mask in written]
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in kept]


def _trimmed(batch: Batch) -> Batch:
    """A batch without the columns that are padding in all of its rows."""
    width = int(batch["mask"].any(0).nonzero().max()) + 1

    def cut(values: Tensor) -> Tensor:
        return values[:, :width]

    return {**batch, "x": {name: cut(values) for name, values in batch["x"].items()}, "y": cut(batch["y"]), "mask": cut(batch["mask"])}


def _factor(step: int, rising: int, steps: int) -> float:
    """Of the learning rate: a linear rise, then half a cosine."""
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
