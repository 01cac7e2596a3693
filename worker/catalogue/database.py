"""Open the catalogue's database and bring its tables up to date."""

import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Timer
from time import monotonic
from types import ModuleType
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError

from worker.catalogue import postgresql, sqlite
from worker.catalogue.compiled_statements import Prepared
from worker.catalogue.tables import jobs
from worker.metric_counters import TRANSACTIONS
from zot_artifact_client.contract import JobState

logger = logging.getLogger(__name__)

_MIGRATIONS = Path(__file__).parent / "migrations"
_REVISION = "0040"
_DIALECTS: Mapping[str, ModuleType] = {"sqlite": sqlite, "postgresql": postgresql}
_KINDS = "sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"


class CatalogueError(Exception):
    """The catalogue cannot be used; the message says which and why."""


class CatalogueUnavailable(CatalogueError):
    """The catalogue cannot be reached or is locked for too long; trying again later may help."""


class NewerCatalogue(CatalogueError):
    """The catalogue was made by a newer version of this program, which does not understand it."""


class NoCatalogue(CatalogueError):
    """There is no catalogue at the URL."""


class CatalogueLost(NoCatalogue):
    """The file of the catalogue was there before."""


class CatalogueUnreadable(NoCatalogue):
    """Whether there is one is unknown: this user may not look for its file."""


class LostLease(CatalogueError):
    """Another worker has the lease of the job, or another job its artifact; nothing was recorded."""

    def __init__(self, job: str) -> None:
        super().__init__(f"job {job} has lost its lease to another worker, or to another job on its artifact")


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file, and its device and inode when it was opened."""

    path: Path
    opened: tuple[int, int] | None


_PHYSICAL = (
    "SELECT concat_ws('.', system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database()), "
    "'catalogue_identity'::regclass::oid) FROM pg_control_system()"
)
"""In PostgreSQL: the cluster, the database in it, and the schema, of which the table has another number."""
_MOST_IDLE = 8
"""Connections of a process that stay open between transactions, where that is safe."""
TOLD_AFTER = 2.0
"""Seconds that a transaction waits for its turn to write until `on_wait` is called."""
_IDENTITY = "SELECT id FROM catalogue_identity"
_LEASED = Prepared(
    sa.select(jobs.c.id).where(
        jobs.c.id == sa.bindparam("job"), jobs.c.fence == sa.bindparam("token"), jobs.c.state == JobState.RUNNING
    )
)
"""The job, if the fencing token is still that of its lease."""


def open_engine(url: str) -> Engine:
    """Return an engine for the catalogue at this SQLAlchemy URL.

    Raises:
        CatalogueError: the URL is none, or one of another kind of database.
    """
    try:
        parsed = sa.make_url(url)
        dialect = _DIALECTS.get(parsed.get_backend_name())
        if dialect is None:
            raise CatalogueError(f"the catalogue's URL cannot be used: {_named(parsed)} is no {_KINDS}")
        engine = sa.create_engine(parsed, hide_parameters=True, **dialect.options(parsed))
    except (sa.exc.ArgumentError, ImportError, ValueError) as error:  # ValueError: a parameter that is no number
        raise CatalogueError(f"the catalogue's URL cannot be used: {_first_line(error)}; it must be {_KINDS}") from None
    dialect.set_up(engine)
    return engine


def migrate(engine: Engine) -> None:
    """Make the tables, or bring them up to date; many processes may do so at once.

    Raises:
        CatalogueUnavailable: it cannot be reached.
        NewerCatalogue: the catalogue is newer than this program.
        CatalogueError: the database is not fit for one.
    """
    with _opening(engine):
        if _revision(engine) != _REVISION:
            with writing(engine) as connection:  # this takes the lock: only one process migrates
                upgrade_tables(connection)


@contextmanager
def _opening(engine: Engine) -> Iterator[None]:
    """Raise the errors of the database as CatalogueError, each with a way out; after one the engine is not used."""
    try:
        with _with_way_out(), translated(engine):
            yield
    except CatalogueError as error:
        engine.dispose()
        if isinstance(error, CatalogueUnavailable) and not _way_out(engine, error.__cause__):
            raise CatalogueUnavailable(f"{error}; check that ZOT_CATALOGUE names a database that answers") from error
        raise


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Raise the errors of the database as CatalogueError."""
    try:
        yield
    except (DBAPIError, sa.exc.TimeoutError) as error:
        raise _translation(engine, error) from error


