"""Direct coverage optimisation: train the chance that one of N samples is right, not the chance that one sample is.

Paper: Chen, Raventos, Cheng, Ganguli, Druckmann 2025, Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting Confidence Improves
Mathematical Reasoning (arXiv:2502.07154).
Claim: cross-entropy makes a model overconfident, so that pass@N falls while pass@1 still rises; trained for coverage, pass@N keeps rising.
Equation, with log p = sum over the answer's tokens of log p(y_t | y_<t, x):
    L = -log(1 - (1 - p)^N),   dL = -F d log p,   F = N p (1 - p)^(N - 1) / (1 - (1 - p)^N).
N = 1 is cross-entropy. F falls from 1 at p = 0 to 0 at p = 1, and around p = 1/N it switches off: F = c / (e^c - 1) at N p = c.
Examples with F at most ``threshold`` are left out and others drawn in their place; what was drawn too much waits for the next batch (on
several processes it is dropped). Where nothing unsure is found the batch is trained on as it is.

Deviations: the released code back-propagates F times the cross-entropy, whose gradient is that of L; its token mean is ``per_token``. It
takes F from a series where N p < 0.1, at most 1.31e-4 off; here F is exact. Answers whose chance is measured by sampling reasoning traces
need a verifier and are left out of the method: `confidence_factor` takes the logarithm of any measured chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from preceptor.core.method import Method, evaluating
from preceptor.core.reduce import gathered, num_examples, world_size
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.data.datasets import load
from preceptor.data.rows import join, keep_rows, kept_rows, take
from preceptor.losses.checks import check_unit_interval
from preceptor.losses.coverage import check_samples, confidence_factor, coverage_loss
from preceptor.losses.linear import linear_log_probs
from preceptor.metrics.coverage import coverage
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.toys import Halves, fit_rows
from preceptor.miniature.worlds import seeded
from preceptor.models.heads import head, hidden_states
from preceptor.models.taps import forward

CARD = Card(
    slug="confidence-limit",
    title="Direct coverage optimisation",
    authors="Chen et al. 2025",
    arxiv="2502.07154",
    kind="labels",
    tasks=("language",),
    needs=("labels",),
    equation="L = -log(1 - (1 - p)^N), log p = sum over answer tokens of log p(y_t | y_<t, x)",
    cost="one more forward pass per example drawn where the filter is on",
    headline="Llama-3-8B on MATH, cross-entropy from epoch 1 to 4: pass@1 4.4 to 7.4 %, pass@256 65.2 to 44.5 %",
)


@dataclass(frozen=True, kw_only=True)
class DCO(Method):
    """Fine-tuning that optimises pass@N, with a filter that leaves out what is already sure."""

    num_samples: float = 64.0  # N >= 1, samples at test time; Sec. 4: as many as will be drawn, 64 in the paper's experiment with reasoning
    threshold: float = 0.1  # examples with F at most this are replaced, 0 keeps all; released code
    most_draws: int = 8  # batches drawn at most to fill one; our own bound: late in training few examples may be left
    per_token: bool = False  # divide each loss by its number of answer tokens; the paper's equation does not, the released code does

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_samples(self.num_samples)
        check_unit_interval(threshold=self.threshold)
        if self.most_draws < 0:
            raise ValueError(f"most_draws: expected a number >= 0, got {self.most_draws}")

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Replace examples that are sure by others, and count only those with an answer."""
        if self.threshold > 0:
            batch = self._filled(batch, roles["student"], state)
        answered = (batch["mask"] != 0).any(dim=1)
        if not answered.all():
            state.log["unanswered"] = float((~answered).sum())
        return {**batch, "mask/coverage": answered}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return one value per answer."""
        loss = coverage_loss(answer_log_probs(roles["student"], batch), num_samples=self.num_samples)
        return {"coverage": loss / (batch["mask"] != 0).sum(dim=1).clamp(min=1) if self.per_token else loss}

    def _filled(self, batch: Batch, student: nn.Module, state: State) -> Batch:
        """As many unsure examples as the batch has: left over from the last batch, of this one, and of further ones."""
        batch = {key: value for key, value in batch.items() if not isinstance(value, list)}
        wanted, device = num_examples(batch), batch["y"].device
        found = [self._unsure(batch, student)]
        if "spare/y" in state.memory:
            found.insert(0, kept_rows(state.memory, "spare", batch))
        draws = 0
        while draws < self.most_draws and state.source is not None:
            missing = torch.tensor([wanted - sum(map(num_examples, found))], device=device)
            if int(gathered(missing).max()) <= 0:  # processes draw in step: their sources have one position
                break
            more = send_to_device(next(state.source), device)
            found.append(self._unsure({key: value for key, value in more.items() if key in batch}, student))
            draws += 1
        state.log["draws"] = float(1 + draws)
        rows = join(found)
        total = num_examples(rows)
        if world_size() == 1:  # a checkpoint holds the memory of one process
            keep_rows(state.memory, "spare", take(rows, torch.arange(min(wanted, total), total)))
        return take(rows, torch.arange(min(wanted, total))) if total else batch

    def _unsure(self, batch: Batch, student: nn.Module) -> Batch:
        with evaluating(student):
            factor = confidence_factor(answer_log_probs(student, batch), num_samples=self.num_samples)
        return take(batch, factor > self.threshold)


def answer_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probability of each whole answer, the tokens of ``y`` that ``mask`` counts: (N,)."""
    return linear_log_probs(hidden_states(model, batch["x"]), head(model), batch["y"], mask=batch["mask"]).sum(dim=1)


