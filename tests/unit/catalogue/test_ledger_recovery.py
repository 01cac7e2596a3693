"""The ledger knows when a job is overdue, and keeps a worker that lost its lease from writing."""

from datetime import timedelta
from functools import partial

import pytest
import sqlalchemy as sa

from worker import clock
from worker.catalogue import Busy, Finished, Leased, LostLease, NewVersion, Superseded
from worker.catalogue.tables import jobs
from worker.storage import Digest
from worker.storage.driver import Part
from worker.storage.transfer.multipart import SentPart
from zot_artifact_client.contract import JobState

LEASE = timedelta(seconds=30)
AGAIN = timedelta(minutes=5)
DIGEST = Digest(11, "a" * 64)


def begin(catalogue, id_="job-1", *, kind="upload", ago=timedelta(), **more):
    arguments = {"owner": "me", "writes_to": None, "parent": None, "now": clock.now() - ago, "lease": LEASE} | more
    return catalogue.ledger.acquire(id_, kind, {"key": "a"}, **arguments)


def overdue(catalogue, ahead=timedelta()):
    return [job.id for job in catalogue.ledger.overdue(now=clock.now() + ahead, again=AGAIN, lease=LEASE, limit=10)]


def test_a_job_whose_lease_ran_out_is_overdue_once(catalogue):
    """It is named to one who asks, and to the next one only after a while."""
    begin(catalogue, "alive")
    begin(catalogue, "gone", ago=2 * LEASE, queue="sweep")
    found = catalogue.ledger.overdue(now=clock.now(), again=AGAIN, lease=LEASE, limit=10)
    assert [(job.id, job.queue) for job in found] == [("gone", "sweep")]
    assert overdue(catalogue) == []
    later = {"now": clock.now() + 2 * AGAIN, "again": AGAIN, "lease": LEASE, "limit": 1}
    assert [[job.id for job in catalogue.ledger.overdue(**later)] for _ in range(3)] == [["alive"], ["gone"], []]


def test_a_heartbeat_and_an_end_are_recorded(catalogue):
    """A lease that is renewed moves the moment; a job that has ended has none."""
    record = begin(catalogue, ago=2 * LEASE).record
    catalogue.ledger.renew(record.id, record.fence, until=clock.now() + LEASE, progress=None)
    assert overdue(catalogue) == []
    catalogue.ledger.finish(record.id, record.fence, JobState.SUCCEEDED, now=clock.now(), result={})
    assert overdue(catalogue, 10 * AGAIN) == []


def test_a_retry_that_does_not_come_is_overdue(catalogue):
    """The message of the next attempt may be lost as well."""
    record = begin(catalogue).record
    catalogue.ledger.retry(record.id, record.fence, {"type": "Unavailable"}, due=clock.now() + LEASE)
    assert overdue(catalogue) == []
    assert overdue(catalogue, 2 * LEASE) == ["job-1"]


def test_a_job_that_waits_for_another_one_is_not_forgotten(catalogue):
    """Its delivery comes back when the other's lease is over; if it does not, the job is overdue."""
    first, ledger = begin(catalogue, "first", writes_to="releases/a").record, catalogue.ledger
    for _ in ("its first delivery", "the next one"):
        assert isinstance(begin(catalogue, "second", writes_to="releases/a"), Busy)
        assert ledger.get("second").due_at == first.lease_until + LEASE
    assert isinstance(begin(catalogue, "first", writes_to="releases/a"), Busy)
    assert ledger.get("first").due_at == first.lease_until, "only its heartbeat moves that"
    assert "second" not in overdue(catalogue, LEASE / 2)
    assert "second" in overdue(catalogue, 3 * LEASE)


