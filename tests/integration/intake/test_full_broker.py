"""A real worker with a real Valkey that has no memory left, or no disk."""

import json
import resource
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from tests.hostile_messages import envelope
from tests.servers import Valkey
from tests.servers.worker import Worker
from tests.waiting import until
from worker.catalogue import Catalogue
from worker.cli.send_and_wait import way_out_of_broker
from worker.report.service_checks import broker_checks
from worker.settings import load_settings
from zot_artifact_client import ArtifactClient
from zot_artifact_client.errors import BrokerUnavailable

FIELDS = {"bucket": "releases", "key": "absent.tgz"}
JOBS = 8


class SmallDisk(Valkey):
    """A Valkey whose disk can be made full: the kernel refuses to let its append-only file grow."""

    def command(self) -> Sequence[str]:
        ignore = (
            "import os, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
        )
        return (sys.executable, "-c", ignore, *super().command())

    def fill(self) -> None:
        """Let no file grow from now on."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def make_room(self) -> None:
        """Let files grow again."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path / "valkey") as server:
        yield server


def assert_all_ended(catalogue: Catalogue, jobs: Sequence[str]) -> None:
    """Expect that each job ends: as failed, for its artifact is not in the catalogue."""
    for job in jobs:
        assert until(lambda job=job: (found := catalogue.ledger.get(job)) and found.state == "failed")


def test_a_full_broker_loses_no_job_and_ends_no_worker(server: Valkey, tmp_path: Path) -> None:
    """A worker goes on at a broker that refuses writes; when there is room, all accepted jobs are done."""
    quiet = {"sweep__probe__enabled": "false"}  # or its message is the first that is recorded
    with redis.Redis.from_url(server.url) as broker, Worker(tmp_path / "worker", server.url, **quiet) as worker:
        catalogue = Catalogue(f"sqlite:///{worker.home / 'catalogue.sqlite3'}")
        pid = worker.pid
        jobs = [str(uuid4()) for _ in range(JOBS)]
        _fill_with(broker, jobs)
        until(lambda: "errorstat_OOM" in broker.info("errorstats"))  # a write of the worker was refused
        broker.config_set("maxmemory", "0")
        assert_all_ended(catalogue, jobs)
        until(lambda: broker.exists(*(f"celery-task-meta-{job}" for job in jobs)) == JOBS)
        assert worker.pid == pid
        catalogue.close()


