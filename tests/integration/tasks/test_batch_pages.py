"""A batch works in pages: no recorded outcome is repeated, and an object that fails becomes a job of its own."""

import dataclasses
import errno
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tasks.page import page
from tasks.pages import verify as verify_pages
from tasks.upload import upload
from tests.integration.tasks.conftest import pause
from tests.integration.tasks.test_batch import Driver
from worker import clock
from worker.catalogue import CatalogueUnavailable, tables
from worker.catalogue.pages import Pages, VerdictRecorder
from worker.context import Context
from worker.jobs.running_job import Cancelled, Requeue, RunningJob
from worker.limits.limited_store import LimitedStore
from worker.limits.snooze import Snooze, StoreRefuses
from worker.storage.configured_stores import Stores
from worker.storage.errors import AccessDenied, OutOfSpace, Unavailable
from worker.storage.spooling import spooling_in
from zot_artifact_client.contract import BatchRequest, JobState, PageRequest, RangeSelection, UploadRequest

ALL = BatchRequest(verb="verify", bucket="releases")
VERBS = [
    ALL,
    BatchRequest(verb="replicate", bucket="releases", to=("cold",)),
    BatchRequest(verb="delete", bucket="releases", everything=True),
]
GOOD = {"verify": "verified", "replicate": "stored", "delete": "deleted"}


@pytest.fixture(autouse=True)
def small_pages(context, monkeypatch) -> None:
    """Let a page have three objects, and two threads."""
    monkeypatch.setitem(context.settings.page.__dict__, "objects", 3)
    monkeypatch.setitem(context.settings.page.__dict__, "threads", 2)


@pytest.fixture
def laid(run, source) -> Callable[..., None]:
    """Upload so many small artifacts, the first of them with metadata."""

    def lay(number: int, prefix: str = "a/") -> None:
        for n in range(number):
            content = f"the bytes of {prefix}{n:03d}".encode()
            metadata = {} if n else {"build": "7"}
            wanted = UploadRequest(bucket="releases", key=f"{prefix}{n:03d}", source=source(content), metadata=metadata)
            run(upload, wanted)

    return lay


@pytest.fixture
def drive(context) -> Callable[[BatchRequest], Driver]:
    return lambda request: Driver(context, request)


def kinds(context: Context, batch: str = "batch-1") -> list[str]:
    """Return the kinds of the jobs that the batch has sent, in planning order."""
    found = [job for job in context.catalogue.job_admin.find([], limit=1000) if job.parent == batch]
    return [job.kind for job in sorted(found, key=lambda job: job.id)]


def verdicts(context: Context) -> list[tuple[Any, ...]]:
    table = tables.verifications.c
    with context.catalogue._database.read() as connection:
        return [tuple(row) for row in connection.execute(sa.select(table.key, table.store, table.job))]


@pytest.mark.parametrize("request_", VERBS, ids=lambda each: each.verb)
def test_every_artifact_has_one_outcome(laid, drive, context, request_):
    """Pages of three and a rest of one do all artifacts once, with every verb, and are counted in objects and bytes."""
    laid(7)
    result = drive(request_).finish()
    assert (result.objects, result.failed, result.outcomes) == (7, 0, {GOOD[request_.verb]: 7})
    assert result.bytes == 7 * len("the bytes of a/000")
    assert kinds(context) == ["page", "page", request_.verb]


def test_a_page_counts_no_artifact_as_verified_that_lacks_a_named_copy(laid, drive, run, source, context):
    """It leaves the page: the job of its own tells which of the named stores has no copy, or has no settings."""
    laid(2)
    result = drive(BatchRequest(verb="verify", bucket="releases", stores=("primary", "cold"))).finish()
    assert (result.outcomes, kinds(context)) == ({"failed": 2}, ["page", "verify", "verify"])
    run(upload, UploadRequest(bucket="releases", key="b", source=source(b"b"), stores=("primary",)))
    driver = drive(ALL)
    driver.id = "batch-2"
    driver.step()
    without_dr = {name: config for name, config in context.settings.stores.items() if name != "dr"}
    driver.context = dataclasses.replace(context, stores=Stores(without_dr))
    result = driver.finish()
    assert (result.outcomes, kinds(context, "batch-2")) == (
        {"unreadable": 2, "verified": 1},
        ["page", "verify", "verify"],
    )
    assert "the store 'dr' is not configured" in result.failures[0].message
    driver.context.stores.close()


