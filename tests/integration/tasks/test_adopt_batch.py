"""A batch adopts objects in pages, with the rules of a single adoption for each of them."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tasks.adopt import adopt
from tasks.delete import delete
from tasks.upload import upload
from tests.integration.tasks.conftest import pause
from tests.integration.tasks.test_batch import Driver
from tests.integration.tasks.test_batch_pages import kinds, verdicts
from worker import clock
from worker.artifacts.key_lists import BadKeyList
from worker.catalogue import CatalogueUnavailable
from worker.catalogue.pages import Pages
from worker.context import Context
from worker.jobs.running_job import Cancelled, Requeue
from worker.limits.limited_store import LimitedStore
from worker.limits.snooze import Snooze
from worker.storage.errors import AccessDenied, NotFound, Unavailable
from zot_artifact_client.contract import AdoptRequest, BatchRequest, DeleteRequest, UploadRequest

ALL = BatchRequest(verb="adopt", bucket="releases", prefix="a/", stores=("dr",))
KEYS = [f"a/{number}" for number in range(6)]


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.fixture(autouse=True)
def small_groups(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a page have two threads, and a group two objects."""
    monkeypatch.setitem(context.settings.page.__dict__, "threads", 2)
    monkeypatch.setattr("worker.artifacts.page_runner.GROUP", 2)


@pytest.fixture
def lay(stored: Callable[..., Path]) -> Callable[..., None]:
    """Lay objects of another program into `dr`, by default with the digest of their bytes beside them."""

    def lay(keys: Iterable[str] = KEYS, body: bytes = b"", sidecar: str | None = "") -> None:
        for key in keys:
            path, content = stored("dr", key), body or f"the bytes of {key}".encode()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if sidecar is not None:
                path.with_name(f"{path.name}.sha256").write_text(sidecar or sha256(content))

    return lay


@pytest.fixture
def drive(context: Context) -> Callable[[BatchRequest], Driver]:
    return lambda request: Driver(context, request)


@pytest.fixture
def begun(drive, lay) -> Callable[[], Driver]:
    """Return a batch over six good objects whose page waits for a worker."""

    def begun() -> Driver:
        lay()
        driver = drive(ALL)
        driver.step()
        return driver

    return begun


def states(context: Context) -> dict[str, str]:
    """Return the states of the copies in `dr`, by key."""
    artifacts = context.catalogue.artifacts
    copies = {each.key: artifacts.copies(each).get("dr") for each in artifacts.page("releases")}
    return {key: copy.state.value for key, copy in copies.items() if copy}


def test_each_object_is_judged_as_a_single_adoption_judges_it(lay, drive, run, source, context, stored):
    """Kept digest, none, another one, other content, known copy, deleted one: each has its outcome in one page."""
    lay(["a/good", "a/known", "a/old"])
    run(adopt, AdoptRequest(bucket="releases", key="a/old", store="dr"))
    run(delete, DeleteRequest(bucket="releases", key="a/old"))
    lay(["a/old"])
    lay(["a/rotten"], b"rotten", sha256(b"as it was"))
    lay(["a/other", "a/bare"], b"theirs", None)
    run(upload, UploadRequest(bucket="releases", key="a/other", source=source(b"ours"), stores=("primary",)))
    run(adopt, AdoptRequest(bucket="releases", key="a/known", store="dr"))
    read = len(verdicts(context))

    result = drive(ALL).finish()

    assert result.outcomes == {
        "adopted": 1, "adopted_after_delete": 1, "already_there": 1,
        "DigestMismatch": 1, "OtherContent": 1, "Unverifiable": 1,
    }  # fmt: skip
    assert (result.objects, result.failed) == (6, 3)
    told = {each.key: each.message for each in result.failures}
    assert told.keys() == {"a/rotten", "a/other", "a/bare"}
    assert sha256(b"rotten") in told["a/rotten"]
    assert kinds(context) == ["page"]
    assert states(context) == {"a/good": "verified", "a/known": "verified", "a/old": "verified"}
    assert len(verdicts(context)) == read + 2
    artifacts = context.catalogue.artifacts
    assert artifacts.copies(artifacts.current("releases", "a/good"))["dr"].evidence == {
        "adopted": "sha256 kept by the store"
    }


