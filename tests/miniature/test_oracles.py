"""A world with a known truth."""

from __future__ import annotations

import math

import torch

from preceptor.losses.token_stats import entropy
from preceptor.metrics.hacking import sequence_kl
from preceptor.miniature.oracles import ASKED, SYMBOLS, WRITTEN, oracle_world
from preceptor.models.taps import forward


def test_the_parts_share_no_prompt_and_the_seed_decides():
    world, again, other = oracle_world(0, "smoke"), oracle_world(0, "smoke"), oracle_world(1, "smoke")
    held = {tuple(row) for row in world.held_out["prompt"]["input_ids"].tolist()}
    free = {tuple(row) for row in world.prompts.tolist()}
    assert len(held) == len(world.held_out["id"])
    assert not held & free
    assert len(held) * 2 + len(free) == SYMBOLS**ASKED
    assert torch.equal(world.held_out_teacher["prompt"]["input_ids"], world.held_out["prompt"]["input_ids"])
    for name in ("teacher", "student", "untrained", "oracle"):
        first, second, third = (list(getattr(w, name).parameters()) for w in (world, again, other))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), name
        assert not all(torch.equal(a, b) for a, b in zip(first, third, strict=True)), name
    assert torch.equal(world.held_out["y"], again.held_out["y"])
    assert world.held_out["mask"].sum(1).tolist() == [WRITTEN] * len(held)


def test_the_oracle_sees_three_symbols_and_is_unsure():
    oracle = oracle_world(0, "smoke").oracle
    ids = torch.randint(SYMBOLS, (500, 6), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[:, :3] = (changed[:, :3] + 1) % SYMBOLS
    log_p = forward(oracle, {"input_ids": ids}).logits[:, -1].log_softmax(-1)
    assert torch.equal(log_p, forward(oracle, {"input_ids": changed}).logits[:, -1].log_softmax(-1))
    changed[:, 3] = (changed[:, 3] + 1) % SYMBOLS
    assert not torch.equal(log_p, forward(oracle, {"input_ids": changed}).logits[:, -1].log_softmax(-1))
    assert 0.5 < float(entropy(log_p).mean()) < math.log(SYMBOLS) - 0.5


def test_the_teacher_has_learnt_from_the_oracle():
    world = oracle_world(0, "smoke")
    assert sequence_kl(world.oracle, world.teacher, world.held_out).mean < sequence_kl(world.oracle, world.untrained, world.held_out).mean
