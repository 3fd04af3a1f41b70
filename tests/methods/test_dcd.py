"""DCD: selection, weights, loss, negatives, recall, and the method on pairs and on classes."""

import math

import pytest
import torch
import torch.nn.functional as F

from preceptor.core.state import State
from preceptor.data.examples import examples_from
from preceptor.data.negatives import RandomNegatives
from preceptor.data.sources import Source
from preceptor.losses.candidates import entropy_shares, select_candidates
from preceptor.methods.dcd import CARD, DCD, dcd_loss, miniature, teacher_columns
from preceptor.metrics.retrieval import recall_at
from preceptor.miniature.retrieval import fit_scorer
from preceptor.models.cross_encoders import CrossEncoder, keep_blocks


@pytest.fixture
def scores():
    """Scores of student and teacher, (4, 6) each."""
    generator = torch.Generator().manual_seed(0)
    return tuple(2 * torch.randn(2, 4, 6, generator=generator, dtype=torch.double))


def pairs(seed=0, *, num_negatives=5):
    """A stream of queries with candidates, and a teacher and a student."""
    torch.manual_seed(seed)
    queries, answers, places = torch.randn(20, 3), torch.randn(20, 4), torch.arange(20)
    negatives = RandomNegatives(answers, places, places, num_negatives=num_negatives)
    teacher = CrossEncoder(queries=3, candidates=4, width=4)
    return Source(examples_from((queries, places), 20), batch_size=6, augment=negatives), teacher, keep_blocks(teacher, (0, 3))


def loss_of(method, batch, roles):
    with torch.no_grad():
        signal = method.signal(batch, roles, State(total_steps=1))
    return method.loss(batch, signal, roles, State(total_steps=1))


def test_the_card_and_its_defaults():
    method = DCD()
    assert (method.num_negatives, method.alpha, method.selection, method.weighting) == (7, 0.2, "hard", "dynamic")
    assert (method.align, method.self_loss, method.coupled) == ("candidates", "bce", True)
    assert (CARD.slug, CARD.needs) == ("dcd", ("teacher", "logits", "labels"))


def test_the_positive_is_chosen_once_and_so_many_others(scores):
    chosen = select_candidates(scores[1], 3)
    assert chosen.shape == (4, 4)
    assert (chosen[:, 0] == 0).all()
    for row, t in zip(chosen.tolist(), scores[1].tolist(), strict=True):
        assert row[1:] == sorted(range(1, 6), key=lambda j: -t[j])[:3]
    assert torch.equal(select_candidates(torch.exp(3 * scores[1]) + 1, 3), chosen)  # any rising transform
    first = scores[1].clone()
    first[:, 0] = 99
    assert torch.equal(select_candidates(first, 3), first.argsort(dim=1, descending=True)[:, :4])


def test_few_negatives_are_all_taken_and_ties_keep_their_order(scores):
    assert select_candidates(scores[1], 99).sort(dim=1).values.tolist() == [list(range(6))] * 4
    assert select_candidates(torch.tensor([[0.0, 1.0, 1.0, 1.0, 2.0]]), 3).tolist() == [[0, 4, 1, 2]]


def test_other_selections():
    t = torch.tensor([[1.0, 3.0, 0.5, 1.5, -2.0, 1.0]])
    assert select_candidates(t, 2, selection="random").tolist() == [[0, 1, 2]]
    assert select_candidates(t, 5, selection="semi-hard").tolist() == [[0, 2, 4, 5, 3, 1]]


def test_shares_of_entropy(scores):
    e = entropy_shares(scores[1])
    h = [-sum(p * math.log(p) for p in row) for row in scores[1].softmax(dim=1).tolist()]
    torch.testing.assert_close(e, torch.tensor(h, dtype=torch.double) / sum(h))
    torch.testing.assert_close(entropy_shares(scores[1] + torch.arange(4.0)[:, None]), e)
    assert entropy_shares(scores[1][:1]).tolist() == [1.0]
    sure = torch.tensor([[1e4, 0.0, 0.0], [0.0, 1e4, -torch.inf]])
    assert entropy_shares(sure).tolist() == [0.5, 0.5]
    mixed = entropy_shares(torch.cat([sure[:1], torch.zeros(1, 3)]))
    assert mixed.tolist() == [0.0, 1.0]


