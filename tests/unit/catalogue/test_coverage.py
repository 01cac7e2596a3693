"""How far the copies are read is counted from the catalogue alone, by searches of indexes."""

from contextlib import closing
from datetime import timedelta
from functools import partial

import pytest
import sqlalchemy as sa

from tests.unit.catalogue.test_catalogue import DIGEST, PERIOD
from tests.unit.catalogue.test_store_records import copied
from worker import clock
from worker.catalogue import Catalogue, FailedJobs, FindingKind, NewVersion, VerdictRow, compiled_statements
from worker.catalogue.tables import jobs
from worker.jobs.send_sweep_pages import page_id
from worker.storage import Digest
from zot_artifact_client.contract import JobState

RECENT = timedelta(hours=6)


def judged(catalogue, artifact, store, verdict, *, now=None, retry_at=None):
    """Record a verdict about a copy."""
    copy = catalogue.artifacts.copies(artifact)[store]
    finding = VerdictRow.of("job-1", artifact, copy, verdict, tag="1", retry_at=retry_at)
    catalogue.verifications.record(finding, now=now or clock.now())


def test_the_coverage_tells_read_never_read_and_unreadable_apart(catalogue):
    """A copy counts as read by its last full read; a write is none, and an attempt without an answer is none."""
    now = clock.now()
    fresh, stale, silent, new = (copied(catalogue, key, "dr") for key in ("fresh", "stale", "silent", "new"))
    judged(catalogue, fresh, "dr", "verified", now=now - timedelta(hours=1))
    judged(catalogue, stale, "dr", "verified", now=now - PERIOD - timedelta(days=1))
    judged(catalogue, silent, "dr", "unreadable", now=now, retry_at=now + timedelta(hours=1))
    found = catalogue.coverage.of("dr", period=PERIOD, recent=RECENT, now=now)
    assert (found.read, found.recent, found.never, found.unreadable) == (1, 1, 2, 1)
    assert found.oldest_read_at == now - PERIOD - timedelta(days=1)
    [late] = catalogue.coverage.overdue("dr", period=PERIOD, now=now, limit=5)
    assert (late.key, late.since) == ("stale", found.oldest_read_at)
    catalogue.artifacts.delete_copies([catalogue.artifacts.copies(new)["dr"]])
    assert catalogue.coverage.of("dr", period=PERIOD, recent=RECENT, now=now).never == 1


@pytest.mark.parametrize(("verdict", "read"), [("corrupt", 1), ("missing", 0), ("size_mismatch", 0)])
def test_a_copy_counts_as_read_only_after_a_read_to_its_end(catalogue, verdict, read):
    """Of a missing object and of one with another size no byte was compared."""
    judged(catalogue, copied(catalogue, "bad", "dr"), "dr", verdict)
    found = catalogue.coverage.of("dr", period=PERIOD, recent=RECENT, now=clock.now())
    assert (found.read, found.recent, found.never) == (read, read, 0)


def test_nothing_is_open_in_an_empty_catalogue(catalogue):
    """Without copies and jobs every count is zero."""
    found = catalogue.coverage.of("dr", period=PERIOD, recent=RECENT, now=clock.now())
    assert (found.read, found.recent, found.never, found.unreadable, found.oldest_read_at) == (0, 0, 0, 0, None)
    assert catalogue.coverage.jobs() == (0, 0)


def test_replications_and_dead_letters_are_counted(catalogue):
    """An open replication is a repair under way; a job whose attempts are used up is a dead letter."""
    ledger, lease = catalogue.ledger, timedelta(seconds=30)
    for name, kind in (("repairing", "replicate"), ("done", "replicate"), ("dying", "upload")):
        ledger.acquire(name, kind, {}, owner="me", writes_to=None, parent=None, now=clock.now(), lease=lease)
    ledger.finish("done", 1, JobState.SUCCEEDED, now=clock.now(), result={})
    ledger.finish("dying", 1, JobState.DEAD, now=clock.now(), error={"type": "Unavailable", "message": "away"})
    assert catalogue.coverage.jobs() == (1, 1)


