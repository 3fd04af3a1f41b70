"""Distillation between tokenizers by likelihoods of chunks."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tests.parity import check_folder
from tests.test_parity import GOLDEN
from torch import Tensor, nn

from preceptor.core.reduce import global_counts, reduce_terms
from preceptor.core.state import State
from preceptor.core.types import Batch
from preceptor.data.align import Vocabulary, aligned_batch
from preceptor.data.rows import join, take
from preceptor.losses.alignment import chunk_divergence
from preceptor.methods.alm import ALM, CARD

PLAIN = ALM(debias=False, merge=0.0)


def pieces(*names: str) -> Vocabulary:
    """A vocabulary that takes the longest piece that fits, with its first token before and its second after a text."""

    def encode(text: str) -> list[int]:
        ids = []
        while text:
            ids.append(max((i for i, name in enumerate(names) if name and text.startswith(name)), key=lambda i: len(names[i])))
            text = text[len(names[ids[-1]]) :]
        return ids

    return Vocabulary(pieces=tuple(name.encode() for name in names), encode=encode, begin=0, end=1)


WORDS = pieces("", "", "the", " c", "at", " cat", "s", " ", "a", "t", "c", "ts")
LETTERS = pieces("", "", *"theca s")
TEXTS = ["the cats", "at a cat", "cats", "the"]


class Bigrams(nn.Module):
    """A language model that sees one token."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table = nn.Parameter(2 * torch.randn(vocabulary, vocabulary, dtype=torch.double))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = True) -> Tensor:
        return self.table[input_ids]


@pytest.fixture
def roles() -> dict[str, nn.Module]:
    """A student of letters and a teacher of words."""
    torch.manual_seed(0)
    return {"student": Bigrams(9), "teacher": Bigrams(12)}


@pytest.fixture
def batch() -> Batch:
    """Texts in both vocabularies."""
    return {**aligned_batch(TEXTS, student=LETTERS, teacher=WORDS), "id": torch.arange(len(TEXTS))}


def prepared(method: ALM, batch: Batch, roles: dict[str, nn.Module]) -> Batch:
    return method.prepare(batch, roles, State(total_steps=1))


def values(method: ALM, batch: Batch, roles: dict[str, nn.Module]) -> Tensor:
    """The divergence of every chunk that counts."""
    batch = prepared(method, batch, roles)
    return method.loss(batch, {}, roles, State(total_steps=1))["alm"][batch["mask/alm"] != 0]


def loss_and_gradient(method: ALM, batch: Batch, roles: dict[str, nn.Module]) -> tuple[Tensor, Tensor]:
    """As the loop reduces them."""
    batch = prepared(method, batch, roles)
    terms = reduce_terms(method.loss(batch, {}, roles, State(total_steps=1)), batch, global_counts(batch), 1)
    loss = terms["alm"] + terms["hard"]
    (gradient,) = torch.autograd.grad(loss, roles["student"].table)
    return loss.detach(), gradient


def test_defaults_are_those_of_the_card():
    method = ALM()
    assert (method.temperature, method.epsilon, method.divergence) == (100.0, 1e-6, "binary_ce")
    assert (method.debias, method.merge, method.hard_weight) == (True, 0.1, 0.0)
    assert (CARD.slug, CARD.tasks) == ("alm", ("language",))


