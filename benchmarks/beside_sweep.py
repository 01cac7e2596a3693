"""An upload of 1 KiB beside a running sweep, against the same upload alone: what a user notices of a sweep."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import count

import sqlalchemy as sa

from benchmarks import sweep
from benchmarks.harness.result_rows import NotMeasured, Row, Samples, Target
from benchmarks.harness.testbed import GIB, KIB, WAIT, Testbed
from tests.servers.worker import Worker
from worker import clock
from worker.catalogue import Catalogue
from worker.catalogue.tables import copies
from zot_artifact_client import ArtifactClient
from zot_artifact_client.contract import SWEEP_VERIFY, Queue, SweepVerifyRequest

_TARGET = Target(3)
_WARMING = 10
_AGAIN_BELOW = 4_000
"""Copies that are still due when the next sweep begins, so that one always runs."""
_AT_ONCE = 250
"""Copies that one transaction makes due, as many as a group of verdicts has."""


class _UserWorker(Worker):
    """A worker for the jobs of users, as `up` starts it beside the one for sweeps."""

    queues: Sequence[Queue] = (Queue.INTERACTIVE, Queue.TRANSFER)

    def command(self) -> Sequence[str]:
        return (*super().command(), "-Q", ",".join(self.queues), "-n", f"{self.queues[0]}@%h")


class _SweepWorker(_UserWorker):
    queues = (Queue.SWEEP,)


def measure(testbed: Testbed) -> Iterator[Row]:
    """Upload alone and beside a sweep in turn, and compare the 99th percentiles."""
    files, rounds, each = (sweep.FEW, 2, 50) if testbed.quick else (sweep.MANY, 4, 100)
    testbed.need(GIB)
    place, home = testbed.directory / "beside", testbed.directory / "beside-home"
    settings = {
        "stores": json.dumps({"primary": {"type": "filesystem", "root": str(place), "verify_cached": True}}),
        "placement": '["primary"]', "home": str(home), "sweep__verify__enabled": "false",
        "sources__roots": json.dumps([str(testbed.incoming)]),
    }  # fmt: skip
    alone: list[float] = []
    beside: list[float] = []
    with ExitStack() as stack:
        for kind in (_UserWorker, _SweepWorker):
            directory = testbed.directory / kind.__name__
            stack.enter_context(kind(directory, testbed.valkey.url, concurrency=1, fork=False, **settings))
        client = stack.enter_context(testbed.client())
        catalogue = Catalogue(f"sqlite:///{home / 'catalogue.sqlite3'}")
        stack.callback(catalogue.close)
        sweep._fill(catalogue, place / sweep.BUCKET, files)
        upload = _uploads(testbed, client)
        for _ in range(_WARMING):
            upload()
        for _ in range(rounds):
            alone += [upload() for _ in range(each)]
            with _swept(testbed, catalogue):
                beside += [upload() for _ in range(each)]
    what = f"1 KiB upload beside a sweep of {files:,} files, enqueue to done, against the same alone"
    worst = Samples([_percentile(beside, 99)], " ms", 1), Samples([_percentile(alone, 99)], " ms", 1)
    yield Row(f"{what}: 99th percentile", *worst, _TARGET)
    yield Row(f"{what}: each", Samples(beside, " ms", 1), Samples(alone, " ms", 1))


def _uploads(testbed: Testbed, client: ArtifactClient) -> Callable[[], float]:
    """Return a function that uploads new bytes under a new key and returns the milliseconds."""
    source, numbers = testbed.incoming / "beside", count()

    def upload() -> float:
        source.write_bytes(os.urandom(KIB))
        begun = time.perf_counter()
        client.upload(source, "latency", f"{next(numbers)}.bin").wait(WAIT)
        return (time.perf_counter() - begun) * 1000

    return upload


@contextmanager
def _swept(testbed: Testbed, catalogue: Catalogue) -> Iterator[None]:
    """Keep sweeps running in the block, and wait for the last one."""
    ending = threading.Event()

    def keep() -> None:
        with testbed.client() as client:
            while not ending.is_set():
                if _due(catalogue) < _AGAIN_BELOW:
                    _make_due(catalogue)
                    client.submit(SWEEP_VERIFY, SweepVerifyRequest(store="primary")).wait(WAIT)
                ending.wait(0.1)

    before = _verdicts(catalogue)
    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        while _verdicts(catalogue) == before:
            time.sleep(0.02)
        yield
    finally:
        ending.set()
        thread.join()
    deadline = time.monotonic() + WAIT
    while _due(catalogue):
        if time.monotonic() > deadline:
            raise NotMeasured("the sweep does not end")
        time.sleep(0.1)


def _make_due(catalogue: Catalogue) -> None:
    """Make all copies due, in short transactions: one alone would keep the lock from an upload for 50 ms or more."""
    with catalogue._database.read() as connection:
        last = connection.execute(sa.select(sa.func.max(copies.c.id))).scalar_one()
    for first in range(0, last, _AT_ONCE):
        some = sa.update(copies).where(copies.c.id.between(first + 1, first + _AT_ONCE))
        with catalogue._database.write() as connection:
            connection.execute(some.values(read_at=clock.now() - timedelta(days=60), claimed_until=None))


def _due(catalogue: Catalogue) -> int:
    late = sa.select(sa.func.count()).where(copies.c.read_at < clock.now() - timedelta(days=30))
    with catalogue._database.read() as connection:
        return int(connection.execute(late).scalar_one())


def _verdicts(catalogue: Catalogue) -> int:
    head = catalogue.verifications.head()
    return head.id if head else 0


def _percentile(values: Sequence[float], part: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * part // 100)]