def test_jobs_that_failed_for_good_are_counted_by_error_and_store(catalogue):
    """Those since a time; sweeps are left out, because `status` shows the last run of each."""
    now, lease = clock.now(), timedelta(seconds=30)
    errors = [{"type": "NotFound"}, {"type": "AccessDenied", "store": "dr"}, {"type": "AccessDenied", "store": "dr"}]
    for number, (kind, error) in enumerate([*(("upload", each) for each in errors), ("sweep.probe", errors[1])]):
        catalogue.ledger.acquire(str(number), kind, {}, owner="me", writes_to=None, parent=None, now=now, lease=lease)
        catalogue.ledger.finish(str(number), 1, JobState.FAILED, now=now, error=error)
    assert catalogue.coverage.failed_jobs(since=now) == [
        FailedJobs("AccessDenied", "dr", 2, now), FailedJobs("NotFound", None, 1, now),
    ]  # fmt: skip
    assert catalogue.coverage.failed_jobs(since=now + lease) == []


def failed(catalogue, id_, kind, *, at, key="app.tgz", state=JobState.FAILED, parent=None):
    """Record the end of a job of an artifact; by default a full store failed it."""
    request, path = {"bucket": "releases", "key": key}, None if kind == "verify" else f"releases/{key}"
    lease = timedelta(seconds=30)
    catalogue.ledger.acquire(id_, kind, request, owner="me", writes_to=path, parent=parent, now=at, lease=lease)
    error = {"type": "OutOfSpace", "store": "dr"} if state == JobState.FAILED else None
    catalogue.ledger.finish(id_, 1, state, now=at, error=error, result=None if error else {})


def counted(catalogue, since):
    return sum(each.count for each in catalogue.coverage.failed_jobs(since=since))


def test_a_failed_job_does_not_count_after_a_later_success_of_its_kind(catalogue):
    """Only one after the failure, of the same kind and with the same artifact, ends it."""
    now = clock.now()
    ended = iter(range(9))
    for kind, key, minutes in (("upload", "app.tgz", -1), ("replicate", "app.tgz", 1), ("upload", "other", 1)):
        at = now + timedelta(minutes=minutes)
        failed(catalogue, f"success-{next(ended)}", kind, key=key, at=at, state=JobState.SUCCEEDED)
    failed(catalogue, "first", "upload", at=now)
    failed(catalogue, "second", "upload", at=now)
    assert counted(catalogue, now) == 2
    later = now + timedelta(minutes=2)
    failed(catalogue, "sent-again", "upload", at=later, state=JobState.SUCCEEDED)
    assert counted(catalogue, now) == 0
    failed(catalogue, "third", "upload", at=later + timedelta(minutes=1))
    assert counted(catalogue, now) == 1


def test_a_success_of_a_clock_that_was_ahead_hides_no_later_failure(catalogue):
    """It was before the clock was put right; it settles only what that clock has seen fail before it."""
    now, day = clock.now(), timedelta(days=1)
    failed(catalogue, "ahead", "upload", at=now + day)
    failed(catalogue, "sent-again", "upload", at=now + 2 * day, state=JobState.SUCCEEDED)
    assert counted(catalogue, now) == 0
    failed(catalogue, "since", "upload", at=now)
    assert counted(catalogue, now) == 1
    failed(catalogue, "sent-again-since", "upload", at=now + timedelta(seconds=1), state=JobState.SUCCEEDED)
    assert counted(catalogue, now) == 0


def test_a_failed_job_counts_however_many_others_are_settled(catalogue):
    """An outage of a day leaves thousands of failed jobs whose artifacts were sent again since."""
    now, settled = clock.now(), 10_001
    failed(catalogue, "sent-again", "upload", at=now + timedelta(minutes=1), state=JobState.SUCCEEDED)
    failed(catalogue, "settled", "upload", at=now)
    with catalogue._database.write() as connection:
        row = connection.execute(sa.select(jobs).where(jobs.c.id == "settled")).one()._asdict()
        connection.execute(sa.insert(jobs), [row | {"id": f"settled-{number}"} for number in range(settled)])
    failed(catalogue, "open", "upload", at=now + timedelta(seconds=1), key="other")
    assert catalogue.coverage.failed_jobs(since=now) == [FailedJobs("OutOfSpace", "dr", 1, now + timedelta(seconds=1))]


