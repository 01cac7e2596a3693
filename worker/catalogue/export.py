"""The catalogue as JSON lines: every table, in a form that does not depend on the database.

The first line is the header: the format and its version, the id of the catalogue, the revision of its tables and the
head of its verification log. Then each table has a line with its name and columns, followed by a line for each row.
The last line counts the rows of each table, and has the SHA-256 of all bytes before it.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy import Connection, Table
from sqlalchemy.types import TypeEngine

from worker import clock
from worker.catalogue.database import Database
from worker.catalogue.records import LogHead
from worker.catalogue.tables import metadata
from worker.catalogue.types import Text, UtcDateTime
from worker.catalogue.verifications import head_of

FORMAT = "zot-artifacts catalogue"
VERSION = 1
_ROWS = 1000
"""Rows that are read and written at a time."""


class Sink(Protocol):
    """Where an export is written to."""

    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What an export has: rows by table, the SHA-256 of its bytes before the last line, and the head of its log."""

    identity: str
    exported_at: datetime
    rows: Mapping[str, int]
    sha256: str
    log_head: LogHead | None

    @property
    def total(self) -> int:
        """Return the number of rows of all tables."""
        return sum(self.rows.values())


@dataclass(frozen=True, slots=True)
class ColumnKind:
    """A kind of column: its name in an export, its type in a database, and how a value is written as JSON and read."""

    name: str
    type: TypeEngine[Any]
    write: Callable[[Any], Any] = lambda value: value
    read: Callable[[Any], Any] = lambda value: value


KINDS = {
    kind.name: kind
    for kind in (
        ColumnKind("text", Text()),
        ColumnKind("int", sa.BigInteger()),
        ColumnKind("float", sa.Float()),
        ColumnKind("bool", sa.Boolean()),
        ColumnKind("json", sa.JSON(none_as_null=True)),
        ColumnKind("time", UtcDateTime(), lambda value: value.isoformat(), datetime.fromisoformat),
        ColumnKind("bytes", sa.LargeBinary(), lambda value: base64.b64encode(value).decode(), base64.b64decode),
    )
}
"""By name. An import makes its statements from these names alone, so that it reads the tables of earlier versions."""


def export(database: Database, sink: Sink) -> ExportSummary:
    """Write one state of the catalogue to a file; memory does not grow with the catalogue.

    Raises:
        CatalogueError: the catalogue cannot be read to its end; what was written is no export, because its end is not
            there.
    """
    writer = LineWriter(sink)
    rows: dict[str, int] = {}
    with database.read() as connection:
        database.lift_time_limits(connection)
        head = head_of(connection)
        database.flush()  # a power cut must not take away what the file has
        now = clock.now()
        header = {
            "format": FORMAT,
            "version": VERSION,
            "catalogue": database.identity,
            "revision": database.revision,
            "exported_at": now.isoformat(),
            "log_head": {"id": head.id, "hash": head.hash, "at": head.at.isoformat()} if head else None,
        }
        writer.write([header])
        for table in metadata.sorted_tables:
            rows[table.name] = _export_table(connection, table, writer)
    sha256 = writer.sha256
    writer.write([{"end": {"rows": rows, "sha256": sha256}}])
    return ExportSummary(database.identity, now, rows, sha256, head)


def count_rows(database: Database) -> dict[str, int]:
    """Return the number of rows of each table that an export has."""
    with database.read() as connection:
        database.lift_time_limits(connection)
        return {
            table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in metadata.sorted_tables
        }


def kind_of(column: "sa.Column[Any]") -> ColumnKind:
    """Return the kind of a column.

    Raises:
        TypeError: there is none for its type.
    """
    kinds: list[tuple[type[TypeEngine[Any]] | tuple[type[TypeEngine[Any]], ...], str]] = [
        (UtcDateTime, "time"),
        (sa.Boolean, "bool"),
        (sa.Integer, "int"),
        (sa.Float, "float"),
        (sa.JSON, "json"),
        (sa.LargeBinary, "bytes"),
        ((Text, sa.String), "text"),
    ]
    for type_, name in kinds:
        if isinstance(column.type, type_):
            return KINDS[name]
    msg = f"{column}: an export has no kind for {column.type!r}"
    raise TypeError(msg)


def _export_table(connection: Connection, table: Table, writer: "LineWriter") -> int:
    kinds = [kind_of(column) for column in table.columns]
    names = [[column.name, kind.name] for column, kind in zip(table.columns, kinds, strict=True)]
    writer.write([{"table": table.name, "columns": names}])
    query = sa.select(table).order_by(*table.primary_key.columns).execution_options(yield_per=_ROWS)
    count = 0
    with connection.execute(query) as result:
        while some := list(islice(result, _ROWS)):
            writer.write(
                [None if value is None else kind.write(value) for value, kind in zip(row, kinds, strict=True)]
                for row in some
            )
            count += len(some)
    return count


class LineWriter:
    """Writes lines of JSON, and hashes all that it has written."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, lines: "Iterator[Any] | list[Any]") -> None:
        data = "".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in lines).encode()
        self._hash.update(data)
        self._sink.write(data)
