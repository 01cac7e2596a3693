"""The catalogue never changes immutable rows, and gives each claim to one worker."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import pairwise

import psycopg
import pytest
import sqlalchemy as sa

from tests.claimed_keys import claimed_keys
from tests.servers.postgres import connect
from worker import clock
from worker.catalogue import (
    AHEAD,
    Busy,
    Catalogue,
    FindingKind,
    Finished,
    Leased,
    LostLease,
    NewerCatalogue,
    OtherRequest,
    VerdictRow,
)
from worker.catalogue.database import Database, open_engine
from worker.catalogue.pages import PlannedPage
from worker.catalogue.tables import jobs, metadata
from worker.storage import Digest
from worker.storage.integrity.manifest import CHUNK_SIZE, Manifest
from zot_artifact_client.contract import JobState

LEASE = timedelta(seconds=30)
PERIOD = timedelta(days=30)
DIGEST = Digest(11, "a" * 64)


@pytest.fixture
def database(catalogue, catalogue_url):
    """The database itself, as a SQL shell shows it."""
    if catalogue_url.startswith("sqlite"):
        connection = sqlite3.connect(catalogue_url.removeprefix("sqlite:///"), isolation_level=None)
    else:
        connection = connect(catalogue_url)
    yield connection
    connection.close()


def stored(catalogue, key="app.tgz", *, digest=DIGEST, now=None):
    artifact = catalogue.artifacts.record("releases", key, digest, {}, clock.now()).artifact
    catalogue.artifacts.ensure_copy(artifact, "dr")
    catalogue.artifacts.finish_copy(artifact, "dr", tag="1", evidence={}, now=now or clock.now())
    return artifact


def verified(catalogue, artifact, *, now):
    copy = catalogue.artifacts.copies(artifact)["dr"]
    catalogue.verifications.record(VerdictRow.of("job-1", artifact, copy, "verified"), now=now)


def read_twice(catalogue, artifact, *, now):
    """Verify a copy again: the next read is then at the end of the period, and not at any part of it."""
    for _ in range(2):
        verified(catalogue, artifact, now=now)


def begin(catalogue, id_="job-1", kind="upload", **more):
    arguments = {"owner": "me", "writes_to": None, "parent": None, "now": clock.now(), "lease": LEASE} | more
    return catalogue.ledger.acquire(id_, kind, arguments.pop("request", {"key": "a"}), **arguments)


def before_next_write(monkeypatch, do):
    """Do something between what the next call reads and what it writes."""
    write = Database.write

    def late(self, **options):
        monkeypatch.setattr(Database, "write", write)
        do()
        return write(self, **options)

    monkeypatch.setattr(Database, "write", late)


def test_the_tables_are_those_that_the_migrations_make(catalogue_url, catalogue):
    """The migrations and the tables that queries are written against do not drift apart."""
    found = sa.inspect(open_engine(catalogue_url))
    made = {
        (table, column["name"])
        for table in found.get_table_names()
        for column in found.get_columns(table)
        if table != "alembic_version"
    }
    indexes = {
        index["name"]
        for table in metadata.tables
        for index in found.get_indexes(table)
        if "duplicates_constraint" not in index
    }
    found.bind.dispose()
    assert indexes == {index.name for table in metadata.tables.values() for index in table.indexes}
    assert made == {(table.name, column.name) for table in metadata.tables.values() for column in table.columns}


def test_a_catalogue_of_a_newer_version_is_refused(catalogue_url, database):
    """A catalogue that this program does not understand is not touched."""
    database.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(NewerCatalogue, match="its tables have revision 9999"):
        Catalogue(catalogue_url)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE artifacts SET sha256 = 'b'",
        "UPDATE artifacts SET size = 1",
        "DELETE FROM artifacts",
        "UPDATE verifications SET verdict = 'verified'",
        "DELETE FROM verifications",
        "UPDATE undeletes SET version = 2",
        "DELETE FROM undeletes",
    ],
)
def test_what_was_recorded_cannot_be_changed(catalogue, database, statement):
    """No recorded digest, verdict or undelete can be changed or taken away, not even with SQL."""
    artifact, now = stored(catalogue), clock.now()
    copy = catalogue.artifacts.copies(artifact)["dr"]
    catalogue.verifications.record(VerdictRow.of("job-1", artifact, copy, "corrupt"), now=now)
    catalogue.deletions.begin(artifact, now=now, until=now, by=None, reason=None, job="job-2")
    catalogue.deletions.undo(artifact.bucket, artifact.key, now=now)
    with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError), match=r"never|append-only"):
        database.execute(statement)


def test_tampering_with_the_log_shows(catalogue, database, catalogue_url):
    """A row that was changed behind the triggers' back breaks the chain, and the first such row is named.

    So does one that was taken out of it: the row after it does not fit.
    """
    artifact = stored(catalogue)
    copy = catalogue.artifacts.copies(artifact)["dr"]
    for verdict in ("verified", "corrupt", "verified"):
        finding = VerdictRow.of("job-1", artifact, copy, verdict)
        catalogue.verifications.record(finding, now=clock.now())
    assert catalogue.verifications.first_broken() is None

    on = "" if catalogue_url.startswith("sqlite") else "ON verifications"
    database.execute(f"DROP TRIGGER verifications_are_never_updated {on}")
    database.execute("UPDATE verifications SET verdict = 'verified' WHERE id = 2")
    assert catalogue.verifications.first_broken() == 2

    database.execute(f"DROP TRIGGER verifications_are_never_deleted {on}")
    database.execute("DELETE FROM verifications WHERE id = 2")
    assert catalogue.verifications.first_broken() == 3


def test_a_job_is_given_to_one_delivery_only(catalogue):
    """Of many simultaneous deliveries of one message, one gets the job and the others wait without an attempt."""
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda n: begin(catalogue, owner=f"worker-{n}"), range(8)))
    assert sum(isinstance(outcome, Leased) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Busy) for outcome in outcomes) == 7
    assert catalogue.ledger.get("job-1").attempts == 1


def test_a_lease_that_ran_out_goes_to_the_next_delivery_and_fences_the_first(catalogue):
    """A worker that was stopped past its lease can record nothing any more."""
    first = begin(catalogue, now=clock.now() - 2 * LEASE)
    second = begin(catalogue)
    assert (first.record.fence, second.record.fence) == (1, 2)

    with pytest.raises(LostLease):
        catalogue.ledger.finish("job-1", 1, JobState.FAILED, now=clock.now())
    catalogue.ledger.finish("job-1", 2, JobState.SUCCEEDED, now=clock.now(), result={"ok": True})
    assert catalogue.ledger.get("job-1").state == "succeeded"


def test_a_job_that_has_ended_is_not_started_again(catalogue):
    """A message that is delivered after its job has ended gets the job's outcome."""
    job = begin(catalogue)
    catalogue.ledger.finish("job-1", job.record.fence, JobState.SUCCEEDED, now=clock.now(), result={"version": 1})
    again = begin(catalogue)
    assert isinstance(again, Finished)
    assert again.record.result == {"version": 1}


