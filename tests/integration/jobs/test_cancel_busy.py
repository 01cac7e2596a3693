"""Jobs that are cancelled or requeued while all children of a real worker wait in calls that do not return."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conformance.targets import make_s3_bucket
from tests.servers import Ministack, Valkey
from tests.servers.freezing_proxy import FreezingProxy
from tests.servers.silent_host import SilentHost
from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from worker.catalogue import Catalogue
from zot_artifact_client import ArtifactClient, JobCancelled, JobFailed

GRACE = 2
SLACK = 40
"""Seconds beyond what is promised, for a machine that does other work too; silence alone ends a call after 60."""


@pytest.fixture
def url(valkey: Valkey) -> str:
    valkey.empty()
    return valkey.url


@pytest.fixture
def client(url: str) -> Iterator[ArtifactClient]:
    with ArtifactClient(url) as opened:
        yield opened


@pytest.fixture
def silent() -> Iterator[SilentHost]:
    with SilentHost() as host:
        yield host


def worker_of(directory: Path, url: str, *, concurrency: int = 1, **settings: Any) -> Worker:
    quick = {"jobs__grace": f"{GRACE}s", "sweep__probe__enabled": "false"}
    return Worker(directory, url, concurrency=concurrency, **quick, **settings)


def state_of(worker: Worker, job: str) -> str | None:
    catalogue = Catalogue(f"sqlite:///{worker.home / 'catalogue.sqlite3'}")
    try:
        found = catalogue.ledger.get(job)
        return found and found.state
    finally:
        catalogue.close()


def test_a_busy_worker_cancels_waiting_jobs_and_stuck_ones_within_seconds(url, client, silent, tmp_path):
    """The only child waits for a silent host: a queued job, then the running one, end in the ledger and the result."""
    with worker_of(tmp_path, url, sources__hosts=json.dumps([silent.origin])) as worker:
        children = worker.children()
        stuck = client.upload(f"{silent.origin}/app.tgz", "releases", "app.tgz")
        assert silent.asked.wait(WITHIN)
        waits = client.verify("releases", "absent.tgz")
        for job, promised in ((waits, 5), (stuck, 5)):
            begin = time.monotonic()
            job.cancel()
            with pytest.raises(JobCancelled):
                job.wait(WITHIN)
            assert time.monotonic() - begin < promised + SLACK
            assert state_of(worker, job.id) == "cancelled"
        assert set(children) <= set(worker.children())  # and what cancels the waiting ones


def test_a_worker_that_starts_sends_no_probe_where_the_settings_disable_it(url, client, tmp_path):
    """A silent store would keep one of its children for a minute."""
    with worker_of(tmp_path, url) as worker:
        with pytest.raises(JobFailed):
            client.verify("releases", "absent.tgz").wait(WITHIN)
        assert "Task sweep.probe" not in worker.log
        assert not redis.Redis.from_url(url).exists("sweep")


def test_a_shutdown_ends_a_worker_whose_job_is_stuck(url, client, silent, tmp_path):
    """SIGTERM ends it within the grace and a few seconds, and the job waits for the next worker."""
    with worker_of(tmp_path, url, sources__hosts=json.dumps([silent.origin])) as worker:
        job = client.upload(f"{silent.origin}/app.tgz", "releases", "app.tgz")
        assert silent.asked.wait(WITHIN)
        until(lambda: state_of(worker, job.id) == "running")
        end_within(worker, GRACE + 5)
        assert state_of(worker, job.id) == "queued"


@pytest.mark.parametrize("end", ["cancel", "shutdown"])
def test_a_store_that_says_nothing_holds_no_job(url, client, ministack: Ministack, tmp_path, end):
    """Writes to stores that stopped to answer, of a whole object and in parts, are cancelled or requeued in seconds."""
    (tmp_path / "in").mkdir()
    sizes = {"whole": 1 << 20, "parts": 24 << 20}
    with ExitStack() as stack:
        lines, stores = dict[str, FreezingProxy](), {}
        for name, size in sizes.items():
            (tmp_path / "in" / name).write_bytes(os.urandom(size))
            make_s3_bucket(ministack, bucket := f"silent-{end}-{name}")
            lines[name] = stack.enter_context(FreezingProxy(ministack.port, rate=12 << 20))
            stores[name] = {
                "type": "s3", "bucket": bucket, "endpoint": f"http://127.0.0.1:{lines[name].port}", "part_size": "5MiB",
                "access_key_id": ministack.access_key_id, "secret_access_key": ministack.secret_access_key,
            }  # fmt: skip
        settings = {"stores": json.dumps(stores), "sources__roots": json.dumps([str(tmp_path / "in")])}
        with worker_of(tmp_path / "worker", url, concurrency=2, **settings) as worker:
            children = worker.children()
            jobs = []
            for name, line in lines.items():
                line.stop_reading(after=sizes[name] // 2)
                jobs.append(client.upload(str(tmp_path / "in" / name), "releases", name, stores=[name]))
            for line in lines.values():
                until(lambda line=line: line.stopped)
                line.freeze()
            check_end(end, worker, jobs, children)


@pytest.mark.parametrize("end", ["cancel", "shutdown"])
def test_no_kind_of_cloud_holds_a_job(url, client, tmp_path, end):
    """Uploads to, and adoptions from, stores of each kind that never answer are cancelled or requeued in seconds."""
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "app.bin"
    source.write_bytes(b"hello")
    with ExitStack() as stack:
        s3, gcs, azure, fast = (stack.enter_context(SilentHost()) for _ in range(4))
        keys = {"access_key_id": "a", "secret_access_key": "b", "bucket": "b", "read_back": False}
        account = {"account_url": f"{azure.origin}/account", "account_key": "a2V5", "read_back": False}
        stores = {
            "s3": {"type": "s3", "endpoint": s3.origin, **keys},
            "gcs": {"type": "gcs", "endpoint": gcs.origin, "bucket": "b", "anonymous": True, "read_back": False},
            "azure": {"type": "azure", "container": "b", **account},
            "fast": {"type": "s3", "endpoint": fast.origin, "data_path": "auto", **keys},
        }
        settings = {"stores": json.dumps(stores), "sources__roots": json.dumps([str(source.parent)])}
        settings |= {"breaker__failures": "100"}
        with worker_of(tmp_path / "worker", url, concurrency=4, **settings) as worker:
            children = worker.children()
            jobs = [
                client.upload(str(source), "releases", "one.bin", stores=["s3"]),
                client.upload(str(source), "releases", "two.bin", stores=["gcs"]),
                client.upload(str(source), "releases", "three.bin", stores=["azure"]),
                client.adopt("releases", "four.bin", store="fast"),
            ]
            for host in (s3, gcs, azure, fast):
                assert host.asked.wait(WITHIN)
            check_end(end, worker, jobs, children)


def end_within(worker: Worker, seconds: float) -> None:
    begin = time.monotonic()
    os.kill(worker.pid, signal.SIGTERM)
    until(lambda: not worker.running)
    assert time.monotonic() - begin < seconds + SLACK


def check_end(end: str, worker: Worker, jobs: list[Any], children: list[int]) -> None:
    """End the jobs by a shutdown, which requeues them, or cancel them: both in seconds, and without a killed child."""
    if end == "shutdown":
        end_within(worker, GRACE + 5)
        assert {state_of(worker, job.id) for job in jobs} == {"queued"}
        return
    begin = time.monotonic()
    for job in jobs:
        job.cancel()
    for job in jobs:
        with pytest.raises(JobCancelled):
            job.wait(WITHIN)
    assert time.monotonic() - begin < 5 + SLACK
    assert set(children) <= set(worker.children())
