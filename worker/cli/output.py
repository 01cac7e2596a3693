"""Print results, as text or as JSON, on stdout, and everything else on stderr.

Keys, messages, hosts and answers of stores come from outside. `printable` escapes each before a terminal gets it.
"""

import io
import json
import select
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.readable import jsonable, moment
from zot_artifact_client.text_escaping import bounded, is_hidden

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]

MOST = 2000
"""Characters of one text from outside that are shown."""
_GOOD = {"verified", "stored", "succeeded", "reachable", "good"}
_BAD = {
    "lost",
    "log_changed",
    "backup",
    "store_untrusted",
    "listing_suspect",
    "corrupt",
    "missing",
    "size_mismatch",
    "failed",
    "dead",
    "refused",
    "rejected",
    "not usable",
    "bad",
}
_WIDE = 2000
_LEAST_FLEXIBLE = 12


class StandardOutput(io.FileIO):
    """Standard output without a buffer; its errors name it.

    It waits for a slow reader also where another program, with the same terminal or pipe, has made it non-blocking.
    """

    @classmethod
    def use(cls) -> None:
        """Make it `sys.stdout`, unless a caller has replaced that. A character that it cannot encode is escaped."""
        given = sys.stdout
        if type(given) is io.TextIOWrapper:
            file = io.BufferedWriter(cls(given.fileno(), "wb", closefd=False))
            how: dict[str, Any] = {"line_buffering": given.line_buffering, "write_through": given.write_through}
            sys.stdout = io.TextIOWrapper(file, given.encoding, "backslashreplace", **how)

    def write(self, data: Any, /) -> int:
        """Write some bytes, and return how many."""
        try:
            while (count := super().write(data)) is None:
                select.select([], [self], [])
        except OSError as error:
            error.filename = "standard output"
            raise
        return count


def printable(text: object, most: int = MOST) -> str:
    r"""Return a text with control characters, line ends and direction marks as `\x1b`, cut to `most` characters."""
    return bounded(text, most)


def flat(value: object) -> str:
    """Return a value of a result or request as one line: `primary=3, dr=0` for a mapping, nested ones in brackets."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_inner(each)}" for name, each in value.items() if each not in (None, [], (), {}))
    if isinstance(value, list | tuple):
        return ", ".join(map(_inner, value))
    return printable(value)


def _inner(value: object) -> str:
    return f"({flat(value)})" if isinstance(value, Mapping) else flat(value)


def out() -> "Console":
    """Return the console of results. In a pipe its tables are as wide as they need to be."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = _WIDE
    return console


def err() -> "Console":
    """Return the console of everything that is no result."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False)


def say(line: object) -> None:
    """Print one line of a result."""
    out().print(printable(line, _WIDE * 5), markup=False)


def print_json(document: object) -> None:
    """Print a document as the one line on stdout."""
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(document, ensure_ascii=ascii_only, default=jsonable)
    if not text.isascii() or not text.isprintable():
        text = "".join(json.dumps(each)[1:-1] if is_hidden(each) else each for each in text)
    print(text, flush=True)


def note(line: object) -> None:
    """Print a message that is no result on stderr."""
    err().print(printable(line), style="dim", markup=False)


def complain(line: str, *, about: str = "") -> None:
    r"""Print an error or a warning in one line on stderr; the name that it is `about` may be long.

    White space stays as it is, with line ends as `\n`, because it may be part of a name.
    """
    name = f"{printable(about, _WIDE * 5)}: " if about else ""
    typer.echo(f"zot-artifacts: {name}{printable(line.strip())}", err=True)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str, flexible: Sequence[str] = ()
) -> None:
    """Print a table, or one line if it is empty.

    On a terminal the columns that are `flexible` are shortened in their middle until the table fits its width.
    """
    filled = list(rows)
    if not filled:
        note(empty)
        return
    console = out()
    cells = [[_cell(value) for value in row] for row in filled]
    if console.is_terminal:
        _shorten(columns, cells, flexible, console.width)
    console.print(table(columns, cells))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> "Table":
    """Return a table; words for states and verdicts get their colour."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(word(cell) for cell in row))
    return made


def word(value: object) -> str:
    """Return a value as markup: a state in its colour, a time to the second, nothing as a dash."""
    from rich.markup import escape

    text = escape(_cell(value))
    if text in _GOOD:
        return f"[green]{text}[/]"
    return f"[bold red]{text}[/]" if text in _BAD else text


def middle_cut(text: str, width: int) -> str:
    """Return a text of at most `width` cells of a terminal: its beginning and its end, with `…` between.

    A wide character, such as a Chinese one, has two cells. A terminal that has no `…` gets `...`.
    """
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    mark = "…" if _encoded("…") == "…" else "..."
    head, tail = "", ""
    for char in text:
        if cell_len(head + char) > (width - len(mark)) // 2:
            break
        head += char
    for char in reversed(text):
        if cell_len(head + mark + char + tail) > width:
            break
        tail = char + tail
    return f"{head}{mark}{tail}"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return moment(value) if isinstance(value, datetime) else _encoded(printable(value))


def _encoded(text: str) -> str:
    """Return a text with what stdout cannot encode as escapes, before a table counts its cells."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _shorten(columns: Sequence[str], cells: list[list[str]], flexible: Sequence[str], width: int) -> None:
    """Shorten the flexible columns in place: the widest first, none below a dozen characters."""
    from rich.cells import cell_len

    widths = [max(cell_len(row[n]) for row in [list(columns), *cells]) for n in range(len(columns))]
    chosen = [n for n, name in enumerate(columns) if name in flexible]
    while sum(widths) + 2 * len(widths) - 1 > width:
        widest = max(chosen, key=lambda n: widths[n], default=None)
        if widest is None or widths[widest] <= _LEAST_FLEXIBLE:
            return
        widths[widest] -= 1
        for row in cells:
            row[widest] = middle_cut(row[widest], widths[widest])
