"""From enqueueing to done: a 1 KiB upload through our client, against a task that does nothing in a bare Celery app."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from celery import Celery

from benchmarks.harness import bare_celery
from benchmarks.harness.result_rows import Row, Samples, Target
from benchmarks.harness.testbed import KIB, WAIT, Testbed
from tests.servers.process import REPOSITORY, Server
from zot_artifact_client import ArtifactClient

POOL = 2
WARMING = 8
"""Runs before it counts: every child opens its catalogue and connects once."""
TARGET = Target(4)
NOOP, ONE, TWO = "noop", "to one store", "to the two default stores"


class BareWorker(Server):
    """`celery -A benchmarks.harness.bare_celery worker`, with the pool size of ours."""

    name = "bare-worker"

    def __init__(self, directory: Path, broker: str, pool: int = POOL) -> None:
        super().__init__(directory)
        self._broker = broker
        self._pool = pool

    def command(self) -> Sequence[str]:
        size = f"--concurrency={self._pool}"
        return (sys.executable, "-m", "celery", "-A", "benchmarks.harness.bare_celery", "worker", size, "-l", "INFO")

    def environment(self) -> Mapping[str, str]:
        return {bare_celery.BROKER: self._broker, "PYTHONPATH": str(REPOSITORY)}

    def probe(self) -> None:
        with Celery(broker=self._broker, set_as_current=False) as app:
            if not app.control.ping(timeout=0.5):
                raise ConnectionError("no worker answers")


def measure(testbed: Testbed) -> list[Row]:
    """Run the three kinds in turn, one job at a time, and compare each upload with the task that ran beside it."""
    rounds = 40 if testbed.quick else 200
    with _bare(testbed) as noop, testbed.worker("latency", POOL), testbed.client() as client:
        kinds = {NOOP: noop, ONE: _upload(testbed, client, ["primary"]), TWO: _upload(testbed, client, None)}
        took: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(WARMING + rounds):
            for kind, run in kinds.items():
                took[kind].append(_milliseconds(run))
    samples = {kind: Samples(values[WARMING:], " ms", 1) for kind, values in took.items()}
    return [
        Row(
            f"1 KiB upload {kind}, enqueue to done, against a no-op of bare Celery",
            samples[kind],
            samples[NOOP],
            TARGET,
        )
        for kind in (ONE, TWO)
    ]


@contextmanager
def _bare(testbed: Testbed) -> Iterator[Callable[[], object]]:
    broker = f"redis://127.0.0.1:{testbed.valkey.port}/1"  # another database of the same server: queues do not meet
    with BareWorker(testbed.directory / "bare", broker), bare_celery.make_app(broker) as app:
        yield lambda: app.send_task(bare_celery.NOOP).get(WAIT)


def _upload(testbed: Testbed, client: ArtifactClient, stores: list[str] | None) -> Callable[[], object]:
    """Return a function that uploads new bytes under a new key."""
    folder = "-".join(stores or ["default"])
    source = testbed.incoming / folder
    numbers = count()

    def run() -> object:
        source.write_bytes(os.urandom(KIB))
        return client.upload(source, "latency", f"{folder}/{next(numbers)}.bin", stores=stores).wait(WAIT)

    return run


def _milliseconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return (time.perf_counter() - begun) * 1000
