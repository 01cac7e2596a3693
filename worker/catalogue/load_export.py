"""Load an export into an empty catalogue: all of it, or nothing."""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from gzip import BadGzipFile
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from worker import clock
from worker.catalogue import database, sqlite
from worker.catalogue.backup_times import record_restore
from worker.catalogue.database import CatalogueError
from worker.catalogue.export import FORMAT, KINDS, VERSION, ColumnKind, ExportSummary
from worker.catalogue.records import OPEN_STATES, LogHead
from worker.catalogue.tables import metadata
from worker.catalogue.writers import forget_writers, leave_databases
from zot_artifact_client.contract import JobState

_LONGEST_LINE = 64 << 20
"""Bytes; the longest line is the manifest of the largest object."""
_ROWS = 1000
_BYTES = 1 << 20
"""Characters of lines that are kept before they are written."""
_IDENTITY = "catalogue_identity"
_FILLED_BY_USE = {_IDENTITY, "alembic_version", "store_identities"}
"""The tables that a command fills which opens a new catalogue and its stores, such as `status` after a failed load."""
_RESTORED = {"type": "CatalogueRestored", "message": "the job was open when the backup was made that was restored"}


class BadExport(CatalogueError):
    """A file is no whole export of a catalogue; nothing was loaded."""


class NotEmpty(CatalogueError):
    """The catalogue has rows already; nothing was loaded."""