def test_two_writers_of_one_artifact_take_turns(catalogue):
    """While one job writes to an artifact another one waits for it, and a reader does not."""
    begin(catalogue, "writer", writes_to="releases/app.tgz")
    assert isinstance(begin(catalogue, "other", writes_to="releases/app.tgz"), Busy)
    assert isinstance(begin(catalogue, "reader"), Leased)
    assert isinstance(begin(catalogue, "elsewhere", writes_to="releases/lib.tgz"), Leased)


def test_an_id_is_of_one_request(catalogue):
    """A second request under the same id or idempotency key is refused; the first one stays."""
    begin(catalogue)
    for other in ({"request": {"key": "b"}}, {"kind": "delete"}):
        with pytest.raises(OtherRequest, match="job-1"):
            begin(catalogue, **other)


def test_a_due_copy_is_claimed_once_and_the_oldest_attempt_first(catalogue):
    """A copy never read, or the longest overdue, comes first, and a claimed copy is not claimed again."""
    now = clock.now()
    for key, days in (("read", 1.2), ("unread", None), ("later", 0.5)):
        artifact = stored(catalogue, key, now=now - 2 * PERIOD)
        if days is not None:
            read_twice(catalogue, artifact, now=now - days * PERIOD)

    claim = {"period": PERIOD, "now": now, "until": now + timedelta(hours=1)}
    assert claimed_keys(catalogue, "dr", limit=1, **claim) == ["unread"]
    assert claimed_keys(catalogue, "dr", limit=9, **claim) == ["read"]
    lapsed = claim | {"now": now + timedelta(hours=2), "until": now + timedelta(hours=3)}
    assert claimed_keys(catalogue, "dr", limit=9, **lapsed) == ["unread", "read"]


