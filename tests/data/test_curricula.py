"""Which samples a round takes."""

from __future__ import annotations

import pytest
import torch

from preceptor.core.stream import as_stream
from preceptor.data.curricula import choose, pool_rows, pool_scores, ranked, shuffled


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_largest_scores_come_first_and_ties_keep_their_order():
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0, torch.nan, -torch.inf, 1.0])
    assert ranked(scores).tolist() == [1, 3, 2, 0, 6, 5]
    assert choose(ranked(scores), 3, generator=generator()).tolist() == [1, 3, 2]
    many = torch.randint(3, (1000,)).double()
    order = ranked(many)
    for value in (0, 1, 2):
        assert order[many[order] == value].tolist() == (many == value).nonzero().squeeze(1).tolist()


def test_exactly_the_top():
    scores = torch.rand(100)
    chosen = choose(ranked(scores), 17, generator=generator())
    assert set(chosen.tolist()) == set(scores.topk(17).indices.tolist())


def test_a_pool_with_no_more_samples_is_taken_whole():
    scores = torch.tensor([0.2, torch.nan, 0.1])
    assert choose(ranked(scores), 5, generator=generator()).tolist() == [0, 2]
    assert sorted(choose(ranked(scores), 5, mix_random=0.5, generator=generator()).tolist()) == [0, 2]
    assert choose(ranked(torch.full((3,), torch.nan)), 5, generator=generator()).tolist() == []


def test_outliers_are_left_out_of_the_scored():
    scores = torch.cat([torch.arange(20.0), torch.full((5,), torch.nan)])
    assert choose(ranked(scores, skip_top=0.1), 3, generator=generator()).tolist() == [17, 16, 15]


def test_a_share_is_drawn_from_the_rest():
    scores = torch.arange(100.0)
    counts = torch.zeros(100)
    draws = generator()
    for _ in range(400):
        chosen = choose(ranked(scores), 20, mix_random=0.5, generator=draws)
        assert chosen[:10].tolist() == list(range(99, 89, -1))
        assert len(set(chosen.tolist())) == 20
        counts[chosen] += 1
    assert (counts[90:] == 400).all()
    assert (counts[:90] - 400 * 10 / 90).abs().max() < 35
    everything = choose(ranked(scores), 20, mix_random=1.0, generator=draws)
    assert everything.max() < 99 or everything.min() < 80


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="number: expected at least 1, got 0"):
        choose(torch.arange(3), 0, generator=generator())
    with pytest.raises(ValueError, match="mix_random: expected a number"):
        choose(torch.arange(3), 1, mix_random=2.0, generator=generator())
    with pytest.raises(ValueError, match="skip_top: expected a number"):
        ranked(torch.rand(3), skip_top=-0.1)
    with pytest.raises(ValueError, match=r"scores: expected shape \(samples,\)"):
        ranked(torch.rand(3, 2))


@pytest.fixture
def pool():
    """Samples 0, 1, ..., 7 in batches of 3, 3 and 2."""
    return as_stream(
        [{"y": part[:, None], "mask": part[:, None] >= 0, "id": part, "prompt": part[:, None]} for part in torch.arange(8).split(3)]
    )


def test_every_sample_of_a_pool_is_scored_and_each_batch_draws_its_own(pool):
    def score(batch, *, seed):
        seeds.append(seed)
        return batch["y"][:, 0].double()

    seeds: list[int] = []
    options = {"seed": 1, "device": torch.device("cpu")}
    assert pool_scores(pool, score, number=0, **options).tolist() == list(range(8))
    pool_scores(pool, score, number=1, **options)
    assert len(set(seeds)) == 6
    pool_scores(pool, score, number=0, **options)
    assert seeds[6:] == seeds[:3]


def test_the_rows_that_are_wanted_come_in_the_order_of_the_pool(pool):
    rows = pool_rows(pool, torch.isin(torch.arange(8), torch.tensor([7, 1, 0])))
    assert rows["id"].tolist() == [0, 1, 7] == rows["y"][:, 0].tolist()
    assert "prompt" not in rows


def test_passes_are_whole_and_can_be_cut_anywhere():
    whole = shuffled(5, 0, 20, seed=3, number=0).tolist()
    passes = [whole[i : i + 5] for i in range(0, 20, 5)]
    assert [sorted(one) for one in passes] == [list(range(5))] * 4
    assert len(set(map(tuple, passes))) > 1
    for start, count in ((0, 3), (3, 9), (5, 5), (7, 13), (10, 0)):
        assert shuffled(5, start, count, seed=3, number=0).tolist() == whole[start : start + count]
    assert shuffled(5, 0, 20, seed=3, number=1).tolist() != whole != shuffled(5, 0, 20, seed=4, number=0).tolist()
