"""Random views of images for methods that compare a model's answers about them, drawn from a generator that is checkpointed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_GREY = (0.299, 0.587, 0.114)  # luma of red, green and blue; Rec. 601


@dataclass(frozen=True, kw_only=True)
class RandomViews:
    """Colours, a small affine map, blur, mirror and noise, drawn for every image by itself.

    The list and its ranges are those of Wang et al. 2022, CoTTA (arXiv:2203.13591), also used by RMT (arXiv:2211.13081).
    Deviations: they draw once for a batch and turn hues in HSV; here each image has its own draws, and hue turns the plane of colours at
    constant luma. Beyond the border the nearest pixel is repeated, as after their padding.

    Args:
        brightness: factor in 1 +- this, in [0, 1].
        contrast: factor of the distance to the mean luma in 1 +- this.
        saturation: factor of the distance to grey in 1 +- this; for three channels alone.
        hue: turn in +- this part of the circle; for three channels alone.
        gamma: exponent in 1 +- this, below 1.
        degrees: largest turn of the image.
        shift: largest move along each axis, as a part of the side; theirs is 1/16 of an image padded to twice its size.
        scale: factor of the size in 1 +- this, below 1.
        blur: range of the deviation of a 5 x 5 Gaussian in pixels, > 0.
        flip: probability of mirroring left and right.
        noise: standard deviation, >= 0.
    """

    brightness: float = 0.4
    contrast: float = 0.3
    saturation: float = 0.5
    hue: float = 0.06
    gamma: float = 0.3
    degrees: float = 15.0
    shift: float = 1 / 8
    scale: float = 0.1
    blur: tuple[float, float] = (0.001, 0.5)
    flip: float = 0.5
    noise: float = 0.005

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "hue", "gamma", "shift", "scale", "flip"):
            if not 0 <= vars(self)[name] <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1], got {vars(self)[name]}")
        if not 0 < self.blur[0] <= self.blur[1]:
            raise ValueError(f"blur: expected 0 < least <= largest deviation, got {self.blur}")
        for name in ("gamma", "scale"):
            if vars(self)[name] == 1:
                raise ValueError(f"{name}: expected a number below 1, got 1")
        if not (self.degrees >= 0 and self.noise >= 0):
            raise ValueError(f"degrees, noise: expected numbers >= 0, got {self.degrees}, {self.noise}")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """One view of each image, without gradient.

        Args:
            x: images, shape (N, channels, height, width), floating point, pixels in [0, 1].
            generator: on the CPU.

        Returns:
            Same shape and dtype, pixels in [0, 1].

        Raises:
            ValueError: not images, or pixels outside [0, 1].
        """
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(f"x: expected images (N, channels, height, width) of floats, got {tuple(x.shape)} of {x.dtype}")
        if x.numel() and not 0 <= float(x.min()) <= float(x.max()) <= 1:
            raise ValueError(f"x: expected pixels in [0, 1], got {float(x.min()):.3g} to {float(x.max()):.3g}")
        draws = (2 * torch.rand(len(x), 11, generator=generator) - 1).to(x.device).unbind(dim=1)  # uniform in [-1, 1)
        noise = torch.randn(x.shape, generator=generator).to(x.device)
        view = x.detach().float()
        view = self._coloured(view, draws[:5])
        view = self._moved(view, draws[5:9])
        view = _blurred(view, self.blur[0] + (self.blur[1] - self.blur[0]) * (draws[9] + 1) / 2)
        view = torch.where(_per_image((draws[10] + 1) / 2 < self.flip), view.flip(3), view)
        return (view + self.noise * noise).clamp(0, 1).to(x.dtype)

    def _coloured(self, x: Tensor, draws: tuple[Tensor, ...]) -> Tensor:
        brightness, contrast, saturation, gamma = (
            _per_image(1 + size * draw)
            for size, draw in zip((self.brightness, self.contrast, self.saturation, self.gamma), draws[:4], strict=True)
        )
        x = (x * brightness).clamp(0, 1)
        middle = _luma(x).mean(dim=(1, 2, 3), keepdim=True)
        x = (middle + contrast * (x - middle)).clamp(0, 1)
        if x.shape[1] == 3:
            luma = _luma(x)
            x = (luma + saturation * _turned(x - luma, 2 * math.pi * self.hue * draws[4])).clamp(0, 1)
        return x**gamma

    def _moved(self, x: Tensor, draws: tuple[Tensor, ...]) -> Tensor:
        angle, size = math.radians(self.degrees) * draws[0], 1 + self.scale * draws[1]
        height, width = x.shape[2:]
        cos, sin = angle.cos() / size, angle.sin() / size
        rows = [torch.stack([cos, -sin * height / width, 2 * self.shift * draws[2]], 1)]
        rows.append(torch.stack([sin * width / height, cos, 2 * self.shift * draws[3]], 1))
        grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _luma(x: Tensor) -> Tensor:
    """Luma of colour images, the mean of the channels of all others: (N, 1, height, width)."""
    if x.shape[1] != 3:
        return x.mean(dim=1, keepdim=True)
    return (x * x.new_tensor(_GREY)[:, None, None]).sum(dim=1, keepdim=True)


def _turned(colours: Tensor, angle: Tensor) -> Tensor:
    """Colours of luma 0, turned in their plane by angles (N,) in radians."""
    grey = colours.new_tensor(_GREY)
    first = torch.linalg.cross(grey, colours.new_tensor([0.0, 0.0, 1.0]))
    first = first / first.norm()
    second = torch.linalg.cross(grey / grey.norm(), first)
    a, b = ((colours * axis[:, None, None]).sum(dim=1, keepdim=True) for axis in (first, second))
    cos, sin = _per_image(angle.cos()), _per_image(angle.sin())
    return (a * cos - b * sin) * first[:, None, None] + (a * sin + b * cos) * second[:, None, None]


def _blurred(x: Tensor, deviation: Tensor) -> Tensor:
    """A Gaussian of 5 x 5 pixels with its own deviation (N,) for every image; the border is repeated."""
    offsets = torch.arange(-2, 3, device=x.device)
    kernel = torch.softmax(-(offsets**2) / (2 * deviation[:, None] ** 2), dim=1)
    kernel = kernel.repeat_interleave(x.shape[1], dim=0)  # (N channels, 5)
    flat = F.pad(x.reshape(1, -1, *x.shape[2:]), (2, 2, 2, 2), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=len(kernel))
    return F.conv2d(flat, kernel[:, None, None, :], groups=len(kernel)).reshape(x.shape)
