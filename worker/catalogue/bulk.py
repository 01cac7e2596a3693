"""Run one statement for many rows.

The text of the statement is made once: SQLAlchemy takes longer to prepare a row than SQLite takes to run it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Dialect, Insert, Update

from worker.catalogue.types import UtcDateTime

_MOMENT = UtcDateTime()


@dataclass(frozen=True, slots=True)
class _Text:
    """The text of a statement in one dialect, the names of its values in order, and the values that it has itself."""

    text: str
    names: Sequence[str]
    constants: Mapping[str, Any]


class BulkStatement:
    """An INSERT or UPDATE whose values are bound by name: text, numbers, moments and None, but no JSON."""

    def __init__(self, statement: Insert | Update) -> None:
        self._statement = statement
        self._texts: dict[str, _Text] = {}

    def execute(self, connection: Connection, rows: Sequence[Mapping[str, Any]], **shared: Any) -> None:
        """Run the statement for each row; `shared` are the values that all of them have."""
        if not rows:
            return
        dialect = connection.dialect
        found = self._texts.get(dialect.name) or self._compile(dialect)
        same = {**found.constants, **{name: _bound(value, dialect) for name, value in shared.items()}}
        varying = [name for name in dict.fromkeys(found.names) if name not in same]
        full = [same | {name: _bound(row[name], dialect) for name in varying} for row in rows]
        if dialect.positional:
            connection.exec_driver_sql(found.text, [tuple(row[name] for name in found.names) for row in full])
        else:
            connection.exec_driver_sql(found.text, full)

    def _compile(self, dialect: Dialect) -> _Text:
        compiled = self._statement.compile(dialect=dialect)
        names = list(getattr(compiled, "positiontup", None) or compiled.params)
        constants = {name: value for name, value in compiled.params.items() if not compiled.binds[name].required}
        self._texts[dialect.name] = _Text(str(compiled), names, constants)
        return self._texts[dialect.name]


def _bound(value: Any, dialect: Dialect) -> Any:
    if not isinstance(value, datetime):
        return value
    processor = _MOMENT.dialect_impl(dialect).bind_processor(dialect)
    return processor(value) if processor else value
