"""Outcomes recorded in groups: atomic, fenced, once for each job and copy, chained like single ones."""

import hashlib
import json
import sqlite3
from datetime import timedelta
from typing import NamedTuple

import pytest
import sqlalchemy as sa

from tests.unit.catalogue.test_catalogue import DIGEST, LEASE, before_next_write, begin, stored
from worker import clock
from worker.catalogue import (
    Artifact,
    Busy,
    CatalogueUnavailable,
    Copy,
    FinishedCopy,
    Group,
    Leased,
    LostLease,
    PageOutcome,
    VerdictRow,
)
from worker.catalogue.tables import copies
from worker.storage import Digest
from zot_artifact_client.contract import JobState


class Read(NamedTuple):
    artifact: Artifact
    copy: Copy
    row: VerdictRow


def outcomes(catalogue, keys, *, job="page", verdict="verified"):
    found = []
    for key in keys:
        artifact = catalogue.artifacts.current("releases", key) or stored(catalogue, key)
        copy = catalogue.artifacts.copies(artifact)["dr"]
        found.append(Read(artifact, copy, VerdictRow.of(job, artifact, copy, verdict, tag="1")))
    return found


def record(catalogue, found, *, job="page", same_tag=()):
    """Record verdicts as a page does; it knows that some of the copies have their tag already."""
    page = catalogue.pages.get(job) or catalogue.pages.begin(job, [each.copy.id for each in found])
    ended = [PageOutcome(each.copy.id, each.artifact.path, 11, each.row.verdict) for each in found]
    verdicts = [each.row._replace(same_tag=each in same_tag) for each in found]
    catalogue.pages.record(page, Group(ended, verdicts), now=clock.now())


def test_a_group_of_verdicts_is_chained_and_updates_its_copies(catalogue):
    """Verdicts of a group follow each other in the chain, and each copy has what its own verdict says."""
    good, bad = outcomes(catalogue, ["a", "b"]), outcomes(catalogue, ["c"], verdict="corrupt")
    record(catalogue, [*good, *bad])
    assert catalogue.verifications.first_broken() is None
    states = {each.artifact.key: catalogue.artifacts.copies(each.artifact)["dr"] for each in good + bad}
    assert {key: copy.state.value for key, copy in states.items()} == {"a": "verified", "b": "verified", "c": "corrupt"}
    assert [states[key].last_verified_at is None for key in "abc"] == [False, False, True]
    assert [states[key].attempts for key in "abc"] == [1, 1, 1]


def test_a_verified_copy_whose_tag_stays_changes_as_one_whose_tag_is_written(catalogue):
    """Both have the same values after the verdicts of a group, and a tag that was recorded meanwhile stays."""
    found = outcomes(catalogue, "abc")
    record(catalogue, found)
    with catalogue._database.write() as connection:
        connection.execute(sa.update(copies).where(copies.c.id == found[2].copy.id).values(tag="newer", spread=0))
        connection.execute(sa.update(copies).values(claimed_until=clock.now(), next_due_at=clock.now()))
    record(catalogue, found, same_tag=found[1:])
    with catalogue._database.read() as connection:
        rows = [dict(row._mapping) for row in connection.execute(sa.select(copies).order_by(copies.c.id))]
    assert [row["tag"] for row in rows] == ["1", "1", "newer"]
    assert [row["spread"] for row in rows] == [12 + row["artifact_id"] % 4 for row in rows[:2]] + [16 + 3]
    of_itself = ("id", "artifact_id", "tag", "spread")
    written, *others = [{name: value for name, value in row.items() if name not in of_itself} for row in rows]
    assert others == [written, written]
    assert (written["attempts"], written["claimed_until"], written["next_due_at"]) == (2, None, None)


@pytest.mark.parametrize("verdict", ["verified", "same tag", "missing", "unreadable"])
def test_a_verdict_changes_no_copy_that_was_deleted_or_superseded_while_it_was_read(catalogue, verdict):
    """The verdict is in the log; the copy stays deleted or superseded, and no finding is opened about it."""
    word = "verified" if verdict == "same tag" else verdict
    read = outcomes(catalogue, ["deleted", "superseded"], verdict=word)
    catalogue.artifacts.delete_copies([read[0].copy])
    stored(catalogue, "superseded", digest=Digest(11, "b" * 64))
    before = [catalogue.artifacts.copies(each.artifact)["dr"] for each in read]
    record(catalogue, read, same_tag=read if verdict == "same tag" else ())
    assert [catalogue.artifacts.copies(each.artifact)["dr"] for each in read] == before
    assert [copy.state.value for copy in before] == ["deleted", "superseded"]
    assert catalogue.findings.page() == []
    assert len(verdicts_of_page(catalogue)) == 2


def verdicts_of_page(catalogue):
    paths = [("releases", key) for key in (*"abcde", "deleted", "superseded")]
    return catalogue.pages.verdicts_by("page", paths)


