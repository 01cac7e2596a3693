"""What commands print: results for people or as JSON on stdout, everything else on stderr."""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]

_GOOD = {"verified", "stored", "succeeded", "reachable"}
_BAD = {"corrupt", "missing", "size_mismatch", "failed", "dead", "refused", "unreachable"}
_WIDE = 2000
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def out() -> Console:
    """Return the console of results. In a pipe its tables are as wide as they need to be."""
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = _WIDE
    return console


def err() -> Console:
    """Return the console of everything that is no result."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def print_json(document: object) -> None:
    """Print a document as the one line on stdout."""
    print(json.dumps(document, ensure_ascii=False, default=_jsonable), flush=True)


def note(line: str) -> None:
    """Tell a person something that is no result."""
    err().print(escape(line), style="dim")


def complain(line: str) -> None:
    """Tell on stderr what is wrong, in one line."""
    typer.echo(f"zot-artifacts: {' '.join(line.split())}", err=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table; words for states and verdicts get their colour."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(word(cell) for cell in row))
    return made


def word(value: object) -> str:
    """Return a value as markup: a state in its colour, a time to the second, nothing as a dash."""
    if value is None:
        return "-"
    text = moment(value) if isinstance(value, datetime) else escape(str(value))
    if text in _GOOD:
        return f"[green]{text}[/]"
    return f"[bold red]{text}[/]" if text in _BAD else text


def moment(value: datetime) -> str:
    """Return a time as people read it."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def size(count: float) -> str:
    """Return a number of bytes with a unit."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:  # noqa: PLR2004 - what the units mean
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def _jsonable(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return str(value)