def _translation(engine: Engine, error: Exception) -> CatalogueError:
    transient = not isinstance(error, DBAPIError) or _dialect(engine).is_transient(error)
    kind, way_out = CatalogueUnavailable if transient else CatalogueError, _way_out(engine, error)
    return kind(f"catalogue {_named(engine.url)}: {_first_line(error)}" + (f"; {way_out}" if way_out else ""))


def _way_out(engine: Engine, error: BaseException | None) -> str | None:
    found: str | None = _dialect(engine).way_out(error, engine.url) if isinstance(error, DBAPIError) else None
    return found


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Begin a transaction that commits at the end, or not at all; only one at a time is open."""
    with _opening(engine), engine.begin() as connection:
        _dialect(engine).begin_write(connection)
        yield connection


class Database:
    """The engine, as the queries use it: transactions that write, and transactions that read.

    Each raises CatalogueUnavailable when the catalogue's file is not the one that was opened: rows in a deleted file
    are lost, and a new file has none. So does a connection to a server's database that is another catalogue.
    """

    def __init__(self, url: str, *, create: bool = True, on_wait: Callable[[], object] | None = None) -> None:
        self.engine = open_engine(url)
        self._on_wait = on_wait
        self._dialect = _dialect(self.engine)
        self._idle: list[Connection] = []
        self._file: FileIdentity | None = None
        self._leaseholder: Mapping[str, str | int] = {}
        """The job and the fencing token that `fenced` was given; empty for what works for no job."""
        path = _file_of(self.engine)
        if path:
            _check_not_lost(path)
            _check_is_database(path)
        if not create:
            _check_there(self.engine)
        migrate(self.engine)
        if path:
            self._file = FileIdentity(path, _device_and_inode(path))
        self.identity = self._read_identity()
        if path:
            mark(path, self.identity)
        sa.event.listen(self.engine, "connect", self._check_identity)

    def _read_identity(self) -> str:
        try:
            with self.read() as connection:
                found: str | None = connection.execute(sa.text(_IDENTITY)).scalar()
        except CatalogueError:
            with translated(self.engine):
                if sa.inspect(self.engine).has_table("catalogue_identity"):
                    raise
            found = None
        if found is None:
            self.close()
            raise _damaged(self.engine, "its id (table catalogue_identity)")
        return found

    def fenced(self, job: str, fence: int) -> "Database":
        """Return the same database for the leaseholder of a job: writing raises LostLease once another worker has it.

        The fencing token is checked in the transaction that writes, so that a process that was paused between the two
        writes nothing.
        """
        held = copy(self)
        held._leaseholder = {"job": job, "token": fence}  # noqa: SLF001 - it is one of us
        return held

    def unfenced(self) -> "Database":
        """Return the same database for what has to be recorded although the lease is lost."""
        free = copy(self)
        free._leaseholder = {}  # noqa: SLF001 - it is one of us
        return free

    def write(self, *, durable: bool = True) -> AbstractContextManager[Connection]:
        """Begin a transaction that commits at the end, or not at all; only one at a time is open.

        Without `durable`, a power cut may undo it until the next durable one is committed. Nothing may be acknowledged
        by it, and nothing may be replaced on its account.
        """
        return self._transaction("write", partial(self._begin_write, durable=durable), {})

    @contextmanager
    def write_then_flush(self) -> Iterator[Connection]:
        """Do as `write`, but wait for the disk after the transaction: SQLite's own wait is inside its lock for writers.

        Others see the change a moment before it is durable. So it is for what is told after this returns, and not for
        what a reader may tell.
        """
        with self.write(durable=False) as connection:
            yield connection
        self.flush()

    def read(self) -> AbstractContextManager[Connection]:
        """Begin a transaction that sees one state and changes nothing."""
        return self._transaction("read", self._dialect.begin_read, self._dialect.READING)

    def write_if_free(self) -> AbstractContextManager[Connection | None]:
        """Do as `write` without `durable`, but yield None at once while another transaction writes."""
        return self._transaction("write", partial(self._begin_write, wait=False, durable=False), {})

    def flush(self) -> None:
        """Make what was committed survive a power cut, whether its transaction was durable or not."""
        try:
            self._dialect.flush(self._file.path if self._file else None)
        except OSError as error:
            raise CatalogueUnavailable(f"catalogue {_named(self.engine.url)}: {error.strerror}") from error

    def _begin_write(self, connection: Connection, *, wait: bool = True, durable: bool = True) -> bool:
        if self._on_wait is None or not wait:
            began: bool = self._dialect.begin_write(connection, wait=wait, durable=durable)
        else:
            told = Timer(TOLD_AFTER, self._on_wait)
            told.daemon = True
            told.start()
            try:
                began = self._dialect.begin_write(connection, durable=durable)
            finally:
                told.cancel()
        if began and self._leaseholder and _LEASED.first(connection, **self._leaseholder) is None:
            raise LostLease(str(self._leaseholder["job"]))
        return began

    @contextmanager
    def _transaction(
        self, mode: str, begin: Callable[[Connection], object], options: Mapping[str, Any]
    ) -> Iterator[Any]:
        if self._file is not None and _device_and_inode(self._file.path) != self._file.opened:
            way_out = sqlite.absent_directory(self._file.path) or "put it back, or restart the workers on the new one"
            raise CatalogueUnavailable(
                f"catalogue {self._file.path}: the file was deleted or replaced while it was in use; {way_out}"
            )
        began = monotonic()
        connection: Connection | None = None
        try:
            # The engine's pool takes longer to give a connection than SQLite takes to answer.
            with suppress(IndexError):
                connection = self._idle.pop()
            connection = connection or self.engine.connect()
            if options:
                connection.execution_options(**options)
            with connection.begin() as transaction:
                try:
                    yield connection if begin(connection) is not False else None
                    transaction.commit()
                except BaseException as error:
                    # A stop may have come during a call. The connection then hears no ROLLBACK.
                    if not isinstance(error, Exception) or self._dialect.lacks_answer(connection):
                        connection.invalidate()
                    raise
            if self._dialect.KEEPS_CONNECTIONS and len(self._idle) < _MOST_IDLE:
                self._idle.append(connection)  # for the next transaction
                connection = None
        except (DBAPIError, sa.exc.TimeoutError) as error:
            found = _translation(self.engine, error)
            if isinstance(error, DBAPIError) and self._dialect.is_unusable(error):  # it was whole when it was opened
                known = _way_out(self.engine, error)
                raise CatalogueUnavailable(str(found) if known else f"{found}; {_restore(self.engine)}") from error
            raise found from error
        finally:
            TRANSACTIONS.observe(mode, value=monotonic() - began)
            if connection is not None:
                connection.close()

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().close()
        self.engine.dispose()

    @property
    def file(self) -> FileIdentity | None:
        """Return the file of the catalogue as it was opened; None if it has none, as one in a server."""
        return self._file

    def physical_id(self) -> str:
        """Return what a copy of this database has another one of, unless a whole disk was copied; "" if unknown."""
        if self._file is not None:
            return str(self._file.opened[1]) if self._file.opened else ""
        with suppress(CatalogueError), self.read() as connection:  # the server may not tell
            return str(connection.execute(sa.text(_PHYSICAL)).scalar())
        return ""

    @property
    def revision(self) -> str:
        """Return the revision of the tables."""
        return _REVISION

    def touch(self, connection: Connection) -> None:
        """Write to the database within this transaction, and change nothing that is recorded."""
        self._dialect.touch(connection)

    def lift_time_limits(self, connection: Connection) -> None:
        """Let this transaction take as long as it needs, for one that reads or writes whole tables."""
        self._dialect.lift_time_limits(connection)

    def _check_identity(self, connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        try:
            cursor.execute(_IDENTITY)
            found = cursor.fetchone()
        finally:
            cursor.close()
            if self.engine.dialect.name == "postgresql":
                connection.rollback()
        if found is None or found[0] != self.identity:
            raise CatalogueUnavailable(
                f"catalogue {_named(self.engine.url)}: it is another catalogue than the one that was opened; "
                "restart the workers if it was replaced on purpose"
            )


class Queries:
    """The questions and changes of one concern; each class of this package is such a one."""

    def __init__(self, database: Database) -> None:
        self._database = database


def _device_and_inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CatalogueUnavailable(f"catalogue {path}: {error.strerror}") from error
    return found.st_dev, found.st_ino


def _check_not_lost(path: Path) -> None:
    """Refuse to make an empty catalogue where one was: its marker is still there."""
    marker = marker_of(path)
    if marker.exists() and _device_and_inode(path) is None:
        raise CatalogueUnavailable(
            f"catalogue {path}: the file is gone; restore it from a backup, such as by `zot-artifacts catalogue "
            f"restore STORE`, or remove {marker} to start empty"
        )


def check_file(url: str) -> Path | None:
    """Return the file of the catalogue at this URL, which may not be there yet; None if it is in a server.

    Raises:
        NewerCatalogue: it was made by a newer version.
        CatalogueError: the file is no catalogue.
    """
    engine = open_engine(url)
    try:
        path = _file_of(engine)
        if path and _check_is_database(path):
            with _with_way_out(), translated(engine):
                if (revision := _revision(engine)) is None:
                    with engine.connect() as connection:
                        _check_fit(connection)
                elif revision > _REVISION:
                    raise _newer(engine, revision)
        return path
    finally:
        engine.dispose()


_CHECKPOINT_SECONDS = "1"
"""How long a checkpoint waits for the lock of another program."""


def checkpoint_write_ahead_log(url: str) -> None:
    """Checkpoint the write-ahead log of an SQLite catalogue into its file, unless a process has it open.

    SQLite does so when the last connection is closed. Processes that end without that leave the log, and a copy of the
    file alone would lack their last transactions.
    """
    engine = open_engine(url)
    path = _file_of(engine)
    if path:  # a program that has locked it would keep this process from its end
        engine = open_engine(engine.url.update_query_dict({"timeout": _CHECKPOINT_SECONDS}).render_as_string())
    try:
        if path and path.exists() and path.with_name(f"{path.name}-wal").exists():
            with translated(engine):
                _revision(engine)
    except (CatalogueError, OSError) as error:
        logger.warning("catalogue %s: its last transactions stay in %s-wal: %s", path, path, error)
    finally:
        engine.dispose()


_WAY_OUT = (
    "move it away and put the catalogue back, or run `zot-artifacts catalogue restore STORE`; ZOT_CATALOGUE and "
    "ZOT_HOME say where it is"
)

_WAY_OUT_OF_SERVER = (
    "restore its dump, or load a backup into an empty database by `zot-artifacts catalogue restore STORE`; "
    "ZOT_CATALOGUE names the database"
)
_TABLES = {"artifacts", "copies", "verifications"}
"""The tables by which a database is known as a catalogue; those of another program have other names."""


def _check_is_database(path: Path) -> bool:
    """Refuse what SQLite would wait for, or call "unable to open database file"; return whether the file is there.

    The file is not opened here: to close it would end the locks that SQLite has on it in this process.
    """
    for file in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal"))):
        try:
            kind = file.stat().st_mode
            if not stat.S_ISREG(kind):
                raise CatalogueError(f"catalogue {path}: {file} is {_kind(kind)} and no file of a database; {_WAY_OUT}")
            if not os.access(file, os.R_OK):
                raise CatalogueError(f"catalogue {path}: this user cannot read {file}; give it to this user")
        except FileNotFoundError:
            if absent := sqlite.absent_directory(path):
                raise CatalogueUnavailable(f"catalogue {path}: {absent}") from None
            if file.is_symlink() and not file.resolve().parent.is_dir():  # otherwise SQLite makes the file
                raise CatalogueError(f"catalogue {path}: {file} is a symbolic link to nothing; {_WAY_OUT}") from None
        except OSError as error:
            raise CatalogueError(f"catalogue {path}: {file}: {error.strerror}; {_WAY_OUT}") from error
    return path.exists()


@contextmanager
def _with_way_out() -> Iterator[None]:
    """Say what to do about a file that SQLite finds to be no database."""
    try:
        yield
    except CatalogueUnavailable:
        raise
    except CatalogueError as error:
        if "not a database" in str(error) or "malformed" in str(error):
            raise CatalogueError(f"{error}; {_WAY_OUT}") from error
        raise


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    return next((name for test, name in kinds if test(mode)), "a device")


def mark(path: Path, identity: str) -> None:
    """Keep the id of the catalogue beside its file.

    Raises:
        CatalogueUnavailable: the id of another catalogue is kept there.
    """
    marker = marker_of(path)
    try:
        if not marker.exists():
            fresh = marker.with_name(f"{marker.name}.{uuid4().hex}")
            fresh.write_text(identity, encoding="ascii")
            fresh.replace(marker)
        kept = marker.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        logger.warning("catalogue %s: its id cannot be kept at %s: %s", path, marker, error.strerror)
        return
    if kept != identity:
        raise CatalogueUnavailable(
            f"catalogue {path}: it is another catalogue than the one before; put that back, or remove {marker}"
        )


def marked(path: Path) -> str | None:
    """Return the id that is kept beside the file of a catalogue, or None."""
    try:
        return marker_of(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def expected_identity(url: str) -> str | None:
    """Return the id of the catalogue that belongs at a URL, also if its file is lost; None if that is not known."""
    engine = open_engine(url)
    path = _file_of(engine)
    engine.dispose()
    return marked(path) if path else None


def marker_of(path: Path) -> Path:
    """Return the file that keeps the id of a catalogue beside its file."""
    return path.with_name(f"{path.name}-id")


def _check_there(engine: Engine) -> None:
    path = _file_of(engine)
    with _opening(engine):
        # SQLite would write its header into an empty file.
        there = path is None or (_device_and_inode(path) is not None and path.stat().st_size > 0)
        if there and _revision(engine) is None:
            with _reading(engine) as connection:
                _check_fit(connection)
            there = False
    if not there:
        engine.dispose()
        way_out = (
            "check ZOT_CATALOGUE or ZOT_HOME; where they are right, a worker or `zot-artifacts up` makes one, and "
            "`zot-artifacts catalogue restore STORE` brings back a lost one"
        )
        raise NoCatalogue(f"there is no catalogue at {_named(engine.url)}: {way_out}")


def _file_of(engine: Engine) -> Path | None:
    """Return the file of a catalogue; None if it has none, as one in a server."""
    return sqlite.file_of(engine.url) if engine.dialect.name == "sqlite" else None


def _dialect(engine: Engine) -> ModuleType:
    return _DIALECTS[engine.dialect.name]


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        connection.execution_options(**_dialect(engine).READING).begin()
        _dialect(engine).begin_read(connection)
        yield connection


def _revision(engine: Engine) -> str | None:
    with _reading(engine) as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def upgrade_tables(connection: Connection, revision: str | None = None) -> None:
    """Make the tables as they were at a revision, or bring older ones to it, within this transaction.

    Without a revision they are those of this program.

    Raises:
        NewerCatalogue: the revision or the tables are those of a newer version.
        CatalogueError: the database is not fit for them.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    logging.getLogger("alembic").setLevel(logging.WARNING)  # it logs each of its plugins
    engine = connection.engine
    _dialect(engine).lift_time_limits(connection)
    _check_fit(connection)
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision or _REVISION)
    except CommandError:
        found = revision or connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        raise _newer(engine, found) from None


