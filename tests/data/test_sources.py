import gc
import json
import multiprocessing
import os
import re
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from preceptor.core.stream import Stream
from preceptor.data.augment import augmentation
from preceptor.data.examples import examples_from
from preceptor.data.samplers import Weighted
from preceptor.data.sources import Source


class Noisy(Dataset):
    def __len__(self):
        return 11

    def __getitem__(self, index):
        return torch.rand(3) + np.random.rand(), index % 3


def tensors(size=11):
    return examples_from((torch.rand(size, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(size) % 3))


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key], key


def take(source, count):
    return list(islice(source, count))


def test_every_epoch_holds_every_example_once_in_another_order():
    source = Source(tensors(), batch_size=4, seed=1)
    assert isinstance(source, Stream)
    assert source.batches_per_epoch == 3
    epochs = [take(source, 3) for _ in range(3)]
    assert [[b["epoch"] for b in epoch] for epoch in epochs] == [[0] * 3, [1] * 3, [2] * 3]
    orders = [torch.cat([b["id"] for b in epoch]).tolist() for epoch in epochs]
    assert [len(b["id"]) for b in epochs[0]] == [4, 4, 3]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert len({tuple(order) for order in [*orders, list(range(11))]}) == 4


def test_order_is_that_of_the_data_without_shuffle_and_another_with_another_seed():
    assert torch.cat([b["id"] for b in take(Source(tensors(), batch_size=4, shuffle=False), 3)]).tolist() == list(range(11))
    first, second = (next(Source(tensors(1000), batch_size=1000, seed=seed))["id"] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_drop_last():
    source = Source(tensors(), batch_size=4, drop_last=True)
    assert source.batches_per_epoch == 2
    assert [(len(b["id"]), b["epoch"]) for b in take(source, 4)] == [(4, 0), (4, 0), (4, 1), (4, 1)]


@pytest.mark.parametrize(("workers", "stop"), [*((0, stop) for stop in range(8)), (2, 3), (2, 4)])
@pytest.mark.parametrize("data", [tensors(), Noisy()], ids=["memory", "lazy"])
def test_resume_in_the_middle_is_the_straight_run(data, workers, stop):
    examples = examples_from(data)
    augment = augmentation(examples, crop=2, flip=0.5, mixup=0.3) if examples.in_memory else None
    straight = take(Source(examples, batch_size=4, seed=3, augment=augment), 9)
    killed = Source(examples, batch_size=4, seed=3, augment=augment, num_workers=workers)
    before = take(killed, stop)
    state = json.loads(json.dumps(killed.state_dict()))
    resumed = Source(examples, batch_size=4, seed=3, augment=augment, num_workers=workers)
    take(resumed, 2)
    resumed.load_state_dict(state)
    for expected, got in zip(straight, before + take(resumed, 9 - stop), strict=True):
        same(expected, got)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    examples = examples_from(Noisy())
    torch.manual_seed(0)
    expected = take(Source(examples, batch_size=4), 7)
    torch.manual_seed(1)
    for a, b in zip(expected, Source(examples, batch_size=4, num_workers=workers), strict=False):
        same(a, b)


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_read_in_their_own_processes(workers):
    class Reader(Noisy):
        def __getitem__(self, index):
            return torch.tensor(os.getpid()), 0

    pids = next(Source(examples_from(Reader()), batch_size=4, num_workers=workers))["x"].unique()
    assert len(pids) == 1
    assert (pids.item() == os.getpid()) == (workers == 0)


def test_a_dropped_source_takes_its_workers_along():
    source = Source(examples_from(Noisy()), batch_size=4, num_workers=1)
    next(source)
    (worker,) = multiprocessing.active_children()
    gc.disable()
    try:
        del source
        assert not worker.is_alive()
    finally:
        gc.enable()


@pytest.mark.parametrize("data", [tensors(), Noisy()], ids=["memory", "lazy"])
@pytest.mark.parametrize("batch_size", [2, 4, 11])
def test_three_ranks_together_are_one(data, batch_size):
    examples = examples_from(data)
    ranks = [Source(examples, batch_size=batch_size, rank=rank, world=3) for rank in range(3)]
    sizes = set()
    for whole, *shares in zip(islice(Source(examples, batch_size=batch_size), 12), *ranks, strict=False):
        ids = torch.cat([share["id"] for share in shares])
        assert Counter(ids.tolist()) == Counter(whole["id"].tolist())
        for rank, share in enumerate(shares):
            assert torch.equal(share["x"], whole["x"][rank::3])
            assert torch.equal(share["y"], whole["y"][rank::3])
            assert share["epoch"] == whole["epoch"]
            sizes.add(len(share["id"]))
    assert min(sizes) == (0 if batch_size == 2 else 1 if batch_size == 4 else 3)


def test_position_of_one_process_serves_three():
    examples = tensors()
    one = Source(examples, batch_size=4)
    take(one, 5)
    whole, shares = next(one), []
    one.load_state_dict({**one.state_dict(), "index": 2, "epoch": 1})
    for rank in range(3):
        source = Source(examples, batch_size=4, rank=rank, world=3)
        source.load_state_dict(one.state_dict())
        shares.append(next(source))
    assert sorted(torch.cat([share["id"] for share in shares]).tolist()) == sorted(whole["id"].tolist())


@pytest.mark.parametrize("data", [tensors(), Noisy()], ids=["memory", "lazy"])
def test_scan_is_one_plain_pass_that_moves_nothing(data):
    examples = examples_from(data)
    augment = augmentation(examples, mixup=1.0)
    source, twin = (Source(examples, batch_size=4, augment=augment, rank=1, world=2) for _ in range(2))
    take(source, 2), take(twin, 2)
    state = source.state_dict()
    scans = [list(source.scan()) for _ in range(2)]
    assert source.state_dict() == state
    assert torch.cat([b["id"] for b in scans[0]]).tolist() == list(range(11))
    assert all("targets" not in b for b in scans[0])
    for a, b in zip(*scans, strict=True):
        same(a, b)
    same(next(source), next(twin))


def test_a_view_of_the_data_set_changes_with_the_epoch_and_the_seed_only():
    examples = examples_from(Noisy())

    def views(source, epochs):
        return {
            (b["epoch"], i): x
            for b in take(source, epochs * source.batches_per_epoch)
            for i, x in zip(b["id"].tolist(), b["x"], strict=True)
        }

    a, b, c = (views(Source(examples, batch_size=n, seed=s), 2) for n, s in ((4, 0), (3, 0), (4, 1)))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert len({x.sum().item() for x in a.values()}) == 22
    assert all(not torch.equal(a[key], c[key]) for key in a)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 5}, "batch_size: expected 5 as in this run, got 4 in the saved state"),
        ({"seed": 1}, "seed: expected 1 as in this run, got 0 in the saved state"),
        ({"shuffle": False}, "shuffle: expected False as in this run, got True in the saved state"),
        ({"drop_last": True}, "drop_last: expected True as in this run, got False in the saved state"),
    ],
)
def test_state_of_other_settings_is_refused(change, message):
    source = Source(tensors(), **{"batch_size": 4, **change})
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        source.load_state_dict(Source(tensors(), batch_size=4).state_dict())


