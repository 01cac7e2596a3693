"""Jobs over a real RabbitMQ, if the machine has one, with a real Valkey for their results."""

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis
from kombu import Connection

from tests.servers import RabbitMQ, ServerMissing, Valkey
from tests.servers.process import REPOSITORY, frozen
from tests.servers.tls import Authority, TlsProxy
from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from worker import cli
from worker.catalogue import Catalogue, JobRecord
from worker.intake.rejected import RejectedMessages
from worker.report import service_checks
from worker.settings import Settings
from zot_artifact_client import ArtifactClient, BrokerUnavailable, IdempotencyMismatch, JobCancelled
from zot_artifact_client import publisher as publishing
from zot_artifact_client.contract import JobState
from zot_artifact_client.job import Job

UNACKNOWLEDGED = 2
"""Seconds after which this RabbitMQ gives up on a job that has not ended; half an hour by default."""
MB = 1_000_000


class Site:
    """A RabbitMQ that one worker is on, a store that takes 1 MB a second, and a client."""

    def __init__(self, rabbitmq: RabbitMQ, results: str, directory: Path) -> None:
        self.rabbitmq = rabbitmq
        self.results = results
        self.directory = directory
        (directory / "in").mkdir()
        self.client = ArtifactClient(rabbitmq.url, result_url=results)
        self.worker = self.another()
        self._catalogue = Catalogue(f"sqlite:///{self.worker.home / 'catalogue.sqlite3'}")

    def another(self) -> Worker:
        """Return the worker once more, running: on the same data, after the one before."""
        settings = {
            "results": self.results,
            "sources__roots": json.dumps([str(self.directory / "in")]),
            "store_limits": json.dumps({"dr": {"bytes_per_second": "1MB"}}),
            "jobs__lease": "2s",
            "sweep__verify__enabled": "false",
        }
        self.worker = Worker(self.directory / "worker", self.rabbitmq.url, concurrency=2, **settings).start()
        return self.worker

    def source(self, size: int) -> str:
        path = self.directory / "in" / uuid.uuid4().hex
        path.write_bytes(os.urandom(size))
        return str(path)

    def begun(self, key: str, size: int) -> Job:
        """Return a running upload that takes about a second for each MB after the first."""
        job = self.client.upload(self.source(size), "releases", key, stores=["dr"])
        until(lambda: (record := self.record(job)) is not None and record.state == JobState.RUNNING)
        return job

    def record(self, job: Job) -> JobRecord | None:
        """Return what the ledger has of a job. A result that says STARTED may be of one that it does not have yet."""
        return self._catalogue.ledger.get(job.id)

    def close(self) -> None:
        self._catalogue.close()
        self.client.close()
        self.worker.kill()


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory) -> Iterator[RabbitMQ]:
    """Return a running RabbitMQ, without patience for long jobs."""
    server = RabbitMQ(tmp_path_factory.mktemp("rabbitmq"), unacknowledged=UNACKNOWLEDGED)
    try:
        server.start()
    except ServerMissing as missing:
        pytest.skip(str(missing))  # in CI too: it is a package of Debian, which no lock of ours can install
    yield server
    server.stop()


@pytest.fixture(scope="module")
def site(rabbitmq, valkey: Valkey, tmp_path_factory) -> Iterator[Site]:
    with closing(Site(rabbitmq, valkey.url, tmp_path_factory.mktemp("site"))) as opened:
        yield opened


def test_every_verb_runs(site):
    """An artifact is uploaded, replicated, verified, shown and deleted, and each result comes back through Redis."""
    with closing(ArtifactClient(site.rabbitmq.url, result_url=site.results)) as client:
        assert client.upload(site.source(1000), "releases", "verbs", stores=["primary"]).wait(WITHIN).size == 1000
        assert client.replicate("releases", "verbs", to=["dr"]).wait(WITHIN).copies[0].outcome == "stored"
        assert client.verify("releases", "verbs").wait(WITHIN).good
        shown = client.show("releases", "verbs", timeout=WITHIN)
        assert {copy.store: copy.state for copy in shown.copies} == {"dr": "verified", "primary": "verified"}
        assert client.delete("releases", "verbs").wait(WITHIN).everywhere


def test_a_key_names_one_request_although_redis_has_forgotten_it(site):
    """Requests are compared in the Redis of the results, and by the worker where that has forgotten the first one."""
    source = site.source(1000)
    with closing(ArtifactClient(site.rabbitmq.url, result_url=site.results)) as client:

        def send(key: str) -> Job:
            return client.upload(source, "releases", key, stores=["primary"], idempotency_key="build-17")

        job = send("one")
        job.wait(WITHIN)
        with pytest.raises(IdempotencyMismatch):
            send("two")
        with redis.Redis.from_url(site.results) as results:
            results.delete(f"zot-artifacts:idempotency:{job.id}", f"celery-task-meta-{job.id}")
        with pytest.raises(IdempotencyMismatch, match=job.id):
            send("two").wait(WITHIN)
        with pytest.raises(IdempotencyMismatch):
            send("two")
        assert send("one").wait(WITHIN).key == "one"


