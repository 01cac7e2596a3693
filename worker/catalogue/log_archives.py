"""Archives of the verification log: whole months as JSON lines, whose rows are then removed from the catalogue.

The first line has the format, the month, the names of the values in a row, and the hash of the row before the first.
Then each row is a line, and the last line has the hash of the last row. The rows have no hashes, because each follows
from its values and the hash before it. So the last line shows whether all rows were read back unchanged.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from itertools import islice, takewhile
from time import monotonic, sleep

import sqlalchemy as sa

from worker.catalogue.database import CatalogueError, Queries
from worker.catalogue.export import LineWriter, Sink
from worker.catalogue.load_export import Lines
from worker.catalogue.records import LogArchive, LogMonth
from worker.catalogue.tables import log_archives, verifications
from worker.catalogue.verifications import FIRST_PREVIOUS, LOGGED, hash_of, head_of, last_archive, row_fits
from worker.storage import Digest

_FORMAT, _VERSION = "zot-artifacts verification log", 1
_LONGEST_LINE = 1 << 20
_WRITTEN = 1000
"""Rows that are written at a time."""
_REMOVED = 2000
"""Rows that are removed in one transaction."""


class BadArchive(CatalogueError):
    """An archive is not what was archived."""


class LogArchives(Queries):
    """The months of the verification log that are archived, and the removal of their rows."""

    def all(self) -> list[LogArchive]:
        """Return the archives, the oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(log_archives).order_by(log_archives.c.last)).all()
        return [
            LogArchive(
                row.month, row.first, row.last, row.rows, row.previous, row.hash, row.ended_at,
                Digest(row.size, row.sha256),
            )
            for row in rows
        ]  # fmt: skip

    def extent(self) -> tuple[int, int]:
        """Return the id of the last archived row, and how many rows are archived; 0 and 0 if there are none."""
        query = sa.select(sa.func.max(log_archives.c.last), sa.func.sum(log_archives.c.rows))
        with self._database.read() as connection:
            last, rows = connection.execute(query).one()
        return int(last or 0), int(rows or 0)

    def write_month(self, sink: Sink, *, before: datetime) -> LogMonth | None:
        """Write the oldest month of the log that is not archived to a file, and return it.

        Return None if it ended after `before`, or if the last row of the log is in it: the next row is chained to
        that one. Memory does not grow with the month. A row that a clock ahead has written is in the month of the rows
        beside it: its time is later than that of the last row.

        Raises:
            CatalogueError: the chain of the log is broken.
        """
        writer = LineWriter(sink)
        with self._database.read() as connection:
            self._database.lift_time_limits(connection)
            archived, head = last_archive(connection), head_of(connection)
            previous = archived.hash if archived else FIRST_PREVIOUS
            query = sa.select(verifications).order_by(verifications.c.id).execution_options(yield_per=_WRITTEN)
            if archived:
                query = query.where(verifications.c.id > archived.id)
            first = connection.execute(query.limit(1)).first()
            if head is None or first is None:
                return None
            at, id_ = verifications.c.at, verifications.c.id
            in_order = sa.select(at).where(id_ >= first.id, at <= head.at).order_by(id_).limit(1)
            began = connection.execute(in_order).scalar_one()
            end = _next_month(began)
            if end > before or head.at < end:
                return None
            month, before_first = f"{began:%Y-%m}", previous
            header = {"format": _FORMAT, "version": _VERSION, "catalogue": self._database.identity, "month": month}
            writer.write([header | {"columns": ["id", "at", *LOGGED], "previous": previous}])
            count, last = 0, first
            with connection.execute(query) as result:
                rows = takewhile(lambda row: row.at < end or row.at > head.at, result)
                while some := list(islice(rows, _WRITTEN)):
                    for row in some:
                        if row.previous != previous or not row_fits(row):
                            raise CatalogueError(f"the verification log was changed at row {row.id}")
                        previous, last = row.hash, row
                    writer.write([row.id, row.at.isoformat(), *(getattr(row, name) for name in LOGGED)] for row in some)
                    count += len(some)
            writer.write([{"end": {"rows": count, "first": first.id, "last": last.id, "hash": previous}}])
        return LogMonth(month, first.id, last.id, count, before_first, last.hash, last.at)

    def add(self, month: LogMonth, digest: Digest, *, now: datetime) -> None:
        """Record that stores keep a month as an object with this digest; its rows may be removed from then on.

        Raises:
            CatalogueError: another run has archived these rows.
        """
        row = {**asdict(month), "size": digest.size, "sha256": digest.sha256, "archived_at": now}
        with self._database.write() as connection:
            connection.execute(sa.insert(log_archives), row)

    def remove_rows(self, check: Callable[[], object] = lambda: None) -> int:
        """Remove the rows that are archived, the oldest first, and return how many; a second run goes on.

        `check` is called after each transaction. Other writers get as much time as the transactions take.
        """
        after, (last, _), count, row = 0, self.extent(), 0, verifications.c.id
        while last:
            with self._database.write(durable=False) as connection:
                began = monotonic()
                some = sa.select(row).where(row > after, row <= last).order_by(row).limit(_REMOVED)
                ids = connection.execute(some).scalars().all()
                if not ids:
                    break
                connection.execute(sa.delete(verifications).where(row > after, row <= ids[-1]))
            after, count = ids[-1], count + len(ids)
            check()
            sleep(monotonic() - began)
        return count


def check_lines(lines: Lines, month: LogMonth) -> None:
    """Read the lines of an archive to their end and compute its chain.

    Raises:
        BadArchive: they are not the rows that were archived.
    """
    first = last = count = 0
    previous = month.previous
    try:
        header = json.loads(lines.readline(_LONGEST_LINE))
        if (header["format"], header["version"]) != (_FORMAT, _VERSION):
            raise BadArchive("it is no archive of the verification log, or one of a newer version")
        while isinstance(line := json.loads(lines.readline(_LONGEST_LINE)), list):
            last, at, *values = line
            first, count, previous = first or last, count + 1, hash_of(at, tuple(values), previous)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise BadArchive(f"it is damaged: {error}") from None
    if (first, last, count, previous) != (month.first, month.last, month.rows, month.hash) or lines.readline(1):
        raise BadArchive("its rows are not those that were archived: their chain ends with another hash")


def _next_month(at: datetime) -> datetime:
    first = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)
