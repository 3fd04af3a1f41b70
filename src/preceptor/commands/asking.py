"""What commands that ask a language model share: options, the chat, and the end of a run that was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from preceptor.commands.shared import checked, fail

if TYPE_CHECKING:
    from preceptor.teachers.chat import Chat

Url = Annotated[str | None, typer.Option(help="Of an OpenAI-compatible endpoint, such as http://HOST:8000/v1; none: the model runs here.")]
Key = Annotated[str | None, typer.Option(help="Name of the environment variable that holds the API key.")]
JournalFile = Annotated[Path | None, typer.Option("--journal", help="SQLite file of the answers; by default chat.sqlite in --out.")]
Replay = Annotated[bool, typer.Option("--replay", help="Answer from the journal alone; ask nobody.")]
Price = Annotated[tuple[float, float] | None, typer.Option(help="Money per million tokens read, and written.")]
Money = Annotated[float | None, typer.Option(help="Stop before all answers of the journal together cost more.")]
Tokens = Annotated[int | None, typer.Option(help="Stop before all answers of the journal together take more tokens.")]
Parallel = Annotated[int, typer.Option(min=1, help="Questions on their way at one time, or answered together here.")]


@contextmanager
def answering(go_on: str) -> Iterator[None]:
    """`checked`, and a chat that stops ends in one line with exit status 1; ``go_on`` is the command that goes on."""
    with checked(go_on):
        from preceptor.teachers.chat import ChatStopped

        try:
            yield
        except ChatStopped as stop:
            fail(stop, 1)


def opened(
    model: str,
    *,
    url: str | None,
    key: str | None,
    journal: Path,
    replay: bool,
    price: tuple[float, float] | None,
    money: float | None,
    tokens: int | None,
    parallel: int,
) -> Chat:
    """The chat that the options describe; see `preceptor.teachers.chat.open_chat`."""
    from preceptor.teachers.chat import Budget, Prices, open_chat

    prices = None if price is None else Prices(input=price[0], output=price[1])
    budget = None if money is None and tokens is None else Budget(money=money, tokens=tokens)
    return open_chat(model, url=url, key=key, journal=journal, replay=replay, prices=prices, budget=budget, parallel=parallel)


def counted(shown: Any, name: str) -> Callable[[int, int], None]:
    """Progress of a chat on the bars of `preceptor.commands.shared.bars`."""
    return lambda done, total: shown.count(name, done, total, "question")


def write_result(result: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write ``result.json`` into a folder; numbers that are not finite become null there."""
    from preceptor.core.files import write_whole
    from preceptor.report.sheet import strict

    plain: Any = strict(dict(result))
    write_whole(out / "result.json", json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return plain
