"""Texts that are thought about: the middle of five digits."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
import torch

from preceptor.data.rollout import Completions
from preceptor.methods.ce import CrossEntropy
from preceptor.miniature.arithmetic import CHARACTERS
from preceptor.miniature.thinking import LENGTH, answered_right, demonstration, measured, practised, thinking


def numbers(text):
    return [CHARACTERS.index(character) for character in text]


def completions(*texts):
    ids = torch.tensor([numbers(text.ljust(LENGTH, "_")) for text in texts])
    finished = torch.tensor([text.endswith(".") for text in texts])
    return Completions(ids=ids, mask=ids > 0, log_probs=torch.zeros(ids.shape), finished=finished)


def test_demonstrations_think_dither_and_answer():
    draw = random.Random(0)
    texts = [demonstration("30718", draw) for _ in range(4000)]
    parts = [re.fullmatch(r"([+c-]{0,3})8([+c-]{0,3})0([+c-]{0,3})=3\.", text) for text in texts]
    assert all(parts)
    assert max(map(len, texts)) == LENGTH
    lengths = torch.tensor([[len(group) for group in part.groups()] for part in parts]).flatten()
    for length, expected in ((0, 0.7), (1, 0.3 * 0.4), (2, 0.3 * 0.6 * 0.4), (3, 0.3 * 0.6 * 0.6)):
        assert (lengths == length).double().mean().item() == pytest.approx(expected, abs=5 * (expected / len(lengths)) ** 0.5)


@pytest.fixture(scope="module")
def world():
    return thinking(3, "smoke", steps=5)


def test_the_world_has_answers_that_are_right_and_prompts_apart(world):
    prompts = {}
    for name, batch in (("pool", world.pool), ("test", world.test)):
        texts = ["".join(CHARACTERS[i] for i in row) for row in batch["prompt"]["input_ids"].tolist()]
        for text, answer in zip(texts, batch["answer"].tolist(), strict=True):
            assert CHARACTERS[answer] == sorted(text[:5])[2]
            assert text[5:] == "="
        assert batch["prompt"]["attention_mask"].all()
        prompts[name] = set(texts)
    assert (len(prompts["pool"]), len(prompts["test"])) == (40, 20)
    assert not prompts["pool"] & prompts["test"]
    again = thinking(3, "smoke", steps=5)
    assert all(torch.equal(a, b) for a, b in zip(world.student.parameters(), again.student.parameters(), strict=True))


def test_what_is_right():
    texts = ["80=3.", "c8+0--=3.", "=3.", "80=4.", "803.", "80=33.", "80=3", "3.", "."]
    batch = {"answer": torch.full((len(texts),), CHARACTERS.index("3"))}
    assert answered_right(batch, completions(*texts)).tolist() == [True, True, True, *[False] * 6]


class Scripted(torch.nn.Module):
    """Stands for a student; what it writes is given."""


def test_what_is_measured(monkeypatch):
    """Two prompts, each answered eight times: one four times right after 2 tokens and four times wrong after 4."""
    texts = [*["80=3."] * 4, *["8c+0=4."] * 4, *["80=3."] * 8]
    entropies = torch.zeros(16, LENGTH)
    entropies[:, :2], entropies[4:8, 2:4], entropies[:, 5] = 1.0, 3.0, 0.5
    written = replace(completions(*texts), entropies=entropies)
    monkeypatch.setattr("preceptor.data.rollout.GenerateSampler.sample", lambda *_, **__: written)
    prompt = torch.tensor([numbers("30718="), numbers("31738=")])
    batch = {"prompt": {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}, "id": torch.arange(2)}
    batch["answer"] = torch.tensor(numbers("33"))
    found = measured(Scripted(), batch, answers=8)
    mask = written.mask
    assert found["accuracy"] == 0.75
    assert found["pass_at_8"] == 1.0
    assert found["entropy"] == pytest.approx(float(entropies[mask].mean()))
    assert found["think_tokens"] == 2.5
    assert found["think_entropy"] == pytest.approx((12 * 1.0 + 4 * 2.0) / 16)
    assert found["answer_entropy"] == pytest.approx(4 * 0.25 / 16)
    assert found["correlation"] == pytest.approx(1.0)


def test_practice_leaves_the_world_alone(world):
    before = [parameter.clone() for parameter in world.student.parameters()]
    labelled = replace(world, pool=_labelled(world.pool))
    student = practised(CrossEntropy(), labelled, steps=2, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, world.student.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


def _labelled(pool):
    ids = pool["prompt"]["input_ids"]
    return {"x": {"input_ids": ids[:, :-1], "use_cache": False}, "y": ids[:, 1:], "mask": torch.ones_like(ids[:, 1:]), "id": pool["id"]}