def test_a_job_that_snoozes_has_its_attempt_back(catalogue):
    """Waiting for what is no fault of its own costs nothing, and since when it waits is kept over the next start."""
    since = clock.now() - AGAIN
    record = begin(catalogue).record
    catalogue.ledger.snooze(record.id, record.fence, {"type": "Snooze"}, since=since, due=clock.now() + LEASE)
    waiting = catalogue.ledger.get(record.id)
    assert (waiting.state, waiting.attempts, waiting.lease_until) == ("queued", 0, None)
    again = begin(catalogue).record
    assert (again.attempts, again.snoozed_since, again.fence) == (1, since, 2)
    catalogue.ledger.retry(again.id, again.fence, {"type": "Unavailable"}, due=clock.now())
    assert catalogue.ledger.get(record.id).snoozed_since is None


def test_the_jobs_that_wait_for_a_store_are_found(catalogue):
    """Not those that wait for a pause, for another store or for their next attempt, and none that runs."""
    waits = {"type": "Snooze", "store": "dr"}
    for name, why in {
        "waits": waits,
        "again": waits,
        "paused": waits | {"type": "Paused"},
        "other": waits | {"store": "primary"},
        "job": {"type": "Snooze"},
    }.items():
        record = begin(catalogue, name).record
        catalogue.ledger.snooze(name, record.fence, why, since=clock.now(), due=clock.now() + AGAIN)
    record = begin(catalogue, "failed").record
    catalogue.ledger.retry("failed", record.fence, waits, due=clock.now() + AGAIN)
    begin(catalogue, "again")
    assert catalogue.ledger.snoozed_for("dr") == {"waits"}


def test_starts_of_which_nothing_was_heard_again_are_counted(catalogue):
    """So many in a row and the job is dead, a sweep failed; a start that was heard of again begins the count anew."""
    later = (clock.now() + n * 2 * LEASE for n in range(10))  # each start finds the lease of the one before lapsed
    for crashes in (0, 1):
        assert begin(catalogue, now=next(later), max_crashes=3).record.crashes == crashes
    third = begin(catalogue, now=next(later), max_crashes=3).record
    catalogue.ledger.retry(third.id, third.fence, {"type": "Unavailable"}, due=clock.now())
    for crashes in (0, 1, 2):
        last = begin(catalogue, now=next(later), max_crashes=3)
        assert last.record.crashes == crashes
    ended = begin(catalogue, now=next(later), max_crashes=3)
    assert isinstance(ended, Finished)
    assert (ended.record.state, ended.record.error["type"]) == ("dead", "Poison")
    with pytest.raises(LostLease):
        catalogue.ledger.finish(last.record.id, last.record.fence, JobState.SUCCEEDED, now=clock.now())
    begin(catalogue, "sweep-1", kind="sweep.verify", ago=2 * LEASE)
    ended = begin(catalogue, "sweep-1", kind="sweep.verify", max_crashes=1)
    assert (ended.record.state, ended.record.error["type"]) == ("failed", "Poison")


def test_what_a_sweep_has_sent_is_dead_where_nothing_else_tells_of_it(catalogue):
    """The finding of a copy to repair stays open, and a verification that never ended has left no verdict."""
    for kind, end in {"replicate": "failed", "verify": "dead", "page": "dead"}.items():
        record = begin(catalogue, kind, kind=kind, queue="sweep", parent="sweep-1").record
        assert record.exhausted_state == end
    assert begin(catalogue, "user", kind="replicate", queue="sweep").record.exhausted_state == "dead"


BACK = timedelta(hours=1)


def test_a_dead_holder_from_before_the_clock_was_set_back_holds_nothing(catalogue):
    """Its lease would last for as long as the clock went back; the job is overdue, and its artifact is free at once."""
    begin(catalogue, "dead", ago=-BACK, writes_to="releases/a")
    assert (overdue(catalogue), overdue(catalogue)) == (["dead"], [])
    assert isinstance(begin(catalogue, "next", writes_to="releases/a"), Leased)
    assert isinstance(begin(catalogue, "dead", writes_to="releases/a"), Busy)  # now the next one is at work there


