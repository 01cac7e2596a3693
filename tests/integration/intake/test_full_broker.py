"""A real worker with a real Valkey that has no memory left."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from tests.hostile import envelope
from tests.servers import Valkey
from tests.servers.worker import Worker
from tests.waiting import until
from worker.catalogue import Catalogue

FIELDS = {"bucket": "releases", "key": "absent.tgz"}
JOBS = 8


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path / "valkey") as server:
        yield server


def test_a_full_broker_loses_no_job_and_ends_no_worker(server: Valkey, tmp_path: Path) -> None:
    """A worker starts and goes on at a broker that refuses writes; when there is room, all accepted jobs are done."""
    with redis.Redis.from_url(server.url) as broker, Worker(tmp_path / "worker", server.url) as worker:
        catalogue = Catalogue(f"sqlite:///{worker.home / 'catalogue.sqlite3'}")
        pid = worker.pid
        jobs = [str(uuid4()) for _ in range(JOBS)]
        broker.config_set("maxmemory", "1")
        until(lambda: "OOM" in _refusal(broker))
        broker.config_set("maxmemory", "0")
        broker.lpush("interactive", *(json.dumps(envelope(job, FIELDS)) for job in jobs))
        broker.config_set("maxmemory", "1")
        until(lambda: "waits for room" in worker.log, within=60)
        broker.config_set("maxmemory", "0")
        for job in jobs:
            until(lambda job=job: (found := catalogue.ledger.get(job)) and found.state == "failed", within=120)
        assert worker.pid == pid
        catalogue.close()


def test_a_worker_starts_at_a_full_broker_and_waits_for_room(server: Valkey, tmp_path: Path) -> None:
    """A worker that is started while the broker refuses writes does not end, and answers when there is room."""
    worker = Worker(tmp_path / "worker", server.url)
    with redis.Redis.from_url(server.url) as broker, ThreadPoolExecutor(1) as pool:
        broker.config_set("maxmemory", "1")

        def make_room() -> None:
            until(lambda: worker._log_path.exists() and "waits for room" in worker.log, within=60)
            broker.config_set("maxmemory", "0")

        room = pool.submit(make_room)
        with worker:  # returns when it answers
            room.result()


def _refusal(broker: redis.Redis) -> str:
    try:
        broker.set("room", 1)
    except redis.ResponseError as error:
        return str(error) if "OOM" in str(error) else f"OOM {error}"
    return ""
