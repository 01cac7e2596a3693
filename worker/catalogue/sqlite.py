"""The catalogue in SQLite: one file, for one machine."""

import fcntl
import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from worker import shutdown_flag
from worker.catalogue.compiled_statements import execute

BUSY_SECONDS = 30
"""How long a writer waits for the lock, unless the URL says otherwise: `?timeout=SECONDS`."""

KEEPS_CONNECTIONS = True
"""A connection to a file cannot break: it stays open between transactions."""
READING: Mapping[str, Any] = {}

_BUSY = "zot_busy_timeout"
"""The key of a connection's busy timeout in milliseconds, among what the pool keeps beside the connection."""
_DURABLE = "zot_durable"
"""The key of whether each commit of a connection waits for the disk."""
_CHECKPOINT_PAGES = 16_000
"""Pages of the write-ahead log (64 MiB) after which a commit copies them into the database, and waits twice for the
disk: a sweep of 20,000 copies writes half as many. With 4,000, its pages waited three times for that."""
_MAKE_ROOM = "make room on its disk"
_WAYS_OUT = {
    sqlite3.SQLITE_BUSY: "end the program that keeps it locked, such as a backup or an open transaction in a shell",
    sqlite3.SQLITE_IOERR: "its disk has errors, is mounted read-only, or its quota is used up: see the kernel's log",
    sqlite3.SQLITE_READONLY: "make the file and its directory writable, or run this as the user of the worker",
    sqlite3.SQLITE_FULL: _MAKE_ROOM,
    sqlite3.SQLITE_IOERR_SHMSIZE: _MAKE_ROOM,  # the first connection finds the disk full when it makes the file `-shm`
}
"""What to do about an error, by its code or its extended code."""
_POLL = 0.001
"""Seconds between two tries of a writer to begin."""
_TURN = "zot_turn"
"""The key of the descriptor whose lock the next writer has, among what the pool keeps beside the connection."""
_TURN_SECONDS = 0.25
"""Seconds that a writer waits behind the next one: that one may be a process that was stopped."""
_STOPPED = "zot_stopped"
"""The key of the moment until which a connection that has waited so long in vain waits behind no next writer."""
_STOPPED_SECONDS = 10.0


def options(url: URL) -> dict[str, Any]:
    """Return the options of the engine; options of connecting in the URL win over them."""
    found: dict[str, Any] = {} if "timeout" in url.query else {"connect_args": {"timeout": BUSY_SECONDS}}
    if file_of(url):
        # Connections that `Database` keeps do not return to the pool, so that a thread that waits there would starve.
        found["max_overflow"] = -1
    return found


def set_up(engine: Engine) -> None:
    """Make every connection durable, and make it wait for the writer before it."""
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "close", _close_turn)


def file_of(url: URL) -> Path | None:
    """Return the file of the catalogue, or None if it has none."""
    name = url.database
    return Path(name) if name and name != ":memory:" and not name.startswith("file:") else None


def lift_time_limits(connection: Connection) -> None:
    """Do nothing: a transaction has no time limit."""


def unfit(connection: Connection) -> str | None:
    """Return why the database cannot be used: the file is that of another program."""
    names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    tables = set(connection.execute(sa.text(names)).scalars())
    if not tables or "alembic_version" in tables:
        return None
    return "the file has tables of another program; move it away, or name another file with ZOT_CATALOGUE"


def is_transient(error: DBAPIError) -> bool:
    """Return whether trying again later may help."""
    return isinstance(error, (OperationalError, InterfaceError))


def is_unusable(error: DBAPIError) -> bool:
    """Return whether the file is damaged, such as one that was cut off: jobs wait until it is restored."""
    return _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def lacks_answer(_connection: Connection) -> bool:
    """Return False: a signal is heard after the call that it came in."""
    return False


def way_out(error: DBAPIError, url: URL) -> str | None:
    """Return what to do about an error of the database at a URL, or None if that depends."""
    if _code(error) == sqlite3.SQLITE_CANTOPEN and (path := file_of(url)):
        writable = f"this user must be able to write in {path.absolute().parent}, and the process to open more files"
        return absent_directory(path) or writable
    return _WAYS_OUT.get(_extended_code(error)) or _WAYS_OUT.get(_code(error))


def absent_directory(path: Path) -> str | None:
    """Return what to do about a file whose directory is not there; None if it is there."""
    directory = path.absolute().parent
    if os.path.isdir(directory):  # noqa: PTH112 - False for a name that is too long
        return None
    return f"there is no directory {directory}: mount its disk, make it, or name another file with ZOT_CATALOGUE"


def _code(error: DBAPIError) -> int:
    return _extended_code(error) & 0xFF


def _extended_code(error: DBAPIError) -> int:
    code: int = getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_OK)
    return code


