"""Dynamic curriculum: in each round train on the samples about which the present model is most uncertain.

Paper: EDCO: Dynamic Curriculum Orchestration for Domain-specific Large Language Model Fine-tuning, 2026 (arXiv:2601.03725).
Claim: choosing anew in each round by the entropy of the first tokens of a quick answer teaches a domain better than random order and than
orders fixed once, and keeps entropy from collapsing; a prefix ranks samples as the whole answer does.
Equation: for each sample of the pool one answer of T <= L tokens is drawn; with p the K likeliest candidates at token t, brought to sum 1,
    H_t = -sum_k p_k log2 p_k,   score = mean of the largest max(1, int(T / 5)) of H_1, ..., H_T,
and the round trains by cross-entropy on the samples with the largest scores. The pool is not used up: samples may return.

The source is the pool: at the start of each round ``prepare`` reads it by ``scan``, and batches come from the chosen samples, which live in
the memory of the run, as many in a batch as the source gives. Scoring draws nothing from the random state of training.

Deviations: the trainer is fine-tuning on the answers of the pool; the paper also uses GRPO. The paper speaks of the mean over the prefix,
its code takes the top fifth: `prefix_score` has both. Entropy is exact where all candidates are known (``candidates`` = 0); the released
code adds 1e-12 inside the logarithm. The released code drops samples at the end of the pool that do not fill all devices; here none is.
``mix_random`` is our own.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from preceptor.core.method import Compute, Method, clip_and_step, evaluating
from preceptor.core.reduce import gathered, num_examples, rank
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.stream import Stream
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.data.curricula import MIX, choose, pool_rows, pool_scores, ranked, shuffled
from preceptor.data.hashing import generator
from preceptor.data.rollout import GenerateSampler, Prompt, Sampler, check_on_policy, check_prompted, language_batch
from preceptor.data.rows import keep_rows, kept_rows, take
from preceptor.losses.checks import check_choice, check_counts, check_positive, check_unit_interval
from preceptor.losses.linear import linear_cross_entropy, linear_log_probs
from preceptor.losses.token_stats import Aggregate, candidate_entropy, linear_stats, prefix_score
from preceptor.miniature.arithmetic import ANSWER, Arithmetic, arithmetic
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.toys import Rows
from preceptor.models.heads import head, hidden_states

CARD = Card(
    slug="edco",
    title="Dynamic curriculum by prefix entropy",
    authors="EDCO 2026",
    arxiv="2601.03725",
    kind="curriculum",
    tasks=("language",),
    needs=("labels", "generation"),
    equation="each round trains on the samples with the largest mean of the top fifth of H_t = -sum_k p_k log2 p_k over a drawn prefix",
    cost="a short answer to every sample of the pool in each round; a step is the student's own",
    headline="entropy of a prefix is 83.5 % cheaper than of whole answers; better than four fixed orders in three domains, without numbers",
)

Curriculum = Literal["entropy", "entropy_once", "perplexity", "length", "answer_length", "random"]
"""What samples are ranked by. "entropy" is scored anew in each round, of which the first samples are taken; all others are sorted once,
and each round takes the next ones: the orders that the paper compares with."""
_PROMPTED = ("entropy", "entropy_once", "length")


@dataclass(frozen=True, kw_only=True)
class EDCO(Method):
    """Fine-tuning in rounds on what the model is most uncertain about. The source is the pool; its batches bring ``prompt``."""

    num_selected: int = 200  # N, samples in a round; released code
    refresh_every: int = 100  # updates in a round; released code
    curriculum: Curriculum = "entropy"  # the paper's; the others are what it compares with
    hardest_first: bool = True  # the largest scores first, the paper's order
    max_new_tokens: int = 128  # L, tokens of the scored prefix; released code
    sampling_temperature: float = 0.7  # > 0, of the scored answer; released code
    top_p: float = 0.7  # in (0, 1], of the scored answer; released code
    candidates: int = 20  # K, 0: all tokens; released code
    aggregate: Aggregate = "top_fraction"  # released code; the paper's text has the mean
    top_fraction: float = 0.2  # in (0, 1]; released code
    skip_top: float = 0.0  # share of the pool left out as outliers; present in the released code and 0 there
    mix_random: float = 0.0  # share of a round drawn at random; our own
    instruction: tuple[int, ...] = ()  # tokens before a prompt that is scored, the paper asks for at most three sentences; none by default
    fresh_optimizer: bool = True  # forget the optimizer's state at each round; released code
    sampler: Sampler | None = None  # how the student answers; None: generate of transformers

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_choice(Curriculum, curriculum=self.curriculum)
        check_counts(num_selected=self.num_selected, refresh_every=self.refresh_every)
        if self.candidates < 0 or self.candidates == 1:
            raise ValueError(f"candidates: expected 0 for all or at least 2, got {self.candidates}")
        check_positive(sampling_temperature=self.sampling_temperature)
        check_unit_interval(skip_top=self.skip_top, mix_random=self.mix_random)
        prefix_score(torch.zeros(1, 1), torch.ones(1, 1), aggregate=self.aggregate, fraction=self.top_fraction)
        if self.sampler is not None:
            check_on_policy(self.sampler)

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """None; refuses, before the first step, a batch without prompts where the curriculum needs them."""
        if self.curriculum in _PROMPTED:
            check_prompted(batch)
        return {}

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """At the start of a round choose its samples; put the next of them in place of the batch."""
        if state.step % self.refresh_every == 0 and state.source is not None:
            self._new_round(batch, roles["student"], state, state.source)
        return self._next(batch, state)

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the cross-entropy of every token, (N, T)."""
        student = roles["student"]
        return {"hard": linear_cross_entropy(hidden_states(student, batch["x"]), head(student), batch["y"], mask=batch["mask"])}

    def update(self, compute: Compute, optimizer: Optimizer, batch: Batch, roles: Roles, state: State) -> None:
        """Begin a round with an optimizer that remembers nothing."""
        if self.fresh_optimizer and state.step % self.refresh_every == 0:
            optimizer.state.clear()
        compute()
        clip_and_step(optimizer, state)

    def score(self, batch: Batch, student: nn.Module, *, seed: int) -> Tensor:
        """Score the samples of a batch of the pool by the curriculum, (N,); NaN is unscored.

        Raises:
            ValueError: no ``prompt`` in the batch where the curriculum needs it.
        """
        if self.curriculum in _PROMPTED:
            check_prompted(batch)
        counts = (batch["mask"] != 0).sum(1)
        match self.curriculum:
            case "random":
                return torch.rand(len(counts), dtype=torch.double, generator=torch.Generator().manual_seed(seed)).to(counts.device)
            case "length":
                return batch["prompt"]["attention_mask"].sum(1).double()
            case "answer_length":
                return counts.double()
            case "perplexity":
                with evaluating(student), torch.no_grad():
                    log_probs = linear_log_probs(hidden_states(student, batch["x"]), head(student), batch["y"], mask=batch["mask"])
                return (-log_probs.double().sum(1) / counts).exp()
        return self._prefix_entropy(batch["prompt"], student, seed)

    def _prefix_entropy(self, prompt: Prompt, student: nn.Module, seed: int) -> Tensor:
        sampler = GenerateSampler() if self.sampler is None else self.sampler
        sampler.sync(student)
        ids, attention = prompt["input_ids"], prompt["attention_mask"]
        before = torch.tensor(self.instruction, dtype=ids.dtype, device=ids.device).expand(len(ids), -1)
        prompt = {"input_ids": torch.cat([before, ids], 1), "attention_mask": torch.cat([torch.ones_like(before), attention], 1)}
        written = sampler.sample(
            prompt, max_new_tokens=self.max_new_tokens, temperature=self.sampling_temperature, top_p=self.top_p, seed=seed
        )
        if self.candidates == 0 and written.entropies is not None:
            bits, mask = written.entropies / math.log(2), written.mask
        else:
            texts, layer = language_batch(prompt, written), head(student)
            with evaluating(student), torch.no_grad():
                states = hidden_states(student, texts["x"])
            found = linear_stats(states, layer, top=min(self.candidates, len(layer.weight)), mask=texts["mask"])
            bits, mask = found.entropy / math.log(2) if found.top is None else candidate_entropy(found.top), texts["mask"]
        return prefix_score(bits, mask, aggregate=self.aggregate, fraction=self.top_fraction).double()

    def _new_round(self, batch: Batch, student: nn.Module, state: State, pool: Stream) -> None:
        """Score the pool where the curriculum says so, and keep the samples of the round in the memory of the run."""
        number, memory = state.step // self.refresh_every, state.memory
        if self.curriculum == "entropy" or "edco/order" not in memory:
            scores = pool_scores(pool, partial(self.score, student=student), seed=state.seed, number=number, device=batch["y"].device)
            order = ranked(scores if self.hardest_first else -scores, skip_top=self.skip_top)
            if not len(order):
                raise ValueError(f"pool: expected at least one sample with a score, got none of {len(scores)}")
            memory["edco/order"], memory["edco/scores"] = order, scores
        order, scores = torch.as_tensor(memory["edco/order"]), torch.as_tensor(memory["edco/scores"])
        if self.curriculum != "entropy":
            order = order.roll(-number * self.num_selected)
        chosen = choose(order, self.num_selected, mix_random=self.mix_random, generator=generator(state.seed, number, MIX))
        wanted = torch.zeros(len(scores), dtype=torch.bool).index_fill_(0, chosen.cpu(), True)
        before = memory.get("edco/wanted", torch.zeros_like(wanted))
        state.log |= {
            "pool_score": float(scores.nanmean()),
            "chosen_score": float(scores[chosen].mean()),
            "new": float((wanted & ~torch.as_tensor(before)).sum() / wanted.sum()),
            "unscored": float(scores.isnan().sum()),
        }
        memory["edco/wanted"], memory["edco/used"] = wanted, 0
        keep_rows(memory, "edco/rows", pool_rows(pool, wanted))

    def _next(self, batch: Batch, state: State) -> Batch:
        """As many of the round's samples as the batch has: shuffled passes over them, shared out among processes."""
        if "edco/rows/y" not in state.memory:
            return batch
        rows = kept_rows(state.memory, "edco/rows", batch)
        sizes = gathered(torch.tensor([num_examples(batch)], device=batch["y"].device))
        used, number = int(state.memory["edco/used"]), state.step // self.refresh_every
        state.memory["edco/used"] = used + int(sizes.sum())
        start = used + int(sizes[: rank()].sum())
        return take(rows, shuffled(num_examples(rows), start, num_examples(batch), seed=state.seed, number=number))


