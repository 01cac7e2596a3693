"""Jobs that are cancelled from the client or Flower while they run, wait, or belong to a killed worker."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conformance.targets import s3_client
from tests.faults.fleet import Fleet, fleet_of
from tests.servers import Ministack
from tests.servers.process import REPOSITORY, free_port
from tests.waiting import WITHIN, until
from worker.jobs.running_job import REPORT_SECONDS
from zot_artifact_client import JobCancelled
from zot_artifact_client.outgoing_messages import MESSAGES


@contextmanager
def flower(broker: str, directory: Path) -> Iterator[httpx.Client]:
    """Run Flower, and give a way to its API."""
    port = free_port()
    command = (sys.executable, "-m", "celery", "-b", broker, "flower", f"--port={port}", "--address=127.0.0.1")
    with (
        (directory / "flower.log").open("wb") as log,
        subprocess.Popen(
            (*command, "--basic-auth=a:b"), stdout=log, stderr=log, cwd=directory, env={"PYTHONPATH": str(REPOSITORY)}
        ) as process,
    ):
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=("a", "b"), trust_env=False) as web:
                until(lambda: _answers(web))
                yield web
        finally:
            process.terminate()


def _answers(web: httpx.Client) -> bool:
    try:
        return web.get("/healthcheck").is_success
    except httpx.TransportError:
        return False


def left_in(ministack: Ministack, fleet: Fleet) -> tuple[list[str], int]:
    """Return the keys of our artifacts, and how many open uploads their real bucket has."""
    client = s3_client(ministack)
    objects = client.list_objects_v2(Bucket=fleet.bucket, Prefix="releases/").get("Contents", [])
    uploads = client.list_multipart_uploads(Bucket=fleet.bucket).get("Uploads", [])
    return [each["Key"] for each in objects], len(uploads)


def state_of(fleet: Fleet, job: Any) -> str | None:
    found = fleet.catalogue.ledger.get(job.id)
    return found and found.state


def test_flowers_terminate_ends_a_job_at_its_next_part_and_kills_no_process(valkey, ministack, tmp_path):
    """A running upload that Flower terminates ends in the ledger, with no object, no part and all processes alive.

    A job that waits for it is ended at once, and another one, that no worker has taken over, before it begins.
    """
    with (
        fleet_of(valkey, ministack, tmp_path, at=3) as fleet,
        flower(fleet.broker, tmp_path) as web,
        fleet.worker("only", concurrency=2) as only,
    ):
        children = only.children()
        source = fleet.source()
        running = fleet.client.upload(source, "releases", "large.bin")
        assert fleet.gate.reached.wait(WITHIN)
        waiting = fleet.client.upload(source, "releases", "large.bin")  # of the same artifact, so it has to wait
        until(lambda: state_of(fleet, waiting) == "queued")
        web.post(f"/api/task/revoke/{waiting.id}").raise_for_status()
        assert until(lambda: state_of(fleet, waiting) == "cancelled")
        with pytest.raises(JobCancelled):
            waiting.wait(WITHIN)

        web.post(f"/api/task/revoke/{running.id}", params={"terminate": "true"}).raise_for_status()
        until(lambda: f"requested to cancel {running.id}" in only.log)
        assert state_of(fleet, running) == "running"
        fleet.gate.open.wait(REPORT_SECONDS)  # a job looks no more often than that
        fleet.gate.open.set()
        with pytest.raises(JobCancelled):
            running.wait(WITHIN)
        assert (state_of(fleet, running), fleet.record(running).error["type"]) == ("cancelled", "Cancelled")
        until(lambda: left_in(ministack, fleet) == ([], 0))  # the client is told before the store is asked
        assert len(fleet.gate.parts) < 8
        assert set(children) <= set(only.children())  # beside them, one that records cancelled jobs may run
        assert fleet.redis.hlen(MESSAGES) == 0
        assert fleet.client.upload(fleet.source(100), "releases", "after.bin").wait(WITHIN).version == 1


def test_what_a_killed_worker_left_of_a_cancelled_job_goes_away(valkey, ministack, tmp_path):
    """A job is cancelled while no worker runs: the next worker ends it, its parts and message, and starts nothing."""
    with fleet_of(valkey, ministack, tmp_path, at=4) as fleet, fleet.worker("first") as first:
        job = fleet.client.upload(fleet.source(), "releases", "large.bin")
        assert fleet.gate.reached.wait(WITHIN)
        first.kill()
        fleet.gate.open.set()
        unseen = fleet.client.upload(fleet.source(100), "releases", "unseen.bin")
        for each in (job, unseen):
            each.cancel()
        assert left_in(ministack, fleet)[1] == 1
        with fleet.worker("second", beat=True):
            for each in (job, unseen):
                with pytest.raises(JobCancelled):
                    each.wait(WITHIN)
            until(lambda: (state_of(fleet, job), state_of(fleet, unseen)) == ("cancelled", "cancelled"))
            until(lambda: left_in(ministack, fleet) == ([], 0))
        assert (fleet.record(job).attempts, fleet.redis.hlen(MESSAGES)) == (1, 0)