def test_reference(scores):
    s, t = scores
    parts = dcd_loss(s, t, alpha=0.3)
    p = t.softmax(dim=1)
    h = [-sum(v * math.log(v) for v in row) for row in p.tolist()]
    e = [v / sum(h) for v in h]
    up = [math.exp((1 - v) ** 2) for v in e]
    for i in range(4):
        squares = sum((a - b) ** 2 for a, b in zip(s[i].tolist(), t[i].tolist(), strict=True)) / 6
        bce = sum(math.log1p(math.exp(-v if j == 0 else v)) for j, v in enumerate(s[i].tolist())) / 6
        assert math.isclose(parts.distill[i].item(), 0.3 * up[i] / sum(up) * squares, rel_tol=1e-12)
        assert math.isclose(parts.own[i].item(), 0.7 * e[i] * bce, rel_tol=1e-12)
    ce = dcd_loss(s, t, alpha=0.3, self_loss="ce").own
    torch.testing.assert_close(ce, 0.7 * torch.tensor(e, dtype=torch.double) * F.cross_entropy(s, torch.zeros(4).long(), reduction="none"))


def test_limits(scores):
    s, t = scores
    mean = (s - t).square().mean()
    torch.testing.assert_close(dcd_loss(s, t, alpha=1.0, weighting="none").total.sum(), mean)
    assert (dcd_loss(s, s).distill == 0).all()
    assert (dcd_loss(s, t).distill > 0).all()
    assert (dcd_loss(s, t, alpha=1.0).own == 0).all()
    assert (dcd_loss(s, t, alpha=0.0).distill == 0).all()
    equal = t[:1].expand(4, -1)
    torch.testing.assert_close(dcd_loss(s, equal).total, dcd_loss(s, equal, weighting="static").total)
    torch.testing.assert_close(dcd_loss(s, equal, alpha=1.0).total.sum(), (s - equal).square().mean())
    moved = t + torch.tensor([5.0, 0, 0, 0], dtype=torch.double)[:, None]
    assert torch.allclose(dcd_loss(s, moved).own, dcd_loss(s, t).own)
    assert dcd_loss(s, moved).distill[0] != dcd_loss(s, t).distill[0]
    sure = t.clone()
    sure[2] = torch.tensor([500.0, 0, 0, 0, 0, 0])
    ones = dcd_loss(sure + 1, sure, alpha=1.0).distill  # w alone
    assert ones.argmax() == 2
    torch.testing.assert_close(ones.sum(), torch.tensor(1.0, dtype=torch.double))
    assert ones.max() / ones.min() <= math.e
    assert dcd_loss(s, sure).own[2] < 1e-100


def test_weights_shipped_beside(scores):
    s, t = scores
    ce = [F.cross_entropy(z, torch.zeros(4).long(), reduction="none") for z in (s, t)]
    f = 1 - torch.exp(-ce[0] / ce[1])
    expected = 0.4 * f.mean() * (s - t).square().mean() + ce[0].mean()
    torch.testing.assert_close(dcd_loss(s, t, alpha=0.4, weighting="wsl").total.sum(), expected)
    certain = torch.tensor([[900.0, 0.0]], dtype=torch.double)
    assert dcd_loss(certain - 1, certain, weighting="wsl").total.isfinite().all()


def test_gradient(scores):
    s, t = (x.clone().requires_grad_() for x in scores)
    (gradient,) = torch.autograd.grad(dcd_loss(s, t, alpha=1.0).total.sum(), s)
    w = torch.softmax((1 - entropy_shares(t)).square(), dim=0)
    torch.testing.assert_close(gradient, (2 * w[:, None] * (s - t) / 6).detach())
    for weighting in ("dynamic", "none", "static"):
        assert torch.autograd.gradcheck(lambda x, kind=weighting: dcd_loss(x, t, weighting=kind).total, (s,))
    dcd_loss(s, t).total.sum().backward()
    assert t.grad is None


