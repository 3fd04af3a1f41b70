"""How often a classifier is right under attack: under one, and in the worst case of several of different kinds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from preceptor.core.types import Batch
from preceptor.data.perturb import Attack, margin_attack, pgd, random_search
from preceptor.metrics.cost import device_of
from preceptor.metrics.evaluate import predict


def withstands(model: nn.Module, batches: Iterable[Batch], attacks: Sequence[Attack]) -> Tensor:
    """Whether a classifier is right about an example, untouched and under each of the attacks.

    Croce, Hein 2020 (arXiv:2003.01690), Sec. 4.2: an attack sees only the examples that withstood those before it, and one success of any
    counts. No evaluation is a proof: what is returned is an upper bound of robust accuracy.

    Args:
        model: a classifier, on its device; it runs in eval mode for a moment.
        batches: with ``x``, ``y`` and ``id``; for a source, ``source.scan()``.
        attacks: cheap ones first; none: plain accuracy.
    Returns:
        Shape (N,), 0 or 1, float32, on the CPU.
    Raises:
        ValueError: no example in all batches.
    """
    device, withstood = device_of(model), []
    for batch in batches:
        x, y = batch["x"].to(device), batch["y"].to(device)
        standing = torch.arange(len(y), device=device)
        for attack in (None, *attacks):
            if len(standing):
                own = y[standing]
                tried = x[standing] if attack is None else attack(model, x[standing], own)
                said = predict(model, [{"x": tried, "y": own, "id": standing}])
                standing = standing[(said.logits.argmax(dim=1) == said.labels).to(device)]
        withstood.append(torch.zeros(len(y)).index_fill(0, standing.cpu(), 1.0))
    if not sum(map(len, withstood)):
        raise ValueError("batches: expected at least one example, got none")
    return torch.cat(withstood)


def pgd_of(epsilon: float, *, steps: int = 20, box: tuple[float, float] | None = (0.0, 1.0), seed: int | None = 0) -> Attack:
    """Projected gradient ascent of the cross-entropy with steps of 2.5 epsilon / steps, as Madry et al. 2017 (arXiv:1706.06083).

    Args:
        epsilon: radius in the maximum norm, > 0, in units of inputs.
        steps: >= 1.
        box: least and largest value of inputs; None for none.
        seed: of the start, drawn in the ball anew by every call; None starts at the inputs.
    Returns:
        An attack.
    """

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return pgd(model, x, y, epsilon=epsilon, step_size=2.5 * epsilon / steps, steps=steps, box=box, generator=generator)

    return attack


def several(
    epsilon: float, *, steps: int = 20, targets: int = 3, trials: int = 100, box: tuple[float, float] | None = (0.0, 1.0), seed: int = 0
) -> tuple[Attack, ...]:
    """Attacks of different kinds, after the example of AutoAttack (Croce, Hein 2020, arXiv:2003.01690).

    PGD on the cross-entropy, on the lead of any other class, on those of the ``targets`` likeliest other classes one by one, and a random
    search without gradients. Deviations: fixed steps and leads instead of AutoAttack's adaptive steps and ratios of leads, no FAB.

    Args:
        epsilon, steps, box: as for `pgd_of`.
        targets: from 0 to one less than the number of classes.
        trials: of the random search, >= 1.
        seed: of every start and of the search.
    Returns:
        Attacks for `withstands`.
    """

    def drawn() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def lead(model: nn.Module, x: Tensor, y: Tensor, *, rank: int | None) -> Tensor:
        size = 2.5 * epsilon / steps
        return margin_attack(model, x, y, epsilon=epsilon, step_size=size, steps=steps, box=box, generator=drawn(), rank=rank)

    def search(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return random_search(model, x, y, epsilon=epsilon, steps=trials, box=box, generator=drawn())

    return (
        pgd_of(epsilon, steps=steps, box=box, seed=seed),
        *(partial(lead, rank=rank) for rank in (None, *range(1, targets + 1))),
        search,
    )