def test_a_first_read_is_the_record_and_no_verification(lay, drive, context):
    """What a page records without a digest is `stored`, and the log has no verdict on it."""
    lay(sidecar=None)
    result = drive(ALL.model_copy(update={"first_read": True})).finish()
    assert result.outcomes == {"adopted": 6}
    assert (states(context), verdicts(context)) == (dict.fromkeys(KEYS, "stored"), [])


def test_a_list_names_objects_and_digests(lay, drive, context, source_root):
    """A line is a key, or a JSON object with the digest that the bytes must have; a key twice has two outcomes."""
    lay(sidecar=None)
    good = [{"bucket": "releases", "key": key, "sha256": sha256(f"the bytes of {key}".encode())} for key in KEYS[:3]]
    rows = [*good, {**good[0], "key": KEYS[3]}, good[0]]
    lines = [json.dumps(row) for row in rows] + ["", f"releases/{KEYS[4]}", "releases/a/gone"]
    (source_root / "list").write_text("\n".join(lines))
    wanted = BatchRequest(verb="adopt", keys_from=str(source_root / "list"), stores=("dr",))
    result = drive(wanted).finish()
    adopted = result.outcomes.pop("adopted") + result.outcomes.pop("already_there", 0)
    assert (adopted, result.outcomes) == (4, {"DigestMismatch": 1, "Unverifiable": 1, "NotFound": 1})
    artifacts = context.catalogue.artifacts
    copy = artifacts.copies(artifacts.current("releases", KEYS[0]))["dr"]
    assert (copy.evidence, copy.state.value) == ({"adopted": "sha256 of the request"}, "verified")
    assert states(context).keys() == set(KEYS[:3])


OF_SIZE = '{"bucket": "b", "key": "k", "size": %s}'


@pytest.mark.parametrize(
    "line",
    [
        '{"bucket": "releases"}', '{"bucket": "b", "key": "k", "sha256": "x"}', "[]", "b/../k",
        '{"bucket": "b", "key": "k", "key": "l"}',
        OF_SIZE % '"1"', OF_SIZE % -1, OF_SIZE % 2**70, f"{OF_SIZE}\n{OF_SIZE}" % (2**62, 2**62),
    ],
)  # fmt: skip
def test_a_list_with_a_line_that_names_nothing_is_refused(drive, source_root, line):
    """Nothing is adopted from a list that cannot be read to its end."""
    (source_root / "list").write_text(f"releases/a\n{line}\n")
    with pytest.raises(BadKeyList):
        drive(BatchRequest(verb="adopt", keys_from=str(source_root / "list"), stores=("dr",))).step()


def test_a_prefix_without_objects_is_an_error(drive):
    """It may be misspelt."""
    with pytest.raises(NotFound, match="dr: there is no object below releases/a/"):
        drive(ALL).step()


@pytest.mark.parametrize("fault", [KeyboardInterrupt, CatalogueUnavailable])
def test_a_page_that_dies_between_two_groups_goes_on_behind_them(begun, context, monkeypatch, fault):
    """The objects whose group was recorded are not adopted again; each has one version, one verdict, one outcome."""
    driver, record, recorded = begun(), Pages.adopt, []

    def fails(*_: object) -> None:
        if fault is KeyboardInterrupt:
            raise KeyboardInterrupt
        raise sa.exc.OperationalError("COMMIT", None, sqlite3.OperationalError("database or disk is full"))

    def dying(*args: Any, now: Any) -> Any:
        recorded.append(args)
        with monkeypatch.context() as full:
            if len(recorded) > 1:
                full.setattr(sa.engine.RootTransaction, "commit", fails)
            return record(*args, now=now)

    sent = dict(driver.queue.waiting)
    with monkeypatch.context() as dead:
        dead.setattr(Pages, "adopt", dying)
        with pytest.raises(fault):
            driver.work()
    assert len(states(context)) == 2
    driver.queue.waiting |= sent
    result = driver.finish()
    assert (result.objects, result.outcomes) == (6, {"adopted": 6})
    assert (states(context), len(verdicts(context))) == (dict.fromkeys(KEYS, "verified"), 6)
    assert {each.version for each in context.catalogue.artifacts.page("releases")} == {1}
    assert context.catalogue.verifications.first_broken() is None


