"""Random views of images."""

import pytest
import torch
import torch.nn.functional as F

from preceptor.data.random_views import RandomViews

OFF = dict.fromkeys(("brightness", "contrast", "saturation", "hue", "gamma", "degrees", "shift", "scale", "flip", "noise"), 0.0)
OFF["blur"] = (1e-3, 1e-3)


def images(channels=3, seed=0):
    return torch.rand(6, channels, 8, 10, generator=torch.Generator().manual_seed(seed))


def view(x, seed=0, **options):
    return RandomViews(**options)(x, torch.Generator().manual_seed(seed))


def test_with_everything_off_it_is_the_image():
    torch.testing.assert_close(view(images(), **OFF), images(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_views_stay_in_the_box_and_depend_on_the_generator_alone(channels):
    x = images(channels)
    kept = x.clone()
    one = view(x)
    assert torch.equal(x, kept)
    assert one.shape == x.shape
    assert one.min() >= 0
    assert one.max() <= 1
    assert torch.equal(one, view(x))
    assert not torch.equal(one, view(x, seed=1))
    assert view(x.double()).dtype == torch.double


@pytest.mark.parametrize(
    "name", ["brightness", "contrast", "saturation", "hue", "gamma", "degrees", "shift", "scale", "flip", "noise", "blur"]
)
def test_every_option_changes_the_view(name):
    value = {"degrees": 15.0, "flip": 1.0, "blur": (0.5, 0.6)}.get(name, 0.3)
    assert (view(images(), **{**OFF, name: value}) - images()).abs().max() > 1e-3


def test_each_is_what_it_says():
    x = images()
    torch.testing.assert_close(view(x, **{**OFF, "flip": 1.0}), x.flip(3), rtol=0, atol=1e-5)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    calm = 0.4 + 0.2 * x  # far from the box, where nothing is clipped
    for name in ("saturation", "hue"):
        torch.testing.assert_close((view(calm, **{**OFF, name: 0.06}) * luma).sum(1), (calm * luma).sum(1), rtol=0, atol=1e-5)
    brighter = view(calm, **{**OFF, "brightness": 0.2}) / calm
    torch.testing.assert_close(brighter, brighter[:, :1, :1, :1].expand_as(brighter))
    assert brighter[:, 0, 0, 0].unique().numel() == 6
    offsets = torch.arange(-2, 3) ** 2 / -2.0
    kernel = offsets.exp()[:, None] * offsets.exp()
    blurred = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate").flatten(0, 1)[:, None], (kernel / kernel.sum())[None, None])
    torch.testing.assert_close(view(x, **{**OFF, "blur": (1.0, 1.0)}), blurred.reshape(x.shape), rtol=0, atol=1e-5)


def test_bad_input():
    with pytest.raises(ValueError, match=r"x: expected pixels in \[0, 1\], got -1 to 1"):
        view(torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2))
    with pytest.raises(ValueError, match="x: expected images"):
        view(torch.ones(2, 3))
    for options, message in (
        ({"hue": 2.0}, "hue: "),
        ({"blur": (0.0, 1.0)}, "blur: "),
        ({"gamma": 1.0}, "gamma: "),
        ({"noise": -1.0}, "noise"),
    ):
        with pytest.raises(ValueError, match=message):
            RandomViews(**options)
