"""Run statements that are compiled once: SQLAlchemy takes longer to prepare one than SQLite takes to run it."""

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CompoundSelect, Connection, Delete, Dialect, Insert, Select, Update
from sqlalchemy.exc import DBAPIError


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement in one dialect."""

    text: str
    values: Sequence[tuple[str, Callable[[Any], Any] | None, Any]]
    """In the order of the text: the name of each value and what turns it into one of the driver; `""` and the value of
    the driver itself, where the statement has it."""
    names: Sequence[str] | None
    """Of all values, if the driver takes them by name."""
    row: Callable[[Iterable[Any]], Any]
    results: Sequence[tuple[int, Callable[[Any], Any]]]
    """The columns that the driver does not return as they are, each with what turns it into a value of ours."""

    def bound(self, values: Mapping[str, Any]) -> Any:
        found = [
            constant if not name else values[name] if convert is None else convert(values[name])
            for name, convert, constant in self.values
        ]
        return found if self.names is None else dict(zip(self.names, found, strict=True))

    def read(self, row: Sequence[Any]) -> Any:
        values = list(row)
        for column, convert in self.results:
            values[column] = convert(values[column])
        return self.row(values)


class Prepared:
    """A statement whose values are bound by name. Its rows are named tuples of what it selects or returns.

    Unlike with SQLAlchemy, an INSERT is given all values: columns have no defaults.
    """

    def __init__(self, statement: Select[Any] | CompoundSelect[Any] | Insert | Update | Delete) -> None:
        self._statement = statement
        self._compiled: dict[tuple[str, ...], _Compiled] = {}

    def all(self, connection: Connection, **values: Any) -> list[Any]:
        """Run the statement and return its rows."""
        compiled = self._in(connection.dialect, values)
        return [compiled.read(row) for row in execute(connection, compiled.text, compiled.bound(values)).fetchall()]

    def tuples(self, connection: Connection, **values: Any) -> list[tuple[Any, ...]]:
        """Run the statement and return its rows as the driver does, which is right for text and numbers."""
        compiled = self._in(connection.dialect, values)
        rows: list[tuple[Any, ...]] = execute(connection, compiled.text, compiled.bound(values)).fetchall()
        return rows

    def first(self, connection: Connection, **values: Any) -> Any:
        """Run the statement and return its first row, or None if it has none."""
        rows = self.all(connection, **values)
        return rows[0] if rows else None

    def run(self, connection: Connection, **values: Any) -> int:
        """Run the statement and return how many rows it has changed."""
        compiled = self._in(connection.dialect, values)
        changed: int = execute(connection, compiled.text, compiled.bound(values)).rowcount
        return changed

    def run_many(self, connection: Connection, rows: Sequence[Mapping[str, Any]], **shared: Any) -> None:
        """Run the statement for each row; `shared` are the values that all of them have."""
        if rows:
            compiled = self._in(connection.dialect, {**rows[0], **shared})
            execute(connection, compiled.text, [compiled.bound({**row, **shared}) for row in rows], many=True)

    def _in(self, dialect: Dialect, values: Mapping[str, Any]) -> _Compiled:
        """Return the statement for these names of values, in a dialect; compiled once."""
        key = (dialect.name, *values)
        if key in self._compiled:
            return self._compiled[key]
        made: Any = self._statement.compile(dialect=dialect, column_keys=list(values))
        if made.prefetch:
            msg = f"no value is given for {', '.join(column.name for column in made.prefetch)}"
            raise TypeError(msg)
        binds = {
            name: bind.type.dialect_impl(dialect).bind_processor(dialect) for bind, name in made.bind_names.items()
        }

        def value(name: str) -> tuple[str, Callable[[Any], Any] | None, Any]:
            convert = binds.get(name)
            if name in values:
                return name, convert, None
            return "", None, convert(made.params[name]) if convert else made.params[name]

        columns = list(self._statement.exported_columns)
        results = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        fields = [str(column.key) for column in columns]
        row: Any = namedtuple("Row", fields)  # type: ignore[misc] # noqa: PYI024 - its fields are known at run time
        names = list(made.positiontup if dialect.positional else made.params)
        compiled = _Compiled(
            text=str(made),
            values=[value(name) for name in names],
            names=None if dialect.positional else names,
            row=row._make,
            results=[(number, convert) for number, convert in enumerate(results) if convert is not None],
        )
        return self._compiled.setdefault(key, compiled)


def execute(connection: Connection, text: str, values: Any, *, many: bool = False) -> Any:
    """Execute the text of a statement in the connection's transaction, and return the driver's cursor."""
    driver: Any = connection.connection.dbapi_connection  # a cursor of SQLAlchemy's own connection takes longer to make
    cursor = driver.cursor()
    try:
        (cursor.executemany if many else cursor.execute)(text, values)
    except connection.dialect.loaded_dbapi.Error as error:
        lost = connection.dialect.is_disconnect(error, driver, cursor)
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            text, None, error, connection.dialect.loaded_dbapi.Error,
            hide_parameters=True, connection_invalidated=lost, dialect=connection.dialect,
        ) from error  # fmt: skip
    return cursor
