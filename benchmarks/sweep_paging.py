"""Measure the cost of a sweep over very many due copies without the reads, which are replaced.

A sweep over few copies in a catalogue of its own is the yardstick: neither the cost of a copy nor the memory may grow.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.harness.result_rows import NotMeasured, Row, Samples, Target
from benchmarks.harness.testbed import GIB, MIB, Testbed
from tasks.page import page
from tasks.sweeps.verify import sweep_verify
from worker import clock
from worker.catalogue import Catalogue, Leased
from worker.catalogue.tables import artifacts, copies
from worker.context import Context
from worker.jobs.running_job import RunningJob
from worker.settings import Settings
from worker.storage import Digest, Store, Verdict, Verification
from zot_artifact_client.contract import JobState, PageRequest, Progress, SweepVerifyRequest
from zot_artifact_client.outgoing_messages import Outgoing

MANY, FEW = 1_000_000, 10_000
_QUICK = 100_000
_ROWS = 10_000
_COST, _GROWTH = Target(1.1), Target(16, unit=" MiB")


@dataclass(frozen=True, slots=True)
class Paged:
    """Microseconds of processor time for each copy, and resident bytes after the first tenth and at the end."""

    processor: float
    first: int
    last: int


class _Null:
    """A reporter that discards its reports, and a broker that keeps its messages."""

    def __init__(self) -> None:
        self.sent: list[Outgoing] = []

    def report(self, progress: Progress) -> None:
        """Discard it."""

    def cancelled(self) -> bool:
        return False

    def send(self, jobs: list[Outgoing]) -> None:
        self.sent += jobs

    def lost(self, ids: list[str]) -> set[str] | None:
        return set(ids)


def measure(testbed: Testbed) -> Iterator[Row]:
    """Page many copies and few, in processes of their own."""
    many = _QUICK if testbed.quick else MANY
    testbed.need(2 * GIB)
    large, small = ([_in_process(testbed, count) for _ in range(rounds)] for count, rounds in ((many, 1), (FEW, 3)))
    what = f"a sweep of {many:,} due copies, planned and paged, reads replaced"
    few = Samples([sorted(each.processor for each in small)[1]], " us", 1)
    yield Row(f"{what}: processor time of each copy, to {FEW:,}", Samples([large[0].processor], " us", 1), few, _COST)
    growth = (large[0].last - large[0].first) / MIB
    yield Row(f"{what}: memory gained from the first tenth to the end", Samples([growth], " MiB", 1), target=_GROWTH)


def _in_process(testbed: Testbed, count: int) -> Paged:
    command = [
        sys.executable,
        "-m",
        "benchmarks.sweep_paging",
        str(testbed.directory / f"paging-{time.time_ns()}"),
        str(count),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotMeasured(f"paging ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return Paged(**json.loads(done.stdout.splitlines()[-1]))


def run(home: Path, count: int) -> Paged:
    """Make so many copies due, sweep them all, and return the cost."""
    context = Context.open(Settings(home=home))
    _fill(context.catalogue, count)
    setattr(Store, "verify_objects", _verified)  # noqa: B010 - reads are not measured
    outside, resident = _Null(), []
    used = time.process_time()
    job = _take(context, "sweep", "sweep.verify", {}, outside)
    sweep_verify(SweepVerifyRequest(store="primary"), job, outside)
    done = 0
    for sent in outside.sent:
        job = _take(context, sent.job_id, "page", sent.payload, outside)
        with job:
            result = page(PageRequest.read(sent.payload), job)
        done += result.objects
        ended = result.model_dump(mode="json")
        context.catalogue.ledger.finish(job.id, job.fence, JobState.SUCCEEDED, now=clock.now(), result=ended)
        resident.append(_resident())
    used = time.process_time() - used
    context.close()
    if done != count:
        raise NotMeasured(f"of {count} copies {done} were verified")
    return Paged(1e6 * used / count, resident[len(resident) // 10], resident[-1])


def _verified(_: Store, wanted: Sequence[tuple[str, str, Digest]]) -> Iterator[Verification]:
    for _bucket, _key, digest in wanted:
        yield Verification(Verdict.VERIFIED, digest.size, digest.sha256, "1")


def _take(context: Context, id_: str, kind: str, request: dict[str, Any], outside: _Null) -> RunningJob:
    begun = context.catalogue.ledger.acquire(
        id_, kind, request, owner="benchmark", writes_to=None, parent=None, now=clock.now(), lease=timedelta(minutes=5)
    )
    assert isinstance(begun, Leased)
    return RunningJob(begun.record, context, outside)


def _fill(catalogue: Catalogue, count: int) -> None:
    now = clock.now()
    version = {
        "bucket": "paged", "version": 1, "size": 16384, "sha256": "0" * 64, "metadata": {}, "created_at": now,
        "committed_at": now,
    }  # fmt: skip
    copy = {"store": "primary", "state": "stored", "evidence": {}, "attempts": 0, "read_at": now - timedelta(days=60)}
    for start in range(1, count + 1, _ROWS):
        ids = range(start, min(start + _ROWS, count + 1))
        with catalogue._database.write() as connection:
            connection.execute(sa.insert(artifacts), [version | {"id": n, "key": f"a/{n:09d}.tgz"} for n in ids])
            connection.execute(sa.insert(copies), [copy | {"artifact_id": n, "spread": n % 12} for n in ids])


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _main(arguments: Iterable[str]) -> None:
    home, count = arguments
    print(json.dumps(asdict(run(Path(home), int(count)))))


if __name__ == "__main__":
    _main(sys.argv[1:])