def test_state_of_another_data_set_is_refused():
    with pytest.raises(ValueError, match=r"^size: expected 12 as in this run, got 11 in the saved state$"):
        Source(tensors(12), batch_size=4).load_state_dict(Source(tensors(11), batch_size=4).state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"batch_size": 12, "drop_last": True}, "batch_size: expected at most the 11 examples when drop_last is set, got 12"),
        ({"batch_size": 4, "rank": 2, "world": 2}, "rank: expected a number in [0, 2), got 2"),
        ({"batch_size": 4, "num_workers": -1}, "num_workers: expected at least 0, got -1"),
        (
            {"batch_size": 4, "num_workers": 1, "sampler": Weighted(torch.arange(11), batch_size=4)},
            "num_workers: expected 0 with an adaptive sampler, got 1",
        ),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Source(tensors(), **options)


def test_feedback_needs_an_adaptive_sampler():
    with pytest.raises(TypeError, match=r"^feedback: expected a source with an adaptive sampler"):
        Source(tensors(), batch_size=4).feedback(torch.tensor([0]), torch.tensor([1.0]))


def test_feedback_moves_the_batches_and_survives_a_resume():
    part = tensors(40).subset(torch.arange(39, 9, -1))

    def build():
        return Source(part, batch_size=5, sampler=Weighted(part.ids, batch_size=5, rate=1.0, seed=2))

    def turn(source):
        batch = next(source)
        source.feedback(batch["id"], (batch["id"] % 3 == 0).double())
        return batch

    source, twin = build(), build()
    straight = [turn(source) for _ in range(40)]
    for _ in range(17):
        turn(twin)
    resumed = build()
    resumed.load_state_dict(json.loads(json.dumps(twin.state_dict())))
    for expected in straight[17:]:
        same(expected, turn(resumed))
    late = torch.cat([batch["id"] for batch in straight[25:]])
    assert (late % 3 == 0).double().mean() > 0.9
    assert all(len(batch["id"].unique()) == 5 for batch in straight)