def test_copies_that_are_due_together_are_claimed_in_the_order_in_which_they_were_recorded(catalogue):
    """Neighbours in the tables are verified by one page, so that a page writes few pages of the disk."""
    now = clock.now()
    for number in range(24):
        read_twice(catalogue, stored(catalogue, f"{number:02}"), now=now - 2 * PERIOD)
    claim = {"period": PERIOD, "now": now, "until": now + timedelta(hours=1)}
    pages = [claimed_keys(catalogue, "dr", limit=12, **claim) for _ in range(2)]
    assert pages == [[f"{number:02}" for number in range(first, first + 12)] for first in (0, 12)]


def test_the_copies_that_wait_longest_are_claimed_first_although_one_search_finds_them_all(catalogue):
    """Copies are searched for in groups, of which each gets a part of the limit: one may have all that are first."""
    now, hour = clock.now(), timedelta(hours=1)
    for number in range(16):
        older = number if number % 4 == 1 else 0  # those that were read again are in four groups, by their artifacts
        read_twice(catalogue, stored(catalogue, f"{number:02}"), now=now - 2 * PERIOD - older * hour)
    claim = {"period": PERIOD, "now": now, "until": now + hour}
    assert claimed_keys(catalogue, "dr", limit=3, **claim) == ["13", "09", "05"]


def test_a_changed_period_counts_for_the_copies_that_are_there(catalogue):
    """A copy is due by the period in force now, not by the one at its last read."""
    now = clock.now()
    for number in range(24):
        read_twice(catalogue, stored(catalogue, f"{number:02}"), now=now - timedelta(days=10))

    def due(days, ahead=0.0):
        at = now + timedelta(days=ahead)  # claims of before have lapsed by then
        times = {"period": timedelta(days=days), "now": at, "until": at + timedelta(seconds=1), "limit": 99}
        return len(claimed_keys(catalogue, "dr", **times))

    assert (due(30), due(1, 0.1), due(30, 0.2)) == (0, 24, 0)
    assert [due(30, ahead) for ahead in (10.5, 16, 18)] == [0, 0, 24]


def test_new_copies_are_read_within_a_day_and_then_over_the_whole_period(catalogue):
    """The first reads of a bulk upload come within a day, and the second ones do not come together."""
    now, day = clock.now(), timedelta(days=1)
    written = {f"{number:02}": stored(catalogue, f"{number:02}", now=now) for number in range(24)}

    def due(at):
        times = {"period": PERIOD, "first_read": day, "now": at, "until": at + timedelta(seconds=1), "limit": 99}
        return claimed_keys(catalogue, "dr", **times)

    first = [len(due(now + day * tenth / 10)) for tenth in range(11)]
    assert first == sorted(first)
    assert (first[0], first[5] < 24, first[10]) == (0, True, 24)
    assert catalogue.sweep_claims.needed("dr", period=PERIOD, first_read=day, now=now).first > 24 / day.total_seconds()
    for artifact in written.values():
        verified(catalogue, artifact, now=now + day)
    second = [len(due(now + day + PERIOD * tenth / 10)) for tenth in range(1, 11)]
    assert second[-1] == 24
    assert max(after - before for before, after in pairwise([0, *second])) <= 4


def test_a_copy_that_is_due_by_its_period_is_read_before_new_ones(catalogue):
    """However many copies are new, none that was read before becomes overdue by them."""
    now, day = clock.now(), timedelta(days=1)
    for key in ("new 1", "new 2"):
        stored(catalogue, key, now=now - 5 * day)
    old = stored(catalogue, "old", now=now - 2 * PERIOD)
    read_twice(catalogue, old, now=now - PERIOD * 0.95)
    times = {"period": PERIOD, "first_read": day, "now": now, "until": now + day}
    assert [claimed_keys(catalogue, "dr", **times, limit=1) for _ in range(3)] == [["old"], ["new 1"], ["new 2"]]
    assert catalogue.sweep_claims.first_reads_late("dr", first_read=day, now=now) == 2
    assert catalogue.sweep_claims.first_reads_late("dr", first_read=PERIOD, now=now) == 0


