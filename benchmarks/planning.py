"""What it takes to plan a batch over very many keys: time for each step at the end as at the start, Redis, memory.

Only the planning is measured: the jobs of the batch are ended by a statement, and their messages are taken away,
between two steps.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from statistics import quantiles
from typing import Any

import redis
import sqlalchemy as sa
from celery import Celery

from benchmarks.measured import NotMeasured, Row, Samples, Target
from benchmarks.scene import GIB, MIB, Scene
from tasks.batch import step
from worker import clock
from worker.catalogue import Begun, Catalogue
from worker.catalogue.tables import artifacts, batches, jobs
from worker.context import Context
from worker.jobs.outbox import Outbox
from worker.jobs.running import NextStep, RunningJob
from worker.settings import Settings
from zot_artifact_client.contract import BatchRequest, BatchResult, JobState, Progress, Queue
from zot_artifact_client.outbox import MESSAGES, ORDER
from zot_artifact_client.routing import queues

BUCKET = "planned"
MANY, FEW = 1_000_000, 20_000
_PAGE = 10_000
_BATCH = "batch"
_GROWTH = Target(16, unit=" MiB")
_REDIS = Target(64, unit=" MiB")
_COST = Target(1.2)


@dataclass(frozen=True, slots=True)
class Planned:
    """What was measured, in seconds and bytes; memory is what is resident."""

    objects: int
    first: float
    last: float
    memory_before: int
    memory_after: int
    redis: int


class _Nobody:
    """The outside of a job that nobody watches."""

    def report(self, progress: Progress) -> None:
        """Show it to nobody."""

    def cancelled(self) -> bool:
        return False


def measure(scene: Scene) -> Iterator[Row]:
    """Plan in a process of its own, whose memory is nobody else's."""
    count = FEW if scene.quick else MANY
    scene.need(3 * GIB if count == MANY else GIB)
    command = [sys.executable, "-m", "benchmarks.planning", scene.directory / "planning", scene.valkey.url, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotMeasured(f"planning ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    planned = Planned(**json.loads(done.stdout.splitlines()[-1]))
    what = f"a batch over {planned.objects:,} keys"
    last, first = Samples([planned.last * 1000], " ms", 1), Samples([planned.first * 1000], " ms", 1)
    yield Row(f"{what}: a step in the last tenth, to one in the first", last, first, _COST)
    growth = (planned.memory_after - planned.memory_before) / MIB
    yield Row(f"{what}: memory gained from the first tenth to the end", Samples([growth], " MiB", 1), target=_GROWTH)
    yield Row(f"{what}: Redis, the most at any step", Samples([planned.redis / MIB], " MiB", 1), target=_REDIS)


def plan(home: Path, broker: str, count: int) -> Planned:
    """Make a catalogue of so many artifacts, step a batch over all of them, and return what that took."""
    context = Context.open(Settings(home=home, broker=broker))
    _fill(context.catalogue, count)
    client = redis.Redis.from_url(broker)
    memory, most, times = [_resident()], 0, []
    with Celery(broker=broker, set_as_current=False) as app:
        app.conf.task_queues = queues()
        while True:
            began = time.perf_counter()
            result = _step(context, Outbox(app))
            times.append(time.perf_counter() - began)
            memory.append(_resident())
            most = max(most, int(client.info("memory")["used_memory"]))
            if result is not None:
                break
            _end_children(context, client)
    tenth = max(len(times) // 10, 1)
    if result.objects != count or not result.good:
        raise NotMeasured(f"of {count} keys {result.objects} were done: {dict(result.outcomes)}")
    first, last = times[1 : 1 + tenth], times[-1 - tenth : -1]  # the very first counts all, the last plans nothing
    context.close()
    return Planned(count, _usual(first), _usual(last), memory[min(tenth, len(memory) - 1)], memory[-1], most)


def _step(context: Context, messages: Outbox) -> BatchResult | None:
    """Do what one delivery of the batch's message does."""
    ledger, request = context.catalogue.jobs, BatchRequest(verb="verify", bucket=BUCKET)
    begun = ledger.begin(
        _BATCH, "batch", request.payload(), owner="benchmark", holds=None, parent=None, now=clock.now(),
        lease=timedelta(minutes=5),
    )  # fmt: skip
    assert isinstance(begun, Begun)
    job = RunningJob(begun.record, ledger, context.settings.jobs, _Nobody())
    try:
        return step(request, context, job, messages)
    except NextStep:
        ledger.rest(job.id, job.fence, progress=job.progress.model_dump(mode="json"), due=clock.now())
        return None


def _end_children(context: Context, client: "redis.Redis[bytes]") -> None:
    """Do what many workers do between two steps, but for the work; and let the time of the next step come."""
    client.delete(Queue.SWEEP.value, MESSAGES, ORDER.format(queue=Queue.SWEEP.value))
    ids = [child.job for child in context.catalogue.batches.in_flight(_BATCH)]
    ended: dict[str, Any] = {
        "state": JobState.SUCCEEDED, "started_at": clock.now(), "finished_at": clock.now(), "attempts": 1,
        "result": {"copies": [{"store": "primary", "verdict": "verified"}]},
    }  # fmt: skip
    with context.catalogue._database.write() as connection:
        connection.execute(sa.update(jobs).where(jobs.c.id.in_(ids)).values(**ended))
        connection.execute(sa.update(batches).values(next_step_at=clock.now()))


def _fill(catalogue: Catalogue, count: int) -> None:
    now = clock.now()
    row = {
        "bucket": BUCKET, "version": 1, "size": 1024, "sha256": "0" * 64, "metadata": {}, "created_at": now,
        "committed_at": now,
    }  # fmt: skip
    for start in range(0, count, _PAGE):
        rows = [row | {"key": f"a/{n:09d}.tgz"} for n in range(start, min(start + _PAGE, count))]
        with catalogue._database.write() as connection:
            connection.execute(sa.insert(artifacts), rows)


def _usual(times: list[float]) -> float:
    """Return the lower quartile: what else the machine does in these minutes is no cost of a step."""
    return quantiles(times, n=4)[0] if len(times) > 1 else times[0]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _main(arguments: Iterable[str]) -> None:
    home, broker, count = arguments
    print(json.dumps(asdict(plan(Path(home), broker, int(count)))))


if __name__ == "__main__":
    _main(sys.argv[1:])