def test_a_failed_upload_does_not_count_once_its_copies_are_there(catalogue):
    """A repair or a page can have written them; a version from before the failure is not what it was to upload."""
    before = clock.now()
    stores = ["primary", "dr"]
    old = catalogue.artifacts.record("releases", "app.tgz", DIGEST, {}, before, stores=["dr"]).artifact
    catalogue.artifacts.finish_copy(old, "dr", tag="1", evidence={}, now=before)
    now = before + timedelta(minutes=1)
    for job in ("upload-1", "upload-2"):
        failed(catalogue, job, "upload", at=now + timedelta(seconds=1))
    assert counted(catalogue, now) == 2
    made = catalogue.artifacts.record(
        "releases", "app.tgz", Digest(2, "1" * 64), {}, now, stores=stores, job="upload-1"
    ).artifact
    catalogue.artifacts.finish_copy(made, "primary", tag="1", evidence={}, now=now)
    assert counted(catalogue, now) == 2  # the copy in dr is not written
    catalogue.artifacts.finish_copy(made, "dr", tag="1", evidence={}, now=now + timedelta(minutes=1))
    assert counted(catalogue, now) == 1
    newer = catalogue.artifacts.record(
        "releases", "app.tgz", Digest(3, "2" * 64), {}, now + timedelta(minutes=2), stores=["dr"], job="page-1"
    ).artifact
    catalogue.artifacts.finish_copy(newer, "dr", tag="1", evidence={}, now=now + timedelta(minutes=2))
    assert counted(catalogue, now) == 0


@pytest.mark.parametrize("batch", ["the_batch", "b" * 101])
def test_a_failed_upload_of_a_batch_does_not_count_once_the_copies_of_its_page_are_there(catalogue, batch):
    """The page that it left has recorded the version, also where another job had uploaded the same bytes before.

    Batches and jobs whose ids differ in a character or in case are others.
    """
    now = clock.now()
    record = partial(catalogue.artifacts.record, "releases", digest=DIGEST, metadata={}, now=now, stores=["dr"])
    page, others = page_id(batch, 1), ("the-batch", "THE_BATCH", "the_batch.eu", batch[:-1])
    made = [record(key="new", job=page).artifact, record(key="reused", job="other").artifact]
    record(key="reused", job=page)
    alike = [record(key=f"first-{other}", job=page_id(other, 1)).artifact for other in others]
    for other in others:
        alike.append(record(key=f"later-{other}", job="other").artifact)
        record(key=f"later-{other}", job=page_id(other, 1))
    alike.append(record(key="single", job="other").artifact)
    record(key="single", job="THE-JOB")
    for number, artifact in enumerate([*made, *alike], 2):
        failed(catalogue, page_id(batch, number), "upload", at=now, key=artifact.key, parent=batch)
    failed(catalogue, "lonely", "upload", at=now, key="new")
    failed(catalogue, "the_job", "upload", at=now, key="single")
    assert counted(catalogue, now) == 13
    for artifact in [*made, *alike]:
        catalogue.artifacts.finish_copy(artifact, "dr", tag="1", evidence={}, now=now)
    assert counted(catalogue, now) == 11


@pytest.mark.parametrize("kind", ["replicate", "verify", "adopt"])
def test_a_failed_job_does_not_count_once_its_store_gave_the_bytes_back(catalogue, kind):
    """As a sweep reads them later, in a page that is no job of the artifact."""
    artifact, now = copied(catalogue, "app.tgz", "dr"), clock.now()
    copied(catalogue, "other", "dr")
    long_ago = now - timedelta(hours=1)
    failed(catalogue, "other-1", kind, at=long_ago, key="other")
    assert counted(catalogue, long_ago) == 0
    failed(catalogue, "job-1", kind, at=now)
    failed(catalogue, "other-2", kind, at=now + timedelta(minutes=9), key="other")
    assert counted(catalogue, long_ago) == 2
    judged(catalogue, artifact, "dr", "corrupt", now=now + timedelta(minutes=1))
    assert counted(catalogue, long_ago) == 2
    judged(catalogue, artifact, "dr", "verified", now=now + timedelta(minutes=2))
    assert counted(catalogue, long_ago) == 1


def test_a_failed_delete_does_not_count_once_all_its_copies_are_gone(catalogue):
    """As a page of a later batch deletes it, which is no job of the artifact."""
    artifact, now = copied(catalogue, "app.tgz", "dr"), clock.now()
    copied(catalogue, "other", "dr")
    failed(catalogue, "job-1", "delete", at=now)
    failed(catalogue, "job-2", "delete", at=now, key="other")
    assert counted(catalogue, now) == 2
    catalogue.artifacts.tombstone(artifact, now)
    assert counted(catalogue, now) == 2, "its bytes are there until its grace ends"
    catalogue.artifacts.delete_copies(list(catalogue.artifacts.copies(artifact).values()))
    assert counted(catalogue, now) == 1


