"""Measure the plan of a batch over very many keys: time of a step at the end and at the start, Redis, memory.

Only the planning is measured: between two steps, a statement ends the jobs of the batch, and their messages are
deleted. While a batch does its last tenth, another one over the same artifacts in a catalogue of its own does its first
tenth in turn, so that other load on the machine counts for both.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import redis
import sqlalchemy as sa
from celery import Celery

from benchmarks.harness.result_rows import NotMeasured, Row, Samples, Target
from benchmarks.harness.testbed import GIB, MIB, Testbed
from tasks.batch import batch
from tasks.plan_pages import PAGES_AT_ONCE
from worker import clock
from worker.catalogue import Catalogue, Leased
from worker.catalogue.tables import artifacts, batches, jobs
from worker.context import Context
from worker.jobs.outbox import Outbox
from worker.jobs.running_job import Continue, RunningJob
from worker.settings import Settings
from zot_artifact_client.contract import BatchRequest, BatchResult, JobState, PageFailure, PageResult, Progress, Queue
from zot_artifact_client.contract.queues import queues
from zot_artifact_client.outgoing_messages import MESSAGES, ORDER

BUCKET = "planned"
MANY, FEW = 1_000_000, 320_000
_PAGE = 10_000
_BAD = 10
"""One object in so many fails; failed ones stay in the catalogue, with their pages."""
_SIZE = 1024
_END = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("of"))
    .values(
        started_at=sa.bindparam("ended"), finished_at=sa.bindparam("ended"), attempts=1, state=sa.bindparam("state"),
        result=sa.bindparam("with"),
    )
)  # fmt: skip
_BATCH = "batch"
_GROWTH = Target(16, unit=" MiB")
_REDIS = Target(64, unit=" MiB")
_COST = Target(1.2)


@dataclass(frozen=True, slots=True)
class Planned:
    """The measurements, in seconds and bytes, step by step in turns; memory is resident memory."""

    objects: int
    first: Sequence[float]
    last: Sequence[float]
    memory_before: int
    memory_after: int
    redis: int


class _NullReporter:
    """A reporter that discards its reports."""

    def report(self, progress: Progress) -> None:
        """Discard it."""

    def cancelled(self) -> bool:
        return False


def measure(testbed: Testbed) -> Iterator[Row]:
    """Plan in a process of its own, so that its memory holds nothing else."""
    count = FEW if testbed.quick else MANY
    testbed.need(3 * GIB if count == MANY else GIB)
    command = [
        sys.executable,
        "-m",
        "benchmarks.batch_planning",
        testbed.directory / "planning",
        testbed.valkey.url,
        str(count),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotMeasured(f"planning ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    planned = Planned(**json.loads(done.stdout.splitlines()[-1]))
    what = f"a batch over {planned.objects:,} keys"
    last, first = (Samples([each * 1000 for each in times], " ms", 1) for times in (planned.last, planned.first))
    yield Row(f"{what}: a step in the last tenth, to one in the first", last, first, _COST)
    growth = (planned.memory_after - planned.memory_before) / MIB
    yield Row(f"{what}: memory gained from the first tenth to the end", Samples([growth], " MiB", 1), target=_GROWTH)
    yield Row(f"{what}: Redis, the most at any step", Samples([planned.redis / MIB], " MiB", 1), target=_REDIS)


def _page_result(objects: int) -> dict[str, Any]:
    bad = objects // _BAD
    failures = [
        PageFailure(bucket=BUCKET, key=f"{n}", outcome="corrupt", message="primary: it rots") for n in range(bad)
    ]
    outcomes = {"verified": objects - bad, "corrupt": bad}
    size = objects * _SIZE
    result = PageResult(
        verb="verify", objects=objects, bytes=size, outcomes=outcomes, failed=bad, failures=tuple(failures)
    )
    return result.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class _Side:
    """A batch over all artifacts of a catalogue."""

    context: Context
    messages: Outbox
    broker: "redis.Redis[bytes]"

    def step(self) -> BatchResult | None:
        """Run one step, as a delivery of the batch's message does."""
        ledger, request = self.context.catalogue.ledger, BatchRequest(verb="verify", bucket=BUCKET)
        begun = ledger.acquire(
            _BATCH, "batch", request.payload(), owner="benchmark", writes_to=None, parent=None, now=clock.now(),
            lease=timedelta(minutes=5),
        )  # fmt: skip
        assert isinstance(begun, Leased)
        job = RunningJob(begun.record, self.context, _NullReporter())
        try:
            return batch(request, job, self.messages)
        except Continue:
            ledger.continue_later(job.id, job.fence, progress=job.progress.model_dump(mode="json"), due=clock.now())
            return None

    def end_batch_items(self) -> None:
        """End the jobs in flight, as workers would between two steps, and make the next step due."""
        self.broker.delete(Queue.SWEEP.value, MESSAGES, ORDER.format(queue=Queue.SWEEP.value))
        open_ = self.context.catalogue.batches.in_flight(_BATCH)
        at: dict[str, Any] = {"ended": clock.now(), "state": JobState.SUCCEEDED}
        values = [at | {"of": each.job, "with": _page_result(each.size // _SIZE)} for each in open_]
        with self.context.catalogue._database.write() as connection:
            if values:
                connection.execute(_END, values)
            connection.execute(sa.update(batches).values(next_step_at=clock.now()))

    def timed(self) -> tuple[float, BatchResult | None]:
        """Run a step, and return its seconds and its result."""
        began = time.perf_counter()
        result = self.step()
        return time.perf_counter() - began, result


def plan(home: Path, broker: str, count: int) -> Planned:
    """Make a catalogue of so many artifacts, run all steps of a batch over them, and return the measurements."""
    _make(home / "old", broker, count)
    shutil.copytree(home / "old", home / "young")
    client = redis.Redis.from_url(broker)
    with Celery(broker=broker, set_as_current=False) as app:
        app.conf.task_queues = queues()
        old, young = (
            _Side(Context.open(Settings(home=home / name, broker=broker)), Outbox(app), client)
            for name in ("old", "young")
        )
        planned = _take_turns(old, young, count)
        for side in (old, young):
            side.context.close()
    return planned


def _take_turns(old: _Side, young: _Side, count: int) -> Planned:
    steps = count // (PAGES_AT_ONCE * old.context.settings.page.objects)  # the steps that plan as much as a step may
    tenth = max(steps // 10, 1)
    first, last, memory, most = [], [], [], 0
    for side in (old, young):  # the very first step counts all
        side.step()
        side.end_batch_items()
    result, number = None, 1
    while result is None:
        number += 1
        turns = steps - tenth < number <= steps
        if turns:
            first.append(young.timed()[0])
            young.end_batch_items()
        taken, result = old.timed()
        if turns:
            last.append(taken)
        memory.append(_resident())
        most = max(most, int(old.broker.info("memory")["used_memory"]))
        old.end_batch_items()
    bad = count // _BAD
    if result.outcomes != {"verified": count - bad, "corrupt": bad}:
        raise NotMeasured(f"of {count} keys {result.objects} were done: {dict(result.outcomes)}")
    return Planned(count, first, last, memory[min(tenth, len(memory) - 1)], memory[-1], most)


def _make(home: Path, broker: str, count: int) -> None:
    context = Context.open(Settings(home=home, broker=broker))
    _fill(context.catalogue, count)
    context.close()


def _fill(catalogue: Catalogue, count: int) -> None:
    now = clock.now()
    row = {
        "bucket": BUCKET, "version": 1, "size": _SIZE, "sha256": "0" * 64, "metadata": {}, "created_at": now,
        "committed_at": now,
    }  # fmt: skip
    for start in range(0, count, _PAGE):
        rows = [row | {"key": f"a/{n:09d}.tgz"} for n in range(start, min(start + _PAGE, count))]
        with catalogue._database.write() as connection:
            connection.execute(sa.insert(artifacts), rows)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _main(arguments: Iterable[str]) -> None:
    home, broker, count = arguments
    print(json.dumps(asdict(plan(Path(home), broker, int(count)))))


if __name__ == "__main__":
    _main(sys.argv[1:])
