"""A language model in this process: answers by ``generate`` of transformers, options scored exactly."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from torch import Tensor, nn

from preceptor.core.method import evaluating
from preceptor.core.optional import require
from preceptor.core.run import fingerprint
from preceptor.losses.numeric import upcast
from preceptor.models.heads import unwrapped
from preceptor.models.language import context_length, load_language, load_tokenizer
from preceptor.teachers.chat.types import Fault, Question, Said, Settings

_ROWS = 8  # scored together


class Local:
    """A model of transformers and its tokenizer.

    The most likely answers of several questions are written together; draws are made one by one, so that they depend on their seed alone.
    torch's global random state is not moved. A repetition penalty or top-k of the model's ``generation_config`` is left out.

    Args:
        model: a causal language model, where it is to run.
        tokenizer: with a chat template.
        name: what its answers are kept under, with a hash of weights and template behind it: trained on, it is another model.
        batch: questions answered together.
    Raises:
        ValueError: a tokenizer without a chat template, or an empty batch.
    """

    parallel = 1

    def __init__(self, model: nn.Module, tokenizer: Any, *, name: str = "local", batch: int = 8) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(f"tokenizer: expected one with a chat template, got a {type(tokenizer).__name__} without")
        if batch < 1:
            raise ValueError(f"batch: expected at least 1, got {batch}")
        self._network: Any = unwrapped(model)
        self._tokenizer, self.batch = tokenizer, batch
        whole = fingerprint(model) + str(tokenizer.chat_template)
        self.model = f"{name}@{hashlib.sha256(whole.encode()).hexdigest()[:12]}"
        self._lock = threading.Lock()  # of two chats with one model

    @classmethod
    def load(cls, spec: str, *, batch: int = 8) -> Local:
        """By the names of `preceptor.models.language.load_language`: ``smollm2``, ``gguf:FILE``, ``hf:PATH``.

        Raises:
            ValueError: it cannot be found or read.
            ImportError: transformers or gguf is missing.
        """
        return cls(load_language(spec), load_tokenizer(spec), name=spec, batch=batch)

    def answer(self, questions: Sequence[Question]) -> list[Said | Fault]:
        """Write, or score the options of, each question.

        Raises:
            Fault: settings of an endpoint.
        """
        if any(question.settings.extra for question in questions):
            raise Fault(f"extra: expected no parameters of an endpoint with a local model, got {questions[0].settings.extra}", ends="run")
        found: list[Said | Fault | None] = [None] * len(questions)
        together: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        prompts: list[list[int]] = []
        for i, question in enumerate(questions):
            try:
                prompts.append(self._prompt(question))
            except TemplateError as error:  # such as a template that knows no system message
                prompts.append([])
                found[i] = Fault(f"messages: expected some that the chat template can lay out, got {error}", ends="question")
        context = context_length(self._network)
        with self._lock, evaluating(self._network), torch.no_grad():
            for i, (question, prompt) in enumerate(zip(questions, prompts, strict=True)):
                room = question.settings.max_tokens if context is None else context - len(prompt)
                if found[i] is not None:
                    continue
                if room < 1:
                    found[i] = Fault(f"prompt: expected fewer than the {context} tokens of the context, got {len(prompt)}", ends="question")
                elif question.options:
                    found[i] = self._score(prompt, question.options)
                elif question.settings.temperature > 0:
                    (found[i],) = self._write([prompt], question.settings, min(room, question.settings.max_tokens))
                else:
                    together.setdefault((min(room, question.settings.max_tokens), question.settings.stop), []).append(i)
            for (room, _), indices in together.items():
                written = self._write([prompts[i] for i in indices], questions[indices[0]].settings, room)
                for i, said in zip(indices, written, strict=True):
                    found[i] = said
        return cast(list[Said | Fault], found)

    def _prompt(self, question: Question) -> list[int]:
        return list(
            self._tokenizer.apply_chat_template(list(question.messages), add_generation_prompt=True, tokenize=True, return_dict=False)
        )

    def _write(self, prompts: list[list[int]], settings: Settings, room: int) -> list[Said]:
        """Answers of at most ``room`` tokens."""
        transformers = require("transformers", extra="llm", purpose="a local model")
        ids, attention = self._padded(prompts)
        end = self._ends()
        drawn = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
        config = transformers.GenerationConfig(
            max_new_tokens=room,
            eos_token_id=end or None,
            pad_token_id=(*end, 0)[0],
            repetition_penalty=1.0,
            **(drawn if settings.temperature > 0 else {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}),
        )
        devices = [ids.device] if ids.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(settings.seed or 0)
            written = self._network.generate(
                ids, attention_mask=attention, generation_config=config, stopping_criteria=self._criteria(ids.shape[1], settings.stop)
            )
        return [
            self._said(len(prompt), row, settings, end) for prompt, row in zip(prompts, written[:, ids.shape[1] :].tolist(), strict=True)
        ]

    def _criteria(self, read: int, stops: Sequence[str]) -> list[Any]:
        """What ends a row besides its tokens; transformers' own rule for this fails on some tokenizers."""
        window = 4 * max(map(len, stops), default=0) + 4  # tokens; a token may be a byte

        def ended(ids: Tensor, scores: Tensor) -> Tensor:
            texts = self._tokenizer.batch_decode(ids[:, read:][:, -window:], skip_special_tokens=True)
            return torch.tensor([any(stop in text for stop in stops) for text in texts], device=ids.device)

        return [ended] if stops else []

    def _said(self, read: int, row: list[int], settings: Settings, end: list[int]) -> Said:
        stops = [place for place, token in enumerate(row) if token in end]
        tokens = row[: stops[0]] if stops else row
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        cuts = [place for place in (text.find(stop) for stop in settings.stop) if place >= 0]
        finish = "stop" if stops or cuts else "length"
        return Said(
            text=text[: min(cuts)] if cuts else text, finish=finish, prompt_tokens=read, completion_tokens=len(tokens) + bool(stops)
        )

    def _score(self, prompt: list[int], options: Sequence[str]) -> Said:
        """The log-probability of each option after the prompt: the sum over its tokens.

        Where one is the beginning of another, the token that ends an answer counts with all of them.
        """
        coded = [list(self._tokenizer.encode(option, add_special_tokens=False)) for option in options]
        if any(a != b and b[: len(a)] == a for a in coded for b in coded):
            coded = [[*tokens, self._ends()[0]] for tokens in coded]
        rows = list(dict.fromkeys(tuple(tokens[:-1]) for tokens in coded))  # options of one token share a row
        kept = max(map(len, coded))
        log_p: dict[tuple[int, ...], Tensor] = {}
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            ids, attention = self._padded([[*prompt, *row] for row in part])
            places = (attention.cumsum(1) - 1).clamp(min=0)
            said = self._network(input_ids=ids, attention_mask=attention, position_ids=places, use_cache=False, logits_to_keep=kept)
            log_p |= dict(zip(part, F.log_softmax(upcast(said.logits), dim=-1), strict=True))
        sums = [sum(float(log_p[(*tokens[:-1],)][at - len(tokens), token]) for at, token in enumerate(tokens)) for tokens in coded]
        return Said(prompt_tokens=len(prompt), log_probs=tuple(sums))

    def _ends(self) -> list[int]:
        """Tokens that end an answer."""
        configured = self._network.generation_config.eos_token_id
        configured = self._tokenizer.eos_token_id if configured is None else configured
        return [] if configured is None else [configured] if isinstance(configured, int) else list(configured)

    def _padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask (N, P), padded on the left."""
        width, pad = max(map(len, rows)), (*self._ends(), 0)[0]
        device = next(self._network.parameters()).device
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
        attention = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        return ids, attention
