"""The table of a run, for the terminal and for benchmarks/README.md."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.harness.result_rows import Line, Missing, NotMeasured

README = Path(__file__).parent.with_name("README.md")
_HEAD = ("what", "ours", "yardstick", "ratio", "pairs", "target", "met")


def markdown(lines: Iterable[Line], facts: Iterable[tuple[str, str]]) -> str:
    """Return the lines as a table that reads well as text too, and the machine below it."""
    machine = "\n".join(f"- {name}: {value}" for name, value in facts)
    return f"{_aligned([_HEAD, *map(_cells, lines)])}\n\nMeasured on {datetime.now(UTC):%Y-%m-%d}:\n\n{machine}\n"


def keep(table: str, name: str = "") -> None:
    """Replace the table in the README: that of all measurements, or of one by its name.

    Raises:
        NotMeasured: the README has lost the marks around the table.
    """
    before, _, after = _parted(name)
    README.write_text(f"{before}\n\n{table}\n{after}")


def exchange(lines: Iterable[Line], name: str) -> None:
    """Replace the lines in the README's table that were measured again.

    A new line comes last, and a line without numbers is left out. The text below the table gets the date.

    Raises:
        NotMeasured: the README has lost the marks, or its table has other columns.
    """
    before, kept, after = _parted(name)
    table, machine = _rows(kept)
    if table[:1] != [_HEAD]:
        raise NotMeasured(f"the table of {name} in {README} is not one of these columns: measure all of it first")
    left = [_cells(line) for line in lines if not isinstance(line, Missing)]
    if not left:
        return
    note = f"- Measured again on {datetime.now(UTC):%Y-%m-%d}, alone: {'; '.join(what for what, *_ in left)}"
    exchanged: list[tuple[str, ...]] = []
    for cells in table:
        found = [again for again in left if again[0] == cells[0] or again[0].startswith(f"{cells[0]}, ")]
        exchanged += found or [cells]
        left = [again for again in left if again not in found]
    README.write_text(f"{before}\n\n{_aligned([*exchanged, *left])}\n\n{machine}\n{note}\n\n{after}")


def _rows(kept: str) -> tuple[list[tuple[str, ...]], str]:
    """Return the cells of a table, and the text below it."""
    lines = kept.strip().splitlines()
    table = [line for line in lines if line.startswith("|")]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table]
    return [*cells[:1], *cells[2:]], "\n".join(lines[len(table) :]).strip()


def _parted(name: str) -> tuple[str, str, str]:
    """Return the README up to and with the first mark, what is between them, and the rest with the last one."""
    first, last = _marks(name)
    before, begin, rest = README.read_text().partition(first)
    kept, end, after = rest.partition(last)
    if not (begin and end):
        raise NotMeasured(f"{README} does not say where the table goes: it needs the lines {first} and {last}")
    return before + begin, kept, end + after


def _marks(name: str) -> tuple[str, str]:
    of, by = (f" of {name}", f" {name}") if name else ("", "")
    return (
        f"<!-- the last full run{of}: written by python -m benchmarks{by} -->",
        f"<!-- the end of the last full run{of} -->",
    )


def brief(line: Line) -> str:
    """Return a line as it is printed while others are still measured."""
    cells = [cell for cell in _cells(line)[1:] if cell]
    return f"{line.what}: {', '.join(cells)}"


def _cells(line: Line) -> tuple[str, ...]:
    if isinstance(line, Missing):
        return (
            line.what,
            f"**not measured**: {' '.join(line.why.split()).replace('|', '/')}",
            *[""] * (len(_HEAD) - 2),
        )
    met = {True: "yes", False: "**no**", None: ""}[line.met]
    pairs = len(line.ratio.values) if line.ratio else None
    shown = (line.ours, line.yardstick, line.ratio, pairs, line.target)
    return (line.what, *("" if cell is None else str(cell) for cell in shown), met)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
