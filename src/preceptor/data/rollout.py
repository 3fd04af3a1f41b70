"""Rollouts: texts that the student writes while it is trained, drawn anew from a seed, and the batches made of them.

A `Sampler` draws completions for prompts and takes over the student's weights by ``sync``. What can only ``sample``, such as a plain
server, serves teacher data alone: its model never learns, so what it writes is not the student's.

A prompt is a mapping with ``input_ids`` (N, P), padded on the left, and ``attention_mask`` (N, P), 1 at its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import evaluating
from preceptor.core.optional import require
from preceptor.core.reduce import num_examples, rank
from preceptor.core.state import State
from preceptor.core.types import Batch
from preceptor.losses.checks import check_counts, check_positive
from preceptor.losses.divergence import log_probs
from preceptor.losses.numeric import upcast
from preceptor.losses.token_stats import entropy
from preceptor.models.heads import unwrapped
from preceptor.models.taps import forward

Prompt = Mapping[str, Tensor]
"""``input_ids`` (N, P), padded on the left, and ``attention_mask`` (N, P)."""


@dataclass(frozen=True, kw_only=True)
class Completions:
    """What was written after N prompts, padded on the right to C tokens."""

    ids: Tensor  # (N, C), int64
    mask: Tensor  # (N, C), bool: the tokens written, a stop token included
    log_probs: Tensor  # (N, C), in nats: of each token under the distribution it was drawn from; undefined where masked
    finished: Tensor  # (N,), bool: ended by a stop token, not by the limit of tokens
    entropies: Tensor | None = None  # (N, C), in nats: of the model's prediction before temperature and top-p; None: not known


@runtime_checkable
class Completer(Protocol):
    """Writes completions."""

    def sample(self, prompt: Prompt, *, max_new_tokens: int, temperature: float, top_p: float, seed: int) -> Completions:
        """Draw one completion for each row of a prompt; the same arguments and weights give the same completions."""
        ...


@runtime_checkable
class Sampler(Completer, Protocol):
    """Writes completions as the student would."""

    def sync(self, student: nn.Module) -> None:
        """Take over the student's present weights."""
        ...


Reward = Callable[[Batch, Completions], Tensor]
"""Scores completions: from the batch of the data set, its rows repeated as often as they were answered, and N completions to N numbers."""


@dataclass(kw_only=True)
class GenerateSampler:
    """Samples in this process by ``generate`` of transformers, with its cache of keys and values.

    Draws come from a generator of the seed alone, torch's global random state is neither used nor moved. Settings of the model's
    ``generation_config`` that change its distribution (a repetition penalty, top-k) are left out; its stop and padding tokens are used.
    """

    stop: tuple[int, ...] | None = None  # token ids that end a completion; None: those of the model
    student: nn.Module | None = field(default=None, repr=False, compare=False)  # what is sampled; it is shared, not copied

    def sync(self, student: nn.Module) -> None:
        """Sample from this model from now on; it is the student itself, so that its weights are always the present ones."""
        self.student = student

    def sample(self, prompt: Prompt, *, max_new_tokens: int, temperature: float = 1.0, top_p: float = 1.0, seed: int) -> Completions:
        """Draw one completion for each row.

        Args:
            prompt: padded on the left, at least one token in each row.
            max_new_tokens: C at most, at least 1.
            temperature: > 0, no unit; logits are divided by it.
            top_p: in (0, 1]: only the fewest most likely tokens with at least this probability together are drawn.
            seed: of the draws.
        Raises:
            ImportError: transformers is missing (one line says what to install).
            ValueError: a prompt that is empty or padded on the right, a limit that does not fit the model's context, or a bad setting.
        """
        if self.student is None:
            raise ValueError("sampler: expected sync(student) before sample, got no student")
        check_prompt(prompt)
        transformers = require("transformers", extra="llm", purpose="rollouts")
        model = unwrapped(self.student)
        if not isinstance(model, transformers.PreTrainedModel) or not model.can_generate():
            raise ValueError(f"sampler: GenerateSampler needs a causal language model of transformers, got {type(model).__name__}")
        ids, attention = prompt["input_ids"], prompt["attention_mask"]
        context = getattr(model.config, "max_position_embeddings", None)
        if max_new_tokens < 1 or (context is not None and ids.shape[1] + max_new_tokens > context):
            room = "" if context is None else f" and at most {context - ids.shape[1]} ({context} of context, {ids.shape[1]} of prompt)"
            raise ValueError(f"max_new_tokens: expected at least 1{room}, got {max_new_tokens}")
        configured = model.generation_config
        stop = self._stop(configured.eos_token_id)
        pad = configured.pad_token_id if configured.pad_token_id is not None else (*stop, 0)[0]
        draw = _Draw(temperature, top_p, torch.Generator(device=ids.device).manual_seed(seed))
        model.generation_config = transformers.GenerationConfig(  # generate() fills what it is not told from here
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stop) or None, pad_token_id=pad, use_cache=True
        )
        try:
            with evaluating(self.student), torch.no_grad():
                texts: Any = cast(Any, model).generate(ids, attention_mask=attention, logits_processor=[draw])
        finally:
            model.generation_config = configured
        written = texts[:, ids.shape[1] :]
        is_stop = torch.isin(written, torch.tensor(stop, dtype=written.dtype, device=written.device))
        return Completions(
            ids=written,
            mask=(is_stop.cumsum(1) - is_stop.long()) == 0,
            log_probs=torch.stack(draw.log_probs[: written.shape[1]], dim=1),
            finished=is_stop.any(1),
            entropies=torch.stack(draw.entropies[: written.shape[1]], dim=1),
        )

    def _stop(self, configured: int | list[int] | None) -> tuple[int, ...]:
        if self.stop is not None:
            return self.stop
        return () if configured is None else (configured,) if isinstance(configured, int) else tuple(configured)