def test_an_unreadable_copy_is_retried_before_the_period_is_over(catalogue):
    """A copy that could not be read is due at its retry, and does not count as read."""
    now = clock.now()
    artifact = stored(catalogue, now=now - 2 * PERIOD)
    copy = catalogue.artifacts.copies(artifact)["dr"]
    soon = now + timedelta(hours=1)
    catalogue.verifications.record(VerdictRow.of("job-1", artifact, copy, "unreadable", retry_at=soon), now=now)
    times = {"period": PERIOD, "until": now + timedelta(days=1), "limit": 9}
    retries = catalogue.sweep_claims.count_retries
    assert [retries("dr", now=now), retries("dr", now=soon), retries("cold", now=soon)] == [0, 1, 0]
    assert claimed_keys(catalogue, "dr", now=now, **times) == []
    assert len(claimed_keys(catalogue, "dr", now=soon, **times)) == 1
    assert catalogue.artifacts.oldest_verified("dr") is None


def test_copies_that_were_not_read_within_the_period_are_counted(catalogue):
    """Overdue is what was not read fully for longer than the period, unreadable copies too, deleted ones not."""
    now = clock.now()
    old = [stored(catalogue, key, now=now - 2 * PERIOD) for key in ("read", "unread", "unreadable", "deleted")]
    verified(catalogue, old[0], now=now)
    copies = [catalogue.artifacts.copies(artifact)["dr"] for artifact in old]
    finding = VerdictRow.of("job-1", old[2], copies[2], "unreadable", retry_at=now + timedelta(hours=1))
    catalogue.verifications.record(finding, now=now)
    catalogue.artifacts.delete_copies([copies[3]])
    assert catalogue.sweep_claims.overdue("dr", period=PERIOD, now=now) == 2
    silent = stored(catalogue, "read once", now=now - 2 * PERIOD)
    verified(catalogue, silent, now=now - 1.5 * PERIOD)
    finding = VerdictRow.of("job-1", silent, catalogue.artifacts.copies(silent)["dr"], "unreadable", retry_at=now)
    catalogue.verifications.record(finding, now=now)
    assert catalogue.sweep_claims.overdue("dr", period=PERIOD, now=now) == 3
    assert catalogue.sweep_claims.first_reads_late("dr", first_read=PERIOD, now=now) == 2
    assert catalogue.sweep_claims.overdue("dr", period=3 * PERIOD, now=now) == 0


def test_reads_and_retries_of_a_clock_that_was_ahead_are_due_at_once(catalogue):
    """After a clock that was ahead was set right, a copy that was read or is to be retried in the future is due now."""
    now, ahead = clock.now(), clock.now() + timedelta(days=365)
    verified(catalogue, stored(catalogue, "read", now=ahead), now=ahead)
    verified(catalogue, stored(catalogue, "just now"), now=now + timedelta(minutes=4))  # clocks differ by as much
    artifact = stored(catalogue, "unreadable", now=ahead)
    copy = catalogue.artifacts.copies(artifact)["dr"]
    later = ahead + timedelta(hours=1)
    catalogue.verifications.record(VerdictRow.of("job-1", artifact, copy, "unreadable", retry_at=later), now=ahead)
    assert catalogue.sweep_claims.count_due("dr", period=PERIOD, now=now, limit=9) == 2
    due = claimed_keys(catalogue, "dr", period=PERIOD, now=now, until=now + timedelta(hours=6), limit=9)
    assert set(due) == {"read", "unreadable"}


