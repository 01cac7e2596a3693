"""Batches under a real worker: killed in the middle, and cancelled."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.faults.fleet import QUICK
from tests.servers import Valkey
from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from worker.catalogue import Catalogue, JobRecord
from zot_artifact_client import ArtifactClient, JobCancelled
from zot_artifact_client.contract import UploadRequest
from zot_artifact_client.outgoing_messages import MESSAGES

STEPS = {"batch__step": "200ms", "batch__in_flight": "16", "page__objects": "8"}
"""Pages of eight objects, so that a batch has several."""


class Place:
    """One data directory, its workers one after the other, and a client."""

    def __init__(self, valkey: Valkey, directory: Path) -> None:
        self.directory = directory
        valkey.empty()
        self.broker = valkey.url
        self.redis = redis.Redis.from_url(self.broker)
        self.client = ArtifactClient(self.broker)
        self.catalogue = Catalogue(f"sqlite:///{directory / 'catalogue.sqlite3'}")

    def worker(self, name: str) -> Worker:
        settings = {
            "stores": json.dumps({s: {"type": "filesystem", "root": str(self.root(s))} for s in ("primary", "dr")}),
            "sources__roots": json.dumps([str(self.directory / "in")]),
            "store_limits": json.dumps(
                {s: {"bytes_per_second": 16_000} for s in ("primary", "dr")}
            ),  # so it takes seconds
            "catalogue": f"sqlite:///{self.directory / 'catalogue.sqlite3'}",
        }
        return Worker(self.directory / name, self.broker, beat=True, **QUICK, **STEPS, **settings)

    def root(self, store: str) -> Path:
        path = self.directory / "stores" / store
        path.mkdir(parents=True, exist_ok=True)
        return path

    def fill(self, count: int) -> None:
        """Upload so many objects, all with one call."""
        source = self.directory / "in" / "source.bin"
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(b"the bytes of all of them" * 40)
        requests = [UploadRequest(source=str(source), bucket="releases", key=f"{n:03d}") for n in range(count)]
        for job in self.client.submit_many(requests, idempotency_key="fill"):
            job.wait(WITHIN)

    def verdicts(self) -> Counter[tuple[str, str]]:
        """Return how many verdicts there are on each copy, by key and store."""
        rows = [row for n in range(60) for row in self.catalogue.verifications.of("releases", f"{n:03d}")]
        return Counter((row["key"], row["store"]) for row in rows)

    def children(self, batch: Any) -> list[JobRecord]:
        return [job for job in self.catalogue.job_admin.find([], limit=1000) if job.parent == batch.id]


@contextmanager
def place_of(valkey: Valkey, directory: Path) -> Iterator[Place]:
    place = Place(valkey, directory)
    try:
        yield place
    finally:
        place.client.close()
        place.redis.close()
        place.catalogue.close()


def done(job: Any) -> int:
    progress = job.progress
    return (progress.objects_done or 0) if progress else 0


def test_a_batch_outlives_its_worker(valkey, tmp_path):
    """A worker is killed in the middle of a batch: the next one ends it, with one verdict on each copy.

    Nothing of it stays in Redis but its own result.
    """
    with place_of(valkey, tmp_path) as place:
        with place.worker("first") as first:
            place.fill(60)
            for n in (7, 30, 55):
                (place.root("dr") / "releases" / f"{n:03d}").write_bytes(b"THE bytes of all of them" * 40)
            (place.root("primary") / "releases" / "044").unlink()
            job = place.client.batch("verify", "releases")
            until(lambda: done(job) >= 16)
            first.kill()
        assert not {record.state for record in place.children(job)} <= {"succeeded"}
        with place.worker("second"):
            result = job.wait(WITHIN)
        assert (result.objects, result.failed) == (60, 4)
        assert result.outcomes == {"verified": 56, "corrupt": 3, "missing": 1}
        assert [failure.key for failure in result.failures] == ["007", "030", "044", "055"]
        children = place.children(job)
        assert place.verdicts() == Counter({(f"{n:03d}", store): 1 for n in range(60) for store in ("primary", "dr")})
        assert place.catalogue.verifications.first_broken() is None
        assert {child.state for child in children} == {"succeeded"}
        assert place.redis.hlen(MESSAGES) == 0
        assert list(place.redis.scan_iter(f"celery-task-meta-{job.id}*")) == [f"celery-task-meta-{job.id}".encode()]


def test_a_cancelled_batch_plans_no_more_and_ends_its_jobs(valkey, tmp_path):
    """Cancelling a batch ends it and all its jobs in flight; what was not planned yet is never begun."""
    with place_of(valkey, tmp_path) as place, place.worker("only"):
        place.fill(80)
        job = place.client.batch("verify", "releases", in_flight=2)
        until(lambda: done(job) >= 8)
        job.cancel()
        with pytest.raises(JobCancelled):
            job.wait(WITHIN)
        until(lambda: place.catalogue.batches.ended_open() == [])
        until(lambda: {child.state for child in place.children(job)} <= {"succeeded", "cancelled"})
        planned = len(place.children(job))
        assert 1 <= planned < 10
        assert place.client.verify("releases", "000").wait(WITHIN).good
        assert len(place.children(job)) == planned
