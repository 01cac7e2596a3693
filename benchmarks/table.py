"""The table of a run: for the terminal, and kept in benchmarks/README.md."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measured import NotMeasured, Row

README = Path(__file__).with_name("README.md")
_HEAD = ("what", "ours", "yardstick", "ratio", "target", "met")


def markdown(rows: Iterable[Row], facts: Iterable[tuple[str, str]]) -> str:
    """Return the rows as a table that reads well as text too, and the machine below it."""
    table = _aligned([_HEAD, *(_cells(row) for row in rows)])
    machine = "\n".join(f"- {name}: {value}" for name, value in facts)
    return f"{table}\n\nMeasured on {datetime.now(UTC):%Y-%m-%d}:\n\n{machine}\n"


def keep(table: str, name: str = "") -> None:
    """Put a table in the place of the one in the README: that of everything, or of one measurement by its name.

    Raises:
        NotMeasured: the README has lost the marks between which it stands.
    """
    first, last = _marks(name)
    text = README.read_text()
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise NotMeasured(f"{README} does not say where the table goes: it needs the lines {first} and {last}")
    README.write_text(f"{before}{begin}\n\n{table}\n{end}{after}")


def _marks(name: str) -> tuple[str, str]:
    of, by = (f" of {name}", f" {name}") if name else ("", "")
    return (
        f"<!-- the last full run{of}: written by python -m benchmarks{by} -->",
        f"<!-- the end of the last full run{of} -->",
    )


def _cells(row: Row) -> tuple[str, ...]:
    met = {True: "yes", False: "**no**", None: ""}[row.met]
    shown = (row.ours, row.yardstick, row.ratio, row.target)
    return (row.what, *("" if cell is None else str(cell) for cell in shown), met)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
