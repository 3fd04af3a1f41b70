"""Pairs of texts as tokens."""

from __future__ import annotations

import pytest
import torch

from preceptor.data.pairs import preference_batch


class Letters:
    """A tokenizer of small letters, a is 3."""

    bos_token_id, eos_token_id = 1, 2

    def __call__(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [ord(letter) - 94 for letter in text]}


def test_tokens_stand_where_they_belong():
    batch, dropped = preference_batch(["ab", "c"], ["de", "f"], ["g", "hij"], Letters(), max_length=10)
    assert dropped == 0
    assert batch["prompt"]["input_ids"].tolist() == [[1, 3, 4], [2, 1, 5]]
    assert batch["prompt"]["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    for side, said in ((batch, [[6, 7, 2], [8, 2]]), (batch["rejected"], [[9, 2], [10, 11, 12, 2]])):
        assert [side["y"][i][side["mask"][i]].tolist() for i in range(2)] == said
        assert [side["x"]["input_ids"][i][side["x"]["attention_mask"][i].bool()].tolist() for i in range(2)] == [
            [1, 3, 4, *said[0]][: side["x"]["input_ids"].shape[1]],
            [1, 5, *said[1]][: side["x"]["input_ids"].shape[1] - 1],
        ]
    torch.testing.assert_close(batch["id"], torch.tensor([0, 1]))


def test_what_is_too_long_or_empty_is_left_out():
    batch, dropped = preference_batch(["ab", "ab", "ab", "ab"], ["d", "d", "", "d"], ["e", "eeee", "e", ""], Letters(), max_length=7)
    assert (batch["id"].tolist(), dropped) == ([0], 3)
    assert preference_batch(["ab"], ["d"], ["eeee"], Letters(), max_length=8)[1] == 0


def test_what_cannot_be_is_one_line():
    with pytest.raises(ValueError, match="expected 1 texts like contexts, got 2 and 1"):
        preference_batch(["a"], ["b", "c"], ["d"], Letters(), max_length=9)
    with pytest.raises(ValueError, match="expected at least one of 1 pairs within 3 tokens, got none"):
        preference_batch(["a"], ["b"], ["c"], Letters(), max_length=3)
    endless = Letters()
    endless.eos_token_id = None
    with pytest.raises(ValueError, match="expected an end-of-text token"):
        preference_batch(["a"], ["b"], ["c"], endless, max_length=9)
