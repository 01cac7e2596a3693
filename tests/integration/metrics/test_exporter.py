"""The exporter tells of the fleet, of a jammed queue and of a lost catalogue, by real scrapes."""

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from urllib.request import urlopen

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from tests.servers import Valkey
from tests.servers.process import REPOSITORY
from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from worker import clock
from worker.catalogue import Catalogue, VerdictRow
from worker.metrics import exporter as served
from worker.metrics.exporter import Exporter
from worker.settings import Settings
from worker.storage import Digest
from zot_artifact_client import ArtifactClient
from zot_artifact_client.contract import JobState

Figures = dict[tuple[str, ...], float]
Scrape = Callable[[], Figures]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Valkey]:
    """Return a broker of this test's own: nothing else serves its queues."""
    (tmp_path / "valkey").mkdir()
    with Valkey(tmp_path / "valkey") as server:
        yield server


@contextmanager
def exporting(home: Path, broker: str) -> Iterator[Scrape]:
    """Run an exporter, and yield what returns its figures by name and labels."""
    with Exporter(Settings(home=home, broker=broker)).serving("127.0.0.1", 0) as server:
        yield lambda: figures(f"http://127.0.0.1:{server.server_address[1]}")


def figures(url: str) -> Figures:
    text = urlopen(f"{url}/metrics", timeout=WITHIN).read().decode()
    return {
        (
            sample.name.removeprefix("zot_artifacts_"),
            *(value for _, value in sorted(sample.labels.items())),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_jammed_queue_still_reports(broker, tmp_path, monkeypatch):
    """Without any worker, the exporter tells what waits, how long, and that beat does not tick."""
    monkeypatch.setattr(served, "_OFTEN", 0.1)
    with ArtifactClient(broker.url) as client, exporting(tmp_path / "home", broker.url) as scrape:
        client.verify("releases", "a")
        client.verify("releases", "b")
        with redis.Redis.from_url(broker.url) as server:
            server.lpush("transfer", b"[" * 100_000)  # no message, and nested too deeply to be read
        until(lambda: scrape().get(("queue_messages", "interactive")) == 2)
        until(lambda: scrape()["outbox_oldest_seconds", "interactive"] > 0.5)
        found = scrape()
        assert found["outbox_jobs",] == 2
        assert found["outbox_oldest_seconds", "transfer"] == 0
        assert found["queue_oldest_message_seconds", "interactive"] > 0.5
        assert ("beat_last_tick_seconds",) not in found
        assert found["figures_up", "ledger"] == 0  # there is no catalogue, and the exporter makes none
        assert found["figures_up", "broker"] == 1
        assert ("dead_letters",) not in found  # no figure, instead of a wrong one
    assert not (tmp_path / "home" / "catalogue.sqlite3").exists()


def test_an_odd_request_gets_an_answer_and_makes_no_noise(tmp_path, capfd):
    """A client that asks for nonsense, or leaves before its answer, is no traceback on the console."""
    settings = Settings(home=tmp_path / "home", broker="redis://127.0.0.1:1/0")
    with Exporter(settings).serving("127.0.0.1", 0) as server:

        def ask(request: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=WITHIN) as connection:
                connection.sendall(request)
                return connection.makefile("rb").readline()

        for odd in (
            b"GET http://[/metrics HTTP/1.0\r\n\r\n",
            b"GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text; version=x\r\n\r\n",
        ):
            assert ask(odd).split()[1] == b"400"
        with socket.create_connection(("127.0.0.1", server.server_address[1])) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a close is a reset
            connection.sendall(b"GET /metrics")
        assert ask(b"GET /metrics HTTP/1.0\r\n\r\n").split()[1] == b"200"
    assert "Traceback" not in capfd.readouterr().err


def test_the_exporter_listens_on_an_address_of_ipv6(tmp_path):
    """`--host ::1` and `--host ::` are addresses, too."""
    settings = Settings(home=tmp_path / "home", broker="redis://127.0.0.1:1/0")
    with Exporter(settings).serving("::1", 0) as server:
        assert urlopen(f"http://[::1]:{server.server_address[1]}/healthz", timeout=WITHIN).read() == b"ok\n"


def test_what_the_children_of_a_worker_counted_is_one_sum(broker, tmp_path, monkeypatch):
    """The copies that two processes wrote are in one total, which outlives a worker that was killed."""
    monkeypatch.setattr(served, "_OFTEN", 0.1)
    monkeypatch.setattr("worker.metrics.catalogue_figures._LAG", timedelta(seconds=2))
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"12345")
    with (
        Worker(tmp_path, broker.url, sources__roots=f'["{source}"]') as worker,
        ArtifactClient(broker.url) as client,
        exporting(worker.home, broker.url) as scrape,
    ):
        jobs = [client.upload(str(source / "a"), "releases", f"a{n}") for n in range(6)]
        for job in jobs:
            job.wait(timeout=WITHIN)
        until(lambda: scrape().get(("store_bytes_total", "dr", "write")) == 30)
        found = scrape()
        assert found["store_objects_total", "primary", "write"] == 6
        assert found["catalogue_transaction_seconds_count", "write"] > 6
        until(lambda: scrape().get(("jobs_ended_total", "upload", "succeeded")) == 6)
        assert scrape()["job_seconds_count", "upload"] == 6
        worker.kill()
        until(lambda: scrape()["figures_up", "workers"] == 1)
        assert scrape()["store_bytes_total", "dr", "write"] == 30


def test_what_is_open_in_the_catalogue_is_told(broker, tmp_path, monkeypatch):
    """Bad copies, dead letters, late jobs and resolved findings are figures; an unknown kind is `other`."""
    monkeypatch.setattr(served, "_OFTEN", 0.1)
    monkeypatch.setattr(served, "_SELDOM", 0.2)
    monkeypatch.setattr("worker.metrics.catalogue_figures._LAG", timedelta(seconds=2))
    settings = Settings(home=tmp_path / "home", broker=broker.url)
    settings.prepare()
    catalogue, now = Catalogue(settings.catalogue_url), clock.now()
    with exporting(settings.home, broker.url) as scrape:
        until(lambda: scrape()["figures_up", "ledger"] == 1)
        made = catalogue.artifacts.record(
            "releases", "a", Digest(1, "0" * 64), {}, now, stores=["primary", "dr"]
        ).artifact
        for store in ("primary", "dr"):
            catalogue.artifacts.finish_copy(made, store, tag="1", evidence={}, now=now)
        copy = catalogue.artifacts.copies(made)["dr"]
        catalogue.verifications.record(VerdictRow.of("job", made, copy, "corrupt", tag="1"), now=now)
        lease = timedelta(seconds=30)
        dead, failed, error = JobState.DEAD, JobState.FAILED, {"type": "X", "message": "x"}
        ends = {"upload": dead, "made-up": dead, "sweep.leftovers": failed}
        for kind, end in ends.items():
            catalogue.ledger.acquire(kind, kind, {}, owner="me", writes_to=None, parent=None, now=now, lease=lease)
            catalogue.ledger.finish(kind, 1, end, now=clock.now(), error=error)
        then = now - timedelta(hours=1)
        catalogue.ledger.acquire("late", "upload", {}, owner="me", writes_to=None, parent=None, now=then, lease=lease)
        until(lambda: scrape().get(("findings", "no", "corrupt", "dr")) == 1)
        until(lambda: scrape().get(("copies", "corrupt", "dr")) == 1)
        until(lambda: scrape()["dead_letters",] == 2)
        found = scrape()
        assert found["sweep_last_success", "sweep.cleanup"] == 0
        assert found["late_jobs",] == 1
        assert found["jobs", "upload", "running"] == 1
        until(lambda: scrape()["jobs_ended_total", "upload", "dead"] == 1)
        assert not [labels for labels in found if "made-up" in labels]
        catalogue.verifications.record(VerdictRow.of("job-2", made, copy, "verified", tag="1"), now=clock.now())
        until(lambda: scrape().get(("findings_resolved_total", "none", "corrupt")) == 1)
        assert scrape()["read_share", "dr"] == 1
    catalogue.close()


def test_the_command_serves_until_it_is_told_to_end(broker, tmp_path):
    """`metrics` prints its address, answers /healthz and nothing else, and ends on SIGTERM with status 0."""
    environment = {
        "ZOT_HOME": str(tmp_path / "home"), "ZOT_BROKER": broker.url, "PYTHONPATH": str(REPOSITORY),
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "worker.cli", "metrics", "--port", "0"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[1].removesuffix("/metrics")
        assert url.startswith("http://127.0.0.1:")
        assert urlopen(f"{url}/healthz", timeout=WITHIN).read() == b"ok\n"
        assert figures(url)["figures_up", "broker"] == 1
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(WITHIN) == 0
