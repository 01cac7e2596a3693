"""How long a job of a killed worker waits until another worker continues it."""

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks.harness.result_rows import NotMeasured, Row, Samples, Target
from benchmarks.harness.testbed import MIB, Testbed
from tests.servers.worker import Worker
from worker.catalogue import Catalogue, JobRecord
from worker.settings import Settings
from worker.settings.section_models import JobSettings
from zot_artifact_client.contract import JobState

TARGET = Target(60, unit=" s")
_KILLS = 3
_SPREAD = 15.0
"""Seconds over which the kills are spread: one period of `sweep.recover`, and more than a heartbeat."""
_SLOW = {"store_limits": json.dumps({"primary": {"bytes_per_second": "96KiB"}})}
"""Makes a few MiB take longer than the whole measurement; all other settings are the defaults."""
_POLL = 0.05
_WITHIN = 180.0


def measure(testbed: Testbed) -> Iterator[Row]:
    """Give each of some workers one long job, start another with the sweeps, and kill the first at random moments."""
    kills, lease = 1 if testbed.quick else _KILLS, JobSettings().lease.total_seconds()
    home = testbed.directory / "fleet"
    with ExitStack() as stack:
        source = stack.enter_context(testbed.file("long.bin", 32 * MIB))
        client = stack.enter_context(testbed.client())
        workers = [stack.enter_context(_worker(testbed, f"taken-over-{n}", home)) for n in range(kills)]
        catalogue = Catalogue(Settings(home=home, broker=testbed.valkey.url).catalogue_url)
        stack.callback(catalogue.close)
        jobs = [client.upload(source, "taken-over", f"{n}.bin", stores="primary").id for n in range(kills)]
        running = [_until(lambda job=job: _running(catalogue, job, attempt=1)) for job in jobs]  # type: ignore[misc]
        stack.enter_context(_worker(testbed, "taken-over-next", home, concurrency=kills, beat=True))
        took = _kill(catalogue, _held(running, workers))
    what = f"kill -9 of a whole worker until its job runs again, lease {lease:.0f} s, worst of {kills}"
    yield Row(what, Samples([max(took)], " s", 1), target=TARGET)


def _kill(catalogue: Catalogue, held: Mapping[str, Worker]) -> list[float]:
    """Kill each worker at another moment, and return after how many seconds its job ran again."""
    began = time.monotonic()
    due = sorted((began + random.uniform(0, _SPREAD), job) for job in held)
    killed: dict[str, float] = {}
    took: list[float] = []
    while len(took) < len(held):
        while due and due[0][0] <= time.monotonic():
            job = due.pop(0)[1]
            held[job].kill()
            killed[job] = time.monotonic()
        again = [job for job in killed if _running(catalogue, job, attempt=2)]
        took += [time.monotonic() - killed.pop(job) for job in again]
        if time.monotonic() - began > _WITHIN:
            raise NotMeasured(f"after {_WITHIN:.0f} s only {len(took)} of {len(held)} jobs ran again")
        time.sleep(_POLL)
    return took


def _held(records: list[JobRecord], workers: list[Worker]) -> dict[str, Worker]:
    """Return by job the worker that has it; each has one child, and so one job."""
    by_child = {child: worker for worker in workers for child in worker.children()}
    return {record.id: by_child[int(str(record.lease_owner).split(":")[1])] for record in records}


def _running(catalogue: Catalogue, job: str, *, attempt: int) -> JobRecord | None:
    found = catalogue.ledger.get(job)
    return found if found and found.state == JobState.RUNNING and found.attempts == attempt else None


def _until(found: Callable[[], JobRecord | None]) -> JobRecord:
    deadline = time.monotonic() + _WITHIN
    while time.monotonic() < deadline:
        if record := found():
            return record
        time.sleep(_POLL)
    raise NotMeasured("a job was not begun")


def _worker(testbed: Testbed, name: str, home: Path, *, concurrency: int = 1, beat: bool = False) -> Worker:
    roots = json.dumps([str(testbed.incoming)])
    return Worker(
        testbed.directory / name, testbed.valkey.url, concurrency=concurrency, beat=beat, fork=False,
        home=str(home), sources__roots=roots, **_SLOW,
    )  # fmt: skip