@pytest.mark.parametrize("verb", ["verify", "replicate"])
def test_what_a_cancelled_page_of_a_sweep_has_left_can_be_claimed_at_once(catalogue, monkeypatch, verb):
    """The next sweep would find nothing to do until the claim ends; the claims of other pages stay.

    A dead page keeps its claims and its progress, with which it continues when it is redriven.
    """
    now, until = clock.now(), clock.now() + timedelta(hours=6)
    artifact = catalogue.artifacts.record("releases", "app.tgz", DIGEST, {}, now, stores=["cold", "dr"]).artifact
    for store in ("cold", "dr"):  # the copy in `dr` has another id than the artifact
        catalogue.artifacts.finish_copy(artifact, store, tag="1", evidence={}, now=now - 2 * PERIOD)
        catalogue.pages.claim_due(f"{verb} {store}", store, period=PERIOD, now=now, until=until, limit=9)
    object_ = artifact.id if verb == "replicate" else catalogue.artifacts.copies(artifact)["dr"].id
    planned = PlannedPage("page-1", {"verb": verb, "claim": {"store": "dr"}}, objects=[object_], claimed_until=until)
    too_slow = replace(planned, job="page-2", claimed_until=now)  # its claim has ended, and page-1 has claimed it since
    catalogue.pages.plan("sweep", [planned, too_slow], queue="sweep", due=None, now=now)
    of_page = sa.update(jobs).where(jobs.c.id == "page-1")
    with catalogue._database.write() as connection:
        connection.execute(of_page.values(state=JobState.DEAD))
    catalogue.pages.remove_ended()
    assert catalogue.pages.get("page-1").open == [object_]
    assert catalogue.pages.claimed_copies(catalogue.pages.get("page-2")) == []
    with catalogue._database.write() as connection:
        connection.execute(of_page.values(state=JobState.QUEUED))
    catalogue.pages.remove("page-1")
    assert catalogue.pages.get("page-1").open == [object_], "it was redriven"
    catalogue.job_admin.cancel("page-1", {}, now)
    before_next_write(monkeypatch, lambda: catalogue.job_admin.redrive("page-1", {}, due=now))
    catalogue.pages.remove_ended()
    assert catalogue.pages.get("page-1").open == [object_], "it was redriven meanwhile"
    for job, left in (("page-2", []), ("page-1", ["app.tgz"])):
        catalogue.job_admin.cancel(job, {}, now)
        catalogue.pages.remove_ended()
        assert claimed_keys(catalogue, "dr", period=PERIOD, now=now, until=until, limit=9) == left
        assert claimed_keys(catalogue, "cold", period=PERIOD, now=now, until=until, limit=9) == []


def test_a_read_of_a_clock_that_was_ahead_is_repeated_before_others_are_read_early(catalogue):
    """A store always has copies that may be read before they are due: they keep no other copy from being read."""
    now = clock.now()
    for key, read_at in (("early", now - PERIOD / 2), ("ahead", now + timedelta(days=365))):
        read_twice(catalogue, stored(catalogue, key, now=read_at), now=read_at)
    until = now + timedelta(hours=6)
    page = catalogue.pages.claim_due("page-1", "dr", period=PERIOD, now=now, until=until, limit=1, ahead=AHEAD)
    assert [copy.key for copy in catalogue.pages.claimed_copies(page)] == ["ahead"]


def test_the_oldest_verification_and_the_copies_never_verified_are_told_apart(catalogue):
    """A copy that is new hides no oldest verification; how many were never read is a number of its own.

    A bad copy has none that counts, and one that waits for a retry has the one of before.
    """
    now = clock.now()
    made = {key: stored(catalogue, key) for key in ("bad", "silent", "old", "new", "unread")}
    for key, days in (("bad", 40), ("silent", 30), ("old", 20), ("new", 1)):
        verified(catalogue, made[key], now=now - timedelta(days=days))
    assert catalogue.artifacts.oldest_verified("dr") == now - timedelta(days=40)
    for key, verdict, at in (("bad", "corrupt", now - timedelta(days=35)), ("silent", "unreadable", now)):
        copy = catalogue.artifacts.copies(made[key])["dr"]
        finding = VerdictRow.of("job-2", made[key], copy, verdict, retry_at=now + timedelta(hours=1))
        catalogue.verifications.record(finding, now=at)
    assert catalogue.artifacts.oldest_verified("dr") == now - timedelta(days=30)
    read_twice(catalogue, made["silent"], now=now)
    assert catalogue.artifacts.oldest_verified("dr") == now - timedelta(days=20)
    assert catalogue.artifacts.never_verified("dr") == 1
    assert (catalogue.artifacts.oldest_verified("cold"), catalogue.artifacts.never_verified("cold")) == (None, 0)


def test_an_object_of_one_chunk_has_its_manifest_without_a_row(catalogue):
    """The only chunk's digest is the whole object's: its manifest is there, and no row is kept for it."""
    digest = Digest(5, "c" * 64)
    manifest = Manifest(5, CHUNK_SIZE, bytes.fromhex(digest.sha256))
    artifact = catalogue.artifacts.record("releases", "small", digest, {}, clock.now(), manifest=manifest).artifact
    assert catalogue.artifacts.manifest(artifact) == manifest
    with catalogue._database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(metadata.tables["manifests"])).scalar() == 0


