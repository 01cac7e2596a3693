"""Run statements that are compiled once: SQLAlchemy takes longer to prepare one than SQLite takes to run it."""

from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CompoundSelect, Connection, Delete, Dialect, Insert, Select, Update
from sqlalchemy.exc import DBAPIError


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement in one dialect."""

    text: str
    values: Sequence[tuple[str, Any]]
    """In the order of the text: the name of each value; `""` with the value of the driver where the text has it."""
    converts: Mapping[str, Callable[[Any], Any]]
    """By name, what turns a value into one of the driver, where it is another one."""
    names: Sequence[str] | None
    """Of all values, if the driver takes them by name."""
    row: Callable[[Iterable[Any]], Any]
    results: Sequence[tuple[int, Callable[[Any], Any]]]
    """The columns that the driver does not return as they are, each with what turns it into a value of ours."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A statement that was run, and whose rows are not read yet."""

    compiled: _Compiled
    cursor: Any

    def all(self) -> list[Any]:
        """Return the rows."""
        found = []
        for row in self.cursor.fetchall():
            read = list(row)
            for column, convert in self.compiled.results:
                read[column] = convert(read[column])
            found.append(self.compiled.row(read))
        return found

    @property
    def changed(self) -> int:
        """Return how many rows the statement has changed."""
        count: int = self.cursor.rowcount
        return count


class Prepared:
    """A statement whose values are bound by name. Its rows are named tuples of what it selects or returns.

    Unlike with SQLAlchemy, an INSERT is given all values: columns have no defaults.
    """

    def __init__(self, statement: Select[Any] | CompoundSelect[Any] | Insert | Update | Delete) -> None:
        self._statement = statement
        self._compiled: dict[tuple[str, ...], _Compiled] = {}

    def all(self, connection: Connection, **values: Any) -> list[Any]:
        """Run the statement and return its rows."""
        return self._execute(connection, [values]).all()

    def ask(self, connection: Connection, **values: Any) -> Asked:
        """Run the statement; its rows are read later, such as after a block of `in_one_request`."""
        return self._execute(connection, [values])

    def tuples(self, connection: Connection, **values: Any) -> list[tuple[Any, ...]]:
        """Run the statement and return its rows as the driver does, which is right for text and numbers."""
        rows: list[tuple[Any, ...]] = self._execute(connection, [values]).cursor.fetchall()
        return rows

    def first(self, connection: Connection, **values: Any) -> Any:
        """Run the statement and return its first row, or None if it has none."""
        rows = self._execute(connection, [values]).all()
        return rows[0] if rows else None

    def run(self, connection: Connection, **values: Any) -> int:
        """Run the statement and return how many rows it has changed."""
        changed: int = self._execute(connection, [values]).cursor.rowcount
        return changed

    def run_many(self, connection: Connection, rows: Sequence[Mapping[str, Any]], **shared: Any) -> None:
        """Run the statement for each row; `shared` are the values that all of them have."""
        if rows:
            self._execute(connection, [{**row, **shared} for row in rows], many=True)

    def _execute(self, connection: Connection, rows: Sequence[Mapping[str, Any]], *, many: bool = False) -> Asked:
        """Run the statement, which is compiled once, for one row of values or for many."""
        key = (connection.dialect.name, *rows[0])
        compiled = self._compiled.get(key) or self._compiled.setdefault(key, self._compile(connection.dialect, rows[0]))
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        for name in columns.keys() & compiled.converts.keys():
            columns[name] = _converted(columns[name], compiled.converts[name])
        values = [columns[name] if name else [constant] * len(rows) for name, constant in compiled.values]
        bound: list[Any] = list(zip(*values, strict=True)) if values else [()] * len(rows)
        if compiled.names is not None:
            bound = [dict(zip(compiled.names, each, strict=True)) for each in bound]
        return Asked(compiled, execute(connection, compiled.text, bound if many else bound[0], many=many))

    def _compile(self, dialect: Dialect, values: Mapping[str, Any]) -> _Compiled:
        """Return the statement for these names of values, in a dialect."""
        made: Any = self._statement.compile(dialect=dialect, column_keys=list(values))
        if made.prefetch:
            msg = f"no value is given for {', '.join(column.name for column in made.prefetch)}"
            raise TypeError(msg)
        binds = {
            name: bind.type.dialect_impl(dialect).bind_processor(dialect) for bind, name in made.bind_names.items()
        }

        def value(name: str) -> tuple[str, Any]:
            if name in values:
                return name, None
            convert = binds.get(name)
            return "", convert(made.params[name]) if convert else made.params[name]

        columns = list(self._statement.exported_columns)
        results = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        fields = [str(column.key) for column in columns]
        row: Any = namedtuple("Row", fields)  # type: ignore[misc] # noqa: PYI024 - its fields are known at run time
        names = list(made.positiontup if dialect.positional else made.params)
        return _Compiled(
            text=str(made),
            values=[value(name) for name in names],
            converts={name: convert for name, convert in binds.items() if convert is not None},
            names=None if dialect.positional else names,
            row=row._make,
            results=[(number, convert) for number, convert in enumerate(results) if convert is not None],
        )


def _converted(values: Sequence[Any], convert: Callable[[Any], Any]) -> list[Any]:
    """Convert the values of a column; one that row after row has is converted once."""
    last, made = values[0], convert(values[0])
    found = []
    for value in values:
        if value is not last:
            last, made = value, convert(value)
        found.append(made)
    return found


def execute(connection: Connection, text: str, values: Any, *, many: bool = False) -> Any:
    """Execute the text of a statement in the connection's transaction, and return the driver's cursor."""
    driver: Any = connection.connection.dbapi_connection  # a cursor of SQLAlchemy's own connection takes longer to make
    cursor = driver.cursor()
    try:
        (cursor.executemany if many else cursor.execute)(text, values)
    except connection.dialect.loaded_dbapi.Error as error:
        raise _as_sqlalchemy_raises(connection, text, error) from error
    return cursor


@contextmanager
def in_one_request(connection: Connection) -> Iterator[None]:
    """Send the statements of the block to a server together; they fail, and have their rows, at its end.

    A writer has the lock for one round trip, and not for one with each statement. In the block are `ask` and statements
    whose counts of rows are not needed, and none of SQLAlchemy's own.
    """
    driver: Any = connection.connection.dbapi_connection
    if not hasattr(driver, "pipeline"):
        yield
        return
    try:
        with driver.pipeline():
            yield
    except connection.dialect.loaded_dbapi.Error as error:
        raise _as_sqlalchemy_raises(connection, "", error) from error


def _as_sqlalchemy_raises(connection: Connection, text: str, error: Exception) -> Exception:
    """Return an error of the driver as SQLAlchemy raises it."""
    dialect: Any = connection.dialect
    lost = dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
    if lost:
        connection.invalidate(error)
    raised: Exception = DBAPIError.instance(
        text, None, error, dialect.loaded_dbapi.Error, connection_invalidated=lost, dialect=dialect
    )
    return raised
