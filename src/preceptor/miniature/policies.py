"""Toy policies: a table with a row of logits for each state, and known moves from state to state; exact where language models are not.

A text begins with the number of its first state, which is the prompt, and goes on with tokens; each token moves to the next state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.core.types import Batch
from preceptor.data.rollout import Completions, Prompt, draw


class TablePolicy(nn.Module):
    """A language model over S states and V tokens, called like those of transformers.

    Args:
        logits: (S, V), where the table starts; -inf for tokens that a state does not allow.
        moves: (S, V), int64: the state after each token.
    """

    moves: Tensor

    def __init__(self, logits: Tensor, moves: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(logits.clone())
        self.register_buffer("moves", moves)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, use_cache: bool = False
    ) -> Tensor:
        """Logits (N, T, V) of texts (N, T); the other keywords of a language model are accepted and do nothing."""
        states = [input_ids[:, 0]]
        for tokens in input_ids[:, 1:].unbind(1):
            states.append(self.moves[states[-1], tokens])
        return self.table[torch.stack(states, dim=1)]


@dataclass(kw_only=True)
class TableSampler:
    """Samples a `TablePolicy`; see `preceptor.data.rollout.Sampler`."""

    stop: tuple[int, ...] = ()  # tokens that end a text
    student: TablePolicy | None = field(default=None, repr=False, compare=False)

    def sync(self, student: nn.Module) -> None:
        """Sample from this policy from now on."""
        assert isinstance(student, TablePolicy)
        self.student = student

    @torch.no_grad()
    def sample(self, prompt: Prompt, *, max_new_tokens: int, temperature: float = 1.0, top_p: float = 1.0, seed: int) -> Completions:
        """Draw one completion for each prompt, one token long: the number of a state."""
        assert self.student is not None
        generator = torch.Generator().manual_seed(seed)
        states = prompt["input_ids"][:, 0]
        ids, found, written = [], [], [torch.ones_like(states, dtype=torch.bool)]
        for _ in range(max_new_tokens):
            tokens, log_probs = draw(self.student.table[states], temperature=temperature, top_p=top_p, generator=generator)
            states = self.student.moves[states, tokens]
            ids.append(tokens)
            found.append(log_probs)
            written.append(written[-1] & ~torch.isin(tokens, torch.tensor(self.stop, dtype=tokens.dtype)))
            if not written[-1].any():
                break
        return Completions(
            ids=torch.stack(ids, 1), mask=torch.stack(written[:-1], 1), log_probs=torch.stack(found, 1), finished=~written[-1]
        )


def prompts(states: Tensor) -> Batch:
    """A batch of texts to complete, beginning in these states (N,); ``id`` is their place."""
    ids = states.unsqueeze(1)
    return {"prompt": {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, "id": torch.arange(len(states))}


def fit_policy(
    method: Method, roles: dict[str, nn.Module], batches: Sequence[Batch], *, steps: int, learning_rate: float, seed: int
) -> None:
    """Train ``roles["student"]`` in place by plain gradient descent, on the batches in turn; torch's global random state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        everyone = {**method.extra_roles(roles, batches[0]), **roles}
        train(method, everyone, batches, torch.optim.SGD(roles["student"].parameters(), lr=learning_rate), steps=steps, seed=seed)