def slow(method: ALM, roles: dict[str, nn.Module]) -> list[float]:
    """Divergences from the equations, text by text."""
    table = {"teacher": roles["teacher"].table.log_softmax(-1).tolist(), "student": roles["student"].table.log_softmax(-1).tolist()}
    vocabularies = {"teacher": WORDS, "student": LETTERS}
    found = []
    for text in TEXTS:
        tokens = {side: [0, *vocabulary.encode(text), 1] for side, vocabulary in vocabularies.items()}
        chunks, open_, spelled = [], {"teacher": [], "student": []}, {"teacher": "", "student": ""}
        at = dict.fromkeys(tokens, 1)
        while at["teacher"] < len(tokens["teacher"]):
            side = min(spelled, key=lambda s: len(spelled[s]))
            token = tokens[side][at[side]]
            spelled[side] += vocabularies[side].pieces[token].decode() or "$"
            open_[side].append(at[side])
            at[side] += 1
            if spelled["teacher"] == spelled["student"]:
                chunks.append(open_)
                open_ = {"teacher": [], "student": []}
            if spelled["teacher"].endswith("$") and not spelled["student"].endswith("$"):
                open_["student"].append(at["student"])
                chunks.append(open_)

        def end(side: str, token: int, tokens: dict[str, list[int]] = tokens) -> float:
            """Log-probability that a word begins, or the text ends, after a token; nothing comes after the last."""
            if token == len(tokens[side]) - 1:
                return 0.0
            row = table[side][tokens[side][token]]
            starts = [v for v, piece in enumerate(vocabularies[side].pieces) if piece.startswith(b" ") or v == 1]
            return math.log(sum(math.exp(row[v]) for v in starts))

        runs = []
        for chunk in chunks:
            if runs and math.exp(end("teacher", runs[-1]["teacher"][-1])) <= method.merge:
                runs[-1] = {side: runs[-1][side] + chunk[side] for side in chunk}
            else:
                runs.append(chunk)
        for run in runs:
            sums = {}
            for side, of_side in tokens.items():
                sums[side] = sum(table[side][of_side[u - 1]][of_side[u]] for u in run[side])
                sums[side] += end(side, run[side][-1]) if method.debias else 0.0
            x, y = (sums[side] / method.temperature - method.epsilon for side in ("teacher", "student"))
            found.append(-(math.exp(x) * y + (1 - math.exp(x)) * math.log(1 - math.exp(y))))
    return found


@pytest.mark.parametrize("method", [PLAIN, ALM(merge=0.0), ALM(debias=False, merge=0.2), ALM(merge=0.2), ALM(temperature=3.0, merge=0.3)])
def test_reference(method, batch, roles):
    expected = slow(method, roles)
    torch.testing.assert_close(values(method, batch, roles), torch.tensor(expected, dtype=torch.double))
    if method.merge:
        assert len(expected) < len(slow(PLAIN, roles))


def test_chunks_add_up_to_the_teachers_likelihood_of_the_text(batch, roles):
    log_p = roles["teacher"](batch["teacher_x"]["input_ids"]).log_softmax(-1).gather(-1, batch["teacher_y"].unsqueeze(-1)).squeeze(-1)
    whole = (log_p * batch["teacher_mask"]).sum(1).detach()
    for merge in (0.0, 0.3, 1.0):
        ready = prepared(ALM(debias=False, merge=merge), batch, roles)
        torch.testing.assert_close(ready["teacher_log_likelihood"].sum(1), whole)
    assert ready["mask/alm"].sum(1).tolist() == [1.0] * len(TEXTS)  # no boundary is kept: a chunk is a text


def test_the_boundary_takes_from_both_sides(batch, roles):
    raw, debiased = (prepared(ALM(debias=debias, merge=0.0), batch, roles) for debias in (False, True))
    counts = raw["mask/alm"] != 0
    gap = raw["teacher_log_likelihood"] - debiased["teacher_log_likelihood"]
    assert (gap >= 0).all()
    last = batch["spans"][..., 1].argmax(1)
    assert (gap[torch.arange(len(TEXTS)), last] == 0).all()  # nothing follows the end of a text
    assert (gap[counts] > 0).sum() == counts.sum() - len(TEXTS)