def test_what_cannot_be_done_in_the_page_becomes_a_job_with_its_digest(lay, drive, context, monkeypatch, source_root):
    """A transient error, the lock of another job and a large object leave the page; their jobs compare the digest.

    Of a key that the list names twice, each line is counted once.
    """
    lay(["a/busy", "a/slow"], b"theirs", None)
    lay(["a/large"], b"larger than the others", None)
    lay(["a/stays"], b"others", None)
    rows = [
        {"bucket": "releases", "key": key, "sha256": sha256(b"theirs")}
        for key in ("a/busy", "a/slow", "a/stays", "a/slow")
    ]
    rows.append({"bucket": "releases", "key": "a/large", "sha256": sha256(b"larger than the others")})
    (source_root / "list").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.setitem(context.settings.page.__dict__, "large", 10)
    read, failed = LimitedStore.read_object, []

    def failing(store: LimitedStore, bucket: str, key: str, **options: Any) -> Any:
        if key == "a/slow" and not failed:
            failed.append(key)
            raise Unavailable("dr: it does not answer")
        return read(store, bucket, key, **options)

    monkeypatch.setattr(LimitedStore, "read_object", failing)
    driver = drive(BatchRequest(verb="adopt", keys_from=str(source_root / "list"), stores=("dr",)))
    driver.step()
    context.catalogue.ledger.acquire(
        "other", "upload", {}, owner="x", writes_to="releases/a/busy", parent=None, now=clock.now(),
        lease=context.settings.jobs.lease,
    )  # fmt: skip
    result = driver.finish()
    again = result.outcomes.pop("already_there")
    assert (result.objects, again, result.outcomes) == (5, 1, {"adopted": 3, "DigestMismatch": 1})
    assert kinds(context) == ["page", "adopt", "adopt", "adopt"]
    assert states(context) == dict.fromkeys(["a/busy", "a/large", "a/slow"], "verified")


def test_a_failed_job_of_its_own_has_the_type_of_its_error_as_outcome(lay, drive, context, monkeypatch):
    """A large object without a digest counts as one in a page does, so that the exit status is the same."""
    lay(["a/large"], b"larger than the others", None)
    monkeypatch.setitem(context.settings.page.__dict__, "large", 10)
    result = drive(ALL).finish()
    assert (result.outcomes, kinds(context)) == ({"Unverifiable": 1}, ["page", "adopt"])


def test_an_object_that_may_not_be_read_is_a_failed_job_until_it_is_adopted(begun, drive, context, monkeypatch):
    """An operator can end that, so that it shows in the ledger; what is wrong with the object itself does not."""
    read = LimitedStore.read_object

    def refused(store: LimitedStore, bucket: str, key: str, **options: Any) -> Any:
        if key == KEYS[2]:
            error = AccessDenied("dr: the credentials have expired")
            error.store = "dr"
            raise error
        return read(store, bucket, key, **options)

    since = clock.now()
    with monkeypatch.context() as patched:
        patched.setattr(LimitedStore, "read_object", refused)
        result = begun().finish()
    assert (result.outcomes, kinds(context)) == ({"adopted": 5, "AccessDenied": 1}, ["page", "adopt"])
    [told] = context.catalogue.coverage.failed_jobs(since=since)
    assert (told.error, told.store, told.count) == ("AccessDenied", "dr", 1)
    again = drive(ALL)
    again.id = "batch-2"
    assert again.finish().outcomes == {"adopted": 1, "already_there": 5}
    assert context.catalogue.coverage.failed_jobs(since=since) == []


