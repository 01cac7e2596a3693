"""Open the catalogue's database and bring its tables up to date."""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, OperationalError

_MIGRATIONS = Path(__file__).parent / "migrations"
_HEAD = "0002"
_BUSY_SECONDS = 30


class CatalogueError(Exception):
    """The catalogue cannot be used; the message says which and why."""


class CatalogueUnavailable(CatalogueError):
    """The catalogue cannot be reached or is locked for too long; trying again later may help."""


def open_engine(url: str) -> Engine:
    """Return an engine for the catalogue at this SQLAlchemy URL.

    Raises:
        CatalogueError: the URL is none.
    """
    try:
        engine = sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"), hide_parameters=True)
    except (sa.exc.ArgumentError, ImportError) as error:
        raise CatalogueError(f"the catalogue's URL cannot be used: {_first_line(error)}") from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    return engine


def migrate(engine: Engine) -> None:
    """Make the tables, or bring them up to date; many processes may do so at once.

    Raises:
        CatalogueError: the catalogue is newer than this program.
    """
    with translated(engine):
        if _revision(engine) == _HEAD:
            return
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        logging.getLogger("alembic").setLevel(logging.WARNING)  # it would tell of each plugin it has
        with engine.begin() as connection:  # in SQLite this is the lock: only one gets to migrate
            config = Config()
            config.set_main_option("script_location", str(_MIGRATIONS))
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise CatalogueError(
                    f"the catalogue {engine.url.render_as_string()} was made by a newer version: {error}"
                ) from None


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Turn what the database says into our own errors."""
    try:
        yield
    except (OperationalError, sa.exc.InterfaceError) as error:
        raise CatalogueUnavailable(f"catalogue {engine.url.render_as_string()}: {_first_line(error)}") from error
    except DBAPIError as error:
        raise CatalogueError(f"catalogue {engine.url.render_as_string()}: {_first_line(error)}") from error


class Database:
    """The engine, as the queries use it: one transaction for writing, one for reading."""

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Begin a transaction that commits at the end, or not at all."""
        with translated(self.engine), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Begin a transaction that sees one state and changes nothing."""
        with translated(self.engine), self.engine.connect().execution_options(reads=True) as connection:
            yield connection


def _revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _set_up_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin by itself: see _begin_immediate
    for pragma in (
        f"busy_timeout = {_BUSY_SECONDS * 1000}",  # first: switching to WAL already needs the lock
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


def _first_line(error: Exception) -> str:
    original = getattr(error, "orig", None) or error
    return str(original).splitlines()[0]
