import re

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from preceptor.data.augment import Chain, Crop, Flip, Mixup, augmentation
from preceptor.data.examples import examples_from
from preceptor.data.hashing import integers, uniform


def data(size=30, channels=2, dtype=torch.float32):
    x = torch.rand(size, channels, 5, 7, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return examples_from((x, torch.arange(size) % 4))


def at(examples, positions, epoch):
    return {**examples.batch(torch.as_tensor(positions, dtype=torch.int64)), "epoch": epoch}


def all_of_them(examples):
    return [
        Crop(padding=2, seed=5),
        Flip(seed=5),
        Mixup(examples=examples, alpha=0.4),
        augmentation(examples, crop=3, flip=0.5, mixup=1.0, seed=2),
    ]


@pytest.mark.parametrize("which", range(4))
def test_a_view_does_not_depend_on_the_batch(which):
    examples = data()
    augment = all_of_them(examples)[which]
    whole = augment(at(examples, range(30), 3))
    parts = [augment(at(examples, part, 3)) for part in ([7, 2], [29], [], [2, 14, 7])]
    for part in parts:
        assert torch.equal(part["x"], whole["x"][part["id"]])
        assert ("targets" in part) == ("targets" in whole) == (which >= 2)
        if "targets" in part:
            assert torch.equal(part["targets"], whole["targets"][part["id"]])
    other_epoch = augment(at(examples, range(30), 4))["x"]
    assert not torch.equal(other_epoch, whole["x"])


@pytest.mark.parametrize("which", range(4))
def test_the_batch_is_not_edited(which):
    examples = data()
    batch = at(examples, range(10), 0)
    before = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    all_of_them(examples)[which](batch)
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[key], before[key]) for key in ("x", "y", "id"))


@pytest.mark.parametrize("which", range(4))
def test_ids_not_positions_decide(which):
    examples = data()
    augment = all_of_them(examples)[which]
    part = examples.subset([20, 4, 11])
    assert torch.equal(augment(at(part, [0, 1, 2], 1))["x"], augment(at(examples, [20, 4, 11], 1))["x"])


def test_crop_against_a_slow_loop():
    examples, padding = data(), 2
    batch = at(examples, range(30), 6)
    out = Crop(padding=padding, seed=9)(batch)["x"]
    top, left = (integers(5, batch["id"], 9, 6, draw) for draw in (1, 2))
    for i, image in enumerate(batch["x"]):
        padded = F.pad(image, (padding,) * 4)
        assert torch.equal(out[i], padded[:, top[i] : top[i] + 5, left[i] : left[i] + 7])


def test_crop_shifts_are_uniform_and_independent():
    x = torch.zeros(5000, 1, 9, 9)
    x[:, 0, 4, 4] = 1
    examples = examples_from((x, torch.zeros(5000, dtype=torch.int64)))
    place = Crop(padding=2)(at(examples, range(5000), 0))["x"].flatten(1).argmax(1)
    table = torch.bincount(place, minlength=81).reshape(9, 9)
    assert table[2:7, 2:7].sum() == 5000
    assert stats.chisquare(table[2:7, 2:7].flatten().numpy()).pvalue > 1e-3


def test_flip_mirrors_the_wanted_part():
    examples = data(3000, 1)
    batch = at(examples, range(3000), 0)
    out = Flip(rate=0.3)(batch)["x"]
    mirrored = (out == batch["x"].flip(3)).flatten(1).all(1)
    kept = (out == batch["x"]).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert abs(mirrored.double().mean() - 0.3) < 4 * (0.21 / 3000) ** 0.5
    assert torch.equal(Flip(rate=1.0)(batch)["x"], batch["x"].flip(3))


def test_augmentations_do_not_draw_the_same_numbers():
    ids = torch.arange(20000)
    draws = [uniform(ids, 0, 0, draw).numpy() for draw in range(1, 6)]
    assert all(abs(stats.pearsonr(a, b).statistic) < 4 / 20000**0.5 for i, a in enumerate(draws) for b in draws[:i])


