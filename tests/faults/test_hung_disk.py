"""A store on a disk whose calls never return, and which no signal ends."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.hung_worker import HUNG
from tests.servers import Valkey
from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from worker.catalogue import Catalogue
from zot_artifact_client import ArtifactClient, JobCancelled

GRACE = 1
SLACK = 30
"""Seconds beyond what is promised, for a machine that does other work too; the disk hangs for ever."""


class HungWorker(Worker):
    """A worker with one child, whose store `away` hangs and whose store `here` does not."""

    def command(self) -> Sequence[str]:
        return (sys.executable, "-m", "tests.faults.hung_worker", "away", *super().command()[3:])


@pytest.fixture
def url(valkey: Valkey) -> str:
    valkey.empty()
    return valkey.url


@pytest.fixture
def worker(url: str, tmp_path: Path) -> Iterator[HungWorker]:
    for name in ("away", "here", "in"):
        (tmp_path / name).mkdir()
    (tmp_path / "in" / "app.tgz").write_bytes(b"release one")
    stores = {name: {"type": "filesystem", "root": str(tmp_path / name)} for name in ("away", "here")}
    settings = {
        "jobs__grace": f"{GRACE}s", "sweep__probe__enabled": "false", "stores": json.dumps(stores),
        "sources__roots": json.dumps([str(tmp_path / "in")]),
    }  # fmt: skip
    with HungWorker(tmp_path / "worker", url, concurrency=1, **settings) as running:
        yield running


def state_of(worker: Worker, job: str) -> str:
    catalogue = Catalogue(f"sqlite:///{worker.home / 'catalogue.sqlite3'}")
    try:
        found = catalogue.ledger.get(job)
        assert found is not None
        return found.state
    finally:
        catalogue.close()


def test_a_job_that_hangs_is_cancelled_and_frees_its_child(worker: HungWorker, url: str, tmp_path: Path) -> None:
    """Its ledger row and its client say so within seconds, and the next job, on another store, is done."""
    source = str(tmp_path / "in" / "app.tgz")
    with ArtifactClient(url) as client:
        job = client.upload(source, "releases", "app.tgz", stores=["away"])
        until((worker.home / HUNG).exists)
        begin = time.monotonic()
        job.cancel()
        with pytest.raises(JobCancelled):
            job.wait(WITHIN)
        assert time.monotonic() - begin < 5 + SLACK
        assert state_of(worker, job.id) == "cancelled"
        assert client.upload(source, "releases", "app.tgz", stores=["here"]).wait(WITHIN).copies[0].outcome == "stored"


def test_a_job_that_hangs_keeps_no_other_store_waiting(worker: HungWorker, url: str, tmp_path: Path) -> None:
    """The only child hangs: the attempt ends as a transient error, and the job on another store is done."""
    source = str(tmp_path / "in" / "app.tgz")
    with ArtifactClient(url) as client:
        hanging = client.upload(source, "releases", "app.tgz", stores=["away"])
        until((worker.home / HUNG).exists)
        assert client.upload(source, "releases", "b.tgz", stores=["here"]).wait(WITHIN).copies[0].outcome == "stored"
        assert state_of(worker, hanging.id) in {"retrying", "running"}


def test_a_shutdown_ends_a_worker_whose_disk_hangs(worker: HungWorker, url: str, tmp_path: Path) -> None:
    """SIGTERM ends it within the grace and a few seconds, and the job waits for the next worker at no cost."""
    with ArtifactClient(url) as client:
        job = client.upload(str(tmp_path / "in" / "app.tgz"), "releases", "app.tgz", stores=["away"])
        until((worker.home / HUNG).exists)
        begin = time.monotonic()
        os.kill(worker.pid, signal.SIGTERM)
        until(lambda: not worker.running)
        assert time.monotonic() - begin < GRACE + 5 + SLACK
        assert state_of(worker, job.id) == "queued"