class Lines(Protocol):
    """The file that an export is read from."""

    def readline(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of an export."""

    identity: str
    revision: str
    exported_at: datetime
    log_head: LogHead | None


def load_export(url: str, file: Lines, *, restore: bool = False) -> ExportSummary:
    """Load an export into the empty catalogue at this SQLAlchemy URL, in one transaction.

    The catalogue has the id of the exported one afterwards, so that the stores and the heads of its log fit it. An
    export of an earlier version is brought up to date.

    Args:
        url: the catalogue; it is made if there is none.
        file: the export, read once.
        restore: the export is a backup, and what happened after it is unknown: claims and leases are removed, and
            jobs that were open end, those of sweeps as cancelled and all others as dead letters. The grace period of
            each delete begins anew, because the delete may have been undone since. The stores keep their lists and
            heads, which may be later, until `BackupTimes.accept_restored`.

    Raises:
        NotEmpty: the catalogue has rows.
        BadExport: the file is damaged, cut, no export, or one of a newer version.
        CatalogueError: the database cannot be used, has tables of another program or of a newer version, or another
            catalogue was there before.
    """
    engine = database.open_engine(url)
    path = sqlite.file_of(engine.url) if engine.dialect.name == "sqlite" else None
    made = path is not None and not path.exists()
    try:
        with database.writing(engine) as connection:
            summary = _Load(connection, file, path).run(restore=restore)
    except BaseException:
        engine.dispose()
        if made and path:
            _remove(path)
        raise
    engine.dispose()
    if path:
        database.mark(path, summary.identity)
    return summary


def _remove(path: Path) -> None:
    """Remove the database that a failed load has made: an empty one would be taken for a new catalogue."""
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)


class _Load:
    """One load, within one transaction."""

    def __init__(self, connection: Connection, file: Lines, path: Path | None) -> None:
        self._connection = connection
        self._engine: Engine = connection.engine
        self._lines = _Checked(file)
        self._path = path
        self._rows: dict[str, int] = {}

    def run(self, *, restore: bool) -> ExportSummary:
        with self._lines.refusing():
            header = _header(self._lines.next())
        there = self._check_empty()
        self._check_marker(header)
        self._make_tables(header, there)
        with self._lines.refusing():
            end, sha256 = self._read_tables()
            _check_end(end, self._rows, sha256)
        database.upgrade_tables(self._connection)
        if restore:
            _end_open_jobs(self._connection, header.exported_at)
            _restart_grace(self._connection, clock.now())
            record_restore(self._connection, header.exported_at)
            forget_writers(self._connection)
        else:
            leave_databases(self._connection)
        self._count_ids()
        return ExportSummary(header.identity, header.exported_at, self._rows, sha256, header.log_head)

    def _check_marker(self, header: Header) -> None:
        kept = database.marked(self._path) if self._path else None
        if kept is not None and kept != header.identity:
            marker = database.marker_of(self._path) if self._path else ""
            raise CatalogueError(
                f"the export is of the catalogue {header.identity}, and {kept} was here before: "
                f"load it elsewhere, or remove {marker}"
            )

    def _check_empty(self) -> set[str]:
        """Return which tables there are already, all of an empty catalogue; raise NotEmpty if one has rows of work."""
        there = set(sa.inspect(self._connection).get_table_names()) & {*metadata.tables, "alembic_version"}
        if there:
            database.check_known(self._connection, there)
        for name in sorted(there - _FILLED_BY_USE):
            if self._connection.execute(sa.text(f"SELECT 1 FROM {name} LIMIT 1")).scalar() is not None:  # noqa: S608
                raise NotEmpty(
                    f"the catalogue is not empty, {name} has rows: an export is only loaded into a new or empty one. "
                    "Rename catalogue.sqlite3, or name a new database in ZOT_CATALOGUE"
                )
        return there

    def _make_tables(self, header: Header, there: set[str]) -> None:
        """Make the tables as the export has them."""
        dependent_last = [table.name for table in reversed(metadata.sorted_tables)]
        for name in [*dependent_last, "alembic_version"]:
            if name in there:
                self._connection.execute(sa.text(f"DROP TABLE {name}"))
        database.upgrade_tables(self._connection, header.revision)
        self._connection.execute(sa.text(f"DELETE FROM {_IDENTITY}"))  # noqa: S608 - the names are ours

    def _read_tables(self) -> tuple[Any, str]:
        """Load all tables; return the last line, and the SHA-256 of the bytes before it."""
        there = sa.inspect(self._connection)
        known = set(there.get_table_names())
        columns: list[tuple[str, ColumnKind]] = []
        insert: sa.Insert | None = None
        table, rows, size = "", list[dict[str, Any]](), 0
        while True:
            sha256 = self._lines.sha256
            line, length = self._lines.next_with_length()
            if isinstance(line, dict) or len(rows) >= _ROWS or size >= _BYTES:
                self._insert(insert, table, rows)
                rows, size = [], 0
            if isinstance(line, list):
                rows.append({n: None if v is None else k.read(v) for (n, k), v in zip(columns, line, strict=True)})
                size += length
            elif "end" in line:
                self._lines.check_over()
                return line["end"], sha256
            else:
                table = str(line["table"])
                if table not in known or table in self._rows:
                    raise BadExport(f"the export is damaged: it has no table {table!r}, or has it twice")
                self._rows[table] = 0
                columns = [(str(name), KINDS[kind]) for name, kind in line["columns"]]
                if strange := {name for name, _ in columns} - {each["name"] for each in there.get_columns(table)}:
                    raise BadExport(f"the export is damaged: {table} has no column {min(strange)!r}")
                insert = sa.insert(sa.table(table, *(sa.column(name, kind.type) for name, kind in columns)))

    def _insert(self, insert: sa.Insert | None, table: str, rows: list[dict[str, Any]]) -> None:
        if rows and insert is not None:
            self._connection.execute(insert, rows)
            self._rows[table] += len(rows)

    def _count_ids(self) -> None:
        """Let PostgreSQL count on after the largest id of each table; SQLite does so by itself."""
        if self._engine.dialect.name != "postgresql":
            return
        for table in metadata.sorted_tables:
            sequence = self._connection.execute(
                sa.text("SELECT pg_get_serial_sequence(:name, 'id') WHERE :has"),
                {"name": table.name, "has": "id" in table.columns},
            ).scalar()
            if sequence:
                largest = self._connection.execute(sa.select(sa.func.max(table.c.id))).scalar()
                self._connection.execute(
                    sa.text("SELECT setval(:sequence, :value, :called)"),
                    {"sequence": sequence, "value": largest or 1, "called": largest is not None},
                )


class _Checked:
    """The lines of a file, hashed as they are read."""

    def __init__(self, file: Lines) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._number = 0

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of all lines so far."""
        return self._hash.hexdigest()

    def next(self) -> Any:
        return self.next_with_length()[0]

    def next_with_length(self) -> tuple[Any, int]:
        """Return the next line, and how many bytes it has.

        Raises:
            BadExport: there is none, or it is cut.
        """
        raw = self._file.readline(_LONGEST_LINE)
        if not raw.endswith(b"\n"):
            raise BadExport(f"the export is cut in or after line {self._number + 1}: its end is not there")
        self._number += 1
        self._hash.update(raw)
        return json.loads(raw), len(raw)

    def check_over(self) -> None:
        if self._file.readline(1):
            raise BadExport("the export is damaged: something follows its last line")

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Raise BadExport for a line that breaks the format."""
        try:
            yield
        except (BadGzipFile, EOFError, zlib.error) as error:
            raise BadExport(f"the export is cut or damaged after line {self._number}: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadExport(
                f"the export is damaged at line {self._number}, or it is no export of a catalogue"
            ) from None
        except sa.exc.DBAPIError as error:
            if isinstance(error, (sa.exc.IntegrityError, sa.exc.DataError, sa.exc.ProgrammingError)):
                detail = str(error.orig).splitlines()[0]
                raise BadExport(f"the export is damaged before line {self._number}: {detail}") from None
            raise


def _header(line: Any) -> Header:
    if not isinstance(line, dict) or line["format"] != FORMAT:
        raise BadExport("the file is no export of a catalogue")
    found: Mapping[str, Any] = line
    if found["version"] != VERSION:
        raise BadExport(f"the export has version {found['version']} of its format, this program reads {VERSION}")
    head = found["log_head"]
    return Header(
        str(found["catalogue"]),
        str(found["revision"]),
        datetime.fromisoformat(found["exported_at"]),
        LogHead(int(head["id"]), str(head["hash"]), datetime.fromisoformat(head["at"])) if head else None,
    )


def _check_end(end: Any, rows: Mapping[str, int], sha256: str) -> None:
    if end["sha256"] != sha256:
        raise BadExport(f"the export is damaged: its SHA-256 is {sha256}, its last line says {end['sha256']}")
    if end["rows"] != rows:
        raise BadExport("the export is damaged: it has other rows than its last line counts")


def _end_open_jobs(connection: Connection, at: datetime) -> None:
    """End what was open when a backup was made: to do it now could undo what was done since."""
    jobs, copies = metadata.tables["jobs"], metadata.tables["copies"]
    open_ = jobs.c.state.in_(OPEN_STATES)
    ended = sa.update(jobs).where(open_).values(
        lease_owner=None, lease_until=None, due_at=None, put_off_since=None, fence=jobs.c.fence + 1, finished_at=at,
        error=_RESTORED,
    )  # fmt: skip
    swept = sa.or_(jobs.c.kind.like("sweep.%"), jobs.c.kind == "page")
    connection.execute(ended.where(swept).values(state=JobState.CANCELLED))
    connection.execute(ended.where(~swept).values(state=JobState.DEAD))
    connection.execute(sa.update(copies).where(copies.c.claimed_until.is_not(None)).values(claimed_until=None))
    for name in ("artifact_locks", "pages"):
        connection.execute(sa.delete(metadata.tables[name]))
    connection.execute(sa.update(metadata.tables["batches"]).values(open=False))
    rounds = metadata.tables["canaries"]  # one that was repaired since is never found again: it is damaged anew
    begun = sa.update(rounds).where(rounds.c.closed_at.is_(None))
    connection.execute(begun.values(damaged_at=None, detected_at=None, repaired_at=None))


def _restart_grace(connection: Connection, now: datetime) -> None:
    """Begin the grace period of each delete anew: it may have been undone or held after the backup was made."""
    row = metadata.tables["tombstones"].c
    found = connection.execute(sa.select(row.bucket, row.key, row.deleted_at, row.purge_after)).all()
    later = [{"of": each.bucket, "under": each.key, "at": now + (each.purge_after - each.deleted_at)} for each in found]
    if later:
        those = sa.update(metadata.tables["tombstones"]).where(
            row.bucket == sa.bindparam("of"), row.key == sa.bindparam("under")
        )
        connection.execute(those.values(purge_after=sa.bindparam("at")), later)
