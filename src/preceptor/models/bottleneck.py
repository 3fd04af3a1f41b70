"""The projector of self-distillation: an MLP, then a narrow layer whose output is brought to length 1, then weights of length 1."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BottleneckProjector(nn.Module):
    """Embeddings (N, r) -> logits (N, m) in [-1, 1].

    Sarnthein, Bachmann, Anagnostidis, Hofmann 2023 (arXiv:2302.12091), after Caron et al. 2021 (arXiv:2104.14294): with GELU between them,
        z = W h + b,   z' = z / max(|z|, 1e-12),   y_i = <V_i, z'> / max(|V_i|, 1e-12).
    Weights are drawn from a normal of deviation 0.02 cut at +-2, biases are 0.

    Args:
        inputs: r.
        hidden: widths of the hidden layers.
        bottleneck: length of z.
        outputs: m.
        unit_features: whether z is brought to length 1.
        unit_weights: whether rows of V are; gradients flow through it.
    Raises:
        ValueError: a width is below 1.
    """

    def __init__(
        self,
        *,
        inputs: int,
        hidden: Sequence[int] = (2048, 2048),
        bottleneck: int = 256,
        outputs: int = 2**16,
        unit_features: bool = True,
        unit_weights: bool = True,
    ) -> None:
        super().__init__()
        widths = (inputs, *hidden, bottleneck)
        if min(*widths, outputs) < 1:
            raise ValueError(f"widths: expected at least 1 everywhere, got {(*widths, outputs)}")
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(widths))
        self.last = nn.Linear(bottleneck, outputs, bias=False)
        self.unit_features, self.unit_weights = unit_features, unit_weights
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for layer in (*self.layers, self.last):
            assert isinstance(layer, nn.Linear)
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        for number, layer in enumerate(self.layers):
            x = layer(F.gelu(x) if number else x)
        weight = self.last.weight
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(weight.dtype)
            x = F.normalize(x, dim=1) if self.unit_features else x
            return F.linear(x, F.normalize(weight, dim=1) if self.unit_weights else weight)