def test_a_failed_replication_counts_while_its_copy_is_not_written(catalogue):
    """The store of its error may be the one that it read from, whose own copy is read again later."""
    artifact, now = copied(catalogue, "app.tgz", "dr"), clock.now()
    catalogue.artifacts.ensure_copy(artifact, "archive")
    failed(catalogue, "job-1", "replicate", at=now)
    judged(catalogue, artifact, "dr", "verified", now=now + timedelta(minutes=1))
    assert counted(catalogue, now) == 1
    catalogue.artifacts.finish_copy(artifact, "archive", tag="1", evidence={}, now=now + timedelta(minutes=2))
    assert counted(catalogue, now) == 0


def test_the_copies_and_bytes_of_a_store_are_summed_in_the_order_of_their_rows(catalogue, catalogue_url):
    """Only what a sweep reads in this store counts, and no index by store sends the reads to and fro."""
    for name in ("a", "b"):
        copied(catalogue, name, "dr")
    copied(catalogue, "c", "primary")
    plans = []

    def plan(connection, _cursor, statement, parameters, *_):
        if "sum(artifacts.size)" in statement and catalogue_url.startswith("sqlite"):
            rows = connection.connection.driver_connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(row[3] for row in rows)

    sa.event.listen(sa.engine.Engine, "before_cursor_execute", plan)
    try:
        usage = catalogue.budgets.usage("dr", now=clock.now())
        assert (usage.copies, usage.bytes) == (2, 2 * DIGEST.size)
        assert usage == catalogue.budgets.counted("dr")
        assert usage.buckets == {"releases": (2, 2 * DIGEST.size)}
    finally:
        sa.event.remove(sa.engine.Engine, "before_cursor_execute", plan)
    if catalogue_url.startswith("sqlite"):
        assert plans[:2] == ["SCAN copies", "SEARCH artifacts USING INTEGER PRIMARY KEY (rowid=?)"]
    copied(catalogue, "later", "dr")
    assert catalogue.budgets.usage("dr", now=usage.at + timedelta(seconds=0.1)) == usage
    assert catalogue.budgets.usage("dr", now=usage.at + timedelta(seconds=1)).copies == 3, "of few it is soon"


def test_a_store_with_few_of_all_copies_is_counted_without_a_scan_of_all(sqlite_catalogue):
    """A new store beside a large one is counted often: its copies are searched for."""
    for number in range(11):
        copied(sqlite_catalogue, str(number), "large")
    copied(sqlite_catalogue, "new", "few")
    sqlite_catalogue.budgets.usage("large", now=clock.now())
    plans = []

    def plan(connection, _cursor, statement, parameters, *_):
        if "sum(artifacts.size)" in statement:
            rows = connection.connection.driver_connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(row[3] for row in rows)

    sa.event.listen(sa.engine.Engine, "before_cursor_execute", plan)
    try:
        assert sqlite_catalogue.budgets.usage("few", now=clock.now()).copies == 1
    finally:
        sa.event.remove(sa.engine.Engine, "before_cursor_execute", plan)
    assert plans
    assert not [each for each in plans if each.startswith("SCAN")]


@pytest.fixture
def sqlite_catalogue(tmp_path):
    """Return a catalogue in SQLite: PostgreSQL scans small tables whatever their indexes are."""
    url = f"sqlite:///{tmp_path / 'catalogue.sqlite3'}"
    with closing(Catalogue(url)) as opened:
        yield opened


@pytest.fixture
def recorded(sqlite_catalogue):
    return copied(sqlite_catalogue, "app.tgz", "dr")


@pytest.fixture
def plans(sqlite_catalogue, recorded, monkeypatch):
    """Return the list to which SQLite's plan of each query is appended, once the artifact is recorded."""
    plans = []

    def plan(connection, _cursor, statement, parameters, *_):
        if statement.startswith(("SELECT", "UPDATE")):
            rows = connection.connection.driver_connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(row[3] for row in rows)

    unplanned = compiled_statements.execute

    def execute(connection, text, values, **more):
        plan(connection, None, text, values)
        return unplanned(connection, text, values, **more)

    monkeypatch.setattr("worker.catalogue.compiled_statements.execute", execute)
    sqlite_catalogue.close()  # so that its next connection has the listener
    sa.event.listen(sa.engine.Engine, "before_cursor_execute", plan)
    yield plans
    sa.event.remove(sa.engine.Engine, "before_cursor_execute", plan)


