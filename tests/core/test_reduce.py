"""Reduction: shares of microbatches add up to one global mean, whatever the masks."""

import pytest
import torch
from tests.core.small import assert_identical

from preceptor.core.reduce import gathered, global_counts, num_examples, reduce_terms, split, world_size


def reduced(terms, batch, parts):
    """The terms as the loop forms them from ``parts`` microbatches."""
    counts, total = global_counts(batch), {}
    pieces = split({**batch, **{f"term/{name}": value for name, value in terms.items()}}, parts)
    for piece in pieces:
        mine = {name: piece[f"term/{name}"] if value.ndim else value for name, value in terms.items()}
        for name, share in reduce_terms(mine, piece, counts, len(pieces)).items():
            total[name] = total.get(name, 0) + share
    return total


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7, 50])
def test_every_split_gives_the_same_terms(parts):
    draws = torch.Generator().manual_seed(0)
    item, token = torch.randn(7, generator=draws).double(), torch.randn(7, 5, generator=draws).double()
    mask = torch.tensor([[1, 1, 1, 1, 1], *[[1, 0, 0, 0, 0]] * 3, *[[0] * 5] * 2, [1, 1, 0, 1, 0]])
    own = torch.tensor([0, 1, 0, 0, 1, 1, 0])
    terms = {"item": item, "token": token, "scalar": torch.tensor(3.0).double()}
    batch = {"id": torch.arange(7), "mask": mask, "mask/item": own}
    total = reduced(terms, batch, parts)
    torch.testing.assert_close(total["item"], (item[1] + item[4] + item[5]) / 3, rtol=1e-14, atol=0)
    torch.testing.assert_close(total["token"], token[mask.bool()].mean(), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(total["scalar"], torch.tensor(3.0).double(), rtol=1e-15, atol=0)


@pytest.mark.parametrize("parts", [1, 4])
def test_without_a_mask_every_element_counts(parts):
    values = torch.arange(24.0).double().view(6, 4)
    total = reduced({"one": values[:, 0], "many": values}, {"id": torch.arange(6)}, parts)
    assert total["one"] == 10
    assert total["many"] == 11.5


def test_masks_may_be_bool_or_fractions():
    values = torch.tensor([1.0, 5.0, 100.0], dtype=torch.double)
    assert reduced({"a": values}, {"id": torch.arange(3), "mask": torch.tensor([True, True, False])}, 1)["a"] == 3
    assert reduced({"a": values}, {"id": torch.arange(3), "mask": torch.tensor([2.0, 1.0, 0.0])}, 1)["a"] == 7 / 3
    # the divisor is at least 1, so that a nearly empty batch does not weigh like a full one
    assert reduced({"a": values}, {"id": torch.arange(3), "mask": torch.tensor([0.5, 0.0, 0.0])}, 1)["a"] == 0.5


def test_an_empty_mask_gives_zero_with_a_gradient():
    values = torch.randn(4, 3, requires_grad=True)
    share = reduce_terms({"a": values}, batch := {"id": torch.arange(4), "mask": torch.zeros(4, 3)}, global_counts(batch), 1)["a"]
    assert share == 0
    share.backward()
    assert torch.equal(values.grad, torch.zeros(4, 3))


def test_what_is_masked_out_may_be_infinite():
    values = torch.tensor([2.0, torch.inf, torch.nan], requires_grad=True)
    batch = {"id": torch.arange(3), "mask": torch.tensor([1, 0, 0])}
    share = reduce_terms({"a": values}, batch, global_counts(batch), 1)["a"]
    share.backward()
    assert share == 2
    assert values.grad.tolist() == [1, 0, 0]


def test_an_empty_batch_gives_zero_with_a_gradient():
    values = torch.randn(0, 3, requires_grad=True)
    batch = {"id": torch.arange(0)}
    share = reduce_terms({"a": values}, batch, global_counts(batch), 1)["a"]
    share.backward()
    assert share == 0
    assert values.grad.shape == (0, 3)


def test_wrong_shapes_are_refused():
    batch = {"id": torch.arange(4), "mask": torch.ones(4)}
    with pytest.raises(ValueError, match=r"mask: expected shape \(4, 2\) like the term 'a', got \(4,\)"):
        reduce_terms({"a": torch.zeros(4, 2)}, batch, global_counts(batch), 1)
    with pytest.raises(ValueError, match=r"term 'a': expected a scalar or one value per example \(4\), got shape \(3,\)"):
        reduce_terms({"a": torch.zeros(3)}, {"id": torch.arange(4)}, {"examples": 4.0}, 1)


def test_counts_cover_all_masks():
    batch = {"x": torch.zeros(3, 2), "mask": torch.tensor([1, 1, 0]), "mask/soft": torch.ones(3, 4), "masked": torch.ones(3)}
    assert global_counts(batch) == {"examples": 3.0, "mask": 2.0, "mask/soft": 12.0}


def test_number_of_examples():
    assert num_examples({"x": torch.zeros(5, 2), "id": torch.arange(3)}) == 3  # id decides
    assert num_examples({"name": "a", "scale": torch.tensor(2.0), "x": {"tokens": torch.zeros(4, 7)}}) == 4
    with pytest.raises(ValueError, match=r"batch: expected at least one tensor with an example axis, got keys \['name'\]"):
        num_examples({"name": "a"})


def test_split_cuts_what_has_an_example_axis():
    batch = {
        "x": {"tokens": torch.arange(10).view(5, 2), "names": list("abcde")},
        "id": torch.arange(5),
        "classes": torch.eye(3),
        "scale": torch.tensor(2.0),
        "note": "kept",
    }
    before = {**batch, "x": dict(batch["x"])}
    parts = split(batch, 2)
    assert [part["id"].tolist() for part in parts] == [[0, 1], [2, 3, 4]]
    assert [part["x"]["names"] for part in parts] == [["a", "b"], ["c", "d", "e"]]
    assert torch.equal(torch.cat([part["x"]["tokens"] for part in parts]), batch["x"]["tokens"])
    for part in parts:
        assert part["classes"] is batch["classes"]
        assert part["scale"] is batch["scale"]
        assert part["note"] == "kept"
    assert parts[1]["id"].data_ptr() == batch["id"][2:].data_ptr()  # a view
    assert_identical(batch, before)
    assert [len(part["id"]) for part in split({"id": torch.arange(3)}, 8)] == [1, 1, 1]
    assert [len(part["id"]) for part in split({"id": torch.arange(0)}, 8)] == [0]


def test_one_process_gathers_nothing():
    tensor = torch.ones(2)
    assert world_size() == 1
    assert gathered(tensor) is tensor