def test_mixup_is_the_equation():
    examples = data(dtype=torch.double)
    view = Chain(steps=(Crop(padding=1), Flip()))
    batch = at(examples, range(30), 2)
    out = Mixup(examples=examples, alpha=0.7, view=view, seed=3)(batch)
    partners = integers(30, batch["id"], 3, 2, 4)
    ratios = stats.beta.ppf(uniform(batch["id"], 3, 2, 5).numpy(), 0.7, 0.7)
    own, other = view(batch)["x"], view(at(examples, partners, 2))["x"]
    for i, ratio in enumerate(ratios):
        torch.testing.assert_close(out["x"][i], ratio * own[i] + (1 - ratio) * other[i], rtol=0, atol=1e-5)
        targets = torch.zeros(4)
        targets[batch["y"][i]] += ratio
        targets[examples.labels[partners[i]]] += 1 - ratio
        torch.testing.assert_close(out["targets"][i], targets, rtol=0, atol=1e-5)
    assert torch.equal(out["y"], batch["y"])
    torch.testing.assert_close(out["targets"].sum(1), torch.ones(30))


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 2.0, 8.0, 50.0])
def test_ratios_follow_the_beta_distribution(alpha):
    examples = examples_from((torch.ones(4000, 1), torch.zeros(4000, dtype=torch.int64)), 2)
    batch = at(examples, range(4000), 0)
    batch["y"] = torch.ones(4000, dtype=torch.int64)  # partners are of class 0, so the targets show the ratio
    ratios = Mixup(examples=examples, alpha=alpha)(batch)["targets"][:, 1].double()
    expected = torch.from_numpy(stats.beta.ppf(uniform(batch["id"], 0, 0, 5).numpy(), alpha, alpha))
    torch.testing.assert_close(ratios, expected, rtol=0, atol=1e-5)


def test_mixup_draws_partners_from_the_whole_set():
    examples = data(30)
    mixed = [Mixup(examples=examples, alpha=1.0)(at(examples, [0], epoch))["targets"][0] for epoch in range(200)]
    partners = [integers(30, torch.tensor([0]), 0, epoch, 4).item() for epoch in range(200)]
    assert len(set(partners)) > 25
    assert len({tuple(t.nonzero()[:, 0].tolist()) for t in mixed}) == 4


def test_mapping_inputs():
    images = data(8)
    examples = examples_from(({"pixel_values": images.inputs, "scale": torch.ones(8, 1)}, images.labels))
    batch, plain = at(examples, range(8), 1), at(images, range(8), 1)
    view = Chain(steps=(Crop(padding=1), Flip()))
    out = view(batch)["x"]
    assert torch.equal(out["pixel_values"], view(plain)["x"])
    assert torch.equal(out["scale"], torch.ones(8, 1))
    mixed = Mixup(examples=examples)(batch)["x"]
    assert torch.equal(mixed["pixel_values"], Mixup(examples=images)(plain)["x"])
    torch.testing.assert_close(mixed["scale"], torch.ones(8, 1))


def test_bfloat16_stays():
    examples = data(6, dtype=torch.bfloat16)
    out = augmentation(examples, crop=1, flip=0.5, mixup=0.2)(at(examples, range(6), 0))
    assert (out["x"].dtype, out["targets"].dtype) == (torch.bfloat16, torch.float32)
    assert out["x"].isfinite().all()


def test_off_is_none_and_a_description_tells_settings_apart():
    examples = data()
    assert augmentation(examples) is None
    settings = [{"crop": 1}, {"crop": 2}, {"flip": 0.5}, {"mixup": 0.2}, {"mixup": 0.4}, {"crop": 1, "mixup": 0.2}, {"crop": 1, "seed": 1}]
    assert len({repr(augmentation(examples, **setting)) for setting in settings}) == len(settings)
    assert repr(augmentation(examples, mixup=0.2)) == repr(augmentation(data(), mixup=0.2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Crop(padding=0), "padding: expected at least 1 pixel, got 0"),
        (lambda: Flip(rate=0.0), "rate: expected a number in (0, 1], got 0.0"),
        (lambda: Flip(rate=1.5), "rate: expected a number in (0, 1], got 1.5"),
        (lambda: Mixup(examples=data(), alpha=0.0), "alpha: expected a number above 0, got 0.0"),
        (
            lambda: Flip()({"x": torch.zeros(2, 3), "id": torch.arange(2), "epoch": 0}),
            "x: expected one tensor of images (N, channels, height, width), got (2, 3)",
        ),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def test_mixup_refuses_whole_numbers():
    examples = examples_from((torch.arange(4)[:, None], torch.arange(4)))
    with pytest.raises(TypeError, match=r"^x: expected floating point inputs to mix, got torch.int64$"):
        Mixup(examples=examples)(at(examples, [0], 0))
