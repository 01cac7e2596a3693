"""The catalogue never changes what it must not change, and gives each thing to one taker."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest
import sqlalchemy as sa

from tests.servers.postgres import connect
from worker import clock
from worker.catalogue import Catalogue, CatalogueError, Finding, Finished, Held, Leased, LostLease, OtherRequest
from worker.catalogue.database import open_engine
from worker.catalogue.tables import metadata
from worker.storage import Digest
from zot_artifact_client.contract import JobState

LEASE = timedelta(seconds=30)
DIGEST = Digest(11, "a" * 64)


@pytest.fixture
def database(catalogue, catalogue_url):
    """The database itself, as somebody with a SQL shell would have it."""
    if catalogue_url.startswith("sqlite"):
        connection = sqlite3.connect(catalogue_url.removeprefix("sqlite:///"), isolation_level=None)
    else:
        connection = connect(catalogue_url)
    yield connection
    connection.close()


def stored(catalogue, key="app.tgz", *, due=None):
    artifact = catalogue.artifacts.record("releases", key, DIGEST, {}, clock.now())
    catalogue.artifacts.ensure_copy(artifact, "dr")
    due = due or clock.now()
    catalogue.artifacts.finish_copy(artifact, "dr", tag="1", evidence={}, due=due, now=clock.now())
    return artifact


def begin(catalogue, id_="job-1", **more):
    arguments = {"owner": "me", "holds": None, "parent": None, "now": clock.now(), "lease": LEASE} | more
    return catalogue.ledger.acquire(id_, "upload", arguments.pop("request", {"key": "a"}), **arguments)


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
    with pytest.raises(CatalogueError, match="newer version"):
        Catalogue(catalogue_url)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE artifacts SET sha256 = 'b'",
        "UPDATE artifacts SET size = 1",
        "DELETE FROM artifacts",
        "UPDATE verifications SET verdict = 'verified'",
        "DELETE FROM verifications",
    ],
)
def test_what_was_recorded_cannot_be_changed(catalogue, database, statement):
    """Neither a recorded digest nor a verdict can be changed or taken away, not even with SQL."""
    artifact = stored(catalogue)
    copy = catalogue.artifacts.copies(artifact)["dr"]
    catalogue.verifications.record(
        Finding("job-1", "dr", artifact, "corrupt"), copy, tag=None, now=clock.now(), due=clock.now()
    )
    with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError), match=r"never|append-only"):
        database.execute(statement)


def test_tampering_with_the_log_shows(catalogue, database, catalogue_url):
    """A row that was changed behind the triggers' back breaks the chain, and the first such row is named."""
    artifact = stored(catalogue)
    copy = catalogue.artifacts.copies(artifact)["dr"]
    for verdict in ("verified", "corrupt", "verified"):
        finding = Finding("job-1", "dr", artifact, verdict)
        catalogue.verifications.record(finding, copy, tag=None, now=clock.now(), due=clock.now())
    assert catalogue.verifications.first_broken() is None

    on = "" if catalogue_url.startswith("sqlite") else "ON verifications"
    database.execute(f"DROP TRIGGER verifications_are_never_updated {on}")
    database.execute("UPDATE verifications SET verdict = 'verified' WHERE id = 2")
    assert catalogue.verifications.first_broken() == 2


def test_a_job_is_given_to_one_delivery_only(catalogue):
    """Of many simultaneous deliveries of one message, one gets the job and the others wait without an attempt."""
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda n: begin(catalogue, owner=f"worker-{n}"), range(8)))
    assert sum(isinstance(outcome, Leased) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Held) for outcome in outcomes) == 7
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


def test_a_job_that_has_ended_is_not_begun_again(catalogue):
    """A message that is delivered after its job has ended gets what came of it."""
    job = begin(catalogue)
    catalogue.ledger.finish("job-1", job.record.fence, JobState.SUCCEEDED, now=clock.now(), result={"version": 1})
    again = begin(catalogue)
    assert isinstance(again, Finished)
    assert again.record.result == {"version": 1}