def test_what_a_worker_took_from_a_full_broker_outlives_the_worker(server: Valkey, tmp_path: Path) -> None:
    """Messages of other programs, some with an eta, that a killed worker held come back within seconds."""
    settings = {"sweep__recover__every": "1s", "sweep__recover__after": "3s", "sweep__recover__again": "4s"}
    settings |= {"jobs__lease": "3s", "sweep__probe__enabled": "false"}
    with redis.Redis.from_url(server.url) as broker:
        jobs = [str(uuid4()) for _ in range(JOBS)]
        with Worker(tmp_path / "worker", server.url, **settings) as worker:
            _fill_with(broker, jobs, eta=5)
            until(lambda: broker.hlen("unacked") == JOBS // 2)  # it takes no more, so none is between pop and record
            worker.kill()
        broker.config_set("maxmemory", "0")
        with Worker(tmp_path / "worker", server.url, beat=True, **settings) as worker:
            catalogue = Catalogue(f"sqlite:///{worker.home / 'catalogue.sqlite3'}")
            assert_all_ended(catalogue, jobs)
            catalogue.close()


def _fill_with(broker: redis.Redis, jobs: list[str], eta: float | None = None) -> None:
    """Send jobs as another program does, without an outbox entry, and leave the broker no memory."""
    messages = [envelope(job, FIELDS) for job in jobs]
    for message in messages[::2]:
        message["headers"]["eta"] = eta and (datetime.now(UTC) + timedelta(seconds=eta)).isoformat()
    with broker.pipeline(transaction=True) as pipeline:  # at once, so that no worker takes one before it is full
        pipeline.lpush("interactive", *map(json.dumps, messages))
        pipeline.config_set("maxmemory", "1")
        pipeline.execute()


def test_a_worker_starts_at_a_full_broker_and_waits_for_room(server: Valkey, tmp_path: Path) -> None:
    """A worker that is started while the broker refuses writes does not end, and answers when there is room."""
    worker = Worker(tmp_path / "worker", server.url)
    with redis.Redis.from_url(server.url) as broker, ThreadPoolExecutor(1) as pool:
        broker.config_set("maxmemory", "1")

        def make_room() -> None:
            until(lambda: worker._log_path.exists() and "this worker waits: " in worker.log)
            broker.config_set("maxmemory", "0")

        room = pool.submit(make_room)
        with worker:  # returns when it answers
            room.result()
            assert worker.running


def test_a_full_disk_of_the_broker_loses_no_job_and_ends_no_worker(tmp_path: Path) -> None:
    """A worker outlives a broker that cannot write its append-only file, and does all accepted jobs afterwards."""
    settings = {"sweep__recover__every": "1s", "sweep__recover__after": "3s", "sweep__recover__again": "4s"}
    with (
        SmallDisk(tmp_path / "valkey") as server,
        Worker(tmp_path / "worker", server.url, beat=True, **settings) as worker,
    ):
        catalogue = Catalogue(f"sqlite:///{worker.home / 'catalogue.sqlite3'}")
        pid = worker.pid
        jobs = [str(uuid4()) for _ in range(10 * JOBS)]
        with redis.Redis.from_url(server.url) as broker:
            broker.lpush("interactive", *(json.dumps(envelope(job, FIELDS)) for job in jobs))
            server.fill()
            until(lambda: "MISCONF" in _refusal(broker))
            until(lambda: "MISCONF" in worker.log)
            server.make_room()
            until(lambda: not _refusal(broker))
        assert_all_ended(catalogue, jobs)
        assert worker.pid == pid
        assert worker.running
        catalogue.close()


def test_a_broker_that_takes_no_writes_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service and `doctor` read that the broker takes no writes, and to make room, not to start it again.

    A Redis without memory, or that became a replica, answers a PING all the same.
    """
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    with SmallDisk(tmp_path / "valkey") as server, redis.Redis.from_url(server.url) as broker:
        monkeypatch.setenv("ZOT_BROKER", server.url)
        server.fill()
        until(lambda: "MISCONF" in _refusal(broker))
        with (
            ArtifactClient(server.url, server.url) as client,
            pytest.raises(BrokerUnavailable, match="takes no writes now: MISCONF") as refused,
        ):
            client.verify("releases", "absent.tgz")
        assert way_out_of_broker(load_settings(), refused.value).startswith("make room")
        assert "takes no writes now: MISCONF" in _told_of_broker()
        server.make_room()
        until(lambda: not _refusal(broker))
        broker.config_set("maxmemory", "1")
        assert "takes no writes now: command not allowed when used memory > 'maxmemory'" in _told_of_broker()
        assert "; make room on its disk or in its memory" in _told_of_broker()
        broker.config_set("maxmemory", "0")
        broker.replicaof("127.0.0.1", 1)
        assert ": it is a replica, which takes no writes: try again after the failover" in _told_of_broker()
        broker.replicaof("NO", "ONE")


def _told_of_broker() -> str:
    """Return what `doctor` tells of a broker that it does not call good, with the way out."""
    [check] = [each for each in broker_checks(load_settings()) if each.name == "broker"]
    assert check.outcome == "unknown", check
    return f"{check.detail}; {check.way_out}"


def test_a_message_that_no_broker_could_record_outlives_its_worker(tmp_path: Path) -> None:
    """The disk of the broker is full when a worker has just taken a message of another program, and it is killed."""
    with SmallDisk(tmp_path / "valkey") as server, redis.Redis.from_url(server.url) as broker:
        with Worker(tmp_path / "worker", server.url) as worker:
            jobs = _send_until_one_waits(server, broker, worker)
            worker.kill()
            server.make_room()
            until(lambda: not _refusal(broker))
        with Worker(tmp_path / "worker", server.url) as worker:
            catalogue = Catalogue(f"sqlite:///{worker.home / 'catalogue.sqlite3'}")
            assert_all_ended(catalogue, jobs[-1:])
            catalogue.close()
            assert len(list((worker.home / "run").glob("unrecorded-message-*"))) == 1


def _send_until_one_waits(server: SmallDisk, broker: redis.Redis, worker: Worker) -> list[str]:
    """Fill the disk and send a job, until that is the write after which the broker refuses the worker's record."""
    jobs: list[str] = []
    while "a delivered message waits: " not in worker.log:
        server.make_room()
        until(lambda: not _refusal(broker))
        jobs.append(str(uuid4()))
        before = worker.log
        server.fill()
        try:
            broker.lpush("interactive", json.dumps(envelope(jobs[-1], FIELDS)))
        except redis.ResponseError:
            jobs.pop()
        else:
            until(lambda: "MISCONF" in _refusal(broker))
            if not broker.exists("interactive"):  # or the worker was busy, and was refused the message as well
                until(lambda before=before: worker.log != before)
    return jobs


def _refusal(broker: redis.Redis) -> str:
    try:
        broker.set("room", 1)
    except redis.ResponseError as error:
        return str(error) if "MISCONF" in str(error) else f"OOM {error}"
    return ""