def test_the_teachers_scores_beside_the_students():
    t = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    chosen = select_candidates(t, 2)
    assert teacher_columns(t, chosen).tolist() == [[0.0, 3.0, 2.0]]
    assert teacher_columns(t, chosen, align="sorted").tolist() == [[3.0, 2.0, 1.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(scores, dtype):
    s, t = (x.to(dtype) for x in scores)
    parts = dcd_loss(s, t)
    assert parts.total.dtype == torch.float32
    torch.testing.assert_close(parts.total, dcd_loss(s.float(), t.float()).total)


def test_an_empty_batch_has_a_loss_and_a_gradient():
    s = torch.zeros(0, 3, requires_grad=True)
    total = dcd_loss(s, torch.zeros(0, 3)).total.sum()
    total.backward()
    assert total == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dcd_loss(torch.zeros(2, 3), torch.zeros(2, 4)), "teacher: expected 3 classes"),
        (lambda: dcd_loss(torch.zeros(2, 1), torch.zeros(2, 1)), "student: expected scores of shape"),
        (lambda: select_candidates(torch.zeros(2, 1), 3), "teacher: expected scores of shape"),
        (lambda: select_candidates(torch.zeros(2, 3), 0), "num_negatives: expected at least 1"),
        (lambda: DCD(alpha=2.0), "alpha: expected a number in"),
        (lambda: DCD(weighting="x"), "weighting: expected one of dynamic"),  # pyright: ignore[reportArgumentType]
        (lambda: DCD(num_negatives=0), "num_negatives: expected at least 1"),
        (lambda: recall_at(torch.zeros(2, 3), torch.zeros(3, 2).bool(), 1), "relevant: expected shape"),
        (lambda: keep_blocks(CrossEncoder(queries=2, candidates=2, width=2), ()), "indices: expected numbers of blocks"),
        (lambda: RandomNegatives(torch.zeros(3, 1), torch.tensor([0, 0, 1]), torch.tensor([0]), num_negatives=2), "at most the 1 answers"),
        (lambda: RandomNegatives(torch.zeros(3, 1), torch.arange(2), torch.tensor([0]), num_negatives=1), "groups: expected one"),
        (lambda: RandomNegatives(torch.zeros(3, 1), torch.arange(3), torch.tensor([3]), num_negatives=1), "own: expected positions"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_negatives_are_of_other_groups_and_of_the_epoch_alone():
    groups = torch.arange(12) // 3
    negatives = RandomNegatives(torch.arange(12.0)[:, None], groups, torch.arange(0, 12, 3), num_negatives=6)
    batch = {"x": torch.zeros(4, 2), "id": torch.arange(4), "epoch": 0}
    drawn = negatives(batch)["x"]["candidates"].squeeze(-1).long()
    assert drawn.shape == (4, 7)
    assert drawn[:, 0].tolist() == [0, 3, 6, 9]
    assert (groups[drawn[:, 1:]] != groups[drawn[:, :1]]).all()
    assert all(len(set(row)) == 7 for row in drawn.tolist())
    part = negatives({"x": torch.zeros(2, 2), "id": torch.tensor([3, 1]), "epoch": 0})["x"]["candidates"].squeeze(-1).long()
    assert torch.equal(part, drawn[[3, 1]])
    later = negatives({**batch, "epoch": 1})["x"]["candidates"].squeeze(-1).long()
    assert not torch.equal(later, drawn)


def test_recall():
    scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 2.0]])
    right = torch.tensor([[False, True, False], [False, True, False], [True, False, True]])
    assert [recall_at(scores, right, k).tolist() for k in (1, 2)] == [[False, False, True], [True, True, True]]


