"""Causal networks over series: what they say at a step depends on this step and the earlier ones alone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SeriesGRU(nn.Module):
    """One layer of gated recurrent units (Cho et al. 2014, arXiv:1406.1078) and a linear output at every step.

    Args:
        inputs: numbers per step, D.
        outputs: numbers per step that come out, K.
        width: of the state.
        dropout: before the output.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int = 32, dropout: float = 0.1) -> None:
        super().__init__()
        self.recurrent, self.dropout, self.output = nn.GRU(inputs, width, batch_first=True), nn.Dropout(dropout), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, K)."""
        return self.output(self.dropout(self.recurrent(x)[0]))


class SeriesTCN(nn.Module):
    """Temporal convolutional network: residual blocks of two causal convolutions whose dilation doubles from block to block.

    Bai, Kolter, Koltun 2018 (arXiv:1803.01271), Sec. 3. There are as many blocks as it takes to see the first of ``steps`` from the last:
    a block of dilation d reaches back 2 d (kernel - 1) steps.
    Deviation: no weight normalisation; dropout on single values, not on whole channels.

    Args:
        inputs: numbers per step, D.
        outputs: numbers per step that come out, K.
        steps: length of the series that the last step is to see, T >= 1.
        width: channels.
        dropout: after each convolution.
        kernel: length of a convolution, at least 2.
    """

    def __init__(self, inputs: int, outputs: int, *, steps: int, width: int = 32, dropout: float = 0.1, kernel: int = 3) -> None:
        super().__init__()
        blocks, reach = [_Block(inputs, width, 1, kernel, dropout)], 1 + 2 * (kernel - 1)
        while reach < steps:
            dilation = 2 ** len(blocks)
            blocks.append(_Block(width, width, dilation, kernel, dropout))
            reach += 2 * dilation * (kernel - 1)
        self.reach = reach
        """Steps that an output sees, its own among them."""
        self.blocks, self.output = nn.Sequential(*blocks), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, K)."""
        return self.output(self.blocks(x.transpose(1, 2)).transpose(1, 2))


class _Block(nn.Module):
    def __init__(self, inputs: int, width: int, dilation: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(inputs, width, kernel, dilation=dilation), nn.Conv1d(width, width, kernel, dilation=dilation)
        self.skip = nn.Conv1d(inputs, width, 1) if inputs != width else nn.Identity()
        self.dropout, self.past = nn.Dropout(dropout), dilation * (kernel - 1)

    def forward(self, x: Tensor) -> Tensor:
        made = x
        for layer in (self.first, self.second):
            made = self.dropout(F.relu(layer(F.pad(made, (self.past, 0)))))
        return F.relu(made + self.skip(x))
