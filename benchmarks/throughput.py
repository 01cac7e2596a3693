"""Jobs a second: 1 KiB uploads on one and two worker processes, against tasks that do nothing in a bare Celery app."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import redis
from celery import Celery

from benchmarks.harness import bare_celery
from benchmarks.harness.processor_time import Run, as_samples, server_seconds, timed
from benchmarks.harness.result_rows import NotMeasured, Row, Samples, Target
from benchmarks.harness.testbed import KIB, WAIT, Testbed
from benchmarks.latency import NOOP, ONE, POOL, TWO, BareWorker
from tests.servers.process import Server
from zot_artifact_client import ArtifactClient
from zot_artifact_client.contract import UploadRequest

TARGET = Target(0.5, at_least=True)
ALONE = Target(0.3, at_least=True)
"""That of one process, which waits for Redis and the disk alone."""
KEPT = "kept"
_POLL = 0.005
_UNENDED = {"PENDING", "RECEIVED", "STARTED", "PROGRESS", "RETRY"}


@dataclass(frozen=True, slots=True)
class Load:
    """Jobs of one kind: how to send them, their worker, and their result backend."""

    server: Server
    results: "redis.Redis"
    send: Callable[[int], Sequence[str]]

    def run(self, jobs: int) -> Run:
        """Do some jobs, all of which wait already when the worker begins."""
        with self._stopped():
            ids = self.send(jobs)
            os.sync()  # so that no job waits for the write of the sources
        return timed(jobs, lambda: server_seconds(self.server), lambda: self._await(ids))

    @contextmanager
    def _stopped(self) -> Iterator[None]:
        """Stop the worker's main process, which takes the messages."""
        os.kill(self.server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.server.pid, signal.SIGCONT)

    def _await(self, ids: Sequence[str]) -> None:
        """Poll one result after the other: a client that subscribes to each would compete with the workers."""
        deadline = time.monotonic() + WAIT
        for id_ in ids:
            while (state := self._state(id_)) in _UNENDED:
                if time.monotonic() > deadline:
                    raise NotMeasured(f"job {id_} has not ended after {WAIT:.0f} s")
                time.sleep(_POLL)
            if state != "SUCCESS":
                raise NotMeasured(f"job {id_} ended as {state}")

    def _state(self, id_: str) -> str:
        kept = self.results.get(f"celery-task-meta-{id_}")
        return str(json.loads(kept)["status"]) if isinstance(kept, bytes) else "PENDING"


def measure(testbed: Testbed) -> Iterator[Row]:
    """Run each kind alone in turn, each time with a full queue."""
    alone = _samples(testbed, 1, (NOOP, ONE))
    what = f"1 KiB uploads {ONE}, 1 worker process, against no-ops of bare Celery with 1"
    yield Row(what, alone[ONE], alone[NOOP], ALONE)
    samples = _samples(testbed, POOL, (NOOP, KEPT, ONE, TWO))
    for kind in (ONE, TWO):
        what = f"1 KiB uploads {kind}, {POOL} worker processes, against no-ops of bare Celery"
        yield Row(what, samples[kind], samples[NOOP], TARGET)
    least = "the least that keeps 1 KiB and a record of it through a power cut"
    yield Row(f"{least}, against no-ops of bare Celery", samples[KEPT], samples[NOOP])
    yield Row(f"1 KiB uploads {ONE}, {POOL} worker processes, against {least}", samples[ONE], samples[KEPT])


def _samples(testbed: Testbed, pool: int, kinds: Sequence[str]) -> dict[str, Samples]:
    """Measure each kind alone in turn, with so many worker processes."""
    rounds, jobs = (2, 100) if testbed.quick else (5, 500)
    runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
    with _loads(testbed, pool) as loads:
        for kind in kinds:
            loads[kind].run(jobs // 5)  # every child opens its catalogue and connects once
        for _ in range(rounds):
            for kind in kinds:
                runs[kind].append(loads[kind].run(jobs))
    return {kind: as_samples(of_kind, " jobs/s") for kind, of_kind in runs.items()}


@contextmanager
def _loads(testbed: Testbed, pool: int) -> Iterator[dict[str, Load]]:
    broker = f"redis://127.0.0.1:{testbed.valkey.port}/1"  # another database of the same server: queues do not meet
    with (
        BareWorker(testbed.directory / f"bare-{pool}", broker, pool) as bare_worker,
        testbed.worker(f"throughput-{pool}", pool) as worker,
        testbed.client() as client,
        bare_celery.make_app(broker) as app,
        redis.Redis.from_url(broker) as theirs,
        redis.Redis.from_url(testbed.valkey.url) as ours,
    ):
        yield {
            NOOP: Load(
                bare_worker, theirs, lambda jobs: [str(app.send_task(bare_celery.NOOP).id) for _ in range(jobs)]
            ),
            KEPT: Load(bare_worker, theirs, _keeper(testbed, app, pool)),
            ONE: Load(worker, ours, _sender(testbed, client, ("primary",))),
            TWO: Load(worker, ours, _sender(testbed, client, None)),
        }


def _keeper(testbed: Testbed, app: Celery, pool: int) -> Callable[[int], Sequence[str]]:
    """Return a function that makes the bare application keep new files."""
    root = testbed.directory / f"kept-{pool}"
    root.mkdir()
    bare_celery.open_database(str(root))
    numbers = count()

    def send() -> str:
        source = testbed.incoming / f"kept-{next(numbers)}.bin"
        source.write_bytes(os.urandom(KIB))
        return str(app.send_task(bare_celery.KEEP, (str(source), str(root))).id)

    return lambda jobs: [send() for _ in range(jobs)]


def _sender(testbed: Testbed, client: ArtifactClient, stores: tuple[str, ...] | None) -> Callable[[int], Sequence[str]]:
    """Return a function that sends uploads of new bytes under new keys."""
    folder = "-".join(stores or ["default"])
    numbers = count()

    def request() -> UploadRequest:
        name = f"{folder}-{next(numbers)}.bin"
        source = testbed.incoming / name
        source.write_bytes(os.urandom(KIB))
        return UploadRequest(source=str(source), bucket="throughput", key=name, stores=stores)

    return lambda jobs: [job.id for job in client.submit_many([request() for _ in range(jobs)])]
