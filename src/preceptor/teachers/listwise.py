"""Reordering passages by a language model that reads a window of them: prompts, answers, and windows from the end to the head of a list.

Sun et al. 2023, RankGPT (arXiv:2304.09542); Abdallah et al. 2025, DeAR (arXiv:2508.16998), whose second stage it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from preceptor.losses.checks import check_counts
from preceptor.teachers.chat import Chat, Settings

Messages = list[dict[str, str]]
Agent = Callable[[Messages], str]
"""From the messages of a chat to the reply; "" where there is none."""


@dataclass(frozen=True, kw_only=True)
class Reranked:
    """``order``: positions in the list as it was given, the best first; ``replies``: of each window, as they came."""

    order: tuple[int, ...]
    replies: tuple[str, ...]


def chat_agent(chat: Chat, settings: Settings | None = None) -> Agent:
    """An agent that asks a language model; an answer that failed is empty, so that its window keeps its order."""
    settings = settings or Settings(max_tokens=4096)
    return lambda messages: chat.ask([messages], settings)[0].text


def ranking_messages(query: str, passages: Sequence[str], *, words: int = 300) -> Messages:
    """The chat that asks for a ranking; with a reply as last message it is an example to train on.

    Args:
        query: what is looked for.
        passages: at least one, identified by [1], [2] and so on.
        words: of each passage that are shown.
    """
    check_counts(words=words, passages=len(passages))
    messages = [{"role": "system", "content": "You are a passage ranker: you order passages by how well they answer a query."}]
    for number, passage in enumerate(passages, start=1):
        shown = " ".join(passage.split()[:words])
        messages += [{"role": "user", "content": f"[{number}] {shown}"}, {"role": "assistant", "content": f"Passage [{number}] received."}]
    ask = (
        f"Query: {query}\nList what information the query needs, match each passage with these needs, and rank all {len(passages)}"
        " passages, the most relevant first. Answer with identifiers only, in the form [2] > [1]."
    )
    return [*messages, {"role": "user", "content": ask}]


def parse_ranking(reply: str, count: int) -> list[int]:
    """The order that a reply gives, whatever it looks like.

    Only what follows the last closing think tag counts, nothing where the tag was never closed. Of identifiers in brackets, or all numbers
    where there are none in brackets, those outside the window and repeated ones are dropped; missing ones follow in the order of the input.

    Args:
        reply: text of the agent; identifiers count from 1.
        count: passages in the window.
    Returns:
        A permutation of 0 .. count - 1.
    """
    _, closed, after = reply.rpartition("</think>")
    said = after if closed else reply.partition("<think>")[0]
    found = re.findall(r"\[\s*([0-9]+)\s*\]", said) or re.findall(r"[0-9]+", said)
    numbers = [int(digits) - 1 for digits in found if len(digits) <= 9]
    return list(dict.fromkeys([*(at for at in numbers if 0 <= at < count), *range(count)]))


def windows(count: int, *, start: int = 0, end: int = 30, window: int = 20, step: int = 10) -> list[tuple[int, int]]:
    """Ranges [a, b) of ranks to reorder, one after the other, from the end of the range to its start.

    Args:
        count: length of the list, to which ``end`` is cut.
        start: first rank, from 0; no passage of the range is left out, the last window begins here.
        end: after the last rank.
        window: passages that are read together, at least 2.
        step: ranks between windows, in [1, window]; the best window - step of the range rise to its head where every window is put right.
    Raises:
        ValueError: numbers out of range.
    """
    check_counts(step=step)
    if window < 2:
        raise ValueError(f"window: expected at least 2, got {window}")
    if not 0 <= start <= end:
        raise ValueError(f"start: expected a rank in [0, {end}], got {start}")
    if step > window:
        raise ValueError(f"step: expected at most the window of {window}, got {step}")
    end = min(end, count)
    if end - start < 2:
        return []
    first = max(end - window, start)
    found = [(first, end)]
    while first > start:
        first = max(first - step, start)
        found.append((first, first + window))
    return found


def rerank(
    query: str, passages: Sequence[str], agent: Agent, *, start: int = 0, end: int = 30, window: int = 20, step: int = 10, words: int = 300
) -> Reranked:
    """Let an agent reorder the head of a list of passages, window by window.

    Args:
        query: what is looked for.
        passages: in the order of the first stage.
        agent: see `Agent`; `chat_agent` asks a language model.
        start, end, window, step: see `windows`.
        words: see `ranking_messages`.
    Raises:
        ValueError: numbers out of range.
    """
    order, replies = list(range(len(passages))), []
    for first, last in windows(len(passages), start=start, end=end, window=window, step=step):
        seen = order[first:last]
        replies.append(agent(ranking_messages(query, [passages[at] for at in seen], words=words)))
        order[first:last] = [seen[at] for at in parse_ranking(replies[-1], len(seen))]
    return Reranked(order=tuple(order), replies=tuple(replies))
