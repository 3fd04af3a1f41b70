"""Rows of batches."""

from __future__ import annotations

import pytest
import torch

from preceptor.data.rows import join, keep_rows, kept_rows, take


def batch(rows: int, length: int, first: int = 0) -> dict:
    ids = torch.arange(first, first + rows)
    return {
        "x": {"input_ids": 10 * ids[:, None] + torch.arange(1, length + 1), "use_cache": False},
        "mask": torch.ones(rows, length, dtype=torch.bool),
        "prompt": {"attention_mask": torch.ones(rows, length, dtype=torch.int64)},
        "text": [f"row {i}" for i in ids.tolist()],
        "id": ids,
        "epoch": 3,
    }


def test_rows_are_taken_everywhere_at_once():
    whole = batch(4, 3)
    some = take(whole, torch.tensor([2, 0]))
    assert some["id"].tolist() == [2, 0]
    assert some["x"]["input_ids"].tolist() == [[21, 22, 23], [1, 2, 3]]
    assert some["text"] == ["row 2", "row 0"]
    assert some["epoch"] == 3
    assert some["x"]["use_cache"] is False
    assert take(whole, torch.tensor([True, False, True, False]))["id"].tolist() == [0, 2]
    assert take(whole, torch.zeros(0, dtype=torch.int64))["x"]["input_ids"].shape == (0, 3)


def test_joined_rows_are_padded_where_it_does_no_harm():
    joined = join([batch(2, 2), batch(1, 4, first=2)])
    assert joined["id"].tolist() == [0, 1, 2]
    assert joined["x"]["input_ids"].tolist() == [[1, 2, 0, 0], [11, 12, 0, 0], [21, 22, 23, 24]]
    assert joined["mask"].tolist() == [[True, True, False, False]] * 2 + [[True] * 4]
    assert joined["prompt"]["attention_mask"].tolist() == [[0, 0, 1, 1]] * 2 + [[1] * 4]
    assert joined["text"] == ["row 0", "row 1", "row 2"]
    one = batch(2, 2)
    again = join([take(one, torch.tensor([0])), take(one, torch.tensor([1]))])
    torch.testing.assert_close({k: v for k, v in again.items() if k != "text"}, {k: v for k, v in one.items() if k != "text"})


def test_kept_rows_come_back_and_replace_what_was_there():
    memory = {"other": 1, "spare/old": torch.zeros(1)}
    whole = batch(3, 2)
    keep_rows(memory, "spare", whole)
    assert set(memory) == {"other", "spare/x/input_ids", "spare/mask", "spare/prompt/attention_mask", "spare/id"}
    back = kept_rows(memory, "spare", batch(1, 2))
    assert back["id"].tolist() == [0, 1, 2]
    assert torch.equal(back["x"]["input_ids"], whole["x"]["input_ids"])
    assert back["x"]["use_cache"] is False
    assert "text" not in back


def test_batches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="batches: expected at least one, got none"):
        join([])
    with pytest.raises(ValueError, match="batches: expected the same keys"):
        join([batch(1, 1), {"id": torch.tensor([0])}])
