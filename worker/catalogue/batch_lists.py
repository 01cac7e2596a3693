"""The lists of what batches upload or adopt, so that every worker can read them, whatever its machine."""

import zlib
from collections.abc import Iterator

import sqlalchemy as sa

from worker.catalogue.database import Queries
from worker.catalogue.tables import upload_lists

_ROWS = 10
"""Rows that are read at a time."""


class BatchLists(Queries):
    """The lists of batches that have not ended, each in rows of several lines."""

    def append(self, batch: str, begin: int, lines: bytes) -> None:
        """Add lines to a list, of which the first has the number `begin`; they replace those of an earlier attempt.

        A power cut may undo it, until something else is recorded.
        """
        row = {"batch": batch, "begin": begin, "lines": zlib.compress(lines, level=1)}  # to an eighth
        later = sa.delete(upload_lists).where(upload_lists.c.batch == batch, upload_lists.c.begin >= begin)
        with self._database.write(durable=False) as connection:
            connection.execute(later)
            connection.execute(sa.insert(upload_lists), row)

    def rows(self, batch: str, number: int) -> Iterator[tuple[int, bytes]]:
        """Yield the lines of a list from the row on that has this number, with the number of the first of each row."""
        row, after = upload_lists.c, None
        first = sa.select(sa.func.max(row.begin)).where(row.batch == batch, row.begin <= number).scalar_subquery()
        query = sa.select(row.begin, row.lines).where(row.batch == batch).order_by(row.begin).limit(_ROWS)
        while True:
            with self._database.read() as connection:
                wanted = row.begin >= first if after is None else row.begin > after
                found = connection.execute(query.where(wanted)).all()
            for begin, lines in found:
                yield begin, zlib.decompress(lines)
                after = begin
            if len(found) < _ROWS:
                return

    def remove(self, batch: str) -> None:
        """Remove a list, if there is one."""
        with self._database.write() as connection:
            connection.execute(sa.delete(upload_lists).where(upload_lists.c.batch == batch))