def test_a_living_holder_whose_clock_was_set_back_keeps_its_job(catalogue):
    """Its next heartbeat is of the new time. A worker before it takes the job, and the old holder writes nothing."""
    heard = begin(catalogue, "heard", ago=-BACK).record
    catalogue.ledger.renew(heard.id, heard.fence, until=clock.now() + LEASE, progress=None)
    assert overdue(catalogue) == []
    assert isinstance(begin(catalogue, "heard"), Busy)
    early = begin(catalogue, "early", ago=-BACK).record
    assert isinstance(begin(catalogue, "early", owner="another"), Leased)
    with pytest.raises(LostLease):
        catalogue.ledger.finish(early.id, early.fence, JobState.SUCCEEDED, now=clock.now(), result={})


def test_clocks_may_differ_by_some_leases(catalogue):
    """A holder whose clock is somewhat ahead, or whose leases last longer than ours, is believed to be alive."""
    begin(catalogue, "ahead", ago=-5 * LEASE, writes_to="releases/a")
    begin(catalogue, "longer", lease=8 * LEASE)
    assert overdue(catalogue) == []
    assert isinstance(begin(catalogue, "next", writes_to="releases/a"), Busy)
    assert isinstance(begin(catalogue, "longer"), Busy)


def test_what_waits_for_long_is_believed(catalogue):
    """A job that is to be tried again tomorrow is not overdue today: only who holds a job has to show life."""
    record = begin(catalogue).record
    catalogue.ledger.retry(record.id, record.fence, {"type": "Unavailable"}, due=clock.now() + 24 * BACK)
    assert overdue(catalogue) == []


def test_what_waits_longer_than_anything_can_is_sent_again(catalogue):
    """A retry that a clock a day ahead wrote is overdue now, where the longest delay is told, and only once."""
    for id_ in ("ahead", "soon"):
        record = begin(catalogue, id_).record
        due = clock.now() + (24 * BACK if id_ == "ahead" else BACK / 2)
        catalogue.ledger.retry(id_, record.fence, {"type": "Unavailable"}, due=due)
    times = {"now": clock.now(), "again": AGAIN, "lease": LEASE, "limit": 9, "delay": BACK}
    assert [job.id for job in catalogue.ledger.overdue(**times)] == ["ahead"]
    assert catalogue.ledger.overdue(**times) == []


def test_a_retry_of_a_clock_two_hours_ahead_is_sent_again_and_a_job_that_no_worker_has_seen_may_wait(catalogue):
    """How long a job may wait depends on whether it has started: one of a batch waits longer for its first start."""
    record = begin(catalogue, "ahead").record
    catalogue.ledger.retry("ahead", record.fence, {"type": "Unavailable"}, due=clock.now() + 2 * BACK)
    begin(catalogue, "holder", writes_to="releases/a")
    begin(catalogue, "unseen", writes_to="releases/a", lease=LEASE)
    with catalogue._database.write() as connection:
        due = {"due_at": clock.now() + 2 * BACK, "started_at": None}
        connection.execute(sa.update(jobs).where(jobs.c.id == "unseen").values(due))
    times = {"now": clock.now(), "again": AGAIN, "lease": LEASE, "limit": 9, "delay": BACK / 6}
    assert [job.id for job in catalogue.ledger.overdue(**times, unseen=2 * BACK)] == ["ahead"]
    assert [job.id for job in catalogue.ledger.overdue(**times, unseen=BACK)] == ["unseen"]


def test_a_job_snoozed_by_a_clock_ahead_loses_no_patience(catalogue):
    """The start of a wait that is in the future is corrected when the job is leased."""
    record = begin(catalogue).record
    catalogue.ledger.snooze(record.id, record.fence, {}, since=clock.now() + 24 * BACK, due=clock.now())
    now = clock.now()
    assert begin(catalogue, now=now).record.snoozed_since == now