def test_a_page_that_is_delivered_again_records_only_what_is_missing(catalogue):
    """What has a verdict is no longer open in the page, and the page tells its verdicts, but not those of others."""
    found = outcomes(catalogue, "abc")
    catalogue.pages.begin("page", [each.copy.id for each in found])
    record(catalogue, found[:2])
    record(catalogue, outcomes(catalogue, "c", job="other"), job="other")
    assert catalogue.pages.get("page").open == [found[2].copy.id]
    verdicts = {("dr", "releases", key, 1): ("verified", None) for key in "ab"}
    assert verdicts_of_page(catalogue) == verdicts


def test_a_group_of_a_worker_that_lost_its_lease_is_void(catalogue):
    """No verdict, copy or delete of a group is recorded under an old fencing token."""
    first = begin(catalogue, "page", now=clock.now() - 2 * LEASE).record
    assert isinstance(begin(catalogue, "page"), Leased)
    old, group = catalogue.fenced("page", first.fence), outcomes(catalogue, "ab")
    catalogue.pages.begin("page", [each.copy.id for each in group])
    with pytest.raises(LostLease):
        record(old, group)
    with pytest.raises(LostLease):
        old.artifacts.delete_copies([each.copy for each in group])
    assert verdicts_of_page(catalogue) == {}
    assert catalogue.artifacts.count_by_state() == {"dr": {"stored": 2}}


def add(recorder, found):
    ended = [PageOutcome(each.copy.id, each.artifact.path, 11, each.row.verdict) for each in found]
    recorder.add(ended, [each.row for each in found], now=clock.now())


def test_groups_wait_for_another_writer_while_the_page_reads_on(catalogue, monkeypatch):
    """While another transaction writes, three groups wait and the page reads on; with the fourth it waits, too."""
    found = outcomes(catalogue, "abcde")
    page = catalogue.pages.begin("page", [each.copy.id for each in found])
    with catalogue.pages.recorder(page) as recorder:
        with catalogue._database.write():
            for each in found[:3]:
                add(recorder, [each])
            assert verdicts_of_page(catalogue) == {}
        with monkeypatch.context() as writes:
            waits = []
            writes.setattr(recorder, "_write", lambda *, wait: waits.append(wait))
            add(recorder, [found[3]])
            assert waits == [True]
        add(recorder, [found[4]])
    assert recorder.page.outcomes == {"verified": 5}
    assert catalogue.pages.get("page") == recorder.page
    assert len(verdicts_of_page(catalogue)) == 5


def test_the_row_of_a_page_has_what_is_written_and_not_what_waits(catalogue):
    """A transaction has two groups at most, and objects of a group that still waits stay open in the page's row."""
    found = outcomes(catalogue, "abcdef")
    page = catalogue.pages.begin("page", [each.copy.id for each in found])
    recorder = catalogue.pages.recorder(page)
    with catalogue._database.write():
        for each in found[:3]:
            add(recorder, [each])
    recorder._write(wait=True)
    assert catalogue.pages.get("page").open == [each.copy.id for each in found[2:]]
    assert len(verdicts_of_page(catalogue)) == 2
    with catalogue._database.write():
        for each in found[3:5]:
            add(recorder, [each])
    recorder.__exit__(None, None, None)
    assert catalogue.pages.get("page").open == [found[5].copy.id], "at the end nothing waits"
    assert len(verdicts_of_page(catalogue)) == 5
    assert catalogue.verifications.first_broken() is None


def test_nothing_is_recorded_after_a_commit_that_failed(catalogue, monkeypatch):
    """A page whose commit failed records no later group, which would end objects that have no verdict."""
    found = outcomes(catalogue, "abc")
    page = catalogue.pages.begin("page", [each.copy.id for each in found])
    recorder = catalogue.pages.recorder(page)
    with monkeypatch.context() as full:
        full.setattr(sa.engine.RootTransaction, "commit", _fail)
        with pytest.raises(CatalogueUnavailable, match="disk is full"):
            add(recorder, found[:1])
    add(recorder, found[1:])
    recorder.__exit__(None, None, None)
    assert catalogue.pages.get("page").open == page.open
    assert verdicts_of_page(catalogue) == {}


def _fail(*_: object) -> None:
    raise sa.exc.OperationalError("COMMIT", None, sqlite3.OperationalError("database or disk is full"))


def test_groups_of_a_worker_that_lost_its_lease_are_void(catalogue):
    """No group is recorded under an old fencing token, neither at once nor at the end of the page."""
    first = begin(catalogue, "page", now=clock.now() - 2 * LEASE).record
    assert isinstance(begin(catalogue, "page"), Leased)
    found = outcomes(catalogue, "ab")
    recorder = catalogue.fenced("page", first.fence).pages.recorder(
        catalogue.pages.begin("page", [each.copy.id for each in found])
    )
    with pytest.raises(LostLease), recorder:
        add(recorder, found[:1])
    assert verdicts_of_page(catalogue) == {}


