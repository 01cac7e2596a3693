"""Rehearse what operators fear: the broker's disk, a store, and a worker's host are lost for good."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers import Valkey
from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from worker import clock
from worker.catalogue import Catalogue, Scope
from zot_artifact_client import ArtifactClient

QUICK = {
    "jobs__lease": "2s",
    "retry__backoff": "1s",
    "sweep__recover__every": "1s",
    "sweep__recover__after": "1s",
    "sweep__recover__again": "3s",
    "sweep__repair__every": "1s",
    "sweep__verify__enabled": "false",
}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Valkey]:
    """Return a broker of this test's own, which loses its disk."""
    (tmp_path / "valkey").mkdir()
    with Valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "app.tgz"
    path.parent.mkdir()
    path.write_bytes(b"bytes" * 1000)
    return path


@contextmanager
def worker_on(tmp_path: Path, broker: Valkey, source: Path, **more: str) -> Iterator[Worker]:
    settings = QUICK | {"sources__roots": json.dumps([str(source.parent)])} | more
    with Worker(tmp_path / "worker", broker.url, beat=True, **settings) as worker:
        yield worker


def test_jobs_that_a_worker_has_recorded_outlive_the_loss_of_the_broker(tmp_path, broker, source, monkeypatch):
    """Redis is lost with its disk; what the ledger has is done on the empty one, and what was done stays done.

    A client that waits is told the ledger's end, although the results are lost too.
    """
    with worker_on(tmp_path, broker, source) as worker, ArtifactClient(broker.url) as client:
        before = client.upload(source, "releases", "before.tgz")
        before.wait(timeout=WITHIN)
        catalogue = Catalogue(f"sqlite:///{worker.home / 'catalogue.sqlite3'}")
        catalogue.pauses.begin(Scope.STORE, "dr", reason="the job has to wait", now=clock.now())
        job = client.upload(source, "releases", "waits.tgz")
        until(lambda: (found := catalogue.ledger.get(job.id)) and found.snoozed_since)
        broker.kill()
        for path in broker.directory.glob("appendonlydir"):
            shutil.rmtree(path)
        broker.restart()
        assert client.show("releases", "before.tgz", timeout=WITHIN).version == 1  # the worker is connected again
        catalogue.pauses.end(Scope.STORE, "dr")
        monkeypatch.setattr("zot_artifact_client.result_backend.UNKNOWN_FOR", 0.0)
        monkeypatch.setattr("zot_artifact_client.result_backend.LISTEN_FOR", 0.2)
        assert {copy.store for copy in job.wait(timeout=WITHIN).copies} == {"primary", "dr"}
        until(lambda: before.state == "succeeded")
        assert client.verify("releases", "waits.tgz").wait(timeout=WITHIN).good
        assert client.verify("releases", "before.tgz").wait(timeout=WITHIN).good
        catalogue.close()


def test_a_store_that_lost_its_objects_is_filled_again(tmp_path, broker, source):
    """All objects of a store are gone; a verify finds them missing, and the sweep repairs them from the other store."""
    with worker_on(tmp_path, broker, source) as worker, ArtifactClient(broker.url) as client:
        names = [f"{n}.tgz" for n in range(5)]
        for name in names:
            client.upload(source, "releases", name).wait(timeout=WITHIN)
        shutil.rmtree(worker.home / "stores" / "dr" / "releases")
        verdicts = [client.verify("releases", name).wait(timeout=WITHIN) for name in names]
        assert {copy.verdict for found in verdicts for copy in found.copies if copy.store == "dr"} == {"missing"}
        lost = worker.home / "stores" / "dr" / "releases"
        until(lambda: lost.is_dir() and sorted(path.name for path in lost.glob("*.tgz")) == names)
        until(lambda: all(client.verify("releases", name).wait(timeout=WITHIN).good for name in names))


def test_another_host_goes_on_where_a_host_was_lost(tmp_path, broker, source):
    """A worker's host is lost with its data directory; another one with the same catalogue and stores ends its jobs."""
    shared = tmp_path / "shared"
    stores = {name: {"type": "filesystem", "root": str(shared / name)} for name in ("primary", "dr")}
    for name in stores:
        (shared / name).mkdir(parents=True)
    common = {"stores": json.dumps(stores), "catalogue": f"sqlite:///{shared / 'catalogue.sqlite3'}"}
    with ArtifactClient(broker.url) as client:
        with worker_on(tmp_path, broker, source, **common) as first:
            catalogue = Catalogue(common["catalogue"])
            catalogue.pauses.begin(Scope.STORE, "dr", reason="the job has to wait", now=clock.now())
            job = client.upload(source, "releases", "app.tgz")
            until(lambda: (found := catalogue.ledger.get(job.id)) and found.snoozed_since)
            first.kill()
            shutil.rmtree(first.home)
        catalogue.pauses.end(Scope.STORE, "dr")
        with worker_on(tmp_path / "other", broker, source, **common):
            assert {copy.store for copy in job.wait(timeout=WITHIN).copies} == {"primary", "dr"}
            assert client.verify("releases", "app.tgz").wait(timeout=WITHIN).good
        catalogue.close()
