"""A real Celery worker of ours, with its beat beside it if asked for."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from tests.servers.forks import PythonServer
from tests.servers.process import REPOSITORY
from worker.intake.catalogue_of_broker import CATALOGUE
from zot_artifact_client.broker_urls import redis_client
from zot_artifact_client.connection import is_redis


class Worker(PythonServer):
    """`celery -A worker.app worker` on its own data directory.

    A broker that belongs to the catalogue of another test is accepted, unless `accept_broker` is False.
    """

    name = "worker"

    def __init__(
        self,
        directory: Path,
        broker: str,
        *,
        concurrency: int = 2,
        beat: bool = False,
        fork: bool = True,
        accept_broker: bool = True,
        **settings: str,
    ) -> None:
        super().__init__(directory, fork=fork)
        self._broker = broker
        self._concurrency = concurrency
        self._beat = beat
        self._accept_broker = accept_broker
        self._read = 0
        self._settings = {f"ZOT_{name.upper()}": value for name, value in settings.items()}

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @property
    def log(self) -> str:
        """Return what it has said so far."""
        return self._log_path.read_text(errors="replace")

    def command(self) -> Sequence[str]:
        beat = ("--beat",) if self._beat else ()
        concurrency = f"--concurrency={self._concurrency}"
        # Mingle waits a second for other workers at each start.
        return (
            sys.executable, "-m", "celery", "-A", "worker.app", "worker", concurrency, "-l", "INFO", "--without-mingle",
            *beat,
        )  # fmt: skip

    def environment(self) -> Mapping[str, str]:
        ours = {"ZOT_HOME": str(self.home), "ZOT_BROKER": self._broker, "MALLOC_ARENA_MAX": "2"}  # as `up` starts it
        # A process that is killed leaves its temporary directory.
        return ours | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(self.directory)} | self._settings

    def probe(self) -> None:
        """Return when the worker has said that it is ready, and answers: before that it would not hear the question."""
        if b"ready.\n" not in self._log_path.read_bytes()[self._read :]:
            raise ConnectionError("it is not ready yet")
        with Celery(broker=self._broker, set_as_current=False) as app:
            try:
                answers = app.control.broadcast("ping", reply=True, timeout=8.0, limit=1)
            except (redis.RedisError, OperationalError) as error:
                raise ConnectionError(str(error)) from error
            if not answers:
                raise ConnectionError("no worker answers")

    def __exit__(self, *exc_info: object) -> None:
        """Kill it: an orderly end takes two seconds more, and tests that are about that call `stop`."""
        self.kill()

    def _spawn(self) -> None:
        if self._accept_broker and is_redis(self._broker):
            with suppress(redis.RedisError), redis_client(self._broker) as broker:
                broker.delete(CATALOGUE)
        self._read = self._log_path.stat().st_size if self._log_path.exists() else 0
        super()._spawn()

    def children(self) -> list[int]:
        """Return the process ids of the pool's children."""
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.pid)], capture_output=True, text=True, check=False
        ).stdout
        return [int(pid) for pid in listed.split()]


class Beat(Worker):
    """`celery -A worker.app beat` by itself, with the settings of a worker."""

    name = "beat"

    def command(self) -> Sequence[str]:
        schedule = str(self.directory / "schedule")
        return (sys.executable, "-m", "celery", "-A", "worker.app", "beat", "-l", "INFO", "--pidfile=", "-s", schedule)

    def probe(self) -> None:
        """Return when it has begun to send; nothing else of it can be asked."""
        if "beat: Starting" not in self.log:
            raise ConnectionError("it has not begun yet")