def test_copies_are_finished_and_deleted_in_groups(catalogue):
    """A group of complete copies commits its versions and supersedes those before; a group of deletes ends them."""
    before = stored(catalogue, "a")
    other = type(DIGEST)(12, "b" * 64)
    versions = [
        catalogue.artifacts.record("releases", key, other, {}, clock.now(), stores=["dr"]).artifact for key in "ab"
    ]
    catalogue.artifacts.finish_copies([FinishedCopy(each, "dr", "2") for each in versions], now=clock.now())
    assert [catalogue.artifacts.current("releases", key).version for key in "ab"] == [2, 1]
    assert catalogue.artifacts.copies(before)["dr"].state == "superseded"
    copies = [catalogue.artifacts.copies(each)["dr"] for each in versions]
    catalogue.artifacts.delete_copies(copies)
    stored(catalogue, "a")
    assert [catalogue.artifacts.copies(each)["dr"].state for each in versions] == ["deleted", "deleted"]


def test_a_version_stays_committed_since_its_first_complete_copy(catalogue):
    """A copy that is written later, such as by a repair, makes the version no younger."""
    artifact = stored(catalogue, "a")
    catalogue.artifacts.finish_copy(artifact, "dr", tag="2", evidence={}, now=clock.now() + LEASE)
    assert catalogue.artifacts.current("releases", "a").committed_at <= clock.now()


def test_the_copies_of_a_job_are_recorded_with_its_end(catalogue):
    """The end of a job and the copies that it has completed are one transaction, under the fence of its lease."""
    first = begin(catalogue, "job", now=clock.now() - 2 * LEASE).record
    lease = begin(catalogue, "job").record
    made = catalogue.artifacts.record("releases", "a", DIGEST, {}, clock.now(), stores=["dr"]).artifact
    ending = {"now": clock.now(), "result": {}, "copies": [FinishedCopy(made, "dr", "1")]}
    with pytest.raises(LostLease):
        catalogue.ledger.finish("job", first.fence, JobState.SUCCEEDED, **ending)
    assert catalogue.artifacts.current("releases", "a") is None
    catalogue.ledger.finish("job", lease.fence, JobState.SUCCEEDED, **ending)
    assert catalogue.artifacts.current("releases", "a").id == made.id
    assert catalogue.artifacts.copies(made)["dr"].state == "stored"


def test_the_locks_of_a_page_and_the_lock_of_a_job_exclude_each_other(catalogue):
    """An artifact that a page has locked is held for an upload, and one that an upload writes is not locked."""
    paths, now = [("releases", key) for key in ("a", "b", "c/d")], clock.now()
    page = begin(catalogue, "page").record
    begin(catalogue, "upload", writes_to="releases/b")
    got = catalogue.artifact_locks.acquire("page", page.fence, paths, now=now, lease=LEASE)
    assert got == {("releases", "a"), ("releases", "c/d")}
    other = begin(catalogue, "other page").record
    assert catalogue.artifact_locks.acquire("other page", other.fence, paths, now=now, lease=LEASE) == set()
    held = begin(catalogue, "late", writes_to="releases/c/d")
    assert isinstance(held, Busy)
    assert "job page is writing to releases/c/d" in held.reason
    catalogue.artifact_locks.release("page", page.fence - 1)
    assert isinstance(begin(catalogue, "late", writes_to="releases/c/d"), Busy), (
        "a worker that lost the lease releases none"
    )
    catalogue.artifact_locks.release("page", page.fence)
    assert isinstance(begin(catalogue, "late", writes_to="releases/c/d"), Leased)


def test_many_keys_are_compared_as_a_whole(catalogue):
    """SQLite would end a text of a JSON array at a NUL character: the lock of another artifact would be removed."""
    now = clock.now()
    first, second = begin(catalogue, "first").record, begin(catalogue, "second").record
    locks = catalogue.artifact_locks
    assert locks.acquire("first", first.fence, [("releases", "a")], now=now, lease=LEASE) == {("releases", "a")}
    locks.acquire("second", second.fence, [("releases", "a\0b")], now=now, lease=LEASE)
    assert isinstance(begin(catalogue, "late", writes_to="releases/a"), Busy)


