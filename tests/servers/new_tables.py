"""Make the tables of a new catalogue of SQLite at once: to run 40 migrations takes longer than most tests."""

import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from alembic import command

from tests.servers.worker import new_catalogue


def make_new_tables_at_once() -> None:
    """Let this process and its forks make the tables of an empty SQLite database from what the migrations have made.

    They run once, here. Any other catalogue is migrated as ever: one with tables, or of an older revision.
    """
    statements, newest = _made_by_the_migrations()
    migrate = command.upgrade

    def upgrade(config: Any, revision: str) -> None:
        connection = config.attributes["connection"]
        sqlite = connection.dialect.name == "sqlite"
        if revision != newest or not sqlite or connection.exec_driver_sql("SELECT 1 FROM sqlite_master").first():
            migrate(config, revision)
            return
        for statement in statements:
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("UPDATE catalogue_identity SET id = ?", (str(uuid4()),))

    command.upgrade = upgrade


def _made_by_the_migrations() -> tuple[list[str], str]:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "catalogue.sqlite3"
        path.write_bytes(new_catalogue())
        with closing(sqlite3.connect(path)) as database:
            [[newest]] = database.execute("SELECT version_num FROM alembic_version")
            return [each for each in database.iterdump() if not each.startswith(("BEGIN", "COMMIT"))], newest