def test_two_writers_of_one_artifact_take_turns(catalogue):
    """While one job writes to an artifact another one waits for it, and a reader does not."""
    begin(catalogue, "writer", holds="releases/app.tgz")
    assert isinstance(begin(catalogue, "other", holds="releases/app.tgz"), Held)
    assert isinstance(begin(catalogue, "reader"), Leased)
    assert isinstance(begin(catalogue, "elsewhere", holds="releases/lib.tgz"), Leased)


def test_an_id_stands_for_one_request(catalogue):
    """A second request under the same id or idempotency key is refused; the first one stays."""
    begin(catalogue)
    with pytest.raises(OtherRequest, match="job-1"):
        begin(catalogue, request={"key": "b"})


def test_a_due_copy_is_claimed_once_and_the_oldest_attempt_first(catalogue):
    """Copies that were never read come before those that were, and a claimed copy is not claimed again."""
    read, unread, later = (stored(catalogue, key) for key in ("read", "unread", "later"))
    for artifact, due in ((read, timedelta(0)), (later, timedelta(days=1))):
        copy = catalogue.artifacts.copies(artifact)["dr"]
        finding = Finding("job-1", "dr", artifact, "verified")
        catalogue.verifications.record(finding, copy, tag=None, now=clock.now(), due=clock.now() + due)

    now = clock.now()
    claim = {"now": now, "until": now + timedelta(hours=1)}
    assert [a.key for a, _ in catalogue.sweep_claims.due("dr", limit=1, **claim)] == ["unread"]
    assert [a.key for a, _ in catalogue.sweep_claims.due("dr", limit=9, **claim)] == ["read"]
    lapsed = {"now": now + timedelta(hours=2), "until": now + timedelta(hours=3)}
    assert [a.key for a, _ in catalogue.sweep_claims.due("dr", limit=9, **lapsed)] == ["unread", "read"]
    assert unread.key == "unread"


def test_a_claim_that_lasts_too_long_is_not_believed(catalogue):
    """A sweep whose clock was a year ahead claims nothing for a year, be it to read copies or to make some."""
    stored(catalogue)
    now = clock.now()

    def claimed(ahead):
        times = {"now": now + ahead, "until": now + ahead + timedelta(hours=1), "limit": 9}
        due = catalogue.sweep_claims.due("dr", **times)
        absent = catalogue.sweep_claims.absent("cold", "releases", "", wanted=lambda _: True, **times)
        return len(due), len(absent)

    assert claimed(timedelta(days=365)) == (1, 1)
    assert claimed(timedelta(0)) == (1, 1)
    assert claimed(timedelta(0)) == (0, 0)


def test_a_version_is_recorded_with_the_copies_that_are_begun(catalogue):
    """A version and the copies it is to have are recorded at once; beginning one of them again waits for no writer."""
    artifact = catalogue.artifacts.record("releases", "app.tgz", DIGEST, {}, clock.now(), stores=["dr", "cold"])
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
    catalogue.artifacts.delete_copy(catalogue.artifacts.copies(artifact)["dr"])
    catalogue.artifacts.record("releases", "app.tgz", DIGEST, {}, clock.now(), stores=["dr"])
    assert catalogue.artifacts.copies(artifact)["dr"].state == "writing"


def test_a_page_continues_after_the_last_key_of_the_one_before(catalogue):
    """Artifacts are listed by bucket and key in pages, one bucket's prefix at a time if so wished."""
    for key in ("a", "a%b", "a_b", "b"):
        stored(catalogue, key)
    first = catalogue.artifacts.page(limit=2)
    rest = catalogue.artifacts.page(after=(first[-1].bucket, first[-1].key))
    assert [a.key for a in (*first, *rest)] == ["a", "a%b", "a_b", "b"]
    assert [a.key for a in catalogue.artifacts.page("releases", "a_")] == ["a_b"]
