"""Sort any number of rows on disk, with a bounded number of them in memory."""

import heapq
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Self

from worker.storage.spooling import spooling_in

_RUN = 100_000
"""Rows that are sorted in memory at a time."""
_MOST_RUNS = 200
"""Runs that are merged at a time, each with an open file."""

Row = tuple[Any, ...]
"""Values that JSON has; rows are compared by their values from the left, texts by their code points."""


class DiskSort:
    """Rows that are added in any order and read back in theirs. A context manager: its files go at the end."""

    def __init__(self, directory: Path | None = None, *, run: int = _RUN) -> None:
        """Sort in a directory, by default the system's for temporary files; `run`: rows in memory."""
        self._directory = directory
        self._run = run
        self._rows: list[Row] = []
        self._runs: list[IO[str]] = []
        self._files = ExitStack()

    def add(self, row: Row) -> None:
        """Add a row."""
        self._rows.append(row)
        if len(self._rows) >= self._run:
            self._spill()

    def __iter__(self) -> Iterator[Row]:
        """Yield all rows in their order; more than once if need be, but one after the other."""
        self._rows.sort()
        runs: list[Iterator[Row]] = [_read(file) for file in self._runs]
        return heapq.merge(*runs, self._rows)

    def close(self) -> None:
        """Remove the files."""
        with suppress(OSError):  # of bytes that had no room, which the file writes once more
            self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _spill(self) -> None:
        self._rows.sort()
        self._runs.append(self._written(iter(self._rows)))
        self._rows = []
        if len(self._runs) >= _MOST_RUNS:
            merged = self._written(heapq.merge(*(_read(file) for file in self._runs)))
            for file in self._runs:
                file.close()
            self._runs = [merged]

    def _written(self, rows: Iterator[Row]) -> IO[str]:
        with spooling_in(self._directory):
            file: IO[str] = tempfile.TemporaryFile(  # noqa: SIM115 - open until the rows were read
                "w+", encoding="utf-8", dir=self._directory, prefix="zot-sort-"
            )
            self._files.callback(file.close)
            for row in rows:
                file.write(json.dumps(row, separators=(",", ":")) + "\n")
            file.flush()
        return file


def _read(file: IO[str]) -> Iterator[Row]:
    file.seek(0)
    for line in file:
        yield tuple(json.loads(line))
