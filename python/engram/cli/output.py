"""What a command says: one JSON document or tables on stdout, errors and progress on stderr, and the exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from os import PathLike
from typing import Any, NoReturn, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

import engram
from engram._exceptions import fields_of

OK = 0
DAMAGE = 1
BAD_INPUT = 2
ENGINE = 3
INTERRUPTED = 130

_CELL = 120


class BadInput(Exception):
    """What was given cannot be used.

    Parameters
    ----------
    message : str
        What, where (file:line) and why.
    fields
        More for the JSON form: file, line, stored.
    """

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.fields = fields


def exit_code(error: BaseException) -> int:
    """Return the exit code an error ends the command with."""
    bad = (BadInput, engram.InvalidArgument, engram.NotFound, engram.AlreadyExists)
    return BAD_INPUT if isinstance(error, bad) else ENGINE


def error_document(error: BaseException) -> dict[str, Any]:
    """Return an error as it is printed with --json."""
    code, fields = "BAD_INPUT", {}
    if isinstance(error, engram.EngramError):
        code = error.code
        fields = fields_of(error)
    elif isinstance(error, BadInput):
        fields = error.fields
    elif isinstance(error, OSError):
        code, fields = "STORAGE", {"path": error.filename, "errno": error.errno}
    return {"error": {"code": code, "message": one_line(str(error)), **fields}}


def fail(error: BaseException, as_json: bool) -> NoReturn:
    """Say what went wrong and end."""
    if as_json:
        document(error_document(error))
    else:
        sys.stderr.write(f"engram: {one_line(str(error))}\n")
    sys.exit(exit_code(error))


def say(text: str) -> None:
    """Print; whoever reads may have gone, as `head` does. Raises OSError if it cannot be written."""
    if cast(Any, sys.stdout) is None:  # closed by whoever called
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # What could not be written is not tried again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            sys.stdout = sys.stderr
            raise


def document(value: Any) -> None:
    """Print one JSON document."""
    say(json.dumps(value, default=_plain, indent=2) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, PathLike) else repr(value)


def one_line(text: str) -> str:
    """Return text without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; numbers stand to the right, and no cell's text is taken for markup."""
    grid = Table(title=Text(title), title_justify="left")
    cells = [[*row] for row in rows]
    for number, name in enumerate(columns):
        numeric = all(isinstance(row[number], int | float) for row in cells)
        grid.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        grid.add_row(*(Text(_cell(value)) for value in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    with console.capture() as printed:
        console.print(grid)
    say(printed.get())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    text = one_line(str(value))
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"
