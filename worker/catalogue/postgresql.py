"""The catalogue in PostgreSQL: a server, for more than one machine.

One transaction writes at a time, as in SQLite: the ledger, the claims of the sweep and the chain of the verification
log rely on it. docs/decisions/0011-writers-take-turns.md has the reasons.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from worker import clock, shutdown_flag
from worker.catalogue.compiled_statements import execute, in_one_request

LOCK_SECONDS = 30
"""How long a writer waits for the lock, as in SQLite."""
IDLE_SECONDS = 20
"""A writer that was stopped within a transaction loses the lock before the next writers give up."""
STATEMENT_SECONDS = 60
_LOOK_SECONDS = 0.5
"""How often a writer that waits for the lock looks whether its worker shuts down."""

KEEPS_CONNECTIONS = False
"""A connection is closed after each transaction, so that the engine's pool can replace it after a restart."""
# The snapshot of a reader is one state of all tables. A writer must see what was committed before it got the lock, so
# that its transaction must not be REPEATABLE READ.
READING: Mapping[str, Any] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
_WRITING = "READ COMMITTED"

_LOCK = 0x5A6F7420_63617461
"""The number of our lock; the server keeps the locks of other databases apart."""
_TAKE_TURN = f"SELECT pg_advisory_xact_lock({_LOCK})"
_TRY_TURN = f"SELECT pg_try_advisory_xact_lock({_LOCK})"

# A peer that has vanished is detected within a minute, also while its answer is awaited. Seconds and milliseconds.
_CONNECTING = {
    "connect_timeout": 5,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 50_000,
    "application_name": "zot-artifacts",
    "client_encoding": "utf8",  # a role or a database may have another one, in which not every key can be sent
}

_POOLED = "zot_pooled"
"""The mark of a connection to a pooler."""

_TRANSIENT_CLASSES = {
    "08",  # connection exception
    "40",  # rolled back: deadlock, serialization
    "53",  # out of disk, memory or connections
    "57",  # by an operator: shutting down, starting up, cancelled
    "58",  # the server's own disk
}
_TRANSIENT = {
    "25006",  # read only: a standby, shortly before it takes over
    "25P03",  # idle in a transaction for too long
    "25P04",  # a transaction took too long
    "55P03",  # the lock was not granted in time
}

_DAMAGE = {"XX001", "XX002"}
_MISSING = {
    "3F000",  # the schema
    "42P01",  # a table
    "42703",  # a column
}
"""What a catalogue lacks while a dump of it is restored, by SQLSTATE."""
_NO_RIGHT = "42501"
_TRANSACTION_TIMEOUT_SINCE = 170_000
"""The first version of the server that has `transaction_timeout`."""

_WAYS_OUT = {
    "25006": "name a server in ZOT_CATALOGUE that can be written; this one is a standby, or is set to read only",
    "55P03": "end the transaction that does not let others write: `pg_locks` of the server has its pid",
    "53100": "make room on the disk of the server",
    "2BP01": "remove what was made on the catalogue's tables, or name a new database in ZOT_CATALOGUE",
    "3F000": (
        "restore its dump, or make a schema that is in the search_path of the role, and grant it USAGE and CREATE"
    ),
    _NO_RIGHT: (
        "make the role of ZOT_CATALOGUE the owner of the database, or of the schema in its search_path, and of the "
        "catalogue's tables and sequences: after a restore as another role they are that one's"
    ),
}
"""What to do about an error, by its SQLSTATE."""
_TOO_MANY = (
    "let the server take more connections, by max_connections or the role's CONNECTION LIMIT, put a pooler before it, "
    "or run fewer processes of workers: each keeps up to two"
)
_CONNECTION_WAYS_OUT = {
    "too many clients": _TOO_MANY,
    "too many connections": _TOO_MANY,
    "connection slots are reserved": _TOO_MANY,
    "certificate verify failed": (  # libpq does not say which of the two it is
        "the authority of its certificate is not trusted, or the certificate is not valid today; name the authority's "
        "certificate in sslrootcert of ZOT_CATALOGUE, or renew the certificate on the server"
    ),
    "root certificate file": "name the authority's certificate in sslrootcert of ZOT_CATALOGUE",
    "does not match host name": (
        "its certificate is for another host name; use a name that it is for, or issue it for this one"
    ),
    "does not support SSL": "it speaks no TLS on this port; turn on `ssl` in its configuration",
    "authentication failed": "correct the user or the password in ZOT_CATALOGUE, then restart what has the old one",
    "no encryption": "it may require TLS; add sslmode=verify-full to the query of ZOT_CATALOGUE",
    "valid client certificate": "it requires a certificate of the client; name it in sslcert and sslkey of its URL",
}
"""What to do about an error of connecting, by words of its message: libpq gives it no SQLSTATE."""


def options(url: URL) -> dict[str, Any]:
    """Return the options of the engine; options of connecting in the URL win over them."""
    return {
        "connect_args": {name: value for name, value in _CONNECTING.items() if name not in url.query},
        "isolation_level": _WRITING,
        "pool_pre_ping": True,  # a connection from before a restart of the server is replaced before use
        "pool_size": 2,  # a job and its heartbeat, for each child of a worker; more are closed after use
        "max_overflow": 8,
    }


def set_up(engine: Engine) -> None:
    """Give every connection our settings, whatever those of its role and database are.

    Behind a pooler such as PgBouncer nothing may outlive a transaction: the next one may run on another connection of
    the server, where a prepared statement of the same name is that of another client, and would be run.
    """
    event.listen(engine, "connect", _set_up_connection)
    event.listen(engine, "begin", _prepare)
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of what follows from the error that it raises


