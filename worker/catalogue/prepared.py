"""Run statements that are compiled once: SQLAlchemy takes longer to prepare one than SQLite takes to run it."""

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CompoundSelect, Connection, Delete, Dialect, Insert, Select, Update
from sqlalchemy.exc import DBAPIError


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement in one dialect."""

    text: str
    names: Sequence[str]
    """Of its values, in the order of the text."""
    constants: Mapping[str, Any]
    """The values that it has itself."""
    converted: Sequence[tuple[str, Callable[[Any], Any]]]
    """The names of the values that are not constant and that the driver does not take as they are, with what turns
    them into its own."""
    row: Callable[..., Any]
    results: Sequence[Callable[[Any], Any] | None]
    """By column, what turns a value of the driver into one of ours."""
    positional: bool

    def bound(self, values: Mapping[str, Any]) -> Any:
        given = {**values, **self.constants}
        for name, convert in self.converted:
            given[name] = convert(given[name])
        return tuple([given[name] for name in self.names]) if self.positional else given

    def read(self, row: Sequence[Any]) -> Any:
        return self.row(
            *[value if read is None else read(value) for read, value in zip(self.results, row, strict=True)]
        )


class Prepared:
    """A statement whose values are bound by name. Its rows are named tuples of what it selects or returns.

    Unlike with SQLAlchemy, an INSERT is given all values: columns have no defaults.
    """

    def __init__(self, statement: Select[Any] | CompoundSelect[Any] | Insert | Update | Delete) -> None:
        self._statement = statement
        self._compiled: dict[tuple[str, ...], _Compiled] = {}

    def all(self, connection: Connection, **values: Any) -> list[Any]:
        """Run the statement and return its rows."""
        compiled = self._compile(connection.dialect, values)
        rows = execute(connection, compiled.text, compiled.bound(values)).fetchall()
        return [compiled.read(row) for row in rows]

    def tuples(self, connection: Connection, **values: Any) -> list[tuple[Any, ...]]:
        """Run the statement and return its rows as the driver does, which is right for text and numbers."""
        compiled = self._compile(connection.dialect, values)
        rows: list[tuple[Any, ...]] = execute(connection, compiled.text, compiled.bound(values)).fetchall()
        return rows

    def first(self, connection: Connection, **values: Any) -> Any:
        """Run the statement and return its first row, or None if it has none."""
        rows = self.all(connection, **values)
        return rows[0] if rows else None

    def run(self, connection: Connection, **values: Any) -> int:
        """Run the statement and return how many rows it has changed."""
        compiled = self._compile(connection.dialect, values)
        changed: int = execute(connection, compiled.text, compiled.bound(values)).rowcount
        return changed

    def run_many(self, connection: Connection, rows: Sequence[Mapping[str, Any]], **shared: Any) -> None:
        """Run the statement for each row; `shared` are the values that all of them have."""
        if rows:
            compiled = self._compile(connection.dialect, {**rows[0], **shared})
            execute(connection, compiled.text, [compiled.bound({**row, **shared}) for row in rows], many=True)

    def _compile(self, dialect: Dialect, values: Mapping[str, Any]) -> _Compiled:
        """Return the statement for these names of values, in a dialect."""
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
        binds = {name: convert for name, convert in binds.items() if convert is not None}
        constants = {
            name: binds[name](value) if name in binds else value
            for name, value in made.params.items()
            if name not in values
        }
        columns = list(self._statement.exported_columns)
        compiled = _Compiled(
            text=str(made),
            names=list(made.positiontup or ()),
            constants=constants,
            converted=[(name, convert) for name, convert in binds.items() if name not in constants],
            row=namedtuple("Row", [str(column.key) for column in columns]),  # noqa: PYI024 - its fields are known at run time
            results=[column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns],
            positional=dialect.positional,
        )
        return self._compiled.setdefault(key, compiled)


def execute(connection: Connection, text: str, values: Any, *, many: bool = False) -> Any:
    """Execute the text of a statement in the connection's transaction, and return the driver's cursor."""
    driver = connection.connection
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
