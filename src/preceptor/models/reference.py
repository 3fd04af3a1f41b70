"""Small reference models: an MLP, a plain CNN and the CIFAR family of residual networks, each remade from its own configuration.

Every model keeps what it was built from in ``config``, a plain mapping that `build` turns into the same architecture again and that
`shrink` scales. Layers have names made for tapping: ``hidden1``... (MLP), ``block1``... (CNN), ``stem``, ``stage1``... (ResNet), and
``fc``, whose input ``"fc:input"`` is the embedding; with ``subclasses`` it is a `preceptor.models.subclasses.SubclassHead`, else linear.
Parameters are drawn from torch's global generator: same seed, same model.
"""

from __future__ import annotations

import difflib
import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from preceptor.models.subclasses import SubclassHead

Norm = Literal["none", "batch"]
"""``batch``: batch normalisation after each convolution, which then has no bias; ``none``: examples never influence each other."""

Activation = Literal["relu", "sigmoid"]
"""What stands between the layers of an `MLP`."""

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


class MLP(nn.Module):
    """Fully connected network; inputs of any shape are flattened.

    Args:
        inputs: numbers in one example (784 for 28 x 28 pixels).
        hidden: units of each hidden layer; empty for a linear model.
        classes: number of classes.
        activation: see `Activation`.
        subclasses: outputs per class; None for a linear head.
    """

    def __init__(
        self,
        *,
        inputs: int = 784,
        hidden: Sequence[int] = (400, 400),
        classes: int = 10,
        activation: Activation = "relu",
        subclasses: int | None = None,
    ) -> None:
        super().__init__()
        hidden = _positive("hidden", hidden)
        _positive("inputs, classes", (inputs, classes))
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation: expected {' or '.join(_ACTIVATIONS)}, got {activation!r}")
        self.config: dict[str, Any] = {
            "reference": "mlp",
            "inputs": inputs,
            "hidden": hidden,
            "classes": classes,
            **({} if activation == "relu" else {"activation": activation}),
            **_given(subclasses),
        }
        for i, (before, after) in enumerate(zip([inputs, *hidden], hidden, strict=False), start=1):
            layers: OrderedDict[str, nn.Module] = OrderedDict(
                [("linear", nn.Linear(before, after)), (activation, _ACTIVATIONS[activation]())]
            )
            self.add_module(f"hidden{i}", nn.Sequential(layers))
        self.fc = _class_head(hidden[-1] if hidden else inputs, classes, subclasses)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of inputs (N, ...)."""
        x = x.flatten(1)
        for layer in self.children():
            x = layer(x)
        return x


class CNN(nn.Module):
    """Plain convolutional network: blocks of 3 x 3 convolution, normalisation and ReLU, max pooling between them, mean pooling, linear.

    Args:
        channels: output channels of each block.
        width: multiplies every entry of ``channels`` (rounded, at least 1).
        in_channels: 1 for grey images, 3 for colour.
        classes: number of classes.
        norm: see `Norm`.
        grid: the last maps are averaged to ``grid`` x ``grid`` cells, so any image of at least ``2**(blocks - 1)`` pixels a side fits.
        subclasses: outputs per class; None for a linear head.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (32, 64, 128),
        width: float = 1.0,
        in_channels: int = 1,
        classes: int = 10,
        norm: Norm = "none",
        grid: int = 1,
        subclasses: int | None = None,
    ) -> None:
        super().__init__()
        channels = _scaled("width", _positive("channels", channels), width)
        _positive("in_channels, classes, grid", (in_channels, classes, grid))
        if not channels:
            raise ValueError("channels: expected at least one block, got none")
        self.config: dict[str, Any] = {
            "reference": "cnn",
            "channels": channels,
            "in_channels": in_channels,
            "classes": classes,
            "norm": norm,
            "grid": grid,
            **_given(subclasses),
        }
        for i, (before, after) in enumerate(zip([in_channels, *channels], channels, strict=False), start=1):
            layers = _conv(before, after, norm)
            layers["relu"] = nn.ReLU()
            if i < len(channels):
                layers["pool"] = nn.MaxPool2d(2)
            self.add_module(f"block{i}", nn.Sequential(layers))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(grid), nn.Flatten())
        self.fc = _class_head(channels[-1] * grid**2, classes, subclasses)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, in_channels, height, width)."""
        for layer in self.children():
            x = layer(x)
        return x


class ResNet(nn.Module):
    """Residual network for small images: a stem, three stages of basic blocks (the last two halve the maps), mean pooling, linear.

    He, Zhang, Ren, Sun 2015 (arXiv:1512.03385), Sec. 4.2: depth 6n + 2 with n blocks a stage.
    Deviation: where the shape changes the shortcut is a 1 x 1 convolution (the paper's option B), not zero padding.

    Args:
        depth: 8, 14, 20, 32, ...
        channels: channels of the three stages.
        width: multiplies every entry of ``channels`` (rounded, at least 1).
        in_channels: 1 for grey images, 3 for colour.
        classes: number of classes.
        norm: see `Norm`. With ``none`` each branch starts smaller by 1 / sqrt(blocks), so that the sum of the branches keeps its scale.
        subclasses: outputs per class; None for a linear head.
    """

    def __init__(
        self,
        *,
        depth: int = 20,
        channels: Sequence[int] = (16, 32, 64),
        width: float = 1.0,
        in_channels: int = 3,
        classes: int = 10,
        norm: Norm = "batch",
        subclasses: int | None = None,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth: expected 6n + 2 with n >= 1 (8, 14, 20, ...), got {depth}")
        channels = _scaled("width", _positive("channels", channels), width)
        if len(channels) != 3:
            raise ValueError(f"channels: expected 3 stages, got {len(channels)}")
        _positive("in_channels, classes", (in_channels, classes))
        self.config: dict[str, Any] = {
            "reference": "resnet",
            "depth": depth,
            "channels": channels,
            "in_channels": in_channels,
            "classes": classes,
            "norm": norm,
            **_given(subclasses),
        }
        blocks = (depth - 2) // 6
        scale = 1.0 if norm == "batch" else (3 * blocks) ** -0.5
        stem = _conv(in_channels, channels[0], norm)
        stem["relu"] = nn.ReLU()
        self.stem = nn.Sequential(stem)
        before = channels[0]
        for i, after in enumerate(channels, start=1):
            stage: list[nn.Module] = []
            for j in range(blocks):
                stage.append(_Residual(before, after, stride=2 if i > 1 and j == 0 else 1, norm=norm, scale=scale))
                before = after
            self.add_module(f"stage{i}", nn.Sequential(*stage))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = _class_head(before, classes, subclasses)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, in_channels, height, width)."""
        for layer in self.children():
            x = layer(x)
        return x


class _Residual(nn.Module):
    """Basic block: two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, *, stride: int, norm: Norm, scale: float) -> None:
        super().__init__()
        self.first = nn.Sequential(_conv(before, after, norm, stride=stride))
        self.relu = nn.ReLU()
        second = _conv(after, after, norm)
        self.second = nn.Sequential(second)
        with torch.no_grad():
            second["conv"].get_parameter("weight").mul_(scale)
        same = stride == 1 and before == after
        self.shortcut = nn.Identity() if same else nn.Sequential(_conv(before, after, norm, size=1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.shortcut(x) + self.second(self.relu(self.first(x))))


Reference = MLP | CNN | ResNet
"""The reference models."""

_FAMILIES: dict[str, type[Reference]] = {"mlp": MLP, "cnn": CNN, "resnet": ResNet}


def build(config: Mapping[str, Any]) -> Reference:
    """Build a reference model from its configuration: ``{"reference": "cnn", "width": 0.25, ...}``, the rest as the class takes it.

    Raises:
        ValueError: an unknown family or key (the nearest is named), or a value that the class refuses.
    """
    options = dict(config)
    family = options.pop("reference", None)
    if family not in _FAMILIES:
        near = difflib.get_close_matches(str(family), _FAMILIES, n=1, cutoff=0.0)[0]
        raise ValueError(f"reference: expected one of {', '.join(_FAMILIES)}, got {family!r} (nearest: {near})")
    known = inspect.signature(_FAMILIES[family]).parameters
    for key in options:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{family}: expected {', '.join(known)}, got {key!r} (nearest: {nearest})")
    return _FAMILIES[family](**options)


def shrink(model: nn.Module, factor: float) -> Reference:
    """Build a narrower model of the same family, with fresh weights: every hidden width is multiplied by ``factor``.

    Depth, inputs and classes stay. Parameters fall roughly with ``factor**2``.

    Args:
        model: a reference model; its own configuration says what it is.
        factor: above 0; 0.25 keeps a quarter of the units or channels of each layer (rounded, at least 1).
    Raises:
        TypeError: not a reference model.
        ValueError: factor <= 0.
    """
    if not isinstance(model, Reference):
        raise TypeError(f"shrink: expected a reference model ({', '.join(_FAMILIES)}), got {type(model).__name__}")
    config = dict(model.config)
    widths = "hidden" if isinstance(model, MLP) else "channels"
    config[widths] = _scaled("factor", config[widths], factor)
    return build(config)


def demo_teacher() -> CNN:
    """The teacher of the MNIST demonstration: 256,954 parameters, 67 times those of `demo_student`."""
    return CNN(channels=(16, 32, 96, 256), norm="batch")


def demo_student() -> CNN:
    """The student of the MNIST demonstration: 3,818 parameters, norm-free."""
    return CNN(channels=(8, 16), grid=4)


def _class_head(features: int, classes: int, subclasses: int | None) -> nn.Module:
    return nn.Linear(features, classes) if subclasses is None else SubclassHead(features, classes, subclasses)


def _given(subclasses: int | None) -> dict[str, int]:
    """Its entry in a configuration, which has none for a linear head."""
    return {} if subclasses is None else {"subclasses": subclasses}


def _positive(name: str, values: Sequence[int]) -> list[int]:
    if isinstance(values, str) or not isinstance(values, Sequence) or any(not isinstance(v, int) or v < 1 for v in values):
        raise ValueError(f"{name}: expected whole numbers of at least 1, got {values!r}")
    return list(values)


def _scaled(name: str, counts: Sequence[int], factor: float) -> list[int]:
    if not isinstance(factor, (int, float)) or factor <= 0:
        raise ValueError(f"{name}: expected a number above 0, got {factor!r}")
    return [max(1, round(count * factor)) for count in counts]


def _conv(before: int, after: int, norm: Norm, *, size: int = 3, stride: int = 1) -> OrderedDict[str, nn.Module]:
    """A convolution with He's initialisation, and its normalisation."""
    if norm not in ("none", "batch"):
        raise ValueError(f"norm: expected none or batch, got {norm!r}")
    conv = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=norm == "none")
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if norm == "batch":
        layers["norm"] = nn.BatchNorm2d(after)
    return layers