def lift_time_limits(connection: Connection) -> None:
    """Remove the time limits of the statements of this transaction, and of the time between them."""
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")


def unfit(connection: Connection) -> str | None:
    """Return why the database cannot be used, or None."""
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    return None if encoding == "UTF8" else f"its encoding is {encoding}: make a database with the encoding UTF8"


def is_transient(error: DBAPIError) -> bool:
    """Return whether trying again later may help."""
    state = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated or state is None:  # none: the server could not be reached
        return error.connection_invalidated or isinstance(error, (OperationalError, InterfaceError))
    return state[:2] in _TRANSIENT_CLASSES or state in _TRANSIENT


def is_unusable(error: DBAPIError) -> bool:
    """Return whether the catalogue was changed since it was opened: jobs wait until it is as before.

    Its files are damaged, a dump of it is being restored, or its role has lost its rights.
    """
    state = getattr(error.orig, "sqlstate", None)
    return state in _DAMAGE or state in _MISSING or state == _NO_RIGHT


def lacks_answer(connection: Connection) -> bool:
    """Return whether a call was ended by a signal before its answer came, such as by a soft time limit."""
    if connection.invalidated:
        return False
    driver: Any = connection.connection.dbapi_connection
    return bool(driver.info.transaction_status.name == "ACTIVE")


def way_out(error: DBAPIError, _url: URL) -> str | None:
    """Return what to do about an error, or None if that depends."""
    if state := getattr(error.orig, "sqlstate", None):
        return _WAYS_OUT.get(state)
    return next((way_out for words, way_out in _CONNECTION_WAYS_OUT.items() if words in str(error.orig)), None)


def _set_up_connection(connection: Any, record: Any) -> None:
    # In a transaction, which has our isolation level: the role's may be SERIALIZABLE, which a standby refuses.
    pooled = _is_pooled(connection)
    connection.rollback()
    if pooled:
        record.info[_POOLED] = True
        connection.prepare_threshold = None
        return
    connection.autocommit = True  # otherwise a rollback of the first transaction would undo it
    connection.execute(_settings("SET", connection))
    connection.autocommit = False


def _is_pooled(connection: Any) -> bool:
    """Return whether a pooler is before the server: it gives its clients numbers of its own."""
    [pid] = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return bool(pid != connection.info.backend_pid)


def _prepare(connection: Connection) -> None:
    driver: Any = connection.connection.dbapi_connection
    if driver.read_only is False:  # so SQLAlchemy leaves it after a transaction that only read
        # A standby refuses READ WRITE by an error of many causes, and a later write by one of a read-only transaction.
        driver.read_only = None
    if _POOLED in connection.info:
        connection.exec_driver_sql(_settings("SET LOCAL", driver))


def _settings(word: str, driver: Any) -> str:
    """Return the statements that set what must not depend on the settings of the server, the database or the role."""
    found = {
        "datestyle": "ISO",  # the driver reads no other moments
        "lock_timeout": f"{LOCK_SECONDS}s",
        "statement_timeout": f"{STATEMENT_SECONDS}s",
        "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
    }
    if driver.info.server_version >= _TRANSACTION_TIMEOUT_SINCE:
        found["transaction_timeout"] = "0"  # a backup or a migration is one long transaction of short statements
    return ";".join(f"{word} {name} = '{value}'" for name, value in found.items())


def _follow_clock(connection: Connection) -> None:
    """Make the clock of the server the one of this process: several machines share it."""
    if clock.is_unchecked():
        asked_at = clock.uptime()
        clock.follow(execute(connection, "SELECT clock_timestamp()", ()).fetchone()[0], asked_at=asked_at)


def begin_read(connection: Connection) -> None:
    """Leave the beginning of the transaction to the driver, which does so with its first statement."""
    _follow_clock(connection)


def flush(path: Path | None) -> None:
    """Do nothing: every commit has waited."""


def touch(connection: Connection) -> None:
    """Write a row within this transaction, as it is."""
    execute(connection, "UPDATE alembic_version SET version_num = version_num", ())


def begin_write(connection: Connection, *, wait: bool = True, durable: bool = True) -> bool:  # noqa: ARG001
    """Wait until no other transaction writes; without `wait`, return whether that is so now.

    Every commit waits for the disk of the server, whether it has to be `durable` or not.

    A worker whose grace period is over waits for a moment only, in which its other children write.
    """
    with in_one_request(connection):  # with the driver's BEGIN
        tried = execute(connection, _TRY_TURN, ())
    free = bool(tried.fetchone()[0])
    if not free and wait:
        with _ended_with_the_worker(connection):
            execute(connection, _TAKE_TURN, ())
    _follow_clock(connection)
    return free or wait


@contextmanager
def _ended_with_the_worker(connection: Connection) -> Iterator[None]:
    """Cancel the statement of the block when the grace period of this worker is over.

    A thread has to do so: the wait of libpq hears no flag, and to ask again and again would lose the place in the
    server's queue.
    """
    driver: Any = connection.connection.dbapi_connection
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK_SECONDS):
            if shutdown_flag.grace_is_over(shutdown_flag.RECORDING_SECONDS):
                with suppress(connection.dialect.loaded_dbapi.Error):
                    driver.cancel_safe(timeout=_LOOK_SECONDS)

    watcher = threading.Thread(target=watch, name="writers-turn", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()  # a cancellation must not meet the next statement
