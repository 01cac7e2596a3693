"""Make a new catalogue of SQLite at once: to run 40 migrations takes longer than most tests."""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from alembic import command

from worker.catalogue import Catalogue, database, sqlite


def make_new_tables_at_once() -> None:
    """Let this process and its forks make a new SQLite catalogue from what the migrations have made.

    They run once, here. A file that is not there yet is a copy of theirs, with an id of its own. An empty database, as
    one that an export is loaded into, gets their tables. Any other catalogue is migrated as ever.
    """
    with TemporaryDirectory() as directory:
        path = Path(directory) / "catalogue.sqlite3"
        Catalogue(f"sqlite:///{path}").close()
        _copy_to_new_files(path)
        _fill_empty_databases(path)


def _copy_to_new_files(made: Path) -> None:
    content, migrate = made.read_bytes(), database.migrate
    with closing(sqlite3.connect(made)) as connection:
        [[identity]] = connection.execute("SELECT id FROM catalogue_identity")

    def copy_and_migrate(engine: Any) -> None:
        path = sqlite.file_of(engine.url) if engine.dialect.name == "sqlite" else None
        if path is not None and not path.exists():
            with suppress(OSError):  # the worker tells the reason when it makes the file itself
                _write_whole(path, content.replace(identity.encode(), str(uuid4()).encode()))
        migrate(engine)

    database.migrate = copy_and_migrate


def _write_whole(path: Path, content: bytes) -> None:
    """Write a new file, of which no process sees a part; one that another process has made meanwhile stays."""
    new = path.with_name(f"{path.name}.{uuid4()}")
    with open(new, "xb", opener=lambda name, flags: os.open(name, flags, 0o644)) as file:
        file.write(content)
    try:
        path.hardlink_to(new)
    finally:
        new.unlink()


def _fill_empty_databases(made: Path) -> None:
    migrate = command.upgrade
    with closing(sqlite3.connect(made)) as connection:
        [[newest]] = connection.execute("SELECT version_num FROM alembic_version")
        statements = [each for each in connection.iterdump() if not each.startswith(("BEGIN", "COMMIT"))]

    def upgrade(config: Any, revision: str) -> None:
        connection = config.attributes["connection"]
        of_sqlite = connection.dialect.name == "sqlite"
        if revision != newest or not of_sqlite or connection.exec_driver_sql("SELECT 1 FROM sqlite_master").first():
            migrate(config, revision)
            return
        for statement in statements:
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("UPDATE catalogue_identity SET id = ?", (str(uuid4()),))

    command.upgrade = upgrade