def claims(catalogue, now, lasts):
    """Return how many copies a sweep claims to read at a time, and how many to make."""
    times = {"now": now, "until": now + lasts, "limit": 9}
    due = claimed_keys(catalogue, "dr", period=PERIOD, **times)
    wanted = lambda *_, **__: True  # noqa: E731
    begun = catalogue.sweep_claims.begun("cold", "releases", "", wanted=wanted, late_since=clock.now(), **times)
    absent = catalogue.sweep_claims.absent("cold", "releases", "", wanted=wanted, **times)
    return len(due), len(begun) + len(absent)


def test_a_claim_that_lasts_too_long_is_not_believed(catalogue):
    """A sweep whose clock was a year ahead claims nothing for a year, be it to read copies or to make some."""
    now, lasts = clock.now(), timedelta(hours=1)
    stored(catalogue, now=now - 2 * PERIOD)
    assert claims(catalogue, now + timedelta(days=365), lasts) == (1, 1)
    assert claims(catalogue, now, lasts) == (1, 1)
    assert claims(catalogue, now, lasts) == (0, 0)


def test_a_clock_that_was_two_hours_ahead_stops_no_sweep(catalogue):
    """Claims by a clock that is then set back two hours are void at once; those of a right clock hold."""
    now, lasts = clock.now(), timedelta(hours=6)
    stored(catalogue, now=now - 2 * PERIOD)
    assert claims(catalogue, now + timedelta(hours=2), lasts) == (1, 1)
    assert claims(catalogue, now, lasts) == (1, 1)
    assert claims(catalogue, now + timedelta(minutes=-4), lasts) == (0, 0), (
        "clocks of machines differ by seconds to minutes"
    )
    assert claims(catalogue, now + timedelta(hours=5), lasts) == (0, 0)


def test_absent_copies_of_a_large_catalogue_are_found_in_slices(catalogue):
    """Each call reads the newest artifacts and the next slice of the older ones, until each one was claimed once.

    What is claimed already takes no room from what is not.
    """
    for number in range(12):
        stored(catalogue, f"{number:02}")
    now = clock.now()
    times = {"now": now, "until": now + timedelta(hours=1), "limit": 4, "scan": 3}
    calls = [
        catalogue.sweep_claims.absent("cold", "releases", "", wanted=lambda *_, **__: True, **times) for _ in range(8)
    ]
    assert [int(artifact.key) for artifact in calls[0]] == [0, 1, 9, 10]
    assert sorted(int(artifact.key) for call in calls for artifact in call) == list(range(12))
    times["limit"] = 1
    one_by_one = [
        catalogue.sweep_claims.absent("warm", "releases", "", wanted=lambda *_, **__: True, **times) for _ in range(8)
    ]
    assert [int(artifact.key) for call in one_by_one for artifact in call] == [9, 10, 11, 0, 1, 2, 3, 4]
    now += timedelta(hours=2)  # no job has made those copies
    times = {"now": now, "until": now + timedelta(hours=1), "limit": 3, "late_since": now}
    begun = [catalogue.sweep_claims.begun("warm", None, "", wanted=lambda *_, **__: True, **times) for _ in range(3)]
    assert [len(call) for call in begun] == [3, 3, 2]
    assert sorted(int(artifact.key) for call in begun for artifact in call) == [0, 1, 2, 3, 4, 9, 10, 11]
    times = {"now": now, "until": now + timedelta(hours=1), "limit": 4, "scan": 3}
    later = [
        catalogue.sweep_claims.absent("hot", "releases", "", wanted=lambda *_, call=call, **__: call > 4, **times)
        for call in range(14)
    ]
    assert sorted(int(artifact.key) for call in later for artifact in call) == list(range(12)), "as a new rule wants"


