"""Jobs that wait for a store whose circuit breaker is open, with a real worker."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from worker.intake.delayed import DELAYED
from zot_artifact_client import ArtifactClient
from zot_artifact_client.contract import SWEEP_PROBE, SWEEP_RECOVER, JobState, TaskSpec


@pytest.fixture(scope="module")
def worker(valkey, tmp_path_factory) -> Iterator[Worker]:
    valkey.empty()
    incoming = tmp_path_factory.mktemp("incoming")
    (incoming / "small").write_bytes(b"release")
    (incoming / "large").write_bytes(b"release" * 100)
    settings = {
        "sources__roots": json.dumps([str(incoming)]),
        "page__large": "100B",
        "breaker__failures": "1",
        "breaker__open": "12h",  # longer than any test waits
        "breaker__open_max": "12h",
        "retry__backoff": "6h",
        "retry__backoff_max": "6h",
        "retry__jitter": "false",
    }
    with Worker(tmp_path_factory.mktemp("worker"), valkey.url, **settings) as running:
        running.incoming = incoming  # type: ignore[attr-defined]
        yield running


def test_jobs_that_wait_for_a_store_start_when_its_breaker_has_closed(worker, valkey, catalogue):
    """Single jobs, a page and a job of a batch start once, by their own messages; a retry waits for its own time."""
    root = worker.home / "stores" / "dr"
    with Redis.from_url(valkey.url) as broker, ArtifactClient(valkey.url) as client:

        def upload(key: str, name: str = "small", **options: Any) -> Any:
            return client.upload(worker.incoming / name, "releases", key, **options)

        def sweep(spec: TaskSpec[Any, Any]) -> None:
            with Celery(broker=valkey.url, backend=valkey.url, set_as_current=False) as app:
                app.send_task(spec.name, queue=spec.queue.value, ignore_result=True)

        def delayed() -> dict[str, int]:
            return {queue: broker.zcard(DELAYED.format(queue=queue)) for queue in ("transfer", "sweep")}

        upload("batch/small", stores=["primary"]).wait(WITHIN)
        upload("batch/large", "large", stores=["primary"]).wait(WITHIN)
        root.rename(root.with_name("away"))
        failed = upload("failed")
        until(lambda: delayed() == {"transfer": 1, "sweep": 0})
        jobs = [upload(f"{n}") for n in range(3)]
        batch = client.batch("replicate", "releases", "batch/", to=["dr"])
        until(lambda: delayed() == {"transfer": 4, "sweep": 2})
        assert len(catalogue.ledger.snoozed_for("dr")) == catalogue.coverage.waiting_jobs()["dr"].count - 1 == 5
        root.with_name("away").rename(root)
        sweep(SWEEP_PROBE)
        until(lambda: "store dr: the circuit breaker closes" in worker.log)
        sweep(SWEEP_RECOVER)
        for job in jobs:
            assert {copy.store for copy in job.wait(WITHIN).copies} == {"primary", "dr"}
        assert batch.wait(WITHIN).outcomes == {"stored": 2}
        assert "store dr takes jobs again: 5 jobs that waited for it are due" in worker.log
        assert delayed() == {"transfer": 1, "sweep": 0}
        assert catalogue.ledger.get(failed.id).state == JobState.RETRYING
        assert catalogue.coverage.waiting_jobs()["dr"].count == 1
    assert "has ended before" not in worker.log  # which a second message of a job would find
