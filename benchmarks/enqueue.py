"""Jobs sent in a second by our client, one by one and many at once, against `send_task` of a bare Celery app."""

from collections.abc import Callable, Iterator
from itertools import count

import redis

from benchmarks.harness import bare_celery
from benchmarks.harness.processor_time import Run, as_samples, own_seconds, timed
from benchmarks.harness.result_rows import Row, Target
from benchmarks.harness.testbed import Testbed
from zot_artifact_client.contract import UPLOAD, UploadRequest

ONE_BY_ONE, MANY = "one by one", "many at once (submit_many)"
TARGETS = {ONE_BY_ONE: Target(0.8, at_least=True), MANY: Target(5, at_least=True)}
_BARE = "send_task"


def measure(testbed: Testbed) -> Iterator[Row]:
    """Send jobs in turn without a worker, and delete them after each turn.

    The bare application sends no arguments, and has no result backend: with one, it would subscribe to each result.
    """
    rounds, jobs = (4, 200) if testbed.quick else (20, 1000)
    broker = f"redis://127.0.0.1:{testbed.valkey.port}/1"
    numbers = count()

    def request() -> UploadRequest:
        return UploadRequest(source="/srv/incoming/build.tgz", bucket="enqueue", key=f"{next(numbers)}/build.tgz")

    with testbed.client() as client, bare_celery.make_app(broker, results=False) as app:
        kinds: dict[str, Callable[[], object]] = {
            _BARE: lambda: [app.send_task(bare_celery.NOOP) for _ in range(jobs)],
            ONE_BY_ONE: lambda: [client.submit(UPLOAD, request()) for _ in range(jobs)],
            MANY: lambda: client.submit_many(request() for _ in range(jobs)),
        }
        runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
        for _ in range(1 + rounds):  # the first one connects, and does not count
            for kind, run in kinds.items():
                runs[kind].append(timed(jobs, own_seconds, run))
                _throw_away(testbed)
    samples = {kind: as_samples(of_kind[1:], " jobs/s") for kind, of_kind in runs.items()}
    for kind, target in TARGETS.items():
        yield Row(f"uploads sent {kind}, against send_task of bare Celery", samples[kind], samples[_BARE], target)


def _throw_away(testbed: Testbed) -> None:
    with redis.Redis.from_url(testbed.valkey.url) as client:
        client.flushall()
