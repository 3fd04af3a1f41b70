"""SKA, structured knowledge accumulation: sigmoid layers that change their own weights from forward passes, without labels or a loss.

Paper: Mahi 2025, Structured Knowledge Accumulation: The Principle of Entropic Least Action in Forward-Only Neural Learning
(arXiv:2504.03214); the rule itself is that of arXiv:2503.13942.
Claim: layers that each lower an entropy of their own come to structured representations, and curves at equal times eta k agree.
Equation, with the logits z of a layer's units, D = sigmoid(z), D' = D (1 - D), and d for what changed since the last step:
    H = -(1 / ln 2) sum z dD,   G = dH / dz = -(1 / ln 2) (z D' + dD),   W <- W - eta mean(A' G),   b <- b - eta mean(G),
for every layer after the whole forward pass; A is the input of the layer, after the first one that of the last step.
What it does: along a fine path H is the change of each unit's own binary entropy in bits, whichever the path
(`preceptor.losses.knowledge.entropy_between`). So on each input every unit is pushed farther to the side, 0 or 1, where it already is, and
nothing asks it to tell inputs apart: where inputs share a large mean all end on one side. It is an instrument for such dynamics, whose
curves come back, and no way to learn a task: docs/LOG.md has the numbers.
Deviations: what the last step would have said of the present batch is computed anew with the weights of then, so that differences are of
the same examples; with one batch of all examples this is the paper's code. The first paper writes dD outside 1 / ln 2 in three places; its
other equations and the code have it inside. There is no rule to stop by: the paper ends at eta k = 0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch.optim import Optimizer

from preceptor.core.method import Compute, Method, NonFinite
from preceptor.core.reduce import gathered
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_choice, check_positive
from preceptor.losses.knowledge import Net, diagnose, ska_gradient
from preceptor.losses.numeric import upcast
from preceptor.methods.ce import CrossEntropy
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.sigmoids import course, measured, sigmoid_world
from preceptor.models.sigmoids import chain, check_sigmoids, linear_layers
from preceptor.models.taps import forward

CARD = Card(
    slug="ska",
    title="Structured knowledge accumulation: forward-only learning from a local entropy",
    authors="Mahi 2025",
    arxiv="2504.03214",
    kind="forward-only",
    tasks=("classification",),
    needs=("sigmoids",),
    equation="W <- W + (eta / ln 2) mean(A' (z D' + dD)), D = sigmoid(z), in every layer; no labels, no loss, no backward pass",
    cost="three forward passes and one product of activations per layer and step, no backward pass; a copy of the weights",
    headline="1,000 images of MNIST: six pairs of step and number of steps with eta K = 0.5 give curves that overlap; no accuracy is given",
)

Inputs = Literal["previous", "current"]
"""Which activations an update multiplies after the first layer."""


@dataclass(frozen=True, kw_only=True)
class SKA(Method):
    """Logs what `diagnose` returns, and ``w_norm``, as ``NAME/LAYER``. Optimizer and microbatches have no effect; labels are not read."""

    gradient_free: ClassVar[bool] = True

    eta: float = 0.01  # length of a step in time, > 0; the paper, with 50 steps on one batch of 1,000
    net: Net = "code"  # sign in the log of the tensor net; the paper's curves are of its code
    inputs: Inputs = "previous"  # what updates after the first layer multiply; the paper's code, "current" is the plain gradient

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_positive(eta=self.eta)
        check_choice(Net, net=self.net)
        check_choice(Inputs, inputs=self.inputs)

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return nothing: there is no loss."""
        return {}

    @torch.no_grad()
    def update(self, compute: Compute, optimizer: Optimizer, batch: Batch, roles: Roles, state: State) -> None:
        """Compare two forward passes, with the weights of the step before and the present ones, and move every layer."""
        student = roles["student"]
        layers = linear_layers(student)
        if not any(key.startswith("ska/") for key in state.memory):
            check_sigmoids(student, batch["x"])
        first = f"{next(iter(layers))}:input"
        x = forward(student, batch["x"], (first,)).features[first]
        x = gathered(upcast(x[batch["mask"] > 0] if "mask" in batch else x))  # every process works on the batch as a whole
        now = {name: [upcast(p) for p in layer.parameters()] for name, layer in layers.items()}
        keys = {name: [f"ska/{name}/{i}" for i in range(len(now[name]))] for name in layers}
        before = [[torch.as_tensor(state.memory.get(key, p)).to(p) for key, p in zip(keys[n], now[n], strict=True)] for n in layers]
        (old_inputs, old), (new_inputs, new) = chain(x, before), chain(x, now.values())
        found, steps = {}, []
        for name, a, z, z_old in zip(layers, old_inputs if self.inputs == "previous" else new_inputs, new, old, strict=True):
            gradient = ska_gradient(z, z_old)
            steps.append([self.eta / max(len(x), 1) * g for g in (gradient.mT @ a, gradient.sum(dim=0))])
            report = diagnose(z, z_old, eta=self.eta, net=self.net) | {"w_norm": now[name][0].norm()}
            found |= {f"{key}/{name}": float(value) for key, value in report.items()}
        state.log |= found
        if not all(map(math.isfinite, found.values())):
            raise NonFinite("layers", state.step, found)
        for (name, layer), moves in zip(layers.items(), steps, strict=True):
            for key, p, move in zip(keys[name], layer.parameters(), moves, strict=False):  # a layer may have no bias
                state.memory[key] = p.detach().clone()
                if p.requires_grad:
                    p.sub_(move)


def miniature(seed: int, size: Size) -> Miniature:
    """The paper's run, 50 steps on 1,000 images of MNIST, beside cross-entropy with as many updates and the network as it starts.

    "current-inputs" multiplies each layer's gradient by its present inputs; "half-step" takes twice as many steps of half the length.
    """
    world, updates = sigmoid_world(seed, size), 49 if size == "full" else 4
    methods = {"ce": CrossEntropy(), "current-inputs": SKA(inputs="current"), "ska": SKA()}
    runs = {name: course(world, method, steps=updates, seed=seed) for name, method in methods.items()}
    runs["half-step"] = course(world, SKA(eta=0.005), steps=2 * updates, seed=seed, eta=0.005)
    runs["untrained"] = course(world, SKA(), steps=0, seed=seed)
    name = "structure without labels: the last hidden layer tells digits apart better than at the start"
    same_time = {"method": "ska", "baseline": "half-step", "metric": "entropy_time_2", "margin": -0.02}
    return Miniature(
        arms={name: measured(world, run, seed=seed) for name, run in runs.items()},
        claims=(
            Claim(name=name, method="ska", baseline="untrained", metric="linear_3"),
            Claim(name="with half the step the second layer's entropy is least at most 0.02 earlier", direction="lower", **same_time),
            Claim(name="with half the step the second layer's entropy is least at most 0.02 later", direction="higher", **same_time),
        ),
        notes=(f"{updates} updates on all {len(world.train)} images, of half-step twice as many; linear_0 probes the pixels",),
    )
