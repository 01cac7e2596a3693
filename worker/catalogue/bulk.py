"""Run one statement for many rows.

The text of the statement is made once: SQLAlchemy takes longer to prepare a row than SQLite takes to run it. PostgreSQL
gets the rows as one array for each column, so that a group of rows is one request and one plan.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import BindParameter, ColumnElement, Connection, Dialect, Insert, Table, TypeDecorator, Update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

from worker.catalogue.compiled_statements import execute
from worker.catalogue.types import UtcDateTime, without_nul

_MOMENT = UtcDateTime()
_ROWS = 25
"""Rows of one INSERT in SQLite: one for each row takes half as long again, and more in one save nothing."""

Given = Callable[[str], ColumnElement[Any]]
"""Returns a value of a row, by its name, as a part of a statement."""


@dataclass(frozen=True, slots=True)
class _Text:
    """The text of a statement in one dialect, and the names of its values in order."""

    text: str
    names: Sequence[str]


class _Source(NamedTuple):
    """The column whose values another column has, in the same row or one row before."""

    column: str
    rows_before: int


def insert(table: Table, values: Mapping[str, ColumnElement[Any]]) -> Insert:
    """Return the INSERT of given rows with these values, by column."""
    if all(isinstance(value, BindParameter) for value in values.values()):
        return sa.insert(table).values(dict(values))  # where a table has triggers, SQLite copies what it selects first
    return sa.insert(table).from_select(list(values), sa.select(*values.values()))


def update(table: Table) -> Update:
    """Return an UPDATE of many rows; if it fails, SQLite undoes the whole transaction and not the statement alone.

    To be able to undo the statement, it would copy each page that it changes to a temporary file. A transaction never
    goes on after an error here, so that nothing needs the copies.
    """
    return sa.update(table).prefix_with("OR ROLLBACK", dialect="sqlite")


def constant(value: str | int) -> ColumnElement[Any]:
    """Return a word or number of ours as a part of the text of a statement.

    SQLite's driver would bind it for each row: seven of them took a third of the time of a verdict's UPDATE.
    """
    return sa.literal_column(f"'{value}'" if isinstance(value, str) else str(value))


class BulkStatement:
    """An INSERT or UPDATE for many rows, of text, numbers, moments and None, but no JSON."""

    def __init__(self, make: Callable[[Given], Insert | Update], types: Mapping[str, TypeEngine[Any]]) -> None:
        """Make the statement with the values of a row, which have these names and types.

        A value that all rows of one execution have is bound as `sa.bindparam`; one that never changes is a `constant`.
        """
        self._make = make
        self._types = types
        self._moments = [at for at, type_ in enumerate(types.values()) if isinstance(type_, UtcDateTime)]
        self._texts: dict[str, _Text] = {}

    def execute(self, connection: Connection, rows: Sequence[Sequence[Any]], **shared: Any) -> None:
        """Run the statement for each row, the values in the order of the types; `shared` are those that all have."""
        if not rows:
            return
        dialect = connection.dialect
        compiled = self._texts.get(dialect.name) or self._compile(dialect)
        same = {name: _bound(value, dialect) for name, value in shared.items()}
        if not dialect.positional:
            columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
            for at in self._moments:
                columns[at] = [_bound(value, dialect) for value in columns[at]]
            execute(connection, compiled.text, {**same, **dict(zip(self._types, map(_array, columns), strict=True))})
            return
        names = [*self._types, *same]
        moments = [at for at in self._moments if names[at] in compiled.names]
        bound = [_with_moments(row, moments, dialect) for row in rows] if moments else rows
        into, is_insert, _ = compiled.text.partition(" VALUES (")
        if is_insert:
            for start in range(0, len(bound), _ROWS):
                execute(connection, *self._insert(into, compiled.names, bound[start : start + _ROWS], same))
            return
        take = itemgetter(*(names.index(name) for name in compiled.names))
        last = tuple(same.values())
        execute(connection, compiled.text, [take((*row, *last)) for row in bound], many=True)

    def _insert(
        self, into: str, names: Sequence[str], rows: Sequence[Sequence[Any]], same: Mapping[str, Any]
    ) -> tuple[str, Sequence[Any]]:
        """Return the INSERT of some rows and its values.

        Two kinds of values are bound once: one that all of these rows have, and one that another column has in the
        same row or in the row before. Such are both digests of a verified copy, and the hash of a row of the log, which
        the next row has as `previous`.
        """
        columns = dict(zip(self._types, zip(*rows, strict=True), strict=True))
        once = {**same, **{name: column[0] for name, column in columns.items() if column.count(column[0]) == len(rows)}}
        per_row: dict[str, Sequence[Any]] = {}
        sources: dict[str, _Source] = {}
        # In reverse, because a column finds its source among those already seen: `hash` comes after `previous`.
        for name, column in reversed(columns.items()):
            if name in once:
                continue
            if (source := _source_of(column, per_row)) is None:
                per_row[name] = column
            else:
                sources[name] = source
        first_row = {name: columns[name][0] for name, source in sources.items() if source.rows_before}
        text = _insert_text(
            into, tuple(names), (*once, *first_row), tuple(per_row), tuple(sources.items()), rows=len(rows)
        )
        return text, [*once.values(), *first_row.values(), *chain.from_iterable(zip(*per_row.values(), strict=True))]

    def _compile(self, dialect: Dialect) -> _Text:
        if dialect.positional:
            statement = self._make(lambda name: sa.bindparam(name, type_=self._types[name]))
        else:
            arrays = [sa.bindparam(name, type_=ARRAY(type_)) for name, type_ in self._types.items()]
            given = (
                sa.func.unnest(*arrays)
                .table_valued(*(sa.column(name, type_) for name, type_ in self._types.items()), name="given")
                .render_derived()
            )
            statement = self._make(lambda name: given.c[name])
        compiled = statement.compile(dialect=dialect)
        names = list(getattr(compiled, "positiontup", None) or compiled.params)
        self._texts[dialect.name] = _Text(str(compiled), names)
        return self._texts[dialect.name]


def _source_of(column: Sequence[Any], per_row: Mapping[str, Sequence[Any]]) -> _Source | None:
    """Return which of the columns has the values of this one, in the same row or in the row before."""
    for name, values in per_row.items():
        if column == values:
            return _Source(name, rows_before=0)
        if column[1:] == values[:-1]:
            return _Source(name, rows_before=1)
    return None


@lru_cache(maxsize=128)
def _insert_text(
    into: str,
    names: Sequence[str],
    once: Sequence[str],
    per_row: Sequence[str],
    sources: Sequence[tuple[str, _Source]],
    *,
    rows: int,
) -> str:
    """Return an INSERT of SQLite: the values that are bound once come first, then those of each row."""
    numbers = {name: number for number, name in enumerate(once, 1)}
    given = []
    for row in range(rows):
        before = numbers
        numbers = before | {name: number for number, name in enumerate(per_row, 1 + len(once) + row * len(per_row))}
        for name, source in sources:
            if not source.rows_before:
                numbers[name] = numbers[source.column]
            elif row:  # the first row has no row before: its value is among those that are bound once
                numbers[name] = before[source.column]
        given.append(", ".join(f"?{numbers[name]}" for name in names))
    return f"{into} VALUES ({'), ('.join(given)})"


def _with_moments(row: Sequence[Any], moments: Sequence[int], dialect: Dialect) -> Sequence[Any]:
    for at in moments:
        if row[at] is not None:
            row = (*row[:at], _bound(row[at], dialect), *row[at + 1 :])
    return row


def _array(values: Iterable[Any]) -> str:
    """Return values of a column as PostgreSQL reads an array; the driver takes ten times as long, inside the lock."""
    quoted = [
        "NULL" if value is None else '"' + str(value).replace("\\", r"\\").replace('"', r"\"") + '"' for value in values
    ]
    return "{" + ",".join(quoted) + "}"


def _bound(value: Any, dialect: Dialect) -> Any:
    if not isinstance(value, datetime):
        return value
    processor = _MOMENT.dialect_impl(dialect).bind_processor(dialect)
    return processor(value) if processor else value


class _Many(TypeDecorator[Sequence[Any]]):
    """Many numbers or texts as one value: an array, and JSON where there are none."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, item: type[TypeEngine[Any]]) -> None:
        super().__init__()
        self.item = item

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        array = dialect.name == "postgresql"
        return dialect.type_descriptor(ARRAY(self.item()) if array else sa.Text())

    def process_bind_param(self, value: Sequence[Any] | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        # Without NUL, which PostgreSQL does not take, and where SQLite ends a text of a JSON array.
        many = [without_nul(each) for each in value] if self.item is sa.Text else list(value)
        return many if dialect.name == "postgresql" else json.dumps(many)


class one_of(FunctionElement[Any]):  # noqa: N801 - it is used as a function
    """The condition that a column is one of many numbers or texts, which are one value.

    SQLAlchemy makes a parameter of each value of `in_`, which takes longer for a page than the query itself. The type
    is no Boolean: SQLAlchemy would append `= 1` for SQLite, which then reads the whole table instead of the index.
    """

    type = sa.types.NullType()
    inherit_cache = True

    def __init__(self, column: ColumnElement[Any], values: Sequence[Any] | BindParameter[Any]) -> None:
        """Compare a column with these values, or with those that are bound when the statement is executed."""
        many = _Many(sa.BigInteger if isinstance(column.type, sa.Integer) else sa.Text)
        if isinstance(values, BindParameter):
            bound: BindParameter[Any] = sa.bindparam(values.key, type_=many)
        else:
            bound = sa.bindparam(None, values, type_=many, unique=True)
        super().__init__(column, bound)


@compiles(one_of, "sqlite")
def _in_json(element: one_of, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(each, **options) for each in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({values}))"  # noqa: S608 - of bound values


@compiles(one_of, "postgresql")
def _in_array(element: one_of, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(each, **options) for each in element.clauses)
    return f"{column} = ANY({values})"


def upserts(
    table: Table,
    keys: Sequence[str],
    changes: Callable[[sa.ColumnCollection[str, Any]], Mapping[str, Any]],
    *,
    index_where: sa.TextClause | None = None,
) -> dict[str, Insert]:
    """Return by dialect the INSERT that changes the row which has these keys already.

    `index_where`: the condition of the unique index on the keys, if it is a partial one.
    """
    made: dict[str, sqlite.Insert | postgresql.Insert] = {
        "sqlite": sqlite.insert(table), "postgresql": postgresql.insert(table),
    }  # fmt: skip
    return {
        name: each.on_conflict_do_update(
            index_elements=keys, index_where=index_where, set_=dict(changes(each.excluded))
        )
        for name, each in made.items()
    }


def by_bucket(paths: Iterable[tuple[str, str]]) -> Iterable[tuple[str, list[str]]]:
    """Return buckets with their keys.

    SQLite searches an index for `bucket = ? AND key IN (...)`, and reads the whole table for `(bucket, key) IN (...)`.
    """
    keys: dict[str, list[str]] = {}
    for bucket, key in paths:
        keys.setdefault(bucket, []).append(key)
    return keys.items()
