"""Jobs whose workers, or whose messages, are gone: another worker ends them, once."""

import os
import select
import signal
import sqlite3
import time
from contextlib import closing

import pytest

from tests.faults.fleet import MIB, PARTS, fleet_of
from tests.servers import Valkey
from tests.servers.process import freeze, thaw
from tests.servers.worker import Worker
from tests.waiting import WITHIN, until
from zot_artifact_client import JobFailed
from zot_artifact_client.outgoing_messages import MESSAGES, ORDER


def test_the_job_of_a_killed_worker_goes_over_to_another_one(valkey, ministack, tmp_path):
    """A whole worker is killed at work; another one goes on long before Redis hands the message out again."""
    with fleet_of(valkey, ministack, tmp_path, at=4) as fleet, fleet.worker("first") as first:
        job = fleet.client.upload(fleet.source(), "releases", "large.bin")
        assert fleet.gate.reached.wait(WITHIN)
        first.kill()
        fleet.gate.open.set()
        with fleet.worker("second", beat=True):
            assert job.wait(WITHIN).size == PARTS * 5 * MIB
            assert fleet.client.verify("releases", "large.bin").wait(WITHIN).good
    assert (fleet.record(job).attempts, fleet.record(job).state) == (2, "succeeded")
    assert len(fleet.gate.parts) <= PARTS + 2


def test_a_message_that_redis_lost_is_sent_again(valkey, ministack, tmp_path):
    """The queue is emptied; the job is done nevertheless, once, and the outbox is empty."""
    with fleet_of(valkey, ministack, tmp_path) as fleet:
        jobs = [fleet.client.upload(fleet.source(100), "releases", f"{n}.bin") for n in range(3)]
        assert fleet.redis.llen("transfer") == fleet.redis.hlen(MESSAGES) == 3
        fleet.redis.delete("transfer")
        with fleet.worker("only", beat=True):
            assert [job.wait(WITHIN).version for job in jobs] == [1, 1, 1]
        assert {fleet.record(job).attempts for job in jobs} == {1}
        assert fleet.redis.exists(MESSAGES, ORDER.format(queue="transfer")) == 0


def test_a_worker_that_shuts_down_requeues_its_job(valkey, ministack, tmp_path):
    """SIGTERM ends the worker at the next part; the next one goes on there, and no attempt and no part is wasted."""
    with fleet_of(valkey, ministack, tmp_path, at=4) as fleet, fleet.worker("first") as first:
        job = fleet.client.upload(fleet.source(), "releases", "large.bin")
        assert fleet.gate.reached.wait(WITHIN)
        os.kill(first.pid, signal.SIGTERM)
        until(lambda: "Warm shutdown" in first.log)
        fleet.gate.open.set()
        until(lambda: not first.running)
        assert (fleet.record(job).state, fleet.record(job).attempts) == ("queued", 0)
        with fleet.worker("second"):
            assert job.wait(WITHIN).size == PARTS * 5 * MIB
    assert fleet.record(job).attempts == 1
    assert sorted(fleet.gate.parts) == list(range(1, PARTS + 1))


def test_a_job_that_kills_its_worker_each_time_is_dead(valkey, ministack, tmp_path):
    """After as many deaths in a row as are allowed the job is dead, says why, and the queue continues after it."""
    with fleet_of(valkey, ministack, tmp_path, at=4) as fleet, fleet.worker("only", beat=True) as only:
        job = fleet.client.upload(fleet.source(), "releases", "poison.bin")
        for attempt in (1, 2, 3):
            until(lambda n=attempt: (found := fleet.catalogue.ledger.get(job.id)) and found.attempts == n)
            until(lambda: fleet.record(job).lease_owner)
            os.kill(int(fleet.record(job).lease_owner.split(":")[1]), signal.SIGKILL)
        with pytest.raises(JobFailed, match="its worker died after 3 starts in a row") as failed:
            job.wait(WITHIN)
        assert (failed.value.state, fleet.record(job).state) == ("dead", "dead")
        fleet.gate.open.set()
        assert fleet.client.upload(fleet.source(100), "releases", "good.bin").wait(WITHIN).version == 1
        assert only.running