def test_the_progress_of_running_pages_is_shown(laid, drive, context):
    """Objects of a page that still runs count as done in the progress of its batch, and are not counted twice."""
    laid(3)
    driver = drive(ALL)
    driver.step()
    driver.work()
    with context.catalogue._database.write() as connection:
        connection.execute(sa.update(tables.jobs).where(tables.jobs.c.kind == "page").values(state=JobState.RUNNING))
    driver.step()
    shown = driver.outside.reports[-1]
    assert (shown.objects_done, shown.bytes_done, shown.objects_total) == (3, 3 * len("the bytes of a/000"), 3)


def test_bad_copies_are_named_with_the_page(laid, drive, stored):
    """A page continues after a corrupt and a missing copy, and the batch names both."""
    laid(3)
    stored("dr", "a/001").write_bytes(b"rotten" * 3)
    stored("primary", "a/002").unlink()
    result = drive(ALL).finish()
    assert (result.objects, result.failed) == (3, 2)
    assert result.outcomes == {"verified": 1, "corrupt": 1, "missing": 1}
    assert [(each.key, each.outcome) for each in result.failures] == [("a/001", "corrupt"), ("a/002", "missing")]
    assert "dr" in result.failures[0].message


def test_a_page_of_bad_copies_ends_in_bounded_time(laid, drive, stored, context, monkeypatch):
    """Second reads for which there is no time are made by the next delivery; each copy has one verdict."""
    laid(3)
    for key in ("a/001", "a/002"):
        stored("dr", key).write_bytes(b"rotten" * 3)
    runs, begun = verify_pages.work_on, []

    def work_on(*args: Any, **options: Any) -> bool:
        begun.append(args)
        return runs(*args, **options | ({"seconds": -1} if len(begun) == 2 else {}))

    monkeypatch.setattr(verify_pages, "work_on", work_on)
    driver = drive(ALL)
    driver.step()
    sent = dict(driver.queue.waiting)
    with pytest.raises(Requeue, match="others wait"):
        driver.work()
    assert {key for key, store, _ in verdicts(context) if store == "dr"} == {"a/000"}
    driver.queue.waiting |= sent
    assert driver.finish().outcomes == {"verified": 1, "corrupt": 2}
    assert len(verdicts(context)) == len(set(verdicts(context))) == 6


def test_a_page_without_time_for_all_objects_goes_on_behind_the_jobs_that_wait(laid, drive, context, monkeypatch):
    """Whatever the verb, its job does not end before each object has its outcome."""
    laid(3)
    for request in VERBS:
        driver = drive(request)
        driver.id = f"batch-{request.verb}"
        driver.step()
        sent = dict(driver.queue.waiting)
        with monkeypatch.context() as busy:
            busy.setitem(context.settings.page.__dict__, "time", timedelta(seconds=-1))
            with pytest.raises(Requeue, match="others wait"):
                driver.work()
        driver.queue.waiting |= sent
        assert driver.finish().outcomes == {GOOD[request.verb]: 3}


def test_what_fails_leaves_the_page_as_a_job_of_its_own(laid, drive, stored, context):
    """An artifact without a good copy is tried again in its own job, which fails by name; the others are replicated.

    So is one whose last good copy a delete would take, which was not meant; no copy of it goes.
    """
    laid(3)
    for store in ("primary", "dr"):
        stored(store, "a/001").unlink()
    result = drive(BatchRequest(verb="replicate", bucket="releases", to=("cold",))).finish()
    assert (result.objects, result.outcomes) == (3, {"stored": 2, "failed": 1})
    assert [(each.key, each.outcome) for each in result.failures] == [("a/001", "failed")]
    assert kinds(context) == ["page", "replicate"]
    driver = drive(BatchRequest(verb="delete", bucket="releases", stores=("primary", "dr", "cold"), everything=True))
    driver.id = "batch-2"
    result = driver.finish()
    assert (result.outcomes, kinds(context, "batch-2")) == ({"failed": 3}, ["page", *["delete"] * 3])
    assert [stored(store, "a/000").exists() for store in ("primary", "dr", "cold")] == [True] * 3


def test_a_large_artifact_is_a_job_of_its_own(laid, drive, run, source, context, monkeypatch):
    """An artifact above `page.large` is no part of a page, and ends the one before it."""
    laid(2)
    run(upload, UploadRequest(bucket="releases", key="b", source=source(b"x" * 100)))
    laid(2, "c/")
    monkeypatch.setitem(context.settings.page.__dict__, "large", 50)
    assert drive(ALL).finish().outcomes == {"verified": 5}
    assert kinds(context) == ["page", "verify", "page"]


