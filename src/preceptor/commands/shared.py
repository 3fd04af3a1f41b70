"""What every command shares: options, the line and the exit status of an error, progress. Imports neither torch nor an extra."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run directory; by default runs/ and the recipe's name.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
RecipePath = Annotated[Path, typer.Argument(help="A YAML file, see recipes/.", metavar="RECIPE")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Fields to change, such as method.temperature=2.", metavar="[KEY=VALUE]...")]


def fail(message: object, code: int) -> NoReturn:
    """Print one line and end with an exit status."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    raise typer.Exit(code)


@contextmanager
def checked(resume: str = "") -> Iterator[None]:
    """Turn what can go wrong into one line and the right exit status; ``resume`` is the command that goes on."""
    from preceptor.core.method import NonFinite
    from preceptor.core.run import Interrupted
    from preceptor.core.state import CheckpointError

    hint = f"; go on with: {resume}" if resume else ""
    try:
        yield
    except Interrupted as stop:
        print(f"stopped: {stop}{hint}", file=sys.stderr)
        raise typer.Exit(stop.exit_code) from None
    except NonFinite as error:
        fail(f"{error}{hint}", 1)
    except (CheckpointError, ValueError, TypeError, ImportError) as error:
        fail(error, 2)
    except OSError as error:
        fail(f"{error}{hint}", 1)


@contextmanager
def bars() -> Iterator[Any]:
    """Progress on standard error while the block runs; see `preceptor.progress.Bars`."""
    from rich.console import Console

    from preceptor.progress import Bars

    with Bars(Console(stderr=True)) as shown:
        yield shown
