import pytest
import torch
from torch.utils.data import Dataset

from preceptor.data.examples import examples_from
from preceptor.data.splits import check_disjoint, fingerprint, holdout, shared_inputs, stratified_counts, stratified_order, take

LABELS = torch.cat([torch.full((n,), c) for c, n in enumerate((500, 250, 100, 41, 7, 1))])


def unbalanced():
    return examples_from((torch.arange(len(LABELS), dtype=torch.float32)[:, None], LABELS))


def counts(examples):
    return torch.bincount(examples.labels, minlength=6)


def test_counts_are_the_nearest_that_add_up():
    sizes = torch.bincount(LABELS)
    for total in range(0, int(sizes.sum()) + 1, 7):
        shares = stratified_counts(sizes, total)
        assert shares.sum() == total
        assert (shares <= sizes).all()
        exact = sizes.double() * total / sizes.sum()
        assert (shares - exact).abs().max() < 1
        short, long = (exact - shares)[shares <= exact], (shares - exact)[shares > exact]
        if len(long):  # the largest remainders were rounded up
            assert short.max() <= 1 - long.max() + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_holdout_is_stratified_disjoint_and_complete(seed):
    whole = unbalanced()
    rest, held = holdout(whole, rate=0.1, seed=seed)
    assert (rest.name, held.name, len(held)) == ("train", "valid", 90)
    assert sorted([*rest.ids.tolist(), *held.ids.tolist()]) == list(range(len(whole)))
    assert (counts(held) - counts(whole) * 0.1).abs().max() <= 1
    assert rest.ids.tolist() == sorted(rest.ids.tolist())


def test_holdout_depends_on_the_seed_alone():
    held = [holdout(unbalanced(), seed=seed)[1].ids.tolist() for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


def test_holdout_of_a_part_keeps_ids():
    part = unbalanced().subset(torch.arange(400, 600))
    rest, held = holdout(part, rate=0.25)
    assert sorted([*rest.ids.tolist(), *held.ids.tolist()]) == list(range(400, 600))


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (0.0, r"^rate: expected a number in \(0, 1\), got 0.0$"),
        (1.0, r"^rate: expected a number in \(0, 1\), got 1.0$"),
        (0.0001, "^rate: expected two parts with examples, got 0 of 899 of train for 0.0001$"),
        (0.9999, "^rate: expected two parts with examples, got 899 of 899 of train for 0.9999$"),
    ],
)
def test_holdout_refuses(rate, message):
    with pytest.raises(ValueError, match=message):
        holdout(unbalanced(), rate=rate)


def test_every_beginning_is_stratified_and_parts_are_nested():
    whole = unbalanced()
    order = stratified_order(LABELS, seed=3)
    assert sorted(order.tolist()) == list(range(len(LABELS)))
    for size in range(10, 899, 29):
        part = take(whole, size, seed=3)
        assert part.ids.tolist() == order[:size].tolist()
        assert (counts(part) - counts(whole) * size / 899).abs().max() <= 2
    assert take(whole, 100, seed=4).ids.tolist() != take(whole, 100, seed=3).ids.tolist()


def test_members_of_a_class_are_chosen_at_random():
    chosen = torch.cat([take(unbalanced(), 90, seed=seed).ids for seed in range(100)])
    hits = torch.bincount(chosen[chosen < 500], minlength=500).double()  # the largest class: about 10 hits each
    assert abs(hits.mean() - 10) < 0.5
    assert 0.7 < hits.var() / (10 * 0.9) < 1.3  # binomial variance


def test_the_first_ones_as_they_stand():
    assert take(unbalanced(), 5, seed=None, name="few").ids.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [0, 900])
def test_take_refuses(count):
    with pytest.raises(ValueError, match=rf"^count: expected a number in \[1, 899\] of train, got {count}$"):
        take(unbalanced(), count)


def test_disjoint():
    whole = unbalanced()
    rest, held = holdout(whole)
    check_disjoint({"train": rest, "valid": held, "test": unbalanced()})
    overlap = whole.subset([int(held.ids[3]), int(rest.ids[0])])
    with pytest.raises(ValueError, match=rf"^test: expected no example of train, got 1 shared, the first with id {int(rest.ids[0])}$"):
        check_disjoint({"train": rest, "test": overlap})


def numbered(*numbers):
    """Examples whose inputs are these numbers."""
    return examples_from(({"p": torch.tensor(numbers), "q": torch.zeros(len(numbers), 2)}, torch.zeros(len(numbers), dtype=torch.int64)))


def test_inputs_that_stand_in_earlier_parts_are_told():
    parts = {"train": numbered(1, 2, 3, 3), "valid": numbered(4, 2), "test": numbered(5, 4, 3, 3, 6)}
    assert shared_inputs(parts) == [
        "valid: 1 of 2 inputs stand in train too, byte for byte",
        "test: 3 of 5 inputs stand in train or valid too, byte for byte",
    ]
    assert shared_inputs({"train": numbered(0, 3), "test": numbered(2, 1)}) == []


@pytest.mark.parametrize("part", [(1, 2, 3, 4), (3, 1), (2, 2)])
def test_a_part_that_stands_in_earlier_parts_is_refused(part):
    message = rf"^test: expected examples other than those of train or valid, got {len(part)} whose inputs all stand there$"
    with pytest.raises(ValueError, match=message):
        shared_inputs({"train": numbered(1, 2, 4), "valid": numbered(3), "test": numbered(*part)})


def test_data_of_a_few_categories_may_repeat_themselves():
    parts = {"train": numbered(0, 1, 1, 0, 1, 0), "test": numbered(0, 1)}
    assert shared_inputs(parts) == ["test: 2 of 2 inputs stand in train too, byte for byte"]


def test_what_is_not_in_memory_is_not_read():
    class Lazy(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            assert not fixed, "read"
            return torch.tensor([1.0]), 0

    fixed = []
    lazy = examples_from(Lazy())
    fixed.append(lazy)
    line = "train: not in memory, so its inputs were not looked for in the other parts"
    assert shared_inputs({"train": lazy, "test": unbalanced()}) == [line]


def test_fingerprint_knows_contents_order_and_labels():
    x, y = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    base = examples_from((x, y))
    same = examples_from((x.clone(), y.int()))
    changed = x.clone()
    changed[5, 1] += 1e-6 * changed[5, 1]
    others = [
        examples_from((changed, y)),
        examples_from((x.double(), y)),
        examples_from((x.reshape(6, 1, 2), y)),
        examples_from((x, y.flip(0))),
        examples_from((x, y), 4),
        examples_from(({"x": x, "z": x}, y)),
        base.subset([0, 1, 2, 3, 5, 4]),
        base.subset([0, 1, 2]),
    ]
    assert fingerprint(base) == fingerprint(same)
    assert len(fingerprint(base)) == 64
    assert len({fingerprint(e) for e in [base, *others]}) == len(others) + 1
