"""The yardsticks of latency and throughput: a Celery application with its default configuration and minimal tasks."""

import hashlib
import os
import sqlite3
from functools import cache
from pathlib import Path

from celery import Celery

BROKER = "BENCH_BROKER"
NOOP = "benchmarks.harness.bare_celery.noop"
KEEP = "benchmarks.harness.bare_celery.keep"


def make_app(broker: str | None, *, results: bool = True) -> Celery:
    """Return the application of the worker and of its caller."""
    app = Celery("bare", broker=broker, backend=broker if results else None, set_as_current=False)
    app.conf.update(task_serializer="json", result_serializer="json", accept_content=["json"])
    return app


app = make_app(os.environ.get(BROKER))


@app.task(name=NOOP)
def noop() -> None:
    """Do nothing."""


@app.task(name=KEEP)
def keep(source: str, root: str) -> str:
    """Keep a small file and a record of it through a power cut, waiting for the disk seven times.

    It has no lease, no fencing token, no retry and no limits, and four statements of SQL.
    """
    data, name = Path(source).read_bytes(), Path(source).name
    sha256 = hashlib.sha256(data).hexdigest()
    database = open_database(root)
    database.execute("INSERT INTO jobs VALUES (?, 'running')", (name,))
    database.execute("INSERT INTO copies VALUES (?, ?, 'writing')", (name, sha256))
    for suffix, content in (("", data), (".sha256", sha256.encode())):
        _write(Path(root, f"{name}{suffix}"), content)
    sync(Path(root))
    database.execute("UPDATE copies SET state = 'stored' WHERE name = ?", (name,))
    database.execute("UPDATE jobs SET state = 'succeeded' WHERE name = ?", (name,))
    return sha256


@cache
def open_database(root: str) -> sqlite3.Connection:
    """Return this process's connection to the database; the first process creates it, before any other opens it."""
    database = sqlite3.connect(Path(root, "catalogue.sqlite3"), isolation_level=None, timeout=30)  # commits each
    for statement in (
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "CREATE TABLE IF NOT EXISTS jobs (name TEXT PRIMARY KEY, state TEXT)",
        "CREATE TABLE IF NOT EXISTS copies (name TEXT PRIMARY KEY, sha256 TEXT, state TEXT)",
    ):
        database.execute(statement)
    return database


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    temporary.rename(path)


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a directory."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