@pytest.mark.parametrize("first", ["lease", "sent again", "held up"])
def test_a_job_loses_no_patience_while_no_worker_tries_it(catalogue, first):
    """Workers that were stopped over a weekend, or a clock that jumps ahead, do not make a waiting job dead.

    Nor does a weekend in which only `sweep.recover` had a worker, which sends the job again and again.
    """
    now = clock.now()
    since, due = now - timedelta(minutes=9), now + timedelta(minutes=1)
    record = begin(catalogue, writes_to="releases/a").record
    catalogue.ledger.snooze(record.id, record.fence, {"type": "Snooze"}, since=since, due=due)
    monday = now + timedelta(days=2)
    if first == "sent again":
        for times in (3, 2, 1):
            at = monday - times * AGAIN - times * timedelta(seconds=1)
            sent = catalogue.ledger.overdue(now=at, again=AGAIN, lease=LEASE, limit=9)
            assert [job.id for job in sent] == [record.id]
        monday = at + AGAIN
    elif first == "held up":
        other = begin(catalogue, "other", writes_to="releases/a", now=monday).record
        assert isinstance(begin(catalogue, writes_to="releases/a", now=monday), Busy)
        catalogue.ledger.finish("other", other.fence, JobState.SUCCEEDED, now=monday)
    again = begin(catalogue, writes_to="releases/a", now=monday).record
    assert monday - again.snoozed_since == due - since
    catalogue.ledger.snooze(record.id, again.fence, {"type": "Snooze"}, since=again.snoozed_since, due=monday)
    assert begin(catalogue, now=now).record.snoozed_since == now  # the clock was set back


@pytest.mark.parametrize(
    "write",
    [
        lambda held, artifact: held.artifacts.record("releases", "b", DIGEST, {}, clock.now()).artifact,
        lambda held, artifact: held.artifacts.ensure_copy(artifact, "cold"),
        lambda held, artifact: held.artifacts.finish_copy(artifact, "dr", tag="2", evidence={}, now=clock.now()),
        lambda held, artifact: held.transfers.begin(artifact, "dr", token="t", part_size=5, now=clock.now()),
        lambda held, artifact: held.transfers.add(artifact, "dr", SentPart(Part(1, 5, "e"), "a" * 64)),
    ],
)
def test_a_worker_that_lost_a_job_writes_nothing_for_it(catalogue, write):
    """The catalogue that a job was given works while the job is the holder's, and is void from then on."""
    artifact = catalogue.artifacts.record("releases", "a", DIGEST, {}, clock.now()).artifact
    catalogue.artifacts.ensure_copy(artifact, "dr")
    first = begin(catalogue, ago=2 * LEASE).record
    held = catalogue.fenced(first.id, first.fence)
    held.transfers.begin(artifact, "dr", token="t", part_size=5, now=clock.now())
    assert isinstance(begin(catalogue, owner="another"), Leased)
    with pytest.raises(LostLease, match="job-1 has lost its lease to another worker"):
        write(held, artifact)
    assert held.transfers.find(artifact, "dr") == catalogue.transfers.find(artifact, "dr")
    assert catalogue.transfers.find(artifact, "dr").sent == {}


def test_a_job_that_has_ended_stays_so(catalogue):
    """What its worker writes late, such as a heartbeat, changes nothing, although no other worker had its lease."""
    job, ledger, now = begin(catalogue).record, catalogue.ledger, clock.now()
    held = catalogue.fenced(job.id, job.fence)
    held.artifacts.record("releases", "a", DIGEST, {}, now)
    ledger.finish(job.id, job.fence, JobState.SUCCEEDED, now=now)
    with pytest.raises(LostLease):
        held.artifacts.record("releases", "b", DIGEST, {}, now)
    ended = ledger.get(job.id)
    for late in (
        partial(ledger.renew, until=now + LEASE, progress=None),
        partial(ledger.retry, error={}, due=now),
        partial(ledger.finish, state=JobState.FAILED, now=now),
    ):
        with pytest.raises(LostLease):
            late(job.id, job.fence)
    assert ledger.get(job.id) == ended