def test_one_tokenizer_makes_every_token_a_chunk(roles):
    roles = {"student": Bigrams(9), "teacher": Bigrams(9)}
    both = aligned_batch(TEXTS, student=LETTERS, teacher=LETTERS)
    alone = {key: both[key] for key in ("x", "y", "mask")}
    spans = both["spans"][both["spans"][..., 1] > 0]
    assert torch.equal(spans[:, :2], spans[:, 2:])
    assert (spans[:, 1] - spans[:, 0] == 1).all()
    torch.testing.assert_close(values(PLAIN, both, roles), values(PLAIN, alone, roles))
    torch.testing.assert_close(values(ALM(), alone, roles), values(PLAIN, alone, roles))
    log_p, log_q = (roles[side](alone["x"]["input_ids"]).log_softmax(-1) for side in ("teacher", "student"))
    a, b = (each.gather(-1, alone["y"].unsqueeze(-1)).squeeze(-1)[alone["mask"] != 0] for each in (log_p, log_q))
    torch.testing.assert_close(values(ALM(), alone, roles), chunk_divergence(b, a))


@pytest.mark.parametrize("divergence", ["binary_ce", "abs", "total_variation", "reverse_kl", "limit"])
@pytest.mark.parametrize("merge", [0.0, 0.2])
def test_a_student_equal_to_its_teacher_stays(divergence, merge):
    torch.manual_seed(0)
    roles: dict[str, nn.Module] = {"student": Bigrams(12), "teacher": Bigrams(12)}
    roles["student"].load_state_dict(roles["teacher"].state_dict())
    both = aligned_batch(TEXTS, student=WORDS, teacher=WORDS)
    loss, gradient = loss_and_gradient(ALM(divergence=divergence, merge=merge), both, roles)
    assert gradient.abs().max() < 1e-15
    assert loss > 0.01 if divergence == "binary_ce" else loss.abs() < 1e-15  # the entropy of the teacher's answers remains


def test_order_padding_and_masked_tokens_change_nothing(batch, roles):
    expected = loss_and_gradient(ALM(), batch, roles)
    torch.testing.assert_close(loss_and_gradient(ALM(), take(batch, torch.tensor([2, 0, 3, 1])), roles), expected)
    long = aligned_batch(["the cats the cats at a cat"], student=LETTERS, teacher=WORDS)
    wider = take(join([batch, {**long, "id": torch.tensor([9])}]), torch.arange(len(TEXTS)))
    assert wider["y"].shape[1] > batch["y"].shape[1]
    torch.testing.assert_close(loss_and_gradient(ALM(), wider, roles), expected)
    masked = join([batch, {**long, "id": torch.tensor([9]), "mask": 0 * long["mask"], "teacher_mask": 0 * long["teacher_mask"]}])
    torch.testing.assert_close(loss_and_gradient(ALM(), masked, roles), expected)


def test_a_masked_prompt_is_left_out(roles):
    """The chunks after a prompt that does not count are those of the whole text, and no run reaches into it."""
    text = aligned_batch(["the cats at a cat"], student=LETTERS, teacher=WORDS)
    whole = values(PLAIN, text, roles)
    half = {**text, "mask": text["mask"].clone(), "teacher_mask": text["teacher_mask"].clone()}
    half["mask"][0, :3] = half["teacher_mask"][0, :1] = 0  # "the"
    torch.testing.assert_close(values(PLAIN, half, roles), whole[1:])
    never = prepared(ALM(merge=1.0), half, roles)
    assert never["spans"][0, 0].tolist()[0] == 2
    one_sided = {**text, "mask": half["mask"]}
    torch.testing.assert_close(values(PLAIN, one_sided, roles), whole[1:])


def test_a_masked_token_adds_nothing_to_its_chunk(batch, roles):
    one = {**batch, "mask": batch["mask"].clone()}
    one["mask"][0, 1] = 0  # the "h" of "the"
    method = ALM(divergence="abs", debias=False, merge=0.0)
    gap = (values(method, batch, roles) - values(method, one, roles)).abs()
    torch.testing.assert_close(gap[0], -roles["student"].table[2].log_softmax(-1)[3])
    assert (gap[1:] == 0).all()


def test_the_mean_is_over_merged_chunks(batch, roles):
    method = ALM(merge=0.2)
    ready = prepared(method, batch, roles)
    assert 0 < ready["mask/alm"].sum() < prepared(PLAIN, batch, roles)["mask/alm"].sum()
    torch.testing.assert_close(loss_and_gradient(method, batch, roles)[0], values(method, batch, roles).mean().detach())


