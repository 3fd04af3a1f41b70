"""Lottery tickets: train, prune the smallest weights of the whole network, go back to where it started, repeat."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.utils import prune

_PRUNED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def iterative_pruning(network: nn.Module, train: Callable[[nn.Module], None], *, rounds: int, rate: float = 0.2) -> list[float]:
    """Find which weights a network can do without, in place.

    Frankle, Carbin 2019 (arXiv:1803.03635), Sec. 1; smallest magnitudes of all layers together, and rewound to weights that may have been
    trained a little, as Frankle, Dziugaite, Roy, Carbin 2020 (arXiv:1912.05671).

    Args:
        network: at the weights to go back to. Those of its linear and convolutional layers are pruned, biases are not. It comes back at
            these weights with the pruned ones 0, held there by masks (`torch.nn.utils.prune`) while it is trained.
        train: trains the network that it is given, by an optimizer of its own.
        rounds: at least 1.
        rate: share of what is left that each round prunes, in (0, 1); the number is rounded.
    Returns:
        The share pruned after each round, 1 - (1 - rate)^j after j.
    Raises:
        ValueError: a number is out of range, or the network has no such layer.
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    if not 0 < rate < 1:
        raise ValueError(f"rate: expected a number in (0, 1), got {rate}")
    weights = [(module, "weight") for module in network.modules() if isinstance(module, _PRUNED)]
    if not weights:
        raise ValueError(f"network: expected linear or convolutional layers, got {type(network).__name__}, which has none")
    for module, name in weights:
        prune.identity(module, name)
    start = {key: value.clone() for key, value in network.state_dict().items() if not key.endswith("weight_mask")}
    shares = []
    for _ in range(rounds):
        train(network)
        # What the layers hold as `weight` is from before the last update: it is made in each forward pass.
        sizes = {(module, name): module.get_parameter("weight_orig") for module, name in weights}
        prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, importance_scores=sizes, amount=rate)
        network.load_state_dict(start, strict=False)
        masks = [module.get_buffer("weight_mask") for module, _ in weights]
        shares.append(1 - sum(float(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks))
    return shares