@pytest.mark.parametrize(("one", "again"), [("one", "one"), ("batch.00000001", "batch.00000007")])
def test_an_upload_that_goes_on_makes_no_second_version(catalogue, one, again):
    """Its next attempt uses the version of the one before, and gives way to what came between.

    So does the job of a file that has left its page: the page was its first attempt.
    """

    def record(key, digest, job):
        return catalogue.artifacts.record("releases", key, digest, {}, clock.now(), job=job).artifact

    other = Digest(12, "b" * 64)
    first = record("a", DIGEST, one)
    assert record("a", DIGEST, again) == first
    assert record("a", other, "two").version == 2
    with pytest.raises(Superseded, match="followed by version 2"):
        record("a", DIGEST, again)
    assert record("a", DIGEST, "three").version == 3

    assert record("c", DIGEST, f"{one}.7").version == 1  # its id only begins alike
    assert record("c", other, "three").version == 2
    assert record("c", DIGEST, again).version == 3

    deleted, begun = record("b", DIGEST, one), record("b", other, "two")
    catalogue.artifacts.tombstone(deleted, clock.now())
    with pytest.raises(Superseded, match="was deleted"):
        record("b", DIGEST, again)
    assert record("b", other, "two") == begun, "the delete was of the version before"


def test_a_file_that_leaves_its_page_replaces_no_later_file_of_the_same_key(catalogue):
    """A list may name a key twice: the page has recorded both files, and the first one is uploaded later by itself."""
    first, second = [Digest(12, each * 64) for each in "ab"]
    for digest in (first, second):
        catalogue.artifacts.record_many(
            [NewVersion("releases", "a", digest, ())], {}, clock.now(), job="batch.00000001"
        )
    with pytest.raises(Superseded, match="version 1 of .* was followed by version 2"):
        catalogue.artifacts.record("releases", "a", first, {}, clock.now(), job="batch.00000007")


@pytest.mark.parametrize(("one", "again"), [("one", "one"), ("batch.00000001", "batch.00000007")])
def test_an_upload_that_found_its_bytes_there_replaces_no_later_version(catalogue, one, again):
    """It has recorded no version of its own; nor does it bring back what was deleted between its attempts."""
    artifacts, other = catalogue.artifacts, Digest(12, "b" * 64)

    def record(key, digest, job):
        return artifacts.record("releases", key, digest, {}, clock.now(), job=job).artifact

    def record_in_page(key, digest, job):
        return artifacts.record_many([NewVersion("releases", key, digest, ())], {}, clock.now(), job=job)[0]

    for key, first in (("a", record), ("b", lambda *of: record_in_page(*of).artifact)):
        for job in ("before", one, "two", again, "three", "four"):
            assert first(key, DIGEST, job).version == 1
        assert record(key, other, "later").version == 2
        with pytest.raises(Superseded, match=f"version 1 of releases/{key}.*followed by version 2"):
            record(key, DIGEST, again)
        assert isinstance(record_in_page(key, DIGEST, again), Superseded)

    kept = record("c", DIGEST, "before")
    assert record("c", DIGEST, one) == kept
    artifacts.tombstone(kept, clock.now())
    with pytest.raises(Superseded, match="was deleted"):
        record("c", DIGEST, again)


def test_a_refused_job_hides_no_valid_request(catalogue):
    """The outbox keeps the message of that request until a worker has taken it, so that it is not lost."""
    begin(catalogue, "taken")
    catalogue.ledger.reject("refused", "upload", {}, {"type": "InvalidMessage", "message": "no"}, clock.now())
    catalogue.ledger.reject("taken", "upload", {}, {"type": "InvalidMessage", "message": "no"}, clock.now())
    assert catalogue.ledger.known(["taken", "refused", "other"]) == {"taken"}
