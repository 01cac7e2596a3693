"""A real worker, with jobs that are redriven and pauses."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from worker import cli
from zot_artifact_client import ArtifactClient, JobCancelled, JobFailed
from zot_artifact_client.outgoing_messages import MESSAGES

Cli = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def broker(valkey) -> str:
    return valkey.url


@pytest.fixture(scope="module")
def environment(broker, tmp_path_factory) -> dict[str, str]:
    """Return the settings that the worker and the command line share."""
    directory = tmp_path_factory.mktemp("operations")
    (directory / "incoming").mkdir()
    return {
        "ZOT_HOME": str(directory / "home"),
        "ZOT_BROKER": broker,
        "ZOT_SOURCES__ROOTS": json.dumps([str(directory / "incoming")]),
        "ZOT_RETRY__MAX_ATTEMPTS": "2",
        "ZOT_RETRY__BACKOFF": "1s",
        "ZOT_JOBS__MAX_PUT_OFF": "1s",
        "ZOT_BREAKER__ENABLED": "false",
        "ZOT_SWEEP__VERIFY__ENABLED": "false",
        "ZOT_SWEEP__RECOVER__EVERY": "1s",
    }


@pytest.fixture(autouse=True)
def _same_settings(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def zot(capsys) -> Cli:
    """Run a command of the command line and return its document."""

    def run(*arguments: str, status: int = 0) -> dict[str, Any]:
        assert cli.run([*arguments, "--json"]) == status
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    return run


@pytest.fixture(scope="module")
def worker(environment, broker) -> Iterator[Worker]:
    settings = {name.removeprefix("ZOT_").lower(): value for name, value in environment.items()}
    for name in ("home", "broker"):
        del settings[name]
    with Worker(Path(environment["ZOT_HOME"]).parent, broker, beat=True, **settings) as running:
        yield running


@pytest.fixture
def client(broker) -> Iterator[ArtifactClient]:
    with ArtifactClient(broker) as opened:
        yield opened


@pytest.fixture
def source(environment, request) -> str:
    path = Path(json.loads(environment["ZOT_SOURCES__ROOTS"])[0]) / request.node.name
    path.write_bytes(b"release one")
    return str(path)


def test_a_worker_that_starts_leaves_a_paused_queue_alone_and_serves_it_again(worker, broker, client, zot, source):
    """The queue keeps its messages while others are served; resuming takes seconds, and pausing anew does too."""
    zot("pause", "queue", "transfer", "--reason", "the link is repaired")
    worker.restart()
    job = client.upload(source, "releases", "queue.tgz")
    with pytest.raises(JobFailed, match="not in the catalogue"):
        client.verify("releases", "absent.tgz").wait(WITHIN)
    with redis.Redis.from_url(broker) as looking:
        assert looking.llen("transfer") == 1
        assert [each["reason"] for each in zot("pauses")["pauses"]] == ["the link is repaired"]
        assert zot("resume", "queue", "transfer")["was_paused"]
        assert job.wait(WITHIN).version == 1

        said = worker.log.count("queue transfer is paused")
        looking.delete("zot-artifacts:paused-queues")  # and a broker that forgot is told again
        zot("pause", "queue", "transfer")
        looking.delete("zot-artifacts:paused-queues")
        until(lambda: worker.log.count("queue transfer is paused") > said)
        waits = client.upload(source, "releases", "again.tgz")
        assert looking.hexists(MESSAGES, waits.id)
        zot("resume", "queue", "transfer")
        assert waits.wait(WITHIN).version == 1


def test_dead_jobs_are_redriven_by_one_command(worker, client, catalogue, zot, source, tmp_path):
    """A client that waits for a redriven job gets its new outcome; a job that ended for another cause stays.

    A source that was staged for one of them is still there, and is removed when it succeeds.
    """
    (tmp_path / "outside.tgz").write_bytes(b"release two")
    away = worker.home / "stores" / "dr"
    away.rename(away.with_name("unplugged"))
    try:
        job = client.upload(source, "releases", "dead.tgz")
        with pytest.raises(JobFailed, match="dr"):
            job.wait(WITHIN)
        staged = zot("upload", str(tmp_path / "outside.tgz"), "releases/staged.tgz", status=1)["job"]
    finally:
        away.with_name("unplugged").rename(away)
    with pytest.raises(JobFailed, match="not in the catalogue"):
        (other := client.verify("releases", "absent.tgz")).wait(WITHIN)

    assert [each["job"] for each in zot("jobs", "--dead")["jobs"]] == [staged, job.id]
    assert "Traceback" in zot("jobs", job.id)["error"]["traceback"]
    assert zot("jobs", "retry", "--all", "--store", "primary", "--error", "Unavailable", status=1)["retried"] == []
    chosen = ("jobs", "retry", "--all", "--store", "dr", "--error", "Unavailable")
    assert zot(*chosen, "--dry-run")["retried"] == [staged, job.id]
    assert catalogue.ledger.get(job.id).state == "dead"
    assert zot(*chosen)["retried"] == [staged, job.id]
    assert [copy.outcome for copy in job.wait(WITHIN).copies] == ["already_there", "stored"]
    assert client.job(staged).wait(WITHIN).version == 1
    assert list((worker.home / "staging").iterdir()) == []
    assert (catalogue.ledger.get(job.id).attempts, catalogue.ledger.get(other.id).state) == (1, "failed")


def test_a_paused_store_costs_its_jobs_nothing_however_long_it_takes(worker, client, catalogue, zot, source):
    """A job waits longer for a pause than for anything else, is served elsewhere, and ends when it is over."""
    zot("pause", "store", "dr", "--reason", "its disks are moved")
    job = client.upload(source, "releases", "pause.tgz")
    until(lambda: (record := catalogue.ledger.get(job.id)) and record.fence >= 3)
    until(lambda: catalogue.ledger.get(job.id).state == "queued")
    record = catalogue.ledger.get(job.id)
    assert (record.attempts, record.error["type"]) == (0, "Paused")
    assert "its disks are moved" in record.error["message"]
    assert {row["store"]: bool(row["paused"]) for row in zot("stores")["stores"]} == {"primary": False, "dr": True}
    zot("resume", "store", "dr")
    assert [copy.outcome for copy in job.wait(WITHIN).copies] == ["already_there", "stored"]


def test_a_paused_job_waits(worker, client, catalogue, zot, source):
    """A single job is paused while it waits, is not begun, and goes on when it may."""
    zot("pause", "store", "dr")
    job = client.upload(source, "releases", "job.tgz", stores=["dr"])
    until(lambda: (record := catalogue.ledger.get(job.id)) and record.error)
    zot("pause", "job", job.id)
    zot("resume", "store", "dr")
    until(lambda: "is paused" in worker.log and catalogue.ledger.get(job.id).error["message"].startswith("job "))
    zot("resume", "job", job.id)
    assert job.wait(WITHIN).version == 1
    assert zot("pause", "job", job.id, status=1)["error"]["type"] == "JobEnded"


def test_a_cancelled_job_can_be_redriven(worker, client, catalogue, zot, source):
    """A job that waits for a pause is cancelled by a command at once; a redrive clears the cancellation."""
    zot("pause", "store", "dr")
    job = client.upload(source, "releases", "cancelled.tgz", stores=["dr"])
    until(lambda: (record := catalogue.ledger.get(job.id)) and record.error)
    assert zot("jobs", "cancel", job.id)["asked"] == [job.id]
    with pytest.raises(JobCancelled):
        job.wait(WITHIN)
    until(lambda: catalogue.ledger.get(job.id).state == "cancelled")
    zot("resume", "store", "dr")
    assert zot("jobs", "retry", job.id)["retried"] == [job.id]
    assert job.wait(WITHIN).version == 1
