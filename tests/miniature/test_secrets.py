"""The world of planted secrets."""

import math

import torch
from torch import nn

from preceptor.miniature.secrets import ALPHABET, audit, encode, secret_world
from preceptor.models.recurrent import GRULanguageModel


def text_of(batch):
    rows = torch.cat([batch["x"]["input_ids"][:, :1], batch["y"]], dim=1)
    return ["".join(ALPHABET[place] for place in row) for row in rows.tolist()]


def test_secrets_are_in_the_text_and_digits_are_private():
    world, again, other = (secret_world(seed, "smoke") for seed in (3, 3, 4))
    assert torch.equal(world.train["y"], again.train["y"])
    assert world.canaries == again.canaries != other.canaries
    rows = text_of(world.train)
    whole = rows[0] + "".join(row[1:] for row in rows[1:])  # a row begins with the last character of the one before
    for canary in world.canaries:
        assert 14 <= whole.count(canary.prefix + canary.secret) <= 15  # the last may be cut off
    for batch in (world.train, world.public, world.strangers):
        assert torch.equal(batch["x"]["input_ids"][:, 1:], batch["y"][:, :-1])
        digits = batch["y"] >= ALPHABET.index("0")
        assert torch.equal(batch["privacy"] == 1, digits)
        assert torch.equal(batch["privacy"] == 0, ~digits)
    assert (world.public["privacy"] == 0).all()
    assert (world.strangers["privacy"].sum(1) == 2).all()
    assert not any(line.strip() in whole for line in text_of(world.strangers))
    for one, two in zip(world.student().parameters(), again.student().parameters(), strict=True):
        assert torch.equal(one, two)


class Knows(nn.Module):
    """Says how a text goes on: as the secrets do, else any character with the same chance."""

    def __init__(self, canaries):
        super().__init__()
        self.texts = [encode("\n" + canary.prefix + canary.secret) for canary in canaries]
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids):
        logits = torch.zeros(*input_ids.shape, len(ALPHABET))
        for text in self.texts:
            for t in range(min(input_ids.shape[1], len(text) - 1)):
                same = (input_ids[:, : t + 1] == text[: t + 1]).all(1)
                logits[same, t, text[t + 1]] = 20.0
        return logits


def test_audit_of_a_model_that_knows_the_secrets_alone():
    world = secret_world(0, "smoke")
    found = audit(Knows(world.canaries), world)
    assert found["exposure"] == math.log2(100)
    assert math.isclose(found["perplexity"], len(ALPHABET), rel_tol=0.05)  # a line that begins like a canary costs more
    assert math.isclose(found["digit_mass"], 10 / len(ALPHABET), rel_tol=1e-5)


def test_the_recurrent_model_does_not_look_ahead():
    torch.manual_seed(0)
    model = GRULanguageModel(vocabulary=9, units=5)
    ids = torch.randint(9, (3, 7))
    changed = ids.clone()
    changed[:, 5:] = (ids[:, 5:] + 1) % 9
    logits, other = model(ids), model(input_ids=changed, use_cache=False)
    assert logits.shape == (3, 7, 9)
    torch.testing.assert_close(logits[:, :5], other[:, :5])
    assert (logits[:, 5:] != other[:, 5:]).any(-1).all()
