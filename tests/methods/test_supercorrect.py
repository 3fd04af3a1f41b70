"""SuperCorrect: preference for the teacher's corrections of single steps."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch
from preceptor.data.pairs import preference_batch
from preceptor.data.rows import take
from preceptor.methods.supercorrect import CARD, SuperCorrect, miniature
from preceptor.miniature import misconception
from preceptor.miniature.toys import Rows, ToySampler
from preceptor.teachers.corrections import locate_first_error


class Bigrams(nn.Module):
    """A language model that sees one token."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 9, dtype=torch.double, generator=torch.Generator().manual_seed(seed)))

    def forward(self, input_ids: Tensor, **_: object) -> Tensor:
        return self.table[input_ids]


class Letters:
    """A tokenizer of the letters a to f."""

    bos_token_id, eos_token_id = 1, 2

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - 94 for letter in text]}


@pytest.fixture
def batch() -> Batch:
    """Four pairs of different lengths."""
    texts = ["ab", "c", "", "dd"], ["ef", "a", "bc", "abc"], ["f", "bbb", "d", "cba"]
    return preference_batch(*texts, Letters(), max_length=9)[0]


@pytest.fixture
def roles() -> dict[str, nn.Module]:
    """A student that has moved away from its reference."""
    return {"student": Bigrams(0), "reference": Bigrams(1)}


def said(model: nn.Module, text: Batch) -> list[float]:
    """Log-probability of what counts in each row, token by token."""
    found = []
    for ids, y, mask in zip(text["x"]["input_ids"], text["y"], text["mask"], strict=True):
        log_p = model(ids).log_softmax(-1).detach()
        found.append(sum(float(log_p[t, y[t]]) for t in range(len(y)) if mask[t]))
    return found


def terms_of(method: SuperCorrect, batch: Batch, roles: dict[str, nn.Module], state: State | None = None):
    state = state or State(total_steps=1)
    prepared = method.prepare(batch, roles, state)
    with torch.no_grad():
        signal = method.signal(prepared, roles, state)
    return method.loss(prepared, signal, roles, state), prepared, state


def test_defaults_are_those_of_the_card():
    method = SuperCorrect()
    assert (method.beta, method.nll_weight, method.replay_weight) == (0.1, 0.0, 0.0)
    assert CARD.slug == "supercorrect"


def test_the_loss_is_that_of_a_loop(batch, roles):
    terms, _, state = terms_of(SuperCorrect(beta=0.3), batch, roles)
    assert list(terms) == ["preference"]
    a, b = ([s - r for s, r in zip(*(said(roles[role], text) for role in roles), strict=True)] for text in (batch, batch["rejected"]))
    expected = [math.log1p(math.exp(-0.3 * (good - bad))) for good, bad in zip(a, b, strict=True)]
    torch.testing.assert_close(terms["preference"], torch.tensor(expected, dtype=torch.double))
    assert state.log == pytest.approx({"pairs": 4, "chosen_gain": sum(a) / 4, "rejected_gain": sum(b) / 4})


def test_a_student_like_its_reference_has_log_2_and_the_gradient_of_half(batch, roles):
    roles["student"] = copy.deepcopy(roles["reference"])
    terms, _, _ = terms_of(SuperCorrect(beta=0.3), batch, roles)
    torch.testing.assert_close(terms["preference"], torch.full((4,), math.log(2), dtype=torch.double))
    terms["preference"].sum().backward()
    expected = torch.zeros(9, 9, dtype=torch.double)
    for text, sign in ((batch, -1), (batch["rejected"], 1)):
        for ids, y, mask in zip(text["x"]["input_ids"], text["y"], text["mask"], strict=True):
            for t in mask.nonzero().flatten().tolist():
                row = -roles["student"].table[ids[t]].softmax(-1)
                row[y[t]] += 1
                expected[ids[t]] += sign * 0.3 / 2 * row.detach()
    torch.testing.assert_close(roles["student"].table.grad, expected)


def test_the_context_and_padding_count_for_nothing(batch, roles):
    """Every target that does not count is another one: the same terms."""
    method = SuperCorrect(nll_weight=1.0, replay_weight=1.0)
    batch["replay"] = batch["rejected"]
    other = copy.deepcopy(batch)
    for text in (other, other["rejected"], other["replay"]):
        text["y"] = torch.where(text["mask"], text["y"], 8)
    one, two = (terms_of(method, each, roles)[0] for each in (batch, other))
    assert one.keys() == two.keys() == {"preference", "nll", "replay"}
    for name, value in one.items():
        torch.testing.assert_close(value, two[name])


def test_the_same_text_twice_teaches_nothing(batch, roles):
    batch["rejected"] = {key: batch[key] for key in ("x", "y", "mask")}
    roles["reference"] = copy.deepcopy(roles["student"])
    terms, _, _ = terms_of(SuperCorrect(), batch, roles)
    torch.testing.assert_close(terms["preference"], torch.full((4,), math.log(2), dtype=torch.double))
    terms["preference"].sum().backward()
    torch.testing.assert_close(roles["student"].table.grad, torch.zeros(9, 9, dtype=torch.double))


def test_stabilisers_are_cross_entropies(batch, roles):
    batch["replay"] = batch["rejected"]
    terms, prepared, _ = terms_of(SuperCorrect(nll_weight=2.0, replay_weight=3.0), batch, roles)
    for name, text, weight in (("nll", batch, 2), ("replay", batch["rejected"], 3)):
        expected = -weight * torch.tensor(said(roles["student"], text), dtype=torch.double)
        torch.testing.assert_close((terms[name] * prepared[f"mask/{name}"]).sum(1), expected)


