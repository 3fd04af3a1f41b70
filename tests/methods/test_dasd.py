"""Distribution-aligned sequence distillation."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch
from preceptor.data.rollout import Completions
from preceptor.data.sentences import sentence_probabilities
from preceptor.losses.hard import hard_loss
from preceptor.methods.dasd import CARD, DASD
from preceptor.miniature.toys import ToySampler

PLAIN = DASD(candidates=1, mixed_share=0.0, max_new_tokens=6, accept=lambda batch, completions: completions.mask.any(1))


class Bigrams(nn.Module):
    """A language model that sees one token."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 7, dtype=torch.double, generator=torch.Generator().manual_seed(seed)))

    def forward(self, input_ids: Tensor, **_: object) -> Tensor:
        return self.table[input_ids]


def toy(writer: nn.Module) -> ToySampler:
    sampler = ToySampler()
    sampler.sync(writer)
    return sampler


@pytest.fixture
def roles() -> dict[str, nn.Module]:
    """Three models of one token."""
    return {"teacher": Bigrams(0), "student": Bigrams(1), "reference": Bigrams(2)}


@pytest.fixture
def batch() -> Batch:
    """Five prompts of different lengths."""
    ids = torch.randint(0, 7, (5, 3), generator=torch.Generator().manual_seed(0))
    attention = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1], [1, 1, 1], [0, 1, 1]])
    return {"prompt": {"input_ids": ids, "attention_mask": attention}, "id": torch.arange(5)}


def prepared(method: DASD, batch: Batch, roles: dict[str, nn.Module], state: State | None = None) -> Batch:
    method = dataclasses.replace(method, sampler=ToySampler(), teacher_sampler=toy(roles["teacher"]))
    return method.prepare(batch, roles, state or State(total_steps=1))


def log_probs(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch["x"]).log_softmax(-1).gather(-1, batch["y"].unsqueeze(-1)).squeeze(-1).detach()


def test_defaults_are_those_of_the_card():
    method = DASD()
    assert method.temperatures == (0.6, 1.0)
    assert (method.candidates, method.kept, method.ratio) == (4, 1, 1.5)
    assert not method.mask_begun
    assert CARD.slug == "dasd"


def test_the_best_of_the_candidates_is_kept(batch, roles):
    """From the same draws, against all candidates scored by hand."""
    every = prepared(dataclasses.replace(PLAIN, candidates=4, kept=4, temperatures=(0.6,)), batch, roles)
    assert len(every["y"]) == 20
    numbers = torch.where(every["mask"], 0, -1)
    p = [sentence_probabilities(log_probs(roles[role], every), numbers)[0].squeeze(1) for role in ("teacher", "reference")]
    best = (p[0] - p[1]).view(5, 4).argmax(1) + 4 * torch.arange(5)
    chosen = prepared(dataclasses.replace(PLAIN, candidates=4, temperatures=(0.6,)), batch, roles)
    assert torch.equal(chosen["y"], every["y"][best])
    assert torch.equal(chosen["id"], torch.arange(5))
    assert torch.equal(chosen["mask"].sum(1), torch.full((5,), 6))
    two = prepared(dataclasses.replace(PLAIN, candidates=4, kept=2, temperatures=(0.6,)), batch, roles)
    assert torch.equal(two["id"], torch.arange(5).repeat_interleave(2))
    assert torch.equal(two["y"][::2], chosen["y"])


def test_sentences_and_their_weights_reach_the_score(batch, roles):
    rows = [
        prepared(dataclasses.replace(PLAIN, candidates=16, max_new_tokens=20, **options), batch, roles)["y"]
        for options in ({}, {"sentence_ends": (3,)}, {"sentence_ends": (3,), "by_tokens": True})
    ]
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[1], rows[2])


def test_at_temperature_1_the_samplers_own_log_probs_serve(batch, roles):
    drawn = prepared(PLAIN, batch, roles, State(total_steps=2, step=1))
    torch.testing.assert_close(drawn["sampling_log_probs"][drawn["mask"]], log_probs(roles["teacher"], drawn)[drawn["mask"]])