@pytest.mark.parametrize("request_", VERBS, ids=lambda each: each.verb)
def test_an_artifact_that_another_job_writes_to_leaves_the_page(laid, drive, context, request_):
    """A page that writes does nothing to what another job has locked; a page that verifies reads it.

    What is held leaves a page that deletes; its own job tells who holds it.
    """
    laid(3)
    context.catalogue.holds.place("releases", "a/002", by="ana", reason="case 4711", now=clock.now())
    driver = drive(request_)
    driver.step()
    context.catalogue.ledger.acquire(
        "other", "upload", {}, owner="x", writes_to="releases/a/001", parent=None, now=clock.now(),
        lease=context.settings.jobs.lease,
    )  # fmt: skip
    driver.work()
    driver.step()
    leave = {"verify": 0, "replicate": 1, "delete": 2}[request_.verb]
    assert kinds(context) == ["page", *[request_.verb] * leave]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, CatalogueUnavailable])
@pytest.mark.parametrize("request_", VERBS, ids=lambda each: each.verb)
def test_a_page_that_dies_between_two_groups_goes_on_behind_them(laid, drive, context, monkeypatch, request_, fault):
    """The objects whose group was recorded are not done again; each has one verdict, write or delete.

    So it is where the commit of a group finds the disk of the catalogue full.
    """
    monkeypatch.setitem(context.settings.page.__dict__, "objects", 6)
    monkeypatch.setattr("worker.artifacts.page_runner.GROUP", 2)
    laid(6)
    driver = drive(request_)
    driver.step()
    of, name = (VerdictRecorder, "add") if request_.verb == "verify" else (Pages, "record")
    record, recorded = getattr(of, name), []

    def dying(*args: Any, now: Any) -> Any:
        recorded.append(args)
        with monkeypatch.context() as full:
            if len(recorded) > 1:
                full.setattr(sa.engine.RootTransaction, "commit", fails)
            return record(*args, now=now)

    def fails(*_: object) -> None:
        if fault is KeyboardInterrupt:
            raise KeyboardInterrupt
        raise sa.exc.OperationalError("COMMIT", None, sqlite3.OperationalError("database or disk is full"))

    sent = dict(driver.queue.waiting)
    with monkeypatch.context() as dead:
        dead.setattr(of, name, dying)
        with pytest.raises(fault):
            driver.work()
    driver.queue.waiting |= sent
    result = driver.finish()
    assert (result.objects, result.failed, sum(result.outcomes.values())) == (6, 0, 6)
    assert result.not_kept == ({"cold": ("metadata",)} if request_.verb == "replicate" else {})
    if request_.verb == "verify":
        assert len(verdicts(context)) == len(set(verdicts(context))) == 12
    assert context.catalogue.verifications.first_broken() is None


def test_the_end_of_the_last_page_makes_the_next_step_of_its_batch_due(laid, drive, context):
    """A batch does not wait for its planned step when all of its pages have ended, and does while one of them runs."""
    laid(6)
    driver = drive(ALL)
    driver.step()
    first, second = driver.queue.waiting
    driver.work(1)
    assert context.catalogue.batches.hasten(first, clock.now()) is None
    driver.work()
    assert context.catalogue.batches.get("batch-1").next_step_at > clock.now()
    hastened = context.catalogue.batches.hasten(second, clock.now())
    assert (hastened.id, hastened.kind) == ("batch-1", "batch")
    assert context.catalogue.batches.hasten(first, clock.now()) is None
    assert driver.deliver().outcomes == {"verified": 6}


def test_a_page_that_is_dead_leaves_its_objects_to_jobs_of_their_own(laid, drive, context):
    """What ends the workers of a page is found: its open objects become jobs, and no dead letter stays."""
    laid(3)
    driver = drive(ALL)
    driver.step()
    (id_,) = driver.queue.waiting
    job = driver._take(id_, "page", driver.queue.waiting.pop(id_).payload)
    driver._end(job, JobState.DEAD, error={"type": "Poison", "message": "its worker died"})
    result = driver.finish()
    assert (result.objects, result.outcomes, result.failed) == (3, {"verified": 3}, 0)
    assert kinds(context) == ["page", "verify", "verify", "verify"]
    assert context.catalogue.ledger.states([id_]) == {id_: JobState.FAILED}


def test_a_cancelled_page_counts_its_objects(laid, drive, context):
    """The objects of a page that was cancelled alone are counted as cancelled, so that the batch ends."""
    laid(3)
    driver = drive(ALL)
    driver.step()
    (id_,) = driver.queue.waiting
    job = driver._take(id_, "page", driver.queue.waiting.pop(id_).payload)
    driver._end(job, JobState.CANCELLED, error={"type": "Cancelled", "message": "cancelled"})
    result = driver.finish()
    assert (result.objects, result.outcomes, result.failed) == (3, {"cancelled": 3}, 3)


