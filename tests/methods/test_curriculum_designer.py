"""curriculum-designer: the stream of its experiment, what an arm is worth, and the experiment itself."""

import itertools

import torch

from preceptor.data.class_orders import class_distance
from preceptor.data.datasets import load
from preceptor.methods.curriculum_designer import digit_stream, features_of, from_other_seeds, judged, miniature, top


def test_teachers_have_seen_no_digit_of_the_stream():
    stream, teachers = digit_stream(0, classes=5, images=50)
    digits = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    assert torch.bincount(stream.train.labels).tolist() == [50] * 5
    assert stream.train.num_classes == stream.test.num_classes == stream.network(0).config["classes"] == 5
    whole = load("digits").train
    for place, label in enumerate(digits[:5].tolist()):
        first = whole.batch((whole.labels == label).nonzero()[:50, 0])["x"]
        assert torch.equal(stream.train.batch((stream.train.labels == place).nonzero()[:, 0])["x"], first)
    for place, label in enumerate(digits[5:].tolist()):
        others = whole.batch((whole.labels == label).nonzero()[:, 0])["x"]
        assert (teachers["teacher"](others).argmax(dim=1) == place).float().mean() > 0.8
    features = {name: features_of(model, stream.train) for name, model in teachers.items()}
    assert all(values.shape == (250, 64) for values in features.values())
    distances = [class_distance(values, stream.train.labels) for values in features.values()]
    assert not torch.allclose(*distances)


def test_a_network_depends_on_its_seed_alone():
    stream, _ = digit_stream(0, classes=4, images=8)
    one, same, other = (torch.cat([p.flatten() for p in stream.network(seed).parameters()]) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_what_a_ranking_is_worth():
    quality = torch.rand(24, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    best = judged(quality, top(quality), quality)
    assert best["spearman"] == 1
    assert abs(best["f"] - quality.sort(descending=True).values[:4].mean().item()) < 1e-12
    worst = judged(-quality, top(-quality), quality)
    assert worst["spearman"] == -1
    assert worst["f"] < quality.mean() < best["f"]
    everything = judged(torch.zeros(24), torch.arange(24), quality)
    assert everything["spearman"] == 0
    assert abs(everything["f"] - quality.mean().item()) < 1e-12


def test_the_ceiling_is_1_without_noise_and_a_seed_never_ranks_itself():
    one = torch.rand(24, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    assert from_other_seeds(one.expand(3, 24))["spearman"] == 1
    assert from_other_seeds(torch.stack([one, -one]))["spearman"] == -1


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {"untrained-teacher", "curriculum-designer", "of-ranks", "fill", "all-orders", "other-seeds"}
    for arm in run.arms.values():
        assert arm.keys() == {f"{who}_{what}" for who, what in itertools.product(("naive", "replay"), ("f", "spread", "spearman"))}
    assert run.arms["all-orders"]["naive_spearman"] == 0
