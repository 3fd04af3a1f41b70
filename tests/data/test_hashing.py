import torch
from scipy import stats

from preceptor.data.hashing import generator, hash_ids, integers, uniform

MASK = (1 << 64) - 1


class SplitMix64:
    """The published generator, one number after the other."""

    def __init__(self, seed):
        self.state = seed & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)


def slow_hashes(count, *keys):
    seed = 0
    for key in keys:
        seed = SplitMix64(seed ^ (key & MASK)).next()
    stream = SplitMix64(seed)
    return [stream.next() for _ in range(count)]


def test_against_the_generator_itself():
    for keys in ((), (0,), (3, 7), (7, 3), (-1, 2**63, 5)):
        assert [h & MASK for h in hash_ids(torch.arange(50), *keys).tolist()] == slow_hashes(50, *keys)


def test_known_numbers():
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]  # seed 0, as its authors' code prints
    assert [h & MASK for h in hash_ids(torch.arange(4)).tolist()] == known


def test_any_id_and_shape():
    ids = torch.tensor([[2**62, -1], [-(2**63), 2**63 - 1]])
    assert hash_ids(ids, 1).shape == (2, 2)
    assert len(hash_ids(ids, 1).unique()) == 4
    assert hash_ids(ids[:0]).shape == (0, 2)


def test_uniform_in_every_direction():
    ids = torch.arange(20000)
    draws = {"ids": uniform(ids, 0, 0), "epochs": torch.stack([uniform(torch.tensor(5), 0, epoch) for epoch in range(2000)])}
    for values in draws.values():
        assert ((values >= 0) & (values < 1)).all()
        assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-3
    for keys in ((0, 1), (1, 0), (0, 0, 1)):
        assert abs(stats.pearsonr(uniform(ids, 0, 0).numpy(), uniform(ids, *keys).numpy()).statistic) < 4 / 20000**0.5


def test_integers_cover_their_range_evenly():
    counts = torch.bincount(integers(7, torch.arange(70000), 3), minlength=7)
    assert len(counts) == 7
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_generator_depends_on_all_keys():
    draws = {tuple(torch.randint(1 << 40, (2,), generator=generator(*keys)).tolist()) for keys in ((0,), (0, 0), (1, 0), (0, 1), (1, 1))}
    assert len(draws) == 5
    assert torch.equal(torch.rand(3, generator=generator(4, 2)), torch.rand(3, generator=generator(4, 2)))