def test_doctor_asks_it(site, capsys, monkeypatch, tmp_path):
    """It says which RabbitMQ answers, without one that none does, and what it refuses; so do clients and commands."""
    there = next(service_checks.broker_checks(Settings(broker=site.rabbitmq.url, results=site.results)))
    gone = next(service_checks.broker_checks(Settings(broker="amqp://127.0.0.1:1//", results=site.results)))
    assert (there.outcome, gone.outcome) == ("good", "unknown")
    assert re.search(r"RabbitMQ \d+\.\d+\.\d+ answers", there.detail)
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZOT_RESULTS", site.results)
    for url, told in (
        (site.rabbitmq.url.replace("guest:guest", "guest:changed"), "it refuses the user or password of its URL"),
        (site.rabbitmq.url.removesuffix("/") + "absent", "it does not allow this to the user of its URL: NOT_ALLOWED"),
    ):
        refused = next(service_checks.broker_checks(Settings(broker=url, results=site.results)))
        assert refused.outcome == "unknown"
        assert told in refused.detail
        with closing(ArtifactClient(url, result_url=site.results)) as client:
            with pytest.raises(BrokerUnavailable) as caught:
                client.verify("releases", "any")
            assert f"refuses this: {told}" in str(caught.value)
        monkeypatch.setenv("ZOT_BROKER", url)
        assert cli.run(["health", "worker", "--ready"]) == 3
        assert told in capsys.readouterr().out


def test_a_running_job_is_cancelled(site):
    """The wish goes through Redis, and takes effect at the next piece."""
    job = site.begun("cancelled", 4 * MB)
    job.cancel()
    with pytest.raises(JobCancelled):
        job.wait(WITHIN)
    assert site.record(job).state == JobState.CANCELLED


def test_a_malformed_message_is_rejected_and_the_one_behind_it_runs(site):
    """The filter keeps it from Celery, and records it in the result backend: RabbitMQ cannot keep a list."""
    with Connection(site.rabbitmq.url) as connection:
        producer = connection.Producer()
        producer.publish(
            b"{nothing", routing_key="transfer", content_type="application/json", content_encoding="utf-8",
            headers={"task": "artifact.upload.v1", "id": "malformed"},
        )  # fmt: skip
    site.client.upload(site.source(10), "releases", "behind", stores=["primary"]).wait(WITHIN)
    with redis.Redis.from_url(site.results) as client:
        assert [message.queue for message in RejectedMessages(client).latest()] == ["transfer"]


def test_a_job_that_rabbitmq_takes_back_is_done_once_and_the_worker_goes_on(site):
    """A job longer than RabbitMQ's consumer_timeout is delivered again while it runs: the second delivery waits."""
    job = site.begun("long", (UNACKNOWLEDGED + 2) * MB)
    assert job.wait(WITHIN).version == 1
    assert "PRECONDITION_FAILED" in site.worker.log
    assert site.record(job).attempts == 1
    assert site.client.upload(site.source(10), "releases", "next", stores=["primary"]).wait(WITHIN).size == 10


def test_the_job_of_a_killed_worker_goes_over_to_the_next_one(site):
    """RabbitMQ delivers it again as soon as the connection is gone; it waits for the lease, and needs no sweep."""
    job = site.begun("killed", 2 * MB)
    site.worker.kill()
    site.another()
    assert job.wait(WITHIN).version == 1
    assert site.record(job).attempts == 2


def test_what_was_not_confirmed_is_not_sent(site, monkeypatch):
    """A RabbitMQ that accepts bytes and says nothing is told to the caller within moments."""
    for timeout in ("SOCKET_TIMEOUT", "CONNECT_TIMEOUT"):
        monkeypatch.setattr(publishing, timeout, 0.5)
    with closing(ArtifactClient(site.rabbitmq.url, result_url=site.results)) as client:
        client.upload(site.source(10), "releases", "heard", stores=["primary"])
        with (
            frozen(site.rabbitmq.pid),
            pytest.raises(BrokerUnavailable, match=r"cannot be reached: Timeout|timed out"),
        ):
            client.upload(site.source(10), "releases", "unheard", stores=["primary"])


def test_the_name_in_the_certificate_is_compared(rabbitmq, valkey, tmp_path):
    """Over `amqps://` the certificate must be of a trusted authority and for the host of the URL."""
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    with TlsProxy(rabbitmq.port, ours.context()) as tls:

        def send(host: str, query: str) -> None:
            url = f"amqps://guest:guest@{host}:{tls.port}//?{query}"
            with ArtifactClient(url, result_url=valkey.url) as client:
                client.verify("releases", "absent.tgz")

        send("127.0.0.1", f"ssl_ca_certs={ours.path}")
        send("localhost", "ssl_cert_reqs=none")
        for host, authority in (("127.1", ours), ("127.0.0.1", other)):
            with pytest.raises(BrokerUnavailable, match="certificate"):
                send(host, f"ssl_ca_certs={authority.path}")


def test_the_worker_has_its_own_messages_confirmed(tmp_path):
    """A retry or the job of a sweep that RabbitMQ has lost is none that was sent. No server is needed to see that."""
    environment = {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "ZOT_HOME": str(tmp_path),
        "ZOT_BROKER": "amqp://127.0.0.1:1//", "ZOT_RESULTS": "redis://127.0.0.1:1/0",
    }  # fmt: skip
    command = (sys.executable, "-m", "celery", "-A", "worker.app", "report")
    report = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    options = report.partition("broker_transport_options:")[2].partition("\nbroker_")[0]
    assert "'confirm_publish': True" in options
    assert "visibility_timeout" not in options