def test_a_copy_that_another_job_begins_during_the_search_is_not_claimed(catalogue):
    """Two sweeps at once claim each absent copy once, and what a job has written, deleted or replaced stays so."""
    artifacts, now = catalogue.artifacts, clock.now()
    taken, written, deleted, replaced, _free = (stored(catalogue, key) for key in "twdrf")
    times = {"now": now, "limit": 9, "late_since": now + timedelta(days=1)}
    until = now + timedelta(hours=1)

    def begin_others(*_, **__):
        if "cold" not in artifacts.copies(taken):
            only = lambda _bucket, key, **_more: key == "t"  # noqa: E731
            catalogue.sweep_claims.absent("cold", None, "", wanted=only, **times, until=until)
            artifacts.ensure_copy(written, "cold")
            artifacts.finish_copy(written, "cold", tag="2", evidence={"adopted": "first read"}, now=now)
            catalogue.deletions.begin(deleted, now=now, until=now, by=None, reason=None, job="job-1")
            stored(catalogue, "r", digest=Digest(9, "b" * 64))
        return True

    later = until + timedelta(minutes=1)
    claimed = catalogue.sweep_claims.absent("cold", None, "", wanted=begin_others, **times, until=later)
    assert [each.key for each in claimed] == ["f"]
    found = artifacts.copies(written)["cold"]
    assert (found.state, found.evidence) == ("stored", {"adopted": "first read"})
    assert [of for of in (deleted, replaced) if "cold" in artifacts.copies(of)] == []

    begun, ended = stored(catalogue, "b"), stored(catalogue, "e")
    for of in (begun, ended):
        artifacts.ensure_copy(of, "cold")

    def end_them(*_, **__):
        catalogue.deletions.begin(begun, now=now, until=now, by=None, reason=None, job="job-1")
        artifacts.finish_copy(ended, "cold", tag="2", evidence={}, now=now)
        return True

    assert catalogue.sweep_claims.begun("cold", None, "", wanted=end_them, **times, until=until) == []
    assert {each.key for each in catalogue.findings.page(kind=FindingKind.UNDER_REPLICATED)} == {"t", "f"}

    artifacts.ensure_copy(stored(catalogue, "l"), "cold")

    def claim_it(*_, **__):
        sure = lambda *_, **__: True  # noqa: E731
        catalogue.sweep_claims.begun("cold", None, "", wanted=sure, **times, until=until)
        return True

    assert catalogue.sweep_claims.begun("cold", None, "", wanted=claim_it, **times, until=until) == []


def test_a_version_is_recorded_with_the_copies_that_are_begun(catalogue):
    """A version and the copies it is to have are recorded at once; beginning one of them again waits for no writer."""
    artifact = catalogue.artifacts.record(
        "releases", "app.tgz", DIGEST, {}, clock.now(), stores=["dr", "cold"]
    ).artifact
    assert [(copy.store, copy.state) for copy in catalogue.artifacts.copies(artifact).values()] == [
        ("cold", "writing"),
        ("dr", "writing"),
    ]
    with catalogue._database.write():
        assert catalogue.artifacts.ensure_copy(artifact, "dr").state == "writing"


def test_recording_again_begins_only_the_copies_that_are_not_there(catalogue):
    """The same bytes again keep what is known of a whole copy, and begin one that was deleted anew."""
    artifact = stored(catalogue)
    catalogue.artifacts.record("releases", "app.tgz", DIGEST, {}, clock.now(), stores=["dr"])
    assert catalogue.artifacts.copies(artifact)["dr"].state == "stored"
    catalogue.artifacts.delete_copies([catalogue.artifacts.copies(artifact)["dr"]])
    catalogue.artifacts.record("releases", "app.tgz", DIGEST, {}, clock.now(), stores=["dr"])
    assert catalogue.artifacts.copies(artifact)["dr"].state == "writing"


def test_a_late_write_begins_no_copy_that_is_known_or_was_deleted_from_its_store(catalogue):
    """A delete can still be undone with the copy that is there, and nothing replicates to where a copy was deleted."""
    deleted, current = stored(catalogue, "a"), stored(catalogue, "b")
    catalogue.artifacts.tombstone(deleted, clock.now())
    catalogue.artifacts.delete_copies([catalogue.artifacts.copies(current)["dr"]])
    catalogue.artifacts.note_late_writes([deleted, current], "dr")
    assert [catalogue.artifacts.copies(each)["dr"].state for each in (deleted, current)] == ["stored", "deleted"]


def test_a_page_continues_after_the_last_key_of_the_one_before(catalogue):
    """Artifacts are listed by bucket and key in pages, one bucket's prefix at a time if so wished."""
    for key in ("a", "a%b", "a_b", "b"):
        stored(catalogue, key)
    first = catalogue.artifacts.page(limit=2)
    rest = catalogue.artifacts.page(after=(first[-1].bucket, first[-1].key))
    assert [a.key for a in (*first, *rest)] == ["a", "a%b", "a_b", "b"]
    assert [a.key for a in catalogue.artifacts.page("releases", "a_")] == ["a_b"]
    listing = partial(catalogue.artifacts.listing, "releases", "a", "", 10, seen=catalogue.artifacts.seen())
    assert [a.key for a in listing(until="a%b")] == ["a", "a%b"]
    assert [a.key for a in listing(until="b")] == ["a", "a%b", "a_b"]
