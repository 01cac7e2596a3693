"""The order of the queues, with a real worker of one process."""

import json
import os
import signal
from collections.abc import Iterator

import pytest
from celery import Celery
from redis import Redis

from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from worker.limits.concurrency import DistributedSemaphore
from worker.limits.shared_redis import SharedRedis
from zot_artifact_client import ArtifactClient, JobFailed
from zot_artifact_client.contract import VERIFY, Queue, VerifyRequest

SWEEPS, USERS = 100, 20


@pytest.fixture(scope="module")
def broker(valkey) -> str:
    return valkey.url


@pytest.fixture(scope="module")
def waiting(broker) -> dict[str, list[str]]:
    """Lay jobs into the queues before any worker runs: first the sweep's, then the users'."""
    ids: dict[str, list[str]] = {}
    with Celery(broker=broker, backend=broker, set_as_current=False) as app:
        for queue, count in ((Queue.SWEEP, SWEEPS), (Queue.INTERACTIVE, USERS)):
            wish = [VerifyRequest(bucket="releases", key=f"{queue}-{n}") for n in range(count)]
            ids[queue] = [
                app.send_task(VERIFY.name, kwargs=one.payload(), queue=queue.value, task_id=one.key).id for one in wish
            ]
    return ids


@pytest.fixture(scope="module")
def worker(broker, waiting, tmp_path_factory) -> Iterator[Worker]:
    incoming = tmp_path_factory.mktemp("incoming")
    (incoming / "app").write_bytes(b"release")
    settings = {
        "sources__roots": json.dumps([str(incoming)]),
        "store_limits": json.dumps({"dr": {"concurrency": 1}}),
        "jobs__max_snooze": "3s",
        "sweep__probe__enabled": "false",
    }
    with Worker(tmp_path_factory.mktemp("worker"), broker, concurrency=1, **settings) as running:
        running.incoming = incoming  # type: ignore[attr-defined]
        yield running


def test_no_user_waits_for_a_sweep(catalogue, waiting):
    """However many jobs of a sweep were there first, those of users begin before them."""

    def begun() -> list[str]:
        found = [record for ids in waiting.values() for id_ in ids if (record := catalogue.ledger.get(id_))]
        assert all(record.attempts == 1 for record in found)
        return [record.id for record in sorted(found, key=lambda record: record.started_at)]

    until(lambda: len(begun()) == SWEEPS + USERS)
    order = [id_ in waiting[Queue.INTERACTIVE] for id_ in begun()]
    assert order.index(False) >= USERS - 2  # two may have been taken while the worker was still asking for its queues


def test_a_job_that_waits_for_a_busy_store_spends_no_attempt(worker, broker, catalogue):
    """A store without a free slot: the job waits outside the worker and its one attempt is the one that succeeds."""
    slots = DistributedSemaphore(SharedRedis(lambda: Redis.from_url(broker)), seconds=30)
    with ArtifactClient(broker) as client:
        with slots.acquire("dr", "another job", limit=1, local_limit=1):
            job = client.upload(worker.incoming / "app", "releases", "waits")
            record = until(lambda: (found := catalogue.ledger.get(job.id)) and found.snoozed_since and found)
            assert (record.state, record.attempts) == ("queued", 0)
            assert (record.error["type"], record.error["store"]) == ("Snooze", "dr")
        assert [copy.outcome for copy in job.wait(WITHIN).copies] == ["already_there", "stored"]
    assert catalogue.ledger.get(job.id).attempts == 1


def test_a_job_does_not_wait_for_ever(worker, broker, catalogue):
    """A job that has waited in a row for as long as it may is dead, and says for what it waited."""
    slots = DistributedSemaphore(SharedRedis(lambda: Redis.from_url(broker)), seconds=30)
    with ArtifactClient(broker) as client, slots.acquire("dr", "another job", limit=1, local_limit=1):
        job = client.upload(worker.incoming / "app", "releases", "dead", stores=["dr"])
        with pytest.raises(JobFailed, match="dr: 1 job in progress") as failed:
            job.wait(WITHIN)
    assert failed.value.state == "dead"


def test_what_waits_for_a_busy_child_goes_back_to_the_front_of_its_queue(worker, broker):
    """A message is taken ahead of the child, and returned while a long job runs or its worker ends."""
    (child,) = worker.children()
    with ArtifactClient(broker) as client, Redis.from_url(broker) as redis:

        def send(*keys: str) -> list[str]:
            return [client.upload(worker.incoming / "app", "releases", key, stores=["primary"]).id for key in keys]

        def returned() -> str | None:
            headers = json.loads(redis.lindex("transfer", -1) or b"{}").get("headers", {})
            return headers["id"] if headers.get("redelivered") else None

        def is_idle() -> bool:
            return not any((redis.llen("sweep"), redis.llen("interactive"), redis.hlen("unacked")))

        until(is_idle)
        os.kill(child, signal.SIGSTOP)
        ids = send("one", "two", "three")
        assert until(returned) == ids[1]
        os.kill(child, signal.SIGCONT)
        for id_ in ids:
            client.job(id_).wait(WITHIN)

        until(is_idle)
        os.kill(child, signal.SIGSTOP)
        ids = send("four", "five")
        until(lambda: all(id_ in str(redis.hvals("unacked")) for id_ in ids) or returned() == ids[1])
        os.kill(worker.pid, signal.SIGTERM)
        assert until(returned) in ids