def check_known(connection: Connection, tables: set[str]) -> None:
    """Refuse tables with the names of a catalogue's that are not those of one which this program knows.

    Raises:
        NewerCatalogue: they are those of a newer version.
        CatalogueError: they are those of another program.
    """
    if not tables >= {*_TABLES, "alembic_version"}:
        raise CatalogueError(
            f"the database {_named(connection.engine.url)} has tables of another program, such as {min(tables)}: "
            "name a new database in ZOT_CATALOGUE"
        )
    revision = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    if revision is not None and revision > _REVISION:
        raise _newer(connection.engine, revision)


def _newer(engine: Engine, revision: str | None) -> NewerCatalogue:
    return NewerCatalogue(
        f"the catalogue {_named(engine.url)} was made by a newer version: its tables have revision {revision}, this "
        f"program knows {_REVISION}; install that version, or go back as docs/howto/upgrade.md says"
    )


def _damaged(engine: Engine, what: str) -> CatalogueError:
    """Return the error about a database that lacks rows which every catalogue has, as a copy does that was cut off."""
    told = f"the catalogue {_named(engine.url)} is damaged: it has tables, but not {what}; {_restore(engine)}"
    return CatalogueError(told)


def _restore(engine: Engine) -> str:
    return _WAY_OUT if engine.dialect.name == "sqlite" else _WAY_OUT_OF_SERVER


def _check_fit(connection: Connection) -> None:
    tables = set(sa.inspect(connection).get_table_names())
    versions = "SELECT version_num FROM alembic_version"
    if tables >= _TABLES and not ("alembic_version" in tables and connection.execute(sa.text(versions)).scalar()):
        raise _damaged(connection.engine, "their version (table alembic_version)")
    if unfit := _dialect(connection.engine).unfit(connection):
        raise CatalogueError(f"the catalogue {_named(connection.engine.url)} cannot be made: {unfit}")


def _named(url: URL) -> str:
    return url.set(query={}).render_as_string()  # a password may be in the query too, where nothing hides it


def _first_line(error: Exception) -> str:
    original = getattr(error, "orig", None) or error
    return str(original).splitlines()[0]