def test_a_store_that_takes_no_job_keeps_only_its_own_copies_waiting(laid, drive, context):
    """A page reads the copies in the other stores, and waits for the paused one; no copy is read twice."""
    laid(3)
    driver = drive(ALL)
    driver.step()
    sent = dict(driver.queue.waiting)
    pause(context, "dr")
    with pytest.raises(Snooze):
        driver.work()
    assert {store for _, store, _ in verdicts(context)} == {"primary"}
    pause(context)
    driver.queue.waiting |= sent
    assert driver.finish().outcomes == {"verified": 3}
    assert len(verdicts(context)) == len(set(verdicts(context))) == 6


@pytest.mark.parametrize("again", [False, True], ids=["new", "something there"])
def test_a_paused_target_keeps_only_its_own_copies_waiting(run, source, drive, stored, context, again):
    """A page writes the copies to the other targets and records them; later only the paused one gets its copies."""
    for n in range(3):
        key = f"a/{n:03d}"
        run(upload, UploadRequest(bucket="releases", key=key, source=source(key.encode()), stores=("primary",)))
        if again:
            stored("cold", key).parent.mkdir(parents=True, exist_ok=True)
            stored("cold", key).write_bytes(key.encode())
    driver = drive(BatchRequest(verb="replicate", bucket="releases", to=("dr", "cold")))
    driver.step()
    sent = dict(driver.queue.waiting)
    pause(context, "dr")
    with pytest.raises(Snooze):
        driver.work()
    for artifact in context.catalogue.artifacts.page("releases"):
        copies = context.catalogue.artifacts.copies(artifact)
        assert (copies["cold"].state.good, copies["dr"].state.value) == (True, "writing")
    pause(context)
    read = len(verdicts(context))
    driver.queue.waiting |= sent
    assert driver.finish().outcomes == {"stored": 3}
    assert len(verdicts(context)) == read


@pytest.mark.parametrize("after", [0, 1])
def test_no_source_is_read_for_targets_that_take_no_job(laid, drive, context, monkeypatch, after):
    """A page that waits for its only target would read all its sources at each of its deliveries."""
    laid(3)
    monkeypatch.setitem(context.settings.page.__dict__, "threads", 1)
    driver = drive(VERBS[1])
    driver.step()
    read, objects, admit = [], LimitedStore.read_objects, LimitedStore.admit

    def admit_at_first(store: LimitedStore) -> None:
        if store.name == "cold" and len(read) >= after:
            closed = Snooze("its breaker is open", 1.0)
            closed.store = store.name
            raise closed
        admit(store)

    monkeypatch.setattr(LimitedStore, "admit", admit_at_first)
    monkeypatch.setattr(LimitedStore, "read_objects", lambda *of: read.append(of) or objects(*of))
    monkeypatch.setattr(LimitedStore, "read_object", lambda *of, **_: read.append(of))
    with pytest.raises(Snooze):
        driver.work()
    assert len(read) == after


@pytest.mark.parametrize("number", [1, 3], ids=["alone", "page"])
def test_what_is_uploaded_again_while_its_delete_waits_stays(laid, drive, context, run, source, number):
    """A later version is no part of the batch: also not of a page that has begun, or of a job of one artifact."""
    laid(number)
    driver = drive(VERBS[2])
    driver.step()
    sent = dict(driver.queue.waiting)
    pause(context, "primary", "dr")
    with pytest.raises(Snooze):
        driver.work()
    pause(context)
    run(upload, UploadRequest(bucket="releases", key="a/000", source=source(b"uploaded after the batch began")))
    driver.queue.waiting |= sent
    assert driver.finish().outcomes["kept"] == 1
    assert [each.version for each in context.catalogue.artifacts.page("releases")] == [2]


def test_a_page_whose_batch_is_unknown_leaves_what_came_after_it(laid, run, context, source):
    """A catalogue that was restored may be older than the batch of a message; the message has the newest version.

    Nor does a page that has begun delete what replaced its objects.
    """
    laid(2)
    newest = context.catalogue.artifact("releases", "a/001").id
    laid(1, "b/")
    wanted = PageRequest(verb="delete", range=RangeSelection(bucket="releases", until="z", newest=newest))
    pause(context, "primary", "dr")
    with pytest.raises(Snooze):
        run(page, wanted, id_="page-1")
    with context.catalogue._database.write() as connection:
        connection.execute(sa.update(tables.jobs).values(lease_until=clock.now()))
    pause(context)
    run(upload, UploadRequest(bucket="releases", key="a/000", source=source(b"uploaded after the page began")))
    assert run(page, wanted, id_="page-1").outcomes == {"deleted": 1, "kept": 1}
    left = [(each.key, each.version) for each in context.catalogue.artifacts.page("releases")]
    assert left == [("a/000", 2), ("b/000", 1)]