@pytest.mark.parametrize("after", [0, 3])
def test_a_store_that_takes_no_job_keeps_the_rest_waiting(begun, context, monkeypatch, after):
    """What was read until then is recorded; the next delivery does the others."""
    monkeypatch.setitem(context.settings.page.__dict__, "threads", 1)
    driver, read, begun_reads = begun(), LimitedStore.read_object, []

    def closing(store: LimitedStore, bucket: str, key: str, **options: Any) -> Any:
        begun_reads.append(key)
        if len(begun_reads) > after:
            closed = Snooze("its breaker is open", 1.0)
            closed.store = store.name
            raise closed
        return read(store, bucket, key, **options)

    sent = dict(driver.queue.waiting)
    with monkeypatch.context() as closed:
        closed.setattr(LimitedStore, "read_object", closing)
        with pytest.raises(Snooze):
            driver.work()
    assert len(states(context)) == after
    driver.queue.waiting |= sent
    assert driver.finish().outcomes == {"adopted": 6}
    assert len(verdicts(context)) == 6


def test_a_paused_store_is_not_listed(lay, drive, context):
    """The batch waits, as a single adoption does."""
    lay()
    pause(context, "dr")
    with pytest.raises(Snooze):
        drive(ALL).step()


def test_a_cancelled_page_keeps_what_it_has_recorded(begun, context, monkeypatch):
    """It begins no further object, and releases its locks."""
    monkeypatch.setitem(context.settings.page.__dict__, "threads", 1)
    driver, read, reads = begun(), LimitedStore.read_object, []

    def cancelling(store: LimitedStore, bucket: str, key: str, **options: Any) -> Any:
        reads.append(key)
        if len(reads) > 3:
            raise Cancelled("cancelled")
        return read(store, bucket, key, **options)

    monkeypatch.setattr(LimitedStore, "read_object", cancelling)
    with pytest.raises(Cancelled):
        driver.work()
    assert (len(reads), len(states(context)), len(verdicts(context))) == (4, 3, 3)
    paths = [("releases", key) for key in KEYS]
    assert context.catalogue.artifact_locks.acquire(
        "another", 1, paths, now=clock.now(), lease=timedelta(hours=1)
    ) == set(paths)


def test_a_page_whose_time_is_up_goes_on_later(begun, context, monkeypatch):
    """It is requeued behind the jobs that wait, and the next delivery ends it."""
    driver = begun()
    sent = dict(driver.queue.waiting)
    with monkeypatch.context() as short:
        short.setitem(context.settings.page.__dict__, "time", timedelta(0))
        with pytest.raises(Requeue, match="others wait"):
            driver.work()
    assert states(context) == {}
    driver.queue.waiting |= sent
    assert driver.finish().outcomes == {"adopted": 6}


def test_what_was_recorded_meanwhile_is_not_replaced(begun, run, source, context, monkeypatch):
    """A page that read its object before another version was recorded leaves it to a job, which tells the conflict."""
    driver, record = begun(), Pages.adopt

    def late(*args: Any, now: Any) -> Any:
        if context.catalogue.artifacts.current("releases", KEYS[0]) is None:
            run(upload, UploadRequest(bucket="releases", key=KEYS[0], source=source(b"ours"), stores=("primary",)))
        return record(*args, now=now)

    monkeypatch.setattr(Pages, "adopt", late)
    result = driver.finish()
    assert result.outcomes == {"adopted": 5, "OtherContent": 1}
    assert context.catalogue.artifacts.current("releases", KEYS[0]).digest.sha256 == sha256(b"ours")
    assert context.catalogue.artifacts.version("releases", KEYS[0], 2) is None


def test_what_a_hold_forbids_is_a_failure(lay, drive, run, context):
    """A companion that was deleted is not recorded anew while its artifact is held, and the batch tells the hold."""
    lay(["a/app", "a/app.sig"])
    for key in ("a/app", "a/app.sig"):
        run(adopt, AdoptRequest(bucket="releases", key=key, store="dr"))
    run(delete, DeleteRequest(bucket="releases", key="a/app.sig"))
    context.catalogue.holds.place("releases", "a/app", by="ana", reason="case 4711", now=clock.now())
    lay(["a/app.sig"])
    result = drive(ALL).finish()
    assert result.outcomes == {"already_there": 1, "OnHold": 1}
    assert "held by ana" in result.failures[0].message
    assert context.catalogue.artifacts.current("releases", "a/app.sig") is None
