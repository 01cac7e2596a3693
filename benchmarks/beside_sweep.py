"""An upload of 1 KiB beside a running sweep, against the same upload alone: what a user notices of a sweep."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count

from benchmarks import sweep
from benchmarks.harness.result_rows import NotMeasured, Row, Samples, Target
from benchmarks.harness.testbed import GIB, KIB, WAIT, Testbed
from tests.servers.worker import Worker
from worker.catalogue import Catalogue
from zot_artifact_client import ArtifactClient
from zot_artifact_client.contract import SWEEP_VERIFY, Queue, SweepVerifyRequest

_TARGET = Target(3)
_WARMING = 10


class _UserWorker(Worker):
    """A worker for the jobs of users, as `up` starts it beside the one for sweeps."""

    queues: Sequence[Queue] = (Queue.INTERACTIVE, Queue.TRANSFER)

    def command(self) -> Sequence[str]:
        return (*super().command(), "-Q", ",".join(self.queues), "-n", f"{self.queues[0]}@%h")


class _SweepWorker(_UserWorker):
    queues = (Queue.SWEEP,)


def measure(testbed: Testbed) -> Iterator[Row]:
    """Upload alone and beside a sweep in turn, and compare the 99th percentiles."""
    files, rounds = (sweep.FEW, 2) if testbed.quick else (sweep.MANY, 8)
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
            during = _while_swept(client, catalogue, files, upload)
            beside += during
            alone += [upload() for _ in during]
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


def _while_swept(client: ArtifactClient, catalogue: Catalogue, files: int, upload: Callable[[], float]) -> list[float]:
    """Upload from the call that enqueues a sweep of all files until it has a verdict on each; return each time.

    The copies are made due before: that writes too, and is no part of a sweep.
    """
    sweep._make_due(catalogue)
    last, times, deadline = _verdicts(catalogue) + files, [], time.monotonic() + WAIT
    swept = client.submit(SWEEP_VERIFY, SweepVerifyRequest(store="primary"))
    while _verdicts(catalogue) < last:
        if time.monotonic() > deadline:
            raise NotMeasured("the sweep does not end")
        times.append(upload())
    swept.wait(WAIT)
    return times


def _verdicts(catalogue: Catalogue) -> int:
    head = catalogue.verifications.head()
    return head.id if head else 0


def _percentile(values: Sequence[float], part: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * part // 100)]