def miniature(seed: int, size: Size) -> Miniature:
    """Sums and copies that the student knows, and a new skill that is 8 % of the pool: six rounds of 160 samples.

    Accuracies are those of greedy answers to prompts that the pool does not hold (the sums are all there are); ``overall`` weighs the tasks
    as the pool does. ``share_new`` is the new skill's part of the last round, ``pool_entropy`` the mean score of the pool at the end, in
    bits, ``rank_correlation`` that of prefix and whole answers then. "hard-first" and "easy-first" score once, before the first round.
    """
    world = arithmetic(seed, size)
    rounds, chosen, batch_size = (6, 160, 48) if size == "full" else (2, 8, 8)
    common: dict[str, Any] = {"num_selected": chosen, "refresh_every": 25 if size == "full" else 2, "max_new_tokens": 2}
    common |= {"candidates": 0, "aggregate": "mean"}
    methods = {
        "random": EDCO(curriculum="random", **common),
        "edco": EDCO(**common),
        "edco-half-random": EDCO(mix_random=0.5, **common),
        "hard-first": EDCO(curriculum="entropy_once", **common),
        "easy-first": EDCO(curriculum="entropy_once", hardest_first=False, **common),
    }
    judge = EDCO(**common)
    is_new = world.pool["task"] == 2
    arms = {"untrained-student": _measure(world, world.student, judge, float(is_new.double().mean()))}
    for name, method in methods.items():
        student = copy.deepcopy(world.student)
        source = Rows(world.pool, batch_size=batch_size, seed=seed, scan_size=500)
        optimizer = torch.optim.AdamW(student.parameters(), lr=5e-4)
        state = train(method, {"student": student}, source, optimizer, steps=rounds * method.refresh_every, seed=seed)
        arms[name] = _measure(world, student, judge, float(is_new[torch.as_tensor(state.memory["edco/wanted"])].double().mean()))
    claims = (
        Claim(name="the uncertain samples teach the new skill better than random ones", method="edco", baseline="random", metric="new"),
        Claim(name="scored anew in each round they teach it better than scored once", method="edco", baseline="hard-first", metric="new"),
        Claim(name="they teach all tasks together better than random ones", method="edco", baseline="random", metric="overall"),
        Claim(name="entropy of the pool stays higher than with random samples", method="edco", baseline="random", metric="pool_entropy"),
    )
    note = f"{rounds} rounds of {chosen} samples out of {len(is_new)}, batches of {batch_size}"
    return Miniature(arms=arms, claims=claims, notes=(note,))


def _measure(world: Arithmetic, student: nn.Module, judge: EDCO, share_new: float) -> dict[str, float]:
    part = take(world.pool, torch.arange(0, num_examples(world.pool), 4))
    prefix, whole = (replace(judge, max_new_tokens=n).score(part, student, seed=0) for n in (judge.max_new_tokens, ANSWER))
    places = torch.stack([values.argsort().argsort().double() for values in (prefix, whole)])
    return {
        **world.accuracies(student),
        "share_new": share_new,
        "pool_entropy": float(prefix.mean()),
        "rank_correlation": float(torch.corrcoef(places)[0, 1]),
    }