class _Draw:
    """Chooses each token for a greedy ``generate``: all others get a score of -inf."""

    def __init__(self, temperature: float, top_p: float, generator: torch.Generator) -> None:
        self.temperature, self.top_p, self.generator = temperature, top_p, generator
        self.log_probs: list[Tensor] = []
        self.entropies: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens, found = draw(scores, temperature=self.temperature, top_p=self.top_p, generator=self.generator)
        self.log_probs.append(found)
        self.entropies.append(entropy(log_probs(scores)))
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens.unsqueeze(-1), 0.0)


def draw(logits: Tensor, *, temperature: float = 1.0, top_p: float = 1.0, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one token for each row.

    Args:
        logits: (N, V).
        temperature: > 0, no unit; logits are divided by it.
        top_p: in (0, 1]: only the fewest most likely tokens with at least this probability together are drawn.
        generator: on the device of the logits.
    Returns:
        Tokens (N,), and their log-probabilities (N,) under the distribution they were drawn from, in nats.
    Raises:
        ValueError: a setting outside its range.
    """
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected a number in (0, 1], got {top_p}")
    check_positive(temperature=temperature)
    log_p = F.log_softmax(upcast(logits) / temperature, dim=-1)
    if top_p < 1:
        sorted_log_p, order = log_p.sort(dim=-1, descending=True)
        before = sorted_log_p.exp().cumsum(-1) - sorted_log_p.exp()
        dropped = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, order, before >= top_p)
        log_p = F.log_softmax(log_p.masked_fill(dropped, -torch.inf), dim=-1)
    tokens = torch.multinomial(log_p.exp(), 1, generator=generator)
    return tokens.squeeze(-1), log_p.gather(-1, tokens).squeeze(-1)


def check_prompt(prompt: Prompt) -> None:
    """Refuse prompts that are empty or not padded on the left.

    Raises:
        ValueError: naming the first such row.
    """
    attention = prompt["attention_mask"].bool()
    if attention.shape != prompt["input_ids"].shape or attention.ndim != 2:
        raise ValueError(
            f"prompt: expected input_ids and attention_mask of one shape (N, P), got {tuple(prompt['input_ids'].shape)} and"
            f" {tuple(attention.shape)}"
        )
    wrong = (attention.long().diff(dim=1) < 0).any(1) | ~attention.any(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"prompt: expected at least one token in each row and padding on the left only, got row {row} {_bits(attention[row])}"
        )


def _bits(row: Tensor) -> str:
    text = "".join(str(int(bit)) for bit in row)
    return text if len(text) <= 24 else f"{text[:8]}...{text[-8:]}"


def check_prompted(batch: Batch) -> None:
    """Refuse a batch that holds nothing to answer.

    Raises:
        ValueError: it has no ``prompt``.
    """
    if "prompt" not in batch:
        raise ValueError("prompt: expected the beginnings of texts that are gone on from (text.prompt in a recipe), got a batch without")


def check_on_policy(sampler: Completer) -> Sampler:
    """Return the sampler, refused where it cannot follow the student.

    Raises:
        ValueError: it has no ``sync``.
    """
    if not isinstance(sampler, Sampler):
        raise ValueError(
            f"sampler: expected one with sync(student) for on-policy training, got {type(sampler).__name__}, whose model never learns;"
            " it can serve teacher data"
        )
    return sampler


def language_batch(prompt: Prompt, completions: Completions) -> Batch:
    """The batch on which the completions are scored and trained: prompts and completions joined, inputs and targets shifted.

    Args:
        prompt: (N, P).
        completions: (N, C).
    Returns:
        ``x`` with ``input_ids``, ``attention_mask`` and ``position_ids`` (N, P + C - 1), counted from the first token of the prompt;
        ``y``, the token after each; ``mask`` (bool), the tokens written; ``sampling_log_probs``, 0 outside the mask; where the sampler
        tells them also ``sampling_entropies``, 0 outside the mask.
    """
    prompt_mask = prompt["attention_mask"].bool()
    tokens = torch.cat([prompt["input_ids"], completions.ids], dim=1)
    attention = torch.cat([prompt_mask, completions.mask], dim=1).long()
    x = {
        "input_ids": tokens[:, :-1],
        "attention_mask": attention[:, :-1],
        "position_ids": (attention.cumsum(1) - 1).clamp(min=0)[:, :-1],
        "use_cache": False,
    }
    told = {"sampling_log_probs": completions.log_probs, "sampling_entropies": completions.entropies}
    nothing = torch.zeros(prompt_mask.shape, device=tokens.device)
    return {
        "x": x,
        "y": tokens[:, 1:],
        "mask": torch.cat([torch.zeros_like(prompt_mask), completions.mask], dim=1)[:, 1:],
        **{
            key: torch.cat([nothing.to(values.dtype), values.masked_fill(~completions.mask, 0.0)], dim=1)[:, 1:]
            for key, values in told.items()
            if values is not None
        },
    }


def roll_out(
    batch: Batch,
    writer: nn.Module | None,
    state: State,
    *,
    sampler: Completer | None = None,
    answers: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> tuple[Batch, Batch, Completions]:
    """Let a model answer the prompts of a batch: what ``prepare`` of an on-policy method does with the student.

    Draws one number from ``state.rng``; each process adds its rank, so that processes draw different texts. Mean length and the share of
    completions that ended by a stop token go to ``state.log`` as ``completion_tokens`` and ``finished``.

    Args:
        batch: of the data set, with ``prompt``; not edited.
        writer: whose answers are drawn; None: those of the sampler's own model, which is teacher data.
        state: of the run.
        sampler: how; None: `GenerateSampler`. With a writer it needs ``sync``.
        answers: G, completions of each prompt; they stand next to each other.
        max_new_tokens, temperature, top_p: see `GenerateSampler.sample`.
    Returns:
        The batch of `language_batch` with ``id``, N * G rows; the given batch with each row G times; the completions.
    Raises:
        ValueError: no prompt in the batch, answers < 1, or a sampler without ``sync``.
    """
    check_prompted(batch)
    check_counts(answers=answers)
    sampler = GenerateSampler() if sampler is None else sampler
    if writer is not None:
        check_on_policy(sampler).sync(writer)
    seed = int(torch.randint(2**62, (), generator=state.rng)) + rank()
    repeated = _repeat(batch, num_examples(batch), answers)
    completions = sampler.sample(repeated["prompt"], max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    state.log["completion_tokens"] = float(completions.mask.sum(1).double().mean())
    state.log["finished"] = float(completions.finished.double().mean())
    known = {"id": repeated["id"]} if "id" in repeated else {}
    return {**language_batch(repeated["prompt"], completions), **known}, repeated, completions


def _repeat(value: Any, total: int, times: int) -> Any:
    """Each row ``times`` times, in every tensor and list that has ``total``."""
    if isinstance(value, Mapping):
        return {key: _repeat(entry, total, times) for key, entry in value.items()}
    if isinstance(value, Tensor) and value.ndim and len(value) == total:
        return value.repeat_interleave(times, dim=0)
    if isinstance(value, list) and len(value) == total:
        return [entry for entry in value for _ in range(times)]
    return value


@torch.no_grad()
def score_rows(model: nn.Module, batch: Batch, score: Callable[[Tensor, Tensor], tuple[Tensor, ...]], *, rows: int) -> tuple[Tensor, ...]:
    """Apply a function to the logits of a batch, some rows at a time, so that never all of them are held.

    Args:
        model: in eval mode for the moment.
        batch: with ``x`` and ``y``, N rows.
        score: from logits (n, T, V) and ``y`` (n, T) to tensors (n, ...).
        rows: n, at least 1.
    Returns:
        What the function returned, joined to N rows.
    """
    found = []
    with evaluating(model):
        for start in range(0, len(batch["y"]), rows):
            x = {key: value[start : start + rows] if isinstance(value, Tensor) else value for key, value in batch["x"].items()}
            found.append(score(forward(model, x).logits, batch["y"][start : start + rows]))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def answer_matches(batch: Batch, completions: Completions) -> Tensor:
    """Whether each completion is the answer of the data set: the targets that count in ``y``, with or without the final stop token.

    Args:
        batch: with ``y`` and ``mask`` (N, T).
        completions: N of them.
    Returns:
        (N,), bool.
    """
    found = []
    for y, counts, ids, written, finished in zip(
        batch["y"], batch["mask"].bool(), completions.ids, completions.mask, completions.finished.tolist(), strict=True
    ):
        answer, text = y[counts].tolist(), ids[written].tolist()
        found.append(text == answer or (finished and text[:-1] == answer))
    return torch.tensor(found, device=completions.ids.device)
