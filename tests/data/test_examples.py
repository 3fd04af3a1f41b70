import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from preceptor.data.examples import Examples, examples_from


class Pairs(Dataset):
    """Lazy examples whose inputs draw from all three global generators."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        noise = torch.rand(2) + random.random() + np.random.rand()
        return torch.full((2,), 10.0 * index) + noise.float(), index % 3


class Mappings(Dataset):
    def __init__(self, key):
        self.key = key

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"pixel_values": torch.full((1, 2, 2), float(index)), self.key: np.int64(index % 2)}


def test_tensors_come_back_as_they_went_in():
    x, y = torch.randn(6, 2, dtype=torch.double), torch.tensor([0, 1, 2, 0, 1, 2], dtype=torch.int32)
    examples = examples_from((x, y))
    batch = examples.batch(torch.tensor([4, 0]))
    assert torch.equal(batch["x"], x[[4, 0]])
    assert batch["x"].dtype == torch.double
    assert batch["y"].tolist() == [1, 0]
    assert batch["y"].dtype == torch.int64
    assert batch["id"].tolist() == [4, 0]
    assert (len(examples), examples.num_classes, examples.in_memory) == (6, 3, True)


def test_arrays_get_the_default_float_type():
    examples = examples_from((np.ones((3, 2)), [0, 1, 0]))
    assert examples.batch(torch.tensor([0]))["x"].dtype == torch.float32


def test_mapping_of_tensors():
    examples = examples_from(({"input_ids": torch.arange(6).reshape(3, 2), "mask": torch.ones(3, 2)}, torch.tensor([0, 1, 1])))
    batch = examples.batch(torch.tensor([2]))
    assert batch["x"]["input_ids"].tolist() == [[4, 5]]
    assert batch["x"]["mask"].shape == (1, 2)


def test_subset_of_subset_keeps_ids_of_the_whole():
    examples = examples_from((torch.arange(10.0), torch.arange(10) % 2))
    part = examples.subset([9, 3, 5], name="part").subset(torch.tensor([2, 0]))
    assert part.name == "part"
    assert part.ids.tolist() == [5, 9]
    assert part.labels.tolist() == [1, 1]
    batch = part.batch(torch.tensor([1]))
    assert (batch["x"].tolist(), batch["id"].tolist()) == ([9.0], [9])


@pytest.mark.parametrize("position", [-1, 3])
def test_subset_refuses_positions_outside(position):
    with pytest.raises(ValueError, match=rf"^indices: expected positions in \[0, 3\) of train, got {position}$"):
        examples_from((torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))).subset([0, position])


def test_lazy_data_set_and_its_empty_batch():
    examples = examples_from(Pairs())
    assert not examples.in_memory
    assert examples.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    batch = examples.batch(torch.tensor([6, 2]))
    assert (batch["x"] // 10).tolist() == [[6.0, 6.0], [2.0, 2.0]]
    empty = examples.subset([3, 4]).batch(torch.tensor([], dtype=torch.int64))
    assert [empty[k].shape for k in ("x", "y", "id")] == [(0, 2), (0,), (0,)]


def test_seeds_fix_what_a_data_set_draws_and_leave_the_generators_alone():
    examples = examples_from(Pairs())
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    together = examples.batch(torch.tensor([1, 4]), seeds=torch.tensor([-5, 2**62]))["x"]
    alone = examples.batch(torch.tensor([4]), seeds=torch.tensor([2**62]))["x"]
    assert torch.equal(together[1:], alone)
    assert not torch.equal(examples.batch(torch.tensor([4]), seeds=torch.tensor([1]))["x"], alone)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


@pytest.mark.parametrize("key", ["label", "labels", "y"])
def test_mappings_of_a_data_set(key):
    examples = examples_from(Mappings(key))
    batch = examples.batch(torch.tensor([3, 2]))
    assert set(batch["x"]) == {"pixel_values"}
    assert batch["x"]["pixel_values"].shape == (2, 1, 2, 2)
    assert batch["y"].tolist() == [1, 0]
    empty = examples.batch(torch.tensor([], dtype=torch.int64))
    assert empty["x"]["pixel_values"].shape == (0, 1, 2, 2)


def test_tensor_data_sets_stay_in_memory():
    data = TensorDataset(torch.arange(5.0), torch.tensor([0, 1, 0, 1, 2]))
    assert examples_from(data).in_memory
    part = examples_from(Subset(data, [4, 1]))
    assert part.in_memory
    assert (part.ids.tolist(), part.labels.tolist(), part.num_classes) == ([4, 1], [2, 1], 3)


def test_given_labels_spare_the_pass_over_the_data():
    class Counted(Pairs):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    data = Counted()
    examples = examples_from(data, 4, labels=np.array([0, 1, 2, 3, 0, 1, 2]))
    assert data.reads == 1  # the first example shows that the set can be read
    assert examples.labels.tolist() == [0, 1, 2, 3, 0, 1, 2]


def test_examples_pass_through_but_for_the_number_of_classes():
    examples = examples_from((torch.zeros(3, 1), torch.tensor([0, 1, 2])))
    assert examples_from(examples) is examples
    wider = examples_from(examples.subset([1]), 7, "test")
    assert (wider.num_classes, wider.name, wider.ids.tolist()) == (7, "test", [1])
    with pytest.raises(ValueError, match=r"^test: expected labels in \[0, 2\), got 2 in example 2$"):
        examples_from(examples, 2, "test")


def image(value):
    x = torch.zeros(4, 1, 2, 2)
    x[2, 0, 1, 1] = value
    return x


class Broken(Pairs):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __getitem__(self, index):
        return (self.x, self.y) if index == 5 else (torch.zeros(2), 0)


LABELS = torch.tensor([0, 1, 2, 1])
BAD = [
    ((torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)), ValueError, "train: expected at least one example, got an empty data set"),
    ([], ValueError, "train: expected at least one example, got an empty data set"),
    ((image(0), torch.tensor([0, 1, 3, -1])), ValueError, "train: expected labels in [0, 3), got 3 in example 2"),
    ((image(0), torch.tensor([0, 1, 2, -1])), ValueError, "train: expected labels in [0, 3), got -1 in example 3"),
    ((image(float("nan")), LABELS), ValueError, "train: expected finite numbers in x, got NaN in example 2"),
    ((image(float("-inf")), LABELS), ValueError, "train: expected finite numbers in x, got infinity in example 2"),
    (({"a": image(0), "b": image(float("nan"))}, LABELS), ValueError, "train: expected finite numbers in b, got NaN in example 2"),
    ((image(0), LABELS[:3]), ValueError, "train: expected one label for each of 4 examples, got labels of shape (3,)"),
    ((image(0), LABELS[:, None]), ValueError, "train: expected one label for each of 4 examples, got labels of shape (4, 1)"),
    ((image(0), LABELS.float()), TypeError, "train: expected integer labels, got torch.float32"),
    ((image(0), torch.tensor(1)), ValueError, "train: y: expected one entry per example, got a single number"),
    (({"a": image(0), "b": torch.zeros(3)}, LABELS), ValueError, "train: expected inputs of one length, got lengths [3, 4]"),
    (("images", LABELS), TypeError, "train: x: expected a tensor or an array of numbers, got str"),
    ((image(0), LABELS, LABELS), TypeError, "train: expected a pair (x, y), got a tuple of 3"),
    (42, TypeError, "train: expected (x, y) or a data set with a length, got int"),
    ([torch.zeros(2)], TypeError, "train: expected examples (x, y) or mappings with a label, got Tensor"),
    ([{"a": 1, "b": 2}], ValueError, "train: expected a label under one of y, label, labels, got keys a, b"),
    (Broken(torch.tensor([0.0, float("inf")]), 1), ValueError, "train: expected finite numbers in x, got infinity in example 5"),
    (Broken(torch.zeros(2), 3), ValueError, "train: expected labels in [0, 3), got 3 in example 5"),
    (Broken(torch.zeros(2), [1, 2]), ValueError, "train: expected one label per example, got shape (2,) in example 5"),
    (Broken(object(), 1), TypeError, "train: expected numbers, tensors or arrays, got x object, y int in example 5"),
    (Broken(torch.zeros(2), "cat"), TypeError, "train: expected numbers, tensors or arrays, got x Tensor, y str in example 5"),
]


@pytest.mark.parametrize(("data", "error", "message"), BAD, ids=[message[7:] for _, _, message in BAD])
def test_bad_input_gets_one_line(data, error, message):
    with pytest.raises(error) as caught:
        examples_from(data, 3)
    assert str(caught.value) == message


def test_parts_share_the_storage():
    whole = examples_from((torch.zeros(3, 1), torch.tensor([0, 1, 2])))
    part = whole.subset([0])
    assert isinstance(part, Examples)
    assert part.inputs is whole.inputs
    assert part.all_labels is whole.all_labels