def _set_pragmas(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver must begin no transaction by itself: see begin_write
    _switch_to_wal(connection)
    for pragma in (
        "synchronous = FULL",  # an acknowledged job survives a power cut
        "foreign_keys = ON",
        "recursive_triggers = ON",  # otherwise REPLACE deletes a row without a trigger
        f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    # On a new file SQLite waits for readers, but fails at once where another process has just begun to write.
    milliseconds = connection.execute("PRAGMA busy_timeout").fetchone()[0]
    deadline = time.monotonic() + milliseconds / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.01)
        else:
            return


def begin_read(connection: Connection) -> None:
    """Begin a transaction that changes nothing."""
    execute(connection, "BEGIN", ())


def flush(path: Path | None) -> None:
    """Make the commits to a file that did not wait for the disk survive a power cut.

    They are in the write-ahead log, or were synced when they were copied from it into the database
    (https://www.sqlite.org/wal.html). The log is not locked, so that opening and closing it releases no lock.
    """
    if path is None:
        return
    try:
        log = os.open(f"{path}-wal", os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fdatasync(log)  # as SQLite itself does: only the times of the file may be lost
    finally:
        os.close(log)


def touch(connection: Connection) -> None:
    """Write a page within this transaction: to set a column of a row to the value that it has writes none."""
    execute(connection, "PRAGMA user_version = 1", ())


def begin_write(connection: Connection, *, wait: bool = True, durable: bool = True) -> bool:
    """Begin a transaction that may write, once no other one writes; without `wait`, return whether that is so now.

    The commit of a `durable` one waits for the disk, and makes those before it durable too. One that does not wait
    survives the death of its process, and no power cut. One that changes no value writes nothing, and so makes nothing
    durable: `flush` does.

    A worker whose grace period is over waits for a moment only, in which its other children write.
    """
    _set_durable(connection, durable=durable)
    # A transaction that reads first and then writes cannot wait for the lock in WAL mode: it fails at once. So a
    # transaction that may write takes the lock at its start.
    # SQLite's own waiting sleeps up to 0.1 s between two tries, while a page that records group after group takes the
    # lock again: a job beside it waited for seconds. To ask more often is not enough: a program that writes on and on
    # kept an upload waiting for 0.2 s. So one writer is the next one, and no other begins before it.
    raw = cast("sqlite3.Connection", connection.connection.dbapi_connection)
    milliseconds = connection.info.get(_BUSY)
    if milliseconds is None:
        milliseconds = connection.info[_BUSY] = raw.execute("PRAGMA busy_timeout").fetchone()[0]
    began, turn = time.monotonic(), _turn_of(connection)
    deadline = began + milliseconds / 1000
    behind = 0.0 if began < connection.info.get(_STOPPED, 0.0) else _TURN_SECONDS
    ahead = min(deadline, began + behind)
    raw.execute("PRAGMA busy_timeout = 0").close()
    is_next = False
    try:
        while True:
            is_next = is_next or _take_turn(turn)
            if not is_next and time.monotonic() >= ahead:
                is_next = True
                if behind:
                    connection.info[_STOPPED] = began + _STOPPED_SECONDS
            try:
                if is_next:
                    raw.execute("BEGIN IMMEDIATE").close()
                    return True
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                late = time.monotonic() >= deadline or shutdown_flag.grace_is_over(shutdown_flag.RECORDING_SECONDS)
                if not busy or (wait and late):
                    execute(connection, "BEGIN IMMEDIATE", ())  # again, for SQLAlchemy's own class of error
                    return True
            if not wait:
                return False
            time.sleep(_POLL)
    finally:
        raw.execute(f"PRAGMA busy_timeout = {milliseconds}").close()
        if turn is not None:
            with suppress(OSError):  # a file system without such locks
                fcntl.flock(turn, fcntl.LOCK_UN)


def _set_durable(connection: Connection, *, durable: bool) -> None:
    if connection.info.get(_DURABLE, True) != durable:
        execute(connection, f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}", ())
        connection.info[_DURABLE] = durable


def _turn_of(connection: Connection) -> int | None:
    """Return a descriptor of the write-ahead log, or None while there is none; SQLite itself does not lock that file.

    It is there, and the same file, as long as a process has the catalogue open.
    """
    found = connection.info.get(_TURN)
    if found is None and (path := file_of(connection.engine.url)) is not None:
        with suppress(OSError):
            found = connection.info[_TURN] = os.open(f"{path}-wal", os.O_RDONLY)
    return cast("int | None", found)


def _take_turn(turn: int | None) -> bool:
    """Return whether this writer is the next one now."""
    if turn is None:
        return True
    try:
        fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without such locks
        return True
    return True


def _close_turn(_connection: sqlite3.Connection, record: Any) -> None:
    turn = record.info.pop(_TURN, None)
    if turn is not None:
        os.close(turn)
