"""Texts in rows: every token once, no target across documents, chats counted by the assistant's tokens, parts by document."""

import itertools
import json
from collections import Counter

import pytest
import torch

from preceptor.data.text import Texts, pack, parts, read_documents, tokenize


class Letters:
    """A tokenizer of characters: a = 1, b = 2, ...; 0 ends a text. Its chat template is ``[role:content]``."""

    eos_token_id = 0
    chat_template = "yes"

    def __len__(self):
        return 200

    def encode(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return [ord(c) for c in text]

    def apply_chat_template(self, messages, *, add_generation_prompt, tokenize, return_dict):
        text = "".join(f"[{m['role']}:{m['content']}]" for m in messages) + ("[assistant:" if add_generation_prompt else "")
        return self.encode(text, add_special_tokens=False)


def words(*texts, length=5, **more):
    return pack(texts, Letters(), length=length, **more)


def test_every_token_is_read_and_every_target_inside_a_document_counts_once():
    part = words("abcdef", "gh", "ijklmnopq")
    pairs = Counter()
    for x, y, m in zip(part.inputs["input_ids"].flatten(), part.labels.flatten(), part.mask.flatten(), strict=True):
        if m:
            pairs[int(x), int(y)] += 1
    expected = Counter()
    for text in ("abcdef", "gh", "ijklmnopq"):
        ids = [*map(ord, text), 0]
        expected.update(itertools.pairwise(ids))
    assert pairs == expected
    assert part.tokens() == sum(expected.values())


def test_positions_start_again_at_each_document_and_row():
    part = words("abc", "defgh")
    assert part.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 3, 4]]
    assert part.mask.tolist() == [[True, True, True, False, True], [True, True, True, True, False]]


def test_what_is_left_of_the_last_row_is_padding_that_counts_for_nothing():
    part = words("abc", length=7)
    assert part.labels.shape == (1, 7)
    assert part.tokens() == 3
    assert part.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2]]


def test_batches_and_parts_keep_the_mask_beside_the_row():
    part = words("abcdef", "gh", "ijklmnopq", "rs").subset([2, 0])
    assert isinstance(part, Texts)
    batch = part.batch(torch.tensor([1]))
    assert batch["id"].tolist() == [0]
    assert torch.equal(batch["mask"][0], part.mask[0])
    assert part.tokens() == int(part.mask[[2, 0]].sum())


def test_no_more_rows_than_asked():
    assert words("abcdef" * 20, most=3).labels.shape == (3, 5)


def test_in_a_chat_the_assistants_tokens_count_and_no_others():
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "bye"}]
    found = tokenize(chat, Letters())
    text = "".join(map(chr, found.ids))
    assert text == "[user:hi][assistant:yo][user:bye]"
    assert "".join(c for c, counts in zip(text, found.counts, strict=True) if counts) == "yo]"


def test_a_template_that_rewrites_earlier_messages_is_refused():
    class Rewrites(Letters):
        def apply_chat_template(self, messages, **options):
            return super().apply_chat_template(messages[-1:], **options)

    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    with pytest.raises(ValueError, match="changes what stands before message 1"):
        tokenize(chat, Rewrites())


def test_a_chat_without_an_answer_has_nothing_to_learn():
    with pytest.raises(ValueError, match="train: expected at least one token that counts as a target, got none"):
        words([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"length": 1}, "length: expected at least 2"), ({"tokenizer": None}, "expected an end-of-text token")],
)
def test_bad_arguments_are_refused(change, message):
    class Endless(Letters):
        eos_token_id = None

    given = {"tokenizer": Letters(), "length": 4} | {k: Endless() if k == "tokenizer" else v for k, v in change.items()}
    with pytest.raises(ValueError, match=message):
        pack(["abc"], given["tokenizer"], length=given["length"])


def test_parts_are_by_document_and_equal_documents_stay_together():
    documents = [f"document {i}" for i in range(300)] + [f"document {i}" for i in range(100)]
    split = parts(documents, valid_rate=0.2, test_rate=0.2, seed=3)
    assert sum(map(len, split.values())) == 400
    sets = {name: set(part) for name, part in split.items()}
    assert not sets["train"] & sets["valid"]
    assert not sets["train"] & sets["test"]
    assert not sets["valid"] & sets["test"]
    assert 0.1 < len(split["test"]) / 400 < 0.3
    assert split == parts(documents[::-1], valid_rate=0.2, test_rate=0.2, seed=3)
    assert split != parts(documents, valid_rate=0.2, test_rate=0.2, seed=4)


def test_documents_come_from_files_and_from_python(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.txt").write_text("one")
    (tmp_path / "two.txt").write_text("two")
    chat = [{"role": "user", "content": "hi"}]
    (tmp_path / "lines.jsonl").write_text(json.dumps({"text": "three"}) + "\n\n" + json.dumps({"messages": chat}) + "\n")
    assert read_documents(str(tmp_path)) == ["one", "two"]
    assert read_documents(str(tmp_path / "lines.jsonl")) == ["three", chat]
    python = read_documents("python")
    assert sum(map(len, python)) > 700_000
    with pytest.raises(ValueError, match="does not exist"):
        read_documents("nowhere.txt")
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"body": 1}\n')
    with pytest.raises(ValueError, match=r"in line 2, got '\{\"body\": 1\}'"):
        read_documents(str(tmp_path / "bad.jsonl"))


def test_the_beginning_of_each_row_is_a_prompt_where_asked():
    part = words("abcdefghij", length=5, prompt=2)
    batch = part.subset([1]).batch(torch.tensor([0]))
    assert "".join(map(chr, batch["prompt"]["input_ids"][0])) == "fg"
    assert batch["prompt"]["attention_mask"].tolist() == [[1, 1]]
    with pytest.raises(ValueError, match=r"prompt: expected a number in \[1, 5\)"):
        words("abcdefghij", length=5, prompt=5)