def test_no_question_about_a_store_reads_the_whole_table(sqlite_catalogue, recorded, plans):
    """Every query about one store searches an index: none scans the copies, the artifacts or the log."""
    catalogue, found = sqlite_catalogue, sqlite_catalogue.coverage
    found.of("dr", period=PERIOD, recent=RECENT, now=clock.now())
    found.overdue("dr", period=PERIOD, now=clock.now(), limit=5)
    searched = len(plans)
    found.waiting_jobs_of([f"batch-{number}" for number in range(50)])
    assert any("ix_jobs_parent" in each for each in plans[searched:]), "not all that wait"
    searched = len(plans)
    assert (catalogue.artifacts.oldest_verified("dr"), catalogue.artifacts.never_verified("dr")) == (None, 1)
    indexes = {each.split("ix_copies_")[1].split()[0] for each in plans[searched:] if "ix_copies_" in each}
    assert indexes == {"due", "retry", "never_verified"}, "no other index has that moment"
    catalogue.budgets.copies("dr")
    catalogue.sweep_claims.needed("dr", period=PERIOD, first_read=PERIOD, now=clock.now())
    catalogue.sweep_claims.count_due("dr", period=PERIOD, now=clock.now(), limit=5)
    catalogue.store_records.unconfigured(["primary"])
    unsorted = len(plans)
    catalogue.store_records.forget("dr", dry_run=True)
    catalogue.ledger.prune(before=clock.now())
    catalogue.pages.read_rate("dr", since=clock.now())
    sorts = [each for each in plans[unsorted:] if each.startswith("USE TEMP B-TREE")]
    assert sorts == [], "each group would sort all copies of the store, or all jobs"
    found.jobs()
    found.last_runs(["sweep.verify"], now=clock.now())
    figures = catalogue.figures
    figures.open_jobs()
    figures.dead_letters()
    figures.late_jobs(clock.now())
    figures.ended_jobs(clock.now(), clock.now(), limit=5)
    figures.resolved_findings(clock.now(), clock.now(), limit=5)
    findings = catalogue.findings
    findings.see_lost(["dr"], now=clock.now(), limit=5)
    findings.counts()
    findings.page(kind=FindingKind.CORRUPT, store="dr", limit=5)
    findings.prune(before=clock.now())
    catalogue.repairs.claim("dr", sources=["primary"], now=clock.now(), until=clock.now(), limit=5, job="page")
    catalogue.repairs.count_bad("dr", since=clock.now(), limit=5)
    for bucket in (None, "releases"):
        catalogue.sweep_claims.begun(
            "dr", bucket, "a", wanted=None, now=clock.now(), until=clock.now(), limit=5, late_since=clock.now()
        )
        catalogue.sweep_claims.measure_absent("dr", bucket, "a", wanted=None)
    catalogue.artifacts.record_many(
        [NewVersion("releases", key, DIGEST, ["dr"]) for key in ("a", "b")], {}, clock.now(), job="upload"
    )
    lease = timedelta(seconds=30)
    catalogue.ledger.acquire("page", "page", {}, owner="me", writes_to=None, parent=None, now=clock.now(), lease=lease)
    page = catalogue.pages.claim_due("page", "dr", period=PERIOD, now=clock.now(), until=clock.now() + lease, limit=5)
    catalogue.pages.claimed_copies(page)
    catalogue.pages.release(page, page.open)
    asked = list(plans)
    judged(catalogue, recorded, "dr", "verified")
    assert [each for each in plans if each.startswith("SEARCH findings USING INDEX uq_findings_open ((bucket,key)>")]
    assert [each for each in plans if "ix_verifications_bad" in each]
    whole_store = "SEARCH copies USING INDEX ix_copies_state (store=?)"
    assert whole_store not in asked, "that reads the row of each copy of the store"
    assert [
        each
        for each in asked
        if each.startswith(
            ("SCAN copies", "SCAN artifacts", "SCAN verifications", "SCAN jobs", "SCAN findings USING INDEX uq")
        )
    ] == []