def test_no_chunk_at_all(batch, roles):
    empty = {**batch, "spans": torch.zeros_like(batch["spans"])}
    loss, gradient = loss_and_gradient(ALM(), empty, roles)
    assert loss == 0
    assert (gradient == 0).all()


def test_the_teacher_reads_a_prepared_batch_no_more(batch, roles):
    ready = prepared(ALM(), batch, roles)
    assert prepared(ALM(), ready, {}) is ready
    rows = torch.tensor([3, 1])
    part, fresh = take(ready, rows), prepared(ALM(), take(batch, rows), roles)
    first, second = (ALM().loss(each, {}, {"student": roles["student"]}, State(total_steps=1)) for each in (part, fresh))
    torch.testing.assert_close(first["alm"][part["mask/alm"] != 0], second["alm"][fresh["mask/alm"] != 0])


def test_the_next_token_term(batch, roles):
    terms = ALM(hard_weight=0.5).loss(prepared(ALM(), batch, roles), {}, roles, State(total_steps=1))
    log_q = roles["student"](batch["x"]["input_ids"]).log_softmax(-1).gather(-1, batch["y"].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(terms["hard"], -0.5 * log_q)
    assert (ALM().loss(prepared(ALM(), batch, roles), {}, roles, State(total_steps=1))["hard"] == 0).all()


def test_fitting_the_chunks_gives_the_likelihoods_of_the_teacher(batch, roles):
    class Free(nn.Module):
        """Logits of their own at every place."""

        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(*batch["y"].shape, 9, dtype=torch.double))

        def forward(self, **inputs: Tensor) -> Tensor:
            return self.logits

    method = ALM(temperature=1.0)
    roles["student"] = Free()
    optimizer = torch.optim.Adam(roles["student"].parameters(), lr=0.1)
    ready = prepared(method, batch, roles)
    count = ready["mask/alm"] != 0
    for _ in range(600):
        optimizer.zero_grad()
        method.loss(ready, {}, roles, State(total_steps=1))["alm"][count].mean().backward()
        optimizer.step()
    apart = dataclasses.replace(method, divergence="abs").loss(ready, {}, roles, State(total_steps=1))["alm"][count]
    assert apart.max() < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a finite number > 0, got 0.0"),
        ({"epsilon": 0.0}, "epsilon: expected a finite number > 0, got 0.0"),
        ({"divergence": "kl"}, "divergence: expected one of binary_ce"),
        ({"merge": 1.5}, r"merge: expected a number in \[0, 1\], got 1.5"),
        ({"hard_weight": -1.0}, "hard_weight: expected a number >= 0, got -1.0"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ALM(**options)


def test_batches_that_cannot_be_compared_are_refused(batch, roles):
    bare = {key: batch[key] for key in ("x", "y", "mask")}
    ready = prepared(ALM(), bare, {**roles, "teacher": Bigrams(12)})
    with pytest.raises(ValueError, match=r"expected teacher_x .* for 9 tokens of the student and 12 of the teacher, got x, y, mask"):
        ALM().loss(ready, {}, roles, State(total_steps=1))
    needs = {ALM(): "boundary", ALM(debias=False): "teacher_boundary", PLAIN: "spans"}
    for method, key in needs.items():
        without = {name: value for name, value in batch.items() if name != key}
        with pytest.raises(ValueError, match=f"batch: expected teacher_y, spans.* beside teacher_x .*, got no {key}"):
            prepared(method, without, roles)
        if key != "spans":
            prepared(PLAIN, without, roles)
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 11\], got 12"):
        prepared(PLAIN, batch | {"teacher_y": batch["teacher_y"] * 0 + 12}, roles)


def test_parity():
    lines = [line for line in check_folder(GOLDEN) if line.slug == "alm"]
    assert len(lines) == 3
    assert {line.status for line in lines} == {"ok"}