def test_a_cancelled_page_stops_and_keeps_what_it_has_recorded(laid, drive, monkeypatch, context):
    """A page whose job is cancelled starts no further object, and what was read has its verdict."""
    monkeypatch.setitem(context.settings.page.__dict__, "objects", 6)
    monkeypatch.setitem(context.settings.page.__dict__, "threads", 1)
    laid(6)
    driver = drive(ALL)
    driver.step()

    def cancelled(job: RunningJob, count: int) -> None:
        raise Cancelled("cancelled")

    monkeypatch.setattr(RunningJob, "advance", cancelled)
    with pytest.raises(Cancelled):
        driver.work()
    assert 0 < len(verdicts(context)) < 12


@pytest.mark.parametrize("error", [Unavailable, AccessDenied, OutOfSpace], ids=lambda each: each.__name__)
def test_an_error_of_one_object_does_not_end_the_page(laid, drive, context, monkeypatch, error):
    """The object leaves the page and is replicated by its own job; each copy that is to be read back was."""
    monkeypatch.setitem(context.settings.replication.__dict__, "proof", "reread")
    laid(3)
    open_, failed = type(context.stores["cold"]).write_object, []

    def failing(store: Any, bucket: str, key: str, *args: Any, **options: Any) -> Any:
        if key == "a/001" and not failed:
            failed.append(key)
            with spooling_in(None):
                if error is OutOfSpace:  # it is about no store
                    raise OSError(errno.ENOSPC, "No space left on device")
                raise error("cold: it does not take this one now")
        return open_(store, bucket, key, *args, **options)

    monkeypatch.setattr(type(context.stores["cold"]), "write_object", failing)
    result = drive(BatchRequest(verb="replicate", bucket="releases", to=("cold",))).finish()
    assert (result.objects, result.outcomes) == (3, {"stored": 3})
    assert kinds(context) == ["page", "replicate"]
    assert context.catalogue.job_admin.find([JobState.FAILED]) == []
    assert sorted(key for key, store, _ in verdicts(context) if store == "cold") == ["a/000", "a/001", "a/002"]
    assert context.catalogue.artifacts.count_by_state()["cold"] == {"verified": 3}


def test_a_store_that_is_the_place_of_another_one_keeps_its_pages_waiting(laid, drive, settings, context, monkeypatch):
    """No object there is a copy of its own, and none becomes a job: all wait until the settings or mounts are right."""
    monkeypatch.setitem(context.settings.page.__dict__, "objects", 12)
    laid(12)
    cold, primary = (settings.stores[name].root for name in ("cold", "primary"))
    cold.rmdir()
    cold.symlink_to(primary)
    driver = drive(BatchRequest(verb="replicate", bucket="releases", to=("cold",)))
    driver.step()
    with pytest.raises(StoreRefuses, match="cold: it refuses all that a page asks: stores cold and primary are one"):
        driver.work()
    assert kinds(context) == ["page"]
    copies = context.catalogue.artifacts.copies(context.catalogue.artifact("releases", "a/000"))
    assert not copies["cold"].state.present


def test_small_artifacts_are_replicated_without_asking_first(laid, drive, stored, context, monkeypatch):
    """A page reads and writes each small artifact once; only where something is under the key it asks what that is."""
    laid(3)
    there = stored("cold", "a/001")
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(stored("primary", "a/001").read_bytes())  # as a killed job leaves it, which has recorded nothing
    stat, asked = LimitedStore.stat_object, []

    def counted(store: LimitedStore, bucket: str, key: str, **options: bool) -> Any:
        asked.append((store.name, key))
        return stat(store, bucket, key, **options)

    monkeypatch.setattr(LimitedStore, "stat_object", counted)
    result = drive(BatchRequest(verb="replicate", bucket="releases", to=("cold",))).finish()
    assert result.outcomes == {"stored": 2, "already_there": 1}
    assert asked == [("cold", "a/001")]
    assert stored("cold", "a/002").read_bytes() == stored("primary", "a/002").read_bytes()
    assert kinds(context) == ["page"]
