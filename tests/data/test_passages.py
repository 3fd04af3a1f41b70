from types import SimpleNamespace

import pytest
import torch

from preceptor.data.passages import Candidates, draw_group, passage_batch


class Words:
    """A tokenizer: the length of each word, after a beginning of 1."""

    pad_token_id, bos_token_id = 0, 1

    def __init__(self, shift=0):
        self.shift = shift

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [len(word) + self.shift for word in text.split()]}


def test_a_group_has_one_positive_first_and_depends_on_seed_epoch_and_number():
    candidates = Candidates(query="q", positives=["a", "b"], negatives=list("uvwxyz"))
    drawn = {tuple(draw_group(candidates, 4, epoch=epoch, number=number)) for epoch in range(6) for number in range(6)}
    assert all(group[0] in "ab" and len(set(group[1:])) == 3 and set(group[1:]) <= set("uvwxyz") for group in drawn)
    assert len(drawn) > 20
    assert {group[0] for group in drawn} == {"a", "b"}
    assert draw_group(candidates, 4, epoch=2, number=3) == draw_group(candidates, 4, epoch=2, number=3)
    assert len(draw_group(candidates, 99)) == 7
    with pytest.raises(ValueError, match="positives: expected at least 1"):
        draw_group(Candidates(query="q", positives=[], negatives=["x"]), 2)


def test_tokens_of_both_networks_are_of_the_same_passages():
    groups = [["aa bbb cccc", "d"], ["eeee"]]
    batch = passage_batch(
        ["x yy", "zzz"],
        groups,
        Words(),
        teacher=Words(10),
        score=lambda query, group: [len(passage) for passage in group],
        query_length=2,
        passage_length=3,
    )
    first = [1, 6, 1, 1, 9, 2, 3]  # "query: x" and "document: aa bbb", cut
    assert batch["x"]["input_ids"].tolist() == [[first, [1, 6, 1, 1, 9, 1, 0]], [[1, 6, 3, 1, 9, 4, 0], [1, 6, 3, 0, 0, 0, 0]]]
    assert torch.equal(batch["x"]["attention_mask"], (batch["x"]["input_ids"] > 0).long())
    tokens, other = batch["x"]["input_ids"], batch["teacher_x"]["input_ids"]
    assert torch.equal(other, torch.where(tokens > 1, tokens + 10, torch.where(other == 11, 11, tokens)))
    assert batch["valid"].tolist() == [[True, True], [True, False]]
    assert batch["teacher_scores"].tolist() == [[11, 1], [4, 0]]
    assert batch["y"].tolist() == [0, 0]


def test_bad_groups_and_tokenizers():
    with pytest.raises(ValueError, match="groups: expected 1 lists like queries"):
        passage_batch(["q"], [[]], Words())
    with pytest.raises(ValueError, match="tokenizer: expected a padding token"):
        passage_batch(["q"], [["a"]], SimpleNamespace(pad_token_id=None, bos_token_id=None))
    with pytest.raises(ValueError, match="score: expected 1 scores for query 0"):
        passage_batch(["q"], [["a"]], Words(), score=lambda query, group: [1.0, 2.0])
