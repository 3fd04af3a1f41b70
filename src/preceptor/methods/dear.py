"""DeAR: a small reranker imitates a large one passage by passage; then a language model reorders the head of the list, window by window.

Paper: Abdallah, Mozafari, Piryani, Jatowt 2025, DeAR: Dual-Stage Document Reranking with Reasoning Agents via LLM Distillation
(arXiv:2508.16998).
Claim: a student of scores learns to rank from the teacher's preferences between passages far better than from clicks; a second stage that
reads windows of passages and reasons puts the head of its list right.
Equation, with scores s of student and t of teacher for the N passages of a query, and y the one that is labelled:
    L = (1 - a) L_main + a T^2 KL(softmax(t / T) || softmax(s / T)),   without a teacher L = L_main,
    ``ce``              -log softmax(s)_y
    ``ranknet``         mean_(i < j) [softplus(s_i - s_j) - sigmoid(t_i - t_j) (s_i - s_j)];  ``ranknet-binary``: t = [i = y]
    ``listnet``         KL(softmax(t) || softmax(s));  ``listnet-binary``: t = [i = y]
    ``ranknet-ce``      half ``ranknet-binary``, half ``ce``.
The losses are in `preceptor.losses.groups`, batches of text in `preceptor.data.passages`, networks in `preceptor.models.group_scorer`, the
second stage in `preceptor.teachers.listwise`, nDCG in `preceptor.metrics.ranking`. The second stage is trained by ``ce`` on the chats of
`ranking_messages` with the replies of a larger model.

A group is what a network returns a row of scores (B, N) for, and ``y`` the place of its positive: classes of an image will do.
``valid`` (B, N) in a batch is False for padding, ``teacher_x`` what the teacher reads in the place of ``x``, ``teacher_scores`` (B, N)
spare it.
Deviations, in the paper's code: passages are drawn for student and teacher apart (here once for both); windows of the second stage leave
out passages where their step does not divide the range (here the last window begins at the first rank); numbers in the text of a reply
count as identifiers even where there are bracketed ones. LambdaRank, which it names and cannot run, is a loss here and no ``main``. In
ragged groups the mean over pairs is taken query by query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.core.method import Method
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_choice, check_positive, check_unit_interval
from preceptor.losses.groups import listnet, positive_nll, ranknet
from preceptor.losses.numeric import upcast
from preceptor.miniature.claim import Claim
from preceptor.miniature.reranking import fit_ranker, search_world
from preceptor.miniature.run import Miniature, Size
from preceptor.models.taps import forward

CARD = Card(
    slug="dear",
    title="DeAR: rerankers in two stages",
    authors="Abdallah et al. 2025",
    arxiv="2508.16998",
    kind="ranking",
    tasks=("classification", "retrieval"),
    needs=("teacher", "logits", "labels"),
    equation="L = (1 - a) mean_(i < j) BCE(s_i - s_j, sigmoid(t_i - t_j)) + a T^2 KL(softmax(t / T) || softmax(s / T))",
    cost="one forward pass of the teacher over N passages per query; the second stage two answers of a language model per query",
    headline="nDCG@10 of 77.91 on DL19 and 75.63 on DL20 with 8B parameters (RankGPT-4 75.59 and 70.56)",
)

Main = Literal["ce", "ranknet", "ranknet-binary", "listnet", "listnet-binary", "ranknet-ce"]
"""Which loss stands beside the distillation, see the module."""


def main_loss(student: Tensor, teacher: Tensor | None, positive: Tensor, valid: Tensor | None = None, *, main: Main = "ranknet") -> Tensor:
    """The loss L_main of each query, in nats.

    Args:
        student: scores, shape (B, N).
        teacher: scores, same shape, constant; None where ``main`` needs none.
        positive: places of the labelled passages (B,).
        valid: bool (B, N), False for padding; None: there is none.
        main: see `Main`.
    Returns:
        Shape (B,), >= 0.
    Raises:
        TypeError: scores are not floating point.
        ValueError: shapes do not fit, an unknown ``main``, or one that needs the teacher without it.
    """
    check_choice(Main, main=main)
    if main == "ce":
        return positive_nll(student, positive, valid)
    if main in ("ranknet", "listnet"):
        if teacher is None:
            raise ValueError(f"teacher: expected scores for main {main!r}, got None")
        target = teacher
    else:
        target = F.one_hot(positive.long(), student.shape[-1]).to(upcast(student))
    if main.startswith("listnet"):
        return listnet(student, target, valid)
    pairs = ranknet(student, target, valid)
    return (pairs + positive_nll(student, positive, valid)) / 2 if main == "ranknet-ce" else pairs


def group_distill_loss(
    student: Tensor,
    teacher: Tensor | None,
    positive: Tensor,
    valid: Tensor | None = None,
    *,
    main: Main = "ranknet",
    temperature: float = 2.0,
    alpha: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Both terms of each query, weights applied; the second is 0, and the first whole, without a teacher.

    Args:
        student, teacher, positive, valid, main: see `main_loss`.
        temperature: T > 0.
        alpha: a in [0, 1].
    Returns:
        Two of shape (B,), >= 0.
    Raises:
        TypeError, ValueError: see `main_loss`; or a number is out of range.
    """
    check_positive(temperature=temperature)
    check_unit_interval(alpha=alpha)
    own = main_loss(student, teacher, positive, valid, main=main)
    if teacher is None:
        return own, torch.zeros_like(own)
    return (1 - alpha) * own, alpha * temperature**2 * listnet(student, teacher, valid, temperature=temperature)