def test_what_a_worker_has_started_ends_when_it_is_killed(valkey, tmp_path):
    """Neither its children nor its beat outlive it: a job would go on, and two beats would schedule."""
    with Worker(tmp_path / "worker", valkey.url, beat=True) as killed:
        started = [os.pidfd_open(pid) for pid in killed.children()]
        assert len(started) == 3
        os.kill(killed.pid, signal.SIGKILL)
        until(lambda: select.select(started, [], [], 0)[0] == started)
        for each in started:
            os.close(each)


def test_a_worker_that_was_stopped_past_its_lease_commits_nothing(valkey, ministack, tmp_path):
    """A worker sleeps through its lease and wakes up when another has done the job: what it still does is void."""
    with fleet_of(valkey, ministack, tmp_path, at=4) as fleet, fleet.worker("first") as first:
        job = fleet.client.upload(fleet.source(), "releases", "large.bin")
        assert fleet.gate.reached.wait(WITHIN)
        children = first.children()
        with closing(sqlite3.connect(tmp_path / "catalogue.sqlite3", isolation_level=None)) as ours:
            ours.execute("BEGIN IMMEDIATE")  # so that it does not sleep with the catalogue's lock in its hands
            freeze(first.pid, *children)
        fleet.gate.open.set()
        try:
            with fleet.worker("second", beat=True):
                assert job.wait(WITHIN).size == PARTS * 5 * MIB
                done = fleet.record(job)
                thaw(*children, first.pid)
                until(lambda: "has lost its lease" in first.log)
                assert fleet.client.verify("releases", "large.bin").wait(WITHIN).good
        finally:
            thaw(*children, first.pid)
    assert fleet.record(job) == done
    assert done.fence == 2


def test_a_running_job_outlives_a_catalogue_that_has_lost_its_row(valkey, ministack, tmp_path):
    """A standby that was behind has taken over, or an old backup was restored: the job is recorded and done again."""
    with fleet_of(valkey, ministack, tmp_path, at=4) as fleet, fleet.worker("only") as only:
        job = fleet.client.upload(fleet.source(), "releases", "large.bin")
        assert fleet.gate.reached.wait(WITHIN)
        with closing(sqlite3.connect(tmp_path / "catalogue.sqlite3", isolation_level=None)) as ours:
            ours.execute("DELETE FROM jobs")
        fleet.gate.open.set()
        assert job.wait(WITHIN).size == PARTS * 5 * MIB
        assert "the catalogue has no record of it any more" in only.log
        assert fleet.client.verify("releases", "large.bin").wait(WITHIN).good
    assert fleet.record(job).state == "succeeded"


def test_a_worker_outlives_its_broker(ministack, tmp_path):
    """The broker is killed under a job at work, and again while the worker looks for it; the worker is the same one."""
    with (
        Valkey(tmp_path / "valkey") as valkey,
        fleet_of(valkey, ministack, tmp_path, at=4) as fleet,
        fleet.worker("only", beat=True) as only,
    ):
        pid = only.pid
        job = fleet.client.upload(fleet.source(), "releases", "large.bin")
        assert fleet.gate.reached.wait(WITHIN)
        for _ in range(2):
            until(lambda: fleet.redis.hlen("unacked") > 0)
            valkey.kill()
            time.sleep(1)  # the fault: the worker does not log each time that it looks for the broker
            valkey.restart()
        fleet.gate.open.set()
        until(lambda: fleet.record(job).state == "succeeded")
        assert (only.running, only.pid) == (True, pid)


def test_a_job_that_ends_while_results_cannot_be_stored_is_told_as_it_ended(ministack, tmp_path):
    """Broker and result backend are away at a job's end; the client hears of its success when they are back."""
    with (
        Valkey(tmp_path / "valkey") as valkey,
        fleet_of(valkey, ministack, tmp_path, at=4) as fleet,
        fleet.worker("only", beat=True),
    ):
        job = fleet.client.upload(fleet.source(), "releases", "large.bin")
        assert fleet.gate.reached.wait(WITHIN)
        valkey.kill()
        fleet.gate.open.set()
        until(lambda: fleet.record(job).state == "succeeded")
        valkey.restart()
        assert job.wait(WITHIN).size == PARTS * 5 * MIB