@pytest.mark.parametrize("frozen", ["page", "upload"])
@pytest.mark.parametrize("taken_by", ["page", "upload"])
def test_a_job_whose_artifact_another_job_has_taken_records_nothing(catalogue, frozen, taken_by):
    """A frozen worker whose lease is over may go on: it renews no lease and writes nothing after the other job."""
    path, now = ("releases", "a"), clock.now()

    def take(job, kind, at):
        lease = begin(catalogue, job, now=at, writes_to="/".join(path) if kind == "upload" else None).record
        if kind == "page":
            assert catalogue.artifact_locks.acquire(job, lease.fence, [path], now=at, lease=LEASE) == {path}
        return lease

    before = take("frozen", frozen, now - 2 * LEASE)
    untouched = begin(catalogue, "elsewhere", now=now - 2 * LEASE, writes_to="releases/b").record
    take("other", taken_by, now)
    with pytest.raises(LostLease):
        catalogue.ledger.renew("frozen", before.fence, until=now + LEASE, progress=None)
    with pytest.raises(LostLease):
        stored(catalogue.fenced("frozen", before.fence), "a")
    catalogue.ledger.renew("elsewhere", untouched.fence, until=now + LEASE, progress=None)
    assert isinstance(begin(catalogue, "frozen", now=now), Leased), "its next delivery begins again"


def test_the_locks_of_a_page_end_with_its_lease(catalogue):
    """Locks of a page that was killed, has ended or was delivered again under another fence keep no writer away."""
    path, now = [("releases", "a")], clock.now()
    killed = begin(catalogue, "killed", now=now - 2 * LEASE).record
    both = [*path, ("releases", "b")]
    assert catalogue.artifact_locks.acquire("killed", killed.fence, both, now=now - 2 * LEASE, lease=LEASE) == {*both}
    page = begin(catalogue, "page").record
    assert catalogue.artifact_locks.acquire("page", page.fence, path, now=now, lease=LEASE) == set(path)
    assert catalogue.artifact_locks.acquire("page", page.fence, path, now=now, lease=LEASE) == set(path)
    catalogue.ledger.finish("page", page.fence, JobState.SUCCEEDED, now=now)
    assert isinstance(begin(catalogue, "late", writes_to="releases/a"), Leased)
    assert isinstance(begin(catalogue, "killed"), Leased)
    assert isinstance(begin(catalogue, "later", writes_to="releases/b"), Leased)


def test_the_ledger_forgets_jobs_that_ended_long_ago(catalogue, monkeypatch):
    """Pruning deletes ended jobs in bounded batches; dead, open, recent, redriven and not yet counted ones stay."""
    now = clock.now()
    long_ago = now - timedelta(days=100)
    ends = {"old": JobState.SUCCEEDED, "older": JobState.CANCELLED, "dead": JobState.DEAD, "batch": JobState.SUCCEEDED}
    for id_, state in ends.items():
        job = begin(catalogue, id_, now=long_ago).record
        catalogue.ledger.finish(id_, job.fence, state, now=long_ago - timedelta(days=id_ == "older"))
    counted = begin(catalogue, "counted", parent="batch", now=long_ago).record
    catalogue.batches.begin("batch", {}, total=1, total_bytes=None, now=long_ago)
    catalogue.ledger.finish("counted", counted.fence, JobState.SUCCEEDED, now=long_ago)
    begin(catalogue, "open", now=long_ago)
    recent = begin(catalogue, "recent").record
    catalogue.ledger.finish("recent", recent.fence, JobState.SUCCEEDED, now=now)

    before = now - timedelta(days=90)
    assert catalogue.ledger.prune(before=before, limit=1) == 1
    assert catalogue.ledger.get("older") is None
    assert catalogue.ledger.prune(before=before) == 1
    assert {job.id for job in catalogue.job_admin.find([])} == {"dead", "batch", "counted", "open", "recent"}
    catalogue.batches.close("batch")
    job = begin(catalogue, "redriven", now=long_ago).record
    catalogue.batches.begin("redriven", {}, total=1, total_bytes=None, now=long_ago)
    catalogue.batches.close("redriven")
    catalogue.ledger.finish("redriven", job.fence, JobState.CANCELLED, now=long_ago)
    before_next_write(monkeypatch, lambda: catalogue.job_admin.redrive("redriven", {}, due=now))
    assert catalogue.ledger.prune(before=before) == 2
    assert catalogue.batches.get("batch") is None
    assert catalogue.ledger.get("redriven").state == "queued"
    assert catalogue.batches.get("redriven")


def test_the_hash_of_a_row_is_that_of_its_json(catalogue):
    """The chain is what anyone computes from the rows with a JSON library, whatever characters they have."""
    artifact = stored(catalogue, 'ü\n"k\\')
    copy = catalogue.artifacts.copies(artifact)["dr"]
    finding = VerdictRow.of("page", artifact, copy, "corrupt", "b" * 64, 7, "found \x7f\u2028 é")
    catalogue.verifications.record(finding, now=clock.now())
    (row,) = catalogue.verifications.of("releases", artifact.key)
    plain = {name: value for name, value in row.items() if name not in {"id", "hash"}} | {"at": row["at"].isoformat()}
    assert row["hash"] == hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
