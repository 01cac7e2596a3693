"""The catalogue in SQLite: one file, for one machine."""

import sqlite3
from collections.abc import Mapping
from typing import Any

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

BUSY_SECONDS = 30

READING: Mapping[str, Any] = {"reads": True}


def options(url: URL) -> dict[str, Any]:  # noqa: ARG001 - the other dialect looks at it
    """Return what the engine is made with."""
    return {}


def set_up(engine: Engine) -> None:
    """Let every connection keep what was acknowledged, and wait for whoever writes."""
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin_immediate)


def before_migrating(connection: Connection) -> str | None:  # noqa: ARG001 - the other dialect asks it
    """Return why the database is not fit: no reason is known."""
    return None


def passes(error: DBAPIError) -> bool:
    """Return whether trying again later may help."""
    return isinstance(error, (OperationalError, InterfaceError))


def _set_pragmas(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin by itself: see _begin_immediate
    for pragma in (
        f"busy_timeout = {BUSY_SECONDS * 1000}",  # first: switching to WAL already needs the lock
        "journal_mode = WAL",
        "synchronous = FULL",  # an acknowledged job survives a power cut
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_immediate(connection: Connection) -> None:
    # A transaction that reads first and then writes cannot wait for the lock in WAL mode: it fails at once. So whoever
    # may write takes the lock at the beginning.
    reads = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