def test_stages_follow_the_temperatures(batch, roles):
    for total, step, temperature in ((4, 0, 0.6), (4, 1, 0.6), (4, 2, 1.0), (4, 3, 1.0), (5, 2, 0.6), (5, 3, 1.0)):
        drawn = prepared(PLAIN, batch, roles, State(total_steps=total, step=step))
        rows = roles["teacher"](**drawn["x"]).detach() / temperature
        expected = rows.log_softmax(-1).gather(-1, drawn["y"].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(drawn["sampling_log_probs"][drawn["mask"]], expected[drawn["mask"]])


def test_a_temperature_near_0_is_greedy(batch, roles):
    drawn = prepared(dataclasses.replace(PLAIN, temperatures=(1e-6,)), batch, roles)
    greedy = roles["teacher"](**drawn["x"]).argmax(-1)
    assert torch.equal(drawn["y"][drawn["mask"]], greedy[drawn["mask"]])


def test_the_second_stage_goes_on_from_the_first(batch, roles):
    def run(temperatures: tuple[float, ...], steps: int) -> list[Tensor]:
        student = copy.deepcopy(roles["student"])
        seen = []
        method = dataclasses.replace(PLAIN, temperatures=temperatures, teacher_sampler=toy(roles["teacher"]))
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        train(
            method,
            {**roles, "student": student},
            [batch],
            optimizer,
            steps=steps,
            progress=lambda record: seen.append(student.table.detach().clone()),
        )
        return seen

    both, first = run((0.6, 1.0), 6), run((0.6,), 3)
    for one, two in zip(both[:3], first, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(both[3], run((0.6,), 6)[3])


def test_filtered_answers_do_not_count(batch, roles):
    def short(batch: Batch, completions: Completions) -> Tensor:
        return completions.ids[:, 0] != completions.ids[0, 0]

    state = State(total_steps=1)
    drawn = prepared(dataclasses.replace(PLAIN, accept=short), batch, roles, state)
    counts = drawn["mask"].any(1)
    first = drawn["y"][torch.arange(5), drawn["mask"].long().argmax(1)]
    assert not counts[0]
    assert counts.any()
    assert (first[counts] != prepared(PLAIN, batch, roles)["y"][0, 2]).all()
    assert state.log["filtered"] == pytest.approx(1 - float(counts.double().mean()))


def test_answers_that_the_student_begins(batch, roles):
    mixed = dataclasses.replace(PLAIN, mixed_share=1.0, max_new_tokens=4)
    whole = prepared(mixed, batch, roles)
    masked = prepared(dataclasses.replace(mixed, mask_begun=True), batch, roles)
    assert torch.equal(whole["y"], masked["y"])
    assert torch.equal(whole["id"], batch["id"])
    prefix = whole["mask"] & ~masked["mask"]
    limit = 6  # floor(1.5 * 4), of which the student wrote 3 to 5 tokens that stay
    assert ((prefix.sum(1) >= limit // 2) & (prefix.sum(1) < limit)).all()
    assert torch.equal(whole["mask"].sum(1), prefix.sum(1) + 4)
    for row, tokens in enumerate(prefix.sum(1).tolist()):
        place = prefix[row].nonzero().squeeze(1)
        assert place.tolist() == list(range(2, 2 + tokens))  # right after the prompt
    logits = roles["student"](**whole["x"]).detach()
    for part in (whole, masked):
        state = State(total_steps=1)
        torch.testing.assert_close(PLAIN.loss(part, {}, roles, state)["hard"].detach(), hard_loss(logits, part))


def test_the_mixed_part_is_the_last(batch, roles):
    method = dataclasses.replace(PLAIN, mixed_share=0.25, max_new_tokens=4)
    greedy = dataclasses.replace(method, temperatures=(1e-6, 1.0))
    for step in range(8):
        state = State(total_steps=8, step=step)
        prepared(method, batch, roles, state)
        assert ("begun" in state.log) == (step >= 6)
        if step < 6:  # the temperatures share what is left
            drawn = prepared(greedy, batch, roles, State(total_steps=8, step=step))
            likeliest = roles["teacher"](**drawn["x"]).argmax(-1)
            assert torch.equal(drawn["y"][drawn["mask"]], likeliest[drawn["mask"]]) == (step < 3)


def test_transformers_write_and_learn():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=9, pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=64, **sizes)
    roles: dict[str, nn.Module] = {role: LlamaForCausalLM(config) for role in ("teacher", "student")}
    prompt = {"input_ids": torch.tensor([[0, 4], [5, 6]]), "attention_mask": torch.tensor([[0, 1], [1, 1]])}
    batches = [{"prompt": prompt, "id": torch.arange(2)}]
    method = DASD(temperatures=(0.6, 1.0), mixed_share=0.34, max_new_tokens=12, accept=lambda batch, completions: completions.mask.any(1))
    roles |= method.extra_roles(roles, batches[0])
    before = copy.deepcopy({name: role.state_dict() for name, role in roles.items()})
    records = []
    optimizer = torch.optim.AdamW(roles["student"].parameters(), lr=1e-2)
    train(method, roles, batches, optimizer, steps=3, progress=records.append)
    assert [record.extras.get("begun") is not None for record in records] == [False, False, True]
    for name, role in roles.items():
        same = all(torch.equal(value, before[name][key]) for key, value in role.state_dict().items())
        assert same == (name != "student")
    for key, value in before["student"].items():
        assert torch.equal(value, before["reference"][key])


def test_a_batch_without_prompts_is_refused(roles):
    with pytest.raises(ValueError, match="prompt: expected the beginnings of texts"):
        DASD().extra_roles(roles, {"x": torch.zeros(1)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperatures": ()}, "temperatures: expected at least one, got none"),
        ({"temperatures": (0.6, 0.0)}, "temperatures: expected a finite number > 0, got 0.0"),
        ({"kept": 5}, "kept: expected 1 to 4 of the candidates, got 5"),
        ({"kept": 0}, "kept: expected 1 to 4 of the candidates, got 0"),
        ({"mixed_share": 1.5}, r"mixed_share: expected a number in \[0, 1\], got 1.5"),
        ({"ratio": 0.0}, "ratio: expected a finite number > 0, got 0.0"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DASD(**options)