def test_the_student_runs_on_the_chosen_candidates_alone():
    source, teacher, student = pairs()
    batch = next(source)
    sizes = []
    student.register_forward_pre_hook(lambda _, __, words: sizes.append(words["candidates"].shape), with_kwargs=True)
    terms = loss_of(DCD(num_negatives=2), batch, {"student": student, "teacher": teacher})
    assert sizes == [(6, 3, 4)]
    x, rows = batch["x"], torch.arange(6)[:, None]
    t = teacher(**x)
    chosen = select_candidates(t, 2)
    parts = dcd_loss(student(**x).gather(1, chosen), t[rows, chosen])
    torch.testing.assert_close(terms["distill"], parts.distill.sum())
    torch.testing.assert_close(terms["self"], parts.own.sum())


def test_remembered_scores_spare_the_teacher():
    source, teacher, student = pairs()
    batch = next(source)
    expected = loss_of(DCD(), batch, {"student": student, "teacher": teacher})
    assert loss_of(DCD(), {**batch, "teacher_scores": teacher(**batch["x"]).detach()}, {"student": student}) == expected


def test_masked_queries_change_nothing():
    source, teacher, student = pairs()
    batch, roles = next(source), {"student": student, "teacher": teacher}
    short = {"x": {key: value[:4] for key, value in batch["x"].items()}}
    masked = loss_of(DCD(), {**batch, "mask": torch.tensor([1, 1, 1, 1, 0, 0])}, roles)
    for name, value in loss_of(DCD(), short, roles).items():
        torch.testing.assert_close(masked[name], value)


def test_classes_are_candidates():
    torch.manual_seed(0)
    x, y = torch.randn(5, 3), torch.tensor([2, 0, 3, 1, 2])
    roles = {"student": torch.nn.Linear(3, 4), "teacher": torch.nn.Linear(3, 4)}
    order = torch.tensor([[label, *(c for c in range(4) if c != label)] for label in y.tolist()])
    s, t = (roles[name](x).gather(1, order) for name in ("student", "teacher"))
    chosen = select_candidates(t, 2)
    expected = dcd_loss(s.gather(1, chosen), t.gather(1, chosen))
    torch.testing.assert_close(loss_of(DCD(num_negatives=2), {"x": x, "y": y}, roles)["distill"], expected.distill.sum())


@pytest.mark.parametrize(
    "options",
    [
        {"num_negatives": 2},
        {"alpha": 0.5},
        {"selection": "random"},
        {"selection": "semi-hard"},
        {"weighting": "none"},
        {"weighting": "static"},
        {"weighting": "wsl"},
        {"align": "sorted"},
        {"self_loss": "ce"},
    ],
)
def test_every_field_changes_the_loss(options):
    source, teacher, student = pairs()
    batch, roles = next(source), {"student": student, "teacher": teacher}
    first, other = (sum(loss_of(DCD(**{"num_negatives": 3} | more), batch, roles).values()) for more in ({}, options))
    assert first != other


def test_a_student_of_some_blocks():
    _, teacher, student = pairs()
    assert len(student.blocks) == 2
    assert torch.equal(student.blocks[1].inner[1].weight, teacher.blocks[3].inner[1].weight)
    assert not any(p.requires_grad for p in (*student.query_encoder.parameters(), *student.candidate_encoder.parameters()))
    assert all(p.requires_grad for p in (*student.blocks.parameters(), *student.head.parameters()))
    assert all(p.requires_grad for p in teacher.parameters())


def test_training_moves_the_student_to_its_teacher():
    source, teacher, student = pairs()
    batch, roles = next(source), {"student": student, "teacher": teacher}
    encoder = student.query_encoder[0].weight.clone()
    before = loss_of(DCD(alpha=1.0), batch, roles)["distill"]
    fit_scorer(DCD(alpha=1.0), roles, source, steps=60, learning_rate=1e-2, seed=0)
    assert loss_of(DCD(alpha=1.0), batch, roles)["distill"] < 0.5 * before
    assert torch.equal(student.query_encoder[0].weight, encoder)


def test_miniature_is_complete():
    run = miniature(0, "smoke")
    assert set(run.arms) == {"teacher", "untrained-student", "random-ce", "hard-ce", "random-distilled", "static", "dcd"}