@dataclass(frozen=True, kw_only=True)
class DeAR(Method):
    """The first stage: distillation of scores."""

    main: Main = "ranknet"  # one of the two families released, the other is "ce"
    temperature: float = 2.0  # T > 0; the released scripts
    alpha: float = 0.1  # a in [0, 1]; the released scripts, the library has 0.3

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_choice(Main, main=self.main)
        check_positive(temperature=self.temperature)
        check_unit_interval(alpha=self.alpha)

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's scores; none where there is no teacher."""
        if "teacher_scores" in batch:
            return {"scores": batch["teacher_scores"]}
        return {"scores": forward(roles["teacher"], batch.get("teacher_x", batch["x"])).logits} if "teacher" in roles else {}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return both terms, one value per query; without a teacher the first alone."""
        student, teacher = forward(roles["student"], batch["x"]).logits, signal.get("scores")
        options = {"main": self.main, "temperature": self.temperature, "alpha": self.alpha}
        own, distill = group_distill_loss(student, teacher, batch["y"], batch.get("valid"), **options)
        return {"main": own} if teacher is None else {"main": own, "distill": distill}


def miniature(seed: int, size: Size) -> Miniature:
    """Lists of 60 documents, ranked by students of 60 queries with a click each; then windows of the first 30 by a simulated agent.

    ``ndcg`` is nDCG@10 of the first stage, ``final`` after the second, where an arm has it: ``dear`` and ``ce-listwise`` with an agent
    whose noise is .6 deviations of relevance, ``untrained-agent`` by lot. ``untrained-teacher`` learns from scores mixed within a group.
    """
    world, steps = search_world(seed, size), 400 if size == "full" else 20
    trained = {
        "ce": DeAR(main="ce", alpha=0.0),
        "ranknet-binary": DeAR(main="ranknet-binary", alpha=0.0),
        "ce-distilled": DeAR(main="ce"),
        "ce-distilled-half": DeAR(main="ce", alpha=0.5),
        "distilled-only": DeAR(main="ce", alpha=1.0),
        "pointwise": DeAR(),
    }
    scores = {name: fit_ranker(world, method, steps=steps, seed=seed) for name, method in trained.items()}
    scores["untrained-student"] = fit_ranker(world, DeAR(), steps=0, seed=seed)
    scores["untrained-teacher"] = fit_ranker(world, DeAR(), steps=steps, seed=seed, shuffled=True)
    scores["teacher"] = world.teacher_scores
    measured = {name: {"ndcg": world.ndcg(found), "final": world.ndcg(found)} for name, found in scores.items()}
    agents = {"dear": ("pointwise", 0.6), "agent-sure": ("pointwise", 0.3), "agent-unsure": ("pointwise", 1.0), "ce-listwise": ("ce", 0.6)}
    for name, (first, noise) in {**agents, "untrained-agent": ("pointwise", float("inf"))}.items():
        measured[name] = {"ndcg": measured[first]["ndcg"], "final": world.listwise(scores[first], noise, seed=seed)}
    claims = (
        ("the teacher's preferences teach more than a click", "ce", "ndcg", 0.05),
        ("they teach more than the preference for the clicked document", "ranknet-binary", "ndcg", 0.05),
        ("they teach more than a click and a little distillation", "ce-distilled", "ndcg", 0.05),
        ("the same scores, mixed, teach less", "untrained-teacher", "ndcg", 0.05),
        ("the second stage puts the head of the list right", "pointwise", "final", 0.05),
        ("an agent that sorts by lot does not", "untrained-agent", "final", 0.05),
        ("a better first stage is worth something even then", "ce-listwise", "final", 0.0),
    )
    return Miniature(
        arms=measured,
        claims=tuple(Claim(name=n, method="dear", baseline=b, metric=m, margin=margin) for n, b, m, margin in claims),
        notes=(f"{len(world.train['y'])} queries, {steps} updates of every student; the agent is simulated, no language model is asked",),
    )
