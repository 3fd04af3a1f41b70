"""Text: documents from files and from Python itself, split by document, tokenised, and packed into rows of equal length.

A packed row holds documents one after the other; positions start again at each, by which transformers' models keep attention inside a
document, and no token is asked to predict the first one of the next document.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preceptor.core.types import Batch
from preceptor.data.examples import Examples

Document = str | Sequence[Mapping[str, str]]
"""A text, or the messages of a chat: mappings with ``role`` and ``content``."""


class Texts(Examples):
    """Rows of tokens. Made by `pack`.

    Args:
        input_ids: int64 (N, T).
        position_ids: int64 (N, T), from 0 in each document.
        targets: int64 (N, T), the token that each position is to predict.
        mask: bool (N, T), the targets that count.
        vocabulary: V; tokens lie in [0, V).
        tokenizer: by which the rows were made; None where there is none.
        prompt: tokens at the beginning of each row that a batch brings as ``prompt`` too, for methods that let the student go on from them.
        name: what error messages call it.
        rows: int64 (n,), the rows that belong to this part; by default all.
    """

    def __init__(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        targets: Tensor,
        mask: Tensor,
        *,
        vocabulary: int,
        tokenizer: Any = None,
        prompt: int | None = None,
        name: str = "train",
        rows: Tensor | None = None,
    ):
        if prompt is not None and not 1 <= prompt < targets.shape[1]:
            raise ValueError(f"prompt: expected a number in [1, {targets.shape[1]}), the tokens of a row, got {prompt}")
        inputs = {"input_ids": input_ids, "position_ids": position_ids}
        super().__init__(inputs, targets, num_classes=vocabulary, name=name, rows=rows)
        self.mask, self.tokenizer, self.prompt = mask, tokenizer, prompt

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return self.all_labels.shape[1]

    def tokens(self) -> int:
        """Targets that count, all rows together."""
        return int(self.mask[self.ids].sum())

    def batch(self, indices: Tensor, *, seeds: Tensor | None = None) -> Batch:
        """As `Examples.batch`, with ``y`` and ``mask`` of shape (B, T), and perhaps ``prompt``."""
        batch = super().batch(indices, seeds=seeds)
        batch["mask"] = self.mask.index_select(0, batch["id"])
        if self.prompt is not None:
            begun = batch["x"]["input_ids"][:, : self.prompt]
            batch["prompt"] = {"input_ids": begun, "attention_mask": torch.ones_like(begun)}
        return batch

    def subset(self, indices: Tensor | Sequence[int], *, name: str | None = None) -> Texts:
        """As `Examples.subset`."""
        part = super().subset(indices, name=name)
        assert isinstance(self.inputs, dict)
        more: dict[str, Any] = {
            "vocabulary": self.num_classes,
            "tokenizer": self.tokenizer,
            "prompt": self.prompt,
            "name": part.name,
            "rows": part.ids,
        }
        return Texts(self.inputs["input_ids"], self.inputs["position_ids"], self.all_labels, self.mask, **more)


@dataclass(frozen=True)
class Tokens:
    """One document: token ids, and for each whether it counts as a target."""

    ids: list[int]
    counts: list[bool]


def pack(
    documents: Iterable[Document], tokenizer: Any, *, length: int, most: int | None = None, prompt: int | None = None, name: str = "train"
) -> Texts:
    """Tokenise documents and lay them one after the other into rows.

    After each text stands the end-of-text token, which counts as a target; in a chat the tokens of the assistant count and no others. A
    document that crosses the end of a row goes on in the next, where its positions start again. What is left of the last row is padding.

    Args:
        documents: texts or chats.
        tokenizer: of transformers.
        length: T, tokens in a row, at least 2.
        most: rows at most; None: as many as there are.
        prompt: see `Texts`.
        name: what error messages call the part.
    Raises:
        ValueError: length below 2, no target that counts, a tokenizer without an end-of-text token, or a chat that it cannot lay out.
    """
    if length < 2:
        raise ValueError(f"length: expected at least 2 tokens, got {length}")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer: expected an end-of-text token (eos_token), got a {type(tokenizer).__name__} without one")
    ids: list[int] = []
    begins: list[bool] = []
    counts: list[bool] = []
    wanted = None if most is None else most * length + 1
    for document in documents:
        found = tokenize(document, tokenizer)
        ids += found.ids
        begins += [True] + [False] * (len(found.ids) - 1)
        counts += found.counts
        if wanted is not None and len(ids) >= wanted:
            break
    if not any(counts):
        raise ValueError(f"{name}: expected at least one token that counts as a target, got none in {len(ids)} tokens")
    rows = -(-(len(ids) - 1) // length)
    rows = max(1, rows if most is None else min(rows, most))
    spare = rows * length + 1 - len(ids)
    flat = torch.tensor(ids + [tokenizer.eos_token_id] * max(spare, 0))[: rows * length + 1]
    starts = torch.tensor(begins + [True] + [False] * spare if spare > 0 else begins)[: rows * length + 1]
    valid = torch.tensor(counts + [False] * max(spare, 0))[: rows * length + 1]
    mask = valid[1:] & ~starts[1:]
    place = torch.arange(rows * length)
    begun = torch.where(starts[:-1] | (place % length == 0), place, 0).cummax(0).values
    return Texts(
        flat[:-1].view(rows, length),
        (place - begun).view(rows, length),
        flat[1:].view(rows, length),
        mask.view(rows, length),
        vocabulary=len(tokenizer),
        tokenizer=tokenizer,
        prompt=prompt,
        name=name,
    )


def tokenize(document: Document, tokenizer: Any) -> Tokens:
    """Tokens of a text, its end included, or of a chat laid out by the tokenizer's template.

    Raises:
        ValueError: a chat that is empty or has no template, or a template that rewrites earlier messages when a later one comes.
    """
    if isinstance(document, str):
        ids = [*tokenizer.encode(document, add_special_tokens=False), tokenizer.eos_token_id]
        return Tokens(ids, [True] * len(ids))
    if not document or not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"messages: expected at least one and a tokenizer with a chat template, got {len(document)} messages")
    ids, counts = [], []
    for number, message in enumerate(document):
        said = message.get("role") == "assistant"
        whole = _laid_out(tokenizer, document[: number + 1], prompt=False)
        before = _laid_out(tokenizer, document[:number], prompt=True) if said and number else ids
        if whole[: len(before)] != before or before[: len(ids)] != ids:
            raise ValueError(
                f"messages: expected a chat template that only appends, got one that changes what stands before message {number}"
            )
        counts += [False] * (len(before) - len(ids)) + [said] * (len(whole) - len(before))
        ids = whole
    return Tokens(ids, counts)


def _laid_out(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, prompt: bool) -> list[int]:
    return list(tokenizer.apply_chat_template(list(messages), add_generation_prompt=prompt, tokenize=True, return_dict=False))


def parts(documents: Sequence[Document], *, valid_rate: float = 0.05, test_rate: float = 0.05, seed: int = 0) -> dict[str, list[Document]]:
    """Split documents into train, valid and test by a hash of their content: equal documents stand in one part, in the order of the hashes.

    Args:
        documents: texts or chats.
        valid_rate, test_rate: parts held out, in [0, 1), by number of documents.
        seed: which.
    Raises:
        ValueError: rates outside their range, or a part without documents.
    """
    if not (0 <= valid_rate < 1 and 0 <= test_rate < 1 and valid_rate + test_rate < 1):
        raise ValueError(f"rates: expected valid and test in [0, 1) with a sum below 1, got {valid_rate} and {test_rate}")
    split: dict[str, list[Document]] = {"train": [], "valid": [], "test": []}
    hashed = [(hashlib.sha256(f"{seed} {json.dumps(document)}".encode()).digest(), document) for document in documents]
    for digest, document in sorted(hashed, key=lambda entry: entry[0]):
        share = int.from_bytes(digest[:8], "big") / 2**64
        split["valid" if share < valid_rate else "test" if share < valid_rate + test_rate else "train"].append(document)
    empty = [name for name, rate in (("train", 1.0), ("valid", valid_rate), ("test", test_rate)) if rate and not split[name]]
    if empty:
        raise ValueError(f"{empty[0]}: expected at least one document, got none of {len(documents)}")
    return split


def read_documents(name: str) -> list[Document]:
    """Documents by name.

    ===================  ==============================================================================================
    ``python``           English that ships with Python: the reference topics of ``pydoc`` and the docstrings of the library
    a ``.jsonl`` file    one document a line: ``{"text": ...}`` or ``{"messages": [{"role", "content"}, ...]}``
    a ``.txt`` file      one document
    a folder             every ``.txt`` file below it, in order of their paths
    ===================  ==============================================================================================

    Raises:
        ValueError: no such file, nothing in it, or a line that is neither.
    """
    if name == "python":
        return [*_python_topics(), *_python_docstrings()]
    path = Path(name)
    if path.is_dir():
        documents: list[Document] = [file.read_text(encoding="utf-8") for file in sorted(path.rglob("*.txt"))]
    elif not path.is_file():
        raise ValueError(f"text: expected 'python', a .jsonl or .txt file or a folder, got {name!r}, which does not exist")
    elif path.suffix == ".jsonl":
        documents = [
            _line(line, path, number) for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if line.strip()
        ]
    else:
        documents = [path.read_text(encoding="utf-8")]
    if not documents:
        raise ValueError(f"text: expected at least one document, got none in {name!r}")
    return documents


def _line(line: str, path: Path, number: int) -> Document:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        entry = None
    if isinstance(entry, dict) and isinstance(entry.get("text"), str):
        return entry["text"]
    messages = entry.get("messages") if isinstance(entry, dict) else None
    if isinstance(messages, list) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages):
        return messages
    raise ValueError(
        f"{path}: expected {{'text': ...}} or {{'messages': [{{'role', 'content'}}, ...]}} in line {number}, got {line[:60]!r}"
    )


def _python_topics() -> list[str]:
    from pydoc_data.topics import topics  # 600 kB

    return [topics[key] for key in sorted(topics)]


def _python_docstrings() -> list[str]:
    """The docstrings of every module of the library that has at least 500 characters of them, one document each."""
    documents = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts or "tests" in path.parts or "idlelib" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        text = "\n\n".join(doc for doc in found if doc)
        if len(text) >= 500:
            documents.append(text)
    return documents