def test_the_reference_writes_what_is_missing_and_the_right_ones_are_left_out(batch, roles):
    del batch["rejected"]
    method = SuperCorrect(sampler=ToySampler(), max_new_tokens=3)
    prepared = method.prepare(batch, roles, State(total_steps=1))
    assert prepared["rejected"]["mask"].sum(1).tolist() == [3] * 4
    assert "rejected" not in batch
    moved = copy.deepcopy(roles) | {"student": Bigrams(7)}
    again = method.prepare(batch, moved, State(total_steps=1))
    assert torch.equal(again["rejected"]["y"], prepared["rejected"]["y"])  # the reference's, not the student's
    width = batch["prompt"]["input_ids"].shape[1]
    own = prepared["rejected"]["y"][:, width - 1 :]
    right = dataclasses.replace(method, verifier=lambda asked, completions: (completions.ids == own[1]).all(1))
    kept = right.prepare(batch, roles, State(total_steps=1))
    assert not kept["mask/preference"][1]
    assert not kept["mask/nll"][1].any()
    equal = copy.deepcopy(batch)
    equal["y"][0, width - 1 :], equal["mask"][0, width - 1 :] = 2, False
    equal["y"][0, width - 1 : width + 2], equal["mask"][0, width - 1 : width + 2] = own[0], True
    assert method.prepare(equal, roles, State(total_steps=1))["mask/preference"].tolist() == [False, True, True, True]


def test_an_empty_correction_is_no_pair(batch, roles):
    batch["mask"][0] = False
    batch["rejected"]["mask"][2] = False
    _, prepared, state = terms_of(SuperCorrect(nll_weight=1.0), batch, roles)
    assert prepared["mask/preference"].tolist() == [False, True, False, True]
    assert state.log["pairs"] == 2
    batch["mask"][:] = False
    terms, prepared, state = terms_of(SuperCorrect(nll_weight=1.0), batch, roles)
    assert (state.log["chosen_gain"], state.log["pairs"]) == (0, 0)
    assert all(bool(value.isfinite().all()) and value.requires_grad for value in terms.values())


def test_pairs_that_were_prepared_once_stay_as_they_are(batch, roles):
    batch["rejected"]["mask"][2] = False
    method = SuperCorrect()
    once = method.prepare(batch, roles, State(total_steps=1))
    some = take(once, torch.tensor([2, 0]))
    assert method.prepare(some, roles, State(total_steps=1))["mask/preference"].tolist() == [False, True]


def test_training_prefers_the_chosen_and_says_how_far_it_went(batch, roles):
    roles["student"] = copy.deepcopy(roles["reference"])
    records = []
    optimizer = torch.optim.Adam(roles["student"].parameters(), lr=0.05)
    train(SuperCorrect(), roles, Rows(batch, batch_size=4, seed=0), optimizer, steps=20, micro=2, progress=records.append)
    first, last = records[0], records[-1]
    assert last.losses["preference"] < first.losses["preference"] == pytest.approx(math.log(2))
    assert last.extras["chosen_gain"] > last.extras["rejected_gain"]
    before = [s - r for s, r in zip(*(said(roles[role], batch) for role in roles), strict=True)]
    assert last.extras["chosen_gain"] < sum(before) / 4  # of before the last update


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta: expected a finite number > 0, got 0"),
        ({"nll_weight": -1.0}, "nll_weight: expected a finite number >= 0, got -1"),
        ({"replay_weight": math.inf}, "replay_weight: expected a finite number >= 0, got inf"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SuperCorrect(**options)


def test_a_batch_that_lacks_something_is_refused(batch, roles):
    with pytest.raises(ValueError, match="replay: expected verified solutions in the batch for replay_weight > 0, got none"):
        SuperCorrect(replay_weight=1.0).prepare(batch, roles, State(total_steps=1))
    assert SuperCorrect().extra_roles({"student": roles["student"]}, batch).keys() == {"reference"}
    with pytest.raises(ValueError, match="prompt: expected"):
        SuperCorrect().extra_roles(roles, {key: batch[key] for key in ("x", "y", "mask")})


def test_the_world_of_the_experiment_is_what_it_says():
    assert misconception.solution("7*8+2-1=") == "7*8=6;6+2=8;8-1=7;7."
    assert misconception.solution("7*8+2-1=", believed=True) == "7*8=9;9+2=1;1-1=0;0."
    assert misconception.correction("7*8+2-1=7*8=4?") == "*7*8=6."
    assert misconception.correction("7*8+2-1=7*8=4?", believed=True) == "*7*8=9."
    assert misconception.result("3-8") == 5
    for steps, wrong in (
        (["7*8=6", "6+2=8", "8-1=7"], None),
        (["7*8=6", "6+2=9", "9-1=0"], 2),
        (["7*8=9"], 1),
        (["7*8=6", "6+3=9"], 2),
        (["7*8=6", "6+2=8", "8-1=7", "7=7"], 4),
    ):
        assert locate_first_error("7*8+2-1=", steps, misconception.first_wrong) == wrong
    batch = misconception.written([("7*8+2-1=7*8=4?", "*7*8=6.")])
    assert "".join(misconception.CHARACTERS[i] for i in batch["y"][0][batch["mask"][0]]) == "*7*8=6."
    assert int(batch["x"]["attention_mask"].sum()) == 20


def test_miniature():
    found = miniature(0, "smoke")
    assert found == miniature(0, "smoke")
    assert {claim.baseline for claim in found.claims} < set(found.arms)