def miniature(seed: int, size: Size) -> Miniature:
    """Read two noisy digits as one of 100 answers: coverage of k guesses, from exact probabilities, after training for 1, 4, 16 and 64.

    "ce" is the method with N = 1. "ce-early" is cross-entropy stopped after a third of the updates, "ce-softened" cross-entropy whose
    logits are divided by the temperature with the largest pass@16 on the validation part.
    """
    world = _pairs(seed, size)
    steps = 1800 if size == "full" else 60
    students: dict[str, nn.Module] = {"untrained-student": _reader(seed)}
    for name, num_samples, updates in (
        ("ce", 1, steps),
        ("ce-early", 1, steps // 3),
        ("confidence-limit-4", 4, steps),
        ("confidence-limit", 16, steps),
        ("confidence-limit-64", 64, steps),
    ):
        students[name] = student = _reader(seed)
        method = DCO(num_samples=num_samples, threshold=0.0)
        fit_rows(method, {"student": student}, world["train"], batch_size=50, learning_rate=1e-3, steps=updates, seed=seed)
    temperatures = [2 ** (i / 4) for i in range(1, 17)]
    best = max(temperatures, key=lambda t: _measure(students["ce"], world["valid"], t)["pass@16"])
    arms = {name: _measure(student, world["test"]) for name, student in students.items()}
    arms["ce-softened"] = _measure(students["ce"], world["test"], best)
    return Miniature(
        arms=arms,
        claims=(
            Claim(name="training for 16 samples covers more with 16", method="confidence-limit", baseline="ce", metric="pass@16"),
            Claim(name="training for 16 samples covers more with 64", method="confidence-limit", baseline="ce", metric="pass@64"),
            Claim(
                name="it covers more with 64 than cross-entropy stopped early",
                method="confidence-limit",
                baseline="ce-early",
                metric="pass@64",
            ),
        ),
        notes=(f"{num_examples(world['train'])} training pairs, {steps} updates of every student, a third of them for ce-early",),
    )


def _pairs(seed: int, size: Size) -> dict[str, Batch]:
    """Ordered pairs of digits with noise (pixels are in [0, 1]), answer 10 a + b; the parts share no digit."""
    generator = torch.Generator().manual_seed(seed)
    data = load("digits")
    pools = {"train": data.train.subset(torch.arange(0, 900)), "valid": data.train.subset(torch.arange(900, 1250)), "test": data.test}
    counts = {"train": 1500, "valid": 1000, "test": 3000} if size == "full" else {"train": 300, "valid": 100, "test": 300}
    world = {}
    for part, pool in pools.items():
        chosen = pool.batch(torch.randint(len(pool), (2 * counts[part],), generator=generator))
        x = chosen["x"].flatten(1) + 0.35 * torch.randn(2 * counts[part], 64, generator=generator)
        tens, ones = chosen["y"].view(-1, 2).unbind(1)
        y = (10 * tens + ones)[:, None]
        inputs = {"input_ids": x.view(counts[part], 1, 128)}
        world[part] = {"x": inputs, "y": y, "mask": torch.ones_like(y), "id": torch.arange(counts[part])}
    return world


def _reader(seed: int) -> nn.Module:
    """A network 128-256-100: an answer is one token."""
    return seeded(lambda: Halves(nn.Sequential(nn.Linear(128, 256), nn.ReLU()), nn.Linear(256, 100)), seed)


@torch.no_grad()
def _measure(student: nn.Module, pairs: Batch, temperature: float = 1.0) -> dict[str, float]:
    """pass@k, accuracy of the likeliest answer, and its mean probability."""
    probabilities = (forward(student, pairs["x"]).logits[:, 0].double() / temperature).softmax(-1)
    right = probabilities.gather(1, pairs["y"])
    confidence, answer = probabilities.max(dim=1)
    measured = {f"pass@{k}": float(coverage(right, k).mean()) for k in (1, 4, 16, 64)}
    return {**measured, "accuracy": float((answer == pairs["y"][:, 0]).double().mean()), "confidence": float(confidence.mean())}
