"""A batch works in steps: a crash at any point skips no object and repeats none."""

import dataclasses
import io
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery
from pydantic import SecretStr

from tasks import batch as batches
from tasks.adopt import adopt
from tasks.delete import delete
from tasks.page import page
from tasks.replicate import replicate
from tasks.upload import upload
from tasks.verify import verify
from tests.conformance.targets import make_s3_bucket, s3_config
from tests.integration.tasks.conftest import NullReporter
from tests.waiting import WITHIN
from worker import clock
from worker.artifacts.key_lists import BadKeyList
from worker.catalogue import FinishedCopy, Leased, tables
from worker.catalogue.batch_lists import BatchLists
from worker.context import Context
from worker.jobs.outbox import Outbox
from worker.jobs.running_job import Continue, RunningJob
from worker.limits.snooze import StoreRefuses
from worker.storage import Digest
from worker.storage.configured_stores import Stores, UnknownStore
from worker.storage.errors import NotFound, PermanentError, StorageError
from zot_artifact_client.contract import (
    AdoptRequest,
    BatchRequest,
    BatchResult,
    DeleteRequest,
    JobState,
    PageRequest,
    ReplicateRequest,
    UploadRequest,
    VerifyRequest,
)
from zot_artifact_client.contract.queues import queues
from zot_artifact_client.outgoing_messages import Outgoing

ALL = BatchRequest(verb="verify", bucket="releases")
VERBS: dict[str, tuple[Callable[..., Any], type[Any]]] = {
    "artifact.verify.v1": (verify, VerifyRequest),
    "artifact.replicate.v1": (replicate, ReplicateRequest),
    "artifact.delete.v1": (delete, DeleteRequest),
    "artifact.adopt.v1": (adopt, AdoptRequest),
    "artifact.upload.v1": (upload, UploadRequest),
    "artifact.page.v1": (page, PageRequest),
}


class Killed(BaseException):
    """The process is gone."""


def kill() -> None:
    raise Killed


class Queue:
    """The broker of a batch: what was sent, in order, and what of it no worker has taken yet."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.waiting: dict[str, Outgoing] = {}
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    def send(self, jobs: list[Outgoing]) -> None:
        self.before()
        self.sent += [job.job_id for job in jobs]
        self.waiting |= {job.job_id: job for job in jobs}
        self.after()

    def lost(self, ids: list[str]) -> set[str] | None:
        return set(ids) - set(self.waiting)


class Driver:
    """Steps a batch as the worker does, and does its jobs as a worker would, so many at a time."""

    def __init__(self, context: Context, request: BatchRequest) -> None:
        self.context = context
        self.request = request
        self.queue = Queue()
        self.outside = NullReporter()
        self.id = "batch-1"

    def step(self, request: BatchRequest | None = None) -> BatchResult | None:
        """Do one step, as if its time had come; return the result of the last."""
        self.come()
        return self.deliver(request)

    def deliver(self, request: BatchRequest | None = None) -> BatchResult | None:
        """Do with one message what the worker does."""
        job = self._take(self.id, "batch", {})
        with job:
            try:
                return batches.batch(request or self.request, job, self.queue)
            except Continue as step:
                progress = job.progress.model_dump() if step.seconds else None
                self.context.catalogue.ledger.continue_later(job.id, job.fence, progress=progress, due=clock.now())
                return None

    def come(self) -> None:
        """Let the time of the next step come."""
        with self.context.catalogue._database.write() as connection:
            connection.execute(sa.update(tables.batches).values(next_step_at=clock.now() - timedelta(seconds=1)))

    def work(self, most: int = 10_000) -> None:
        """Do the jobs that wait, at most so many."""
        for id_, sent in list(self.queue.waiting.items())[:most]:
            del self.queue.waiting[id_]
            work, model = VERBS[sent.name]
            job = self._take(id_, sent.name.split(".")[1], sent.payload)
            try:
                result = work(model.read(sent.payload), job)
            except StorageError as error:
                told = {"type": type(error).__name__, "message": str(error), "store": error.store}
                self._end(job, JobState.FAILED, error=told)
            else:
                self._end(job, JobState.SUCCEEDED, result=result.model_dump(mode="json"))

    def finish(self) -> BatchResult:
        """Step and work until the batch has ended."""
        for _ in range(100):
            result = self.step()
            if result is not None:
                return result
            self.work()
        raise AssertionError("it does not end")

    def _take(self, id_: str, kind: str, request: Any) -> RunningJob:
        begun = self.context.catalogue.ledger.acquire(
            id_, kind, request, owner="test", writes_to=None, parent=None, now=clock.now(), lease=timedelta(0)
        )
        assert isinstance(begun, Leased), begun
        return RunningJob(begun.record, self.context, self.outside)

    def _end(self, job: RunningJob, state: JobState, **how: Any) -> None:
        self.context.catalogue.ledger.finish(job.id, job.fence, state, now=clock.now(), **how)


@pytest.fixture
def laid(run, source) -> Callable[..., None]:
    """Upload so many small artifacts."""

    def lay(number: int, prefix: str = "a/", bucket: str = "releases") -> None:
        for n in range(number):
            key = f"{prefix}{n:03d}"
            content = f"the bytes of {key}".encode()
            run(upload, UploadRequest(bucket=bucket, key=key, source=source(content)))

    return lay


@pytest.fixture
def one_each(context, monkeypatch) -> None:
    """Let every artifact be a job of its own."""
    monkeypatch.setitem(context.settings.page.__dict__, "objects", 1)


@pytest.fixture
def drive(context) -> Callable[[BatchRequest], Driver]:
    return lambda request: Driver(context, request)


def children(context: Context) -> list[Any]:
    return [job for job in context.catalogue.job_admin.find([], limit=1000) if job.parent == "batch-1"]


@pytest.mark.usefixtures("one_each")
def test_a_whole_bucket_is_done_in_jobs_of_one_object(laid, drive, context):
    """Every artifact gets its job, no more of them wait at a time than allowed, and all are counted, bytes too."""
    laid(10)
    laid(1, bucket="other")
    driver = drive(ALL.model_copy(update={"in_flight": 4}))

    assert driver.step() is None
    assert (len(driver.queue.sent), driver.outside.reports[-1].objects_done) == (4, 0)
    result = driver.finish()

    assert (result.objects, result.failed, result.outcomes, result.good) == (10, 0, {"verified": 10}, True)
    assert result.bytes == 10 * len("the bytes of a/000")
    assert len(driver.queue.sent) == len(set(driver.queue.sent)) == 10
    assert [(job.parent, job.state, job.kind) for job in children(context)] == [("batch-1", "succeeded", "verify")] * 10
    last = driver.outside.reports[-1]
    assert (last.objects_done, last.objects_total, last.bytes_total) == (10, 10, result.bytes)


@pytest.mark.usefixtures("one_each")
def test_failed_objects_are_named(laid, drive, stored):
    """A corrupt, a missing and an unreadable copy are counted by their verdicts and named; the others are good."""
    laid(5)
    stored("dr", "a/001").write_bytes(b"rotten" * 3)
    stored("primary", "a/003").unlink()

    result = drive(ALL).finish()

    assert (result.objects, result.failed, result.good) == (5, 2, False)
    assert result.outcomes == {"verified": 3, "corrupt": 1, "missing": 1}
    assert [(each.key, each.outcome) for each in result.failures] == [("a/001", "corrupt"), ("a/003", "missing")]
    assert result.failures[0].job == "batch-1.00000002"
    assert "dr" in result.failures[0].message


@pytest.mark.parametrize("objects", [1, 500])
def test_what_a_store_does_not_keep_beside_the_bytes_is_named(run, source, drive, context, monkeypatch, objects):
    """The result of a batch names it by store, whether its artifacts are done in pages or in jobs of their own."""
    monkeypatch.setitem(context.settings.page.__dict__, "objects", objects)
    for key, more in (("a", {"metadata": {"build": "7"}}), ("b", {"cache_control": "no-store"}), ("c", {})):
        run(upload, UploadRequest(bucket="releases", key=key, source=source(key.encode()), **more))
    result = drive(BatchRequest(verb="replicate", bucket="releases", to=("cold",))).finish()
    assert (result.outcomes, result.not_kept) == ({"stored": 3}, {"cold": ("cache_control", "metadata")})


@pytest.mark.parametrize("content", [b"x", None])
def test_a_batch_refuses_a_storage_class_for_a_store_that_has_none(drive, source_root, content, stored):
    """A directory with a file or without any is refused before it is listed, as a single upload is."""
    if content:
        (source_root / "app.tgz").write_bytes(content)
    asked = BatchRequest(
        verb="upload", directory=str(source_root), bucket="releases", stores=("primary",),
        storage_classes={"primary": "STANDARD_IA"},
    )  # fmt: skip
    with pytest.raises(PermanentError, match="primary: the store has no storage classes; leave it out"):
        drive(asked).finish()
    assert not stored("primary").exists()


@pytest.fixture
def files(source_root: Path) -> BatchRequest:
    """Lay 600 files into a directory, which is more than one row of its list; return the upload of it."""
    for number in range(600):
        (source_root / f"{number:03d}").write_text(f"the bytes of {number}")
    return BatchRequest(verb="upload", directory=str(source_root), bucket="releases", stores=("primary",))


@pytest.fixture
def credentials(context, rclone) -> Iterator[dict[str, Context]]:
    """Return contexts with one more store, `cloud`: one with the right credentials for it, one with wrong ones."""
    right = s3_config(rclone)
    make_s3_bucket(rclone, str(right.bucket))
    wrong = right.model_copy(update={"secret_access_key": SecretStr("no longer the key")})
    made = {
        name: dataclasses.replace(context, stores=Stores({**context.settings.stores, "cloud": config}))
        for name, config in (("right", right), ("wrong", wrong))
    }
    yield made
    for each in made.values():
        each.stores.close()


def test_files_that_a_store_refuses_are_failed_jobs_until_it_takes_them(drive, files, context, credentials):
    """A few are failed jobs, so that the failure shows in the ledger; the upload that is sent again settles them."""
    since, small = clock.now(), files.model_copy(update={"stores": ("primary", "cloud"), "include": ("00[1-9]",)})
    for number, each in enumerate(("wrong", "right")):
        driver = drive(small)
        driver.id, driver.context = f"batch-{number}", credentials[each]
        result = driver.finish()
        left = context.catalogue.coverage.failed_jobs(since=since)
        if each == "wrong":
            assert (result.outcomes, result.failed) == ({"failed": 9}, 9)
            assert {each.job.partition(".")[0] for each in result.failures} == {"batch-0"}
            assert [(each.error, each.store, each.count) for each in left] == [("AccessDenied", "cloud", 9)]
            assert len(context.catalogue.batches.child_jobs("batch-0", failed=True)) == 9
    assert (result.outcomes, result.failed, left) == ({"stored": 9}, 0, [])


def test_a_store_that_refuses_everything_keeps_the_pages_of_a_batch_waiting(drive, files, context, credentials):
    """No object becomes a job, whatever the verb, and all are done once the store takes them.

    Nor where the page has just so many objects that the store counts as refusing all with the last one.
    """
    copies = {"bucket": "releases", "prefix": "00"}
    upload = files.model_copy(update={"stores": ("primary", "cloud"), "include": ("00*", "01*")})
    for verb, request, outcome in (
        ("upload", upload, "stored"),
        ("verify", BatchRequest(verb="verify", stores=("cloud",), **copies), "verified"),
        ("delete", BatchRequest(verb="delete", stores=("cloud",), **copies), "deleted"),
        ("replicate", BatchRequest(verb="replicate", to=("cloud",), **copies), "stored"),
        ("adopt", BatchRequest(verb="adopt", bucket="others", stores=("cloud",)), "adopted"),
    ):
        if verb == "adopt":
            for number in range(20):
                credentials["right"].stores["cloud"].write_object("others", f"{number}", io.BytesIO(b"theirs"))
        driver = drive(request)
        driver.id, driver.context = verb, credentials["right"]
        driver.step()
        driver.context = credentials["wrong"]
        [(id_, sent)] = driver.queue.waiting.items()
        for fence in (1, 2):
            with pytest.raises(StoreRefuses, match="cloud: it refuses all that a page asks"):
                driver.work()
            context.catalogue.ledger.snooze(id_, fence, {}, since=clock.now(), due=clock.now())
            driver.queue.waiting[id_] = sent
            driver.step()
        driver.context = credentials["right"]
        assert driver.finish().outcomes == {outcome: 10 if request.prefix else 20}, verb
    assert {job.kind for job in context.catalogue.job_admin.find([], limit=1000)} <= {"batch", "page"}


def test_the_workers_of_several_machines_share_the_list_of_a_directory(drive, files, settings, tmp_path):
    """One machine lists the directory; steps and pages run on another one, with a data directory of its own."""
    changes = {"home": tmp_path / "other machine", "catalogue": SecretStr(settings.catalogue_url)}
    driver = drive(files)
    assert driver.step() is None
    other = Context.open(settings.model_copy(update=changes))
    driver.context = other
    result = driver.finish()
    assert (result.outcomes, result.failed) == ({"stored": 600}, 0)
    other.close()


def test_a_directory_is_listed_again_after_a_death(drive, files, source_root, monkeypatch, context):
    """The list of the attempt that was killed leaves no line: the directory may have changed since."""
    driver = drive(files)
    with monkeypatch.context() as patched:
        append, calls = BatchLists.append, count()

        def killed(self: BatchLists, batch: str, begin: int, lines: bytes) -> None:
            append(self, batch, begin, lines)
            if next(calls):
                kill()

        patched.setattr(BatchLists, "append", killed)
        with pytest.raises(Killed):
            driver.step()
    for number in range(400):
        (source_root / f"{number:03d}").unlink()
    assert driver.finish().outcomes == {"stored": 200}
    assert len(context.catalogue.artifacts.page("releases")) == 200


def test_a_batch_that_is_redriven_without_its_list_fails(drive, files, context):
    """A batch that ended early has no list any more: what is left of the directory is not forgotten in silence."""
    driver = drive(files.model_copy(update={"in_flight": 1}))
    assert driver.step() is None
    driver.work()
    context.catalogue.batch_lists.remove(driver.id)
    with pytest.raises(NotFound, match="the list of batch batch-1 is gone.*send it again"):
        driver.finish()


def test_a_page_of_a_batch_that_has_ended_uploads_nothing(drive, files, context, stored):
    """The list goes with its batch, and a page that is delivered late says so."""
    driver = drive(files)
    assert driver.step() is None
    context.catalogue.batch_lists.remove(driver.id)
    driver.work()
    assert {job.error["message"].partition(":")[0] for job in children(context)} == {
        "the list of batch batch-1 is gone, because the batch has ended"
    }
    assert not stored("primary").parent.exists()


@pytest.mark.parametrize("point", ["before it is recorded", "before its messages", "after its messages"])
@pytest.mark.usefixtures("one_each")
def test_a_death_leaves_nothing_out_and_does_nothing_twice(laid, drive, context, monkeypatch, point):
    """A worker is killed in the middle of a step; the next one goes on, and each artifact has one job that was done."""
    laid(9)
    driver = drive(ALL.model_copy(update={"in_flight": 4}))
    driver.step()
    driver.work()
    with monkeypatch.context() as patched:
        if point == "before it is recorded":
            patched.setattr("worker.catalogue.batches._after", lambda *_: kill())
        setattr(driver.queue, "before" if point == "before its messages" else "after", kill)
        with pytest.raises(Killed):
            driver.step()
    driver.queue.before = driver.queue.after = lambda: None

    result = driver.finish()

    assert (result.objects, result.outcomes) == (9, {"verified": 9})
    found = children(context)
    assert sorted(job.request["key"] for job in found) == [f"a/{n:03d}" for n in range(9)]
    assert {job.attempts for job in found} == {1}


@pytest.mark.usefixtures("one_each")
def test_messages_that_the_broker_lost_are_sent_again(laid, drive):
    """A broker that lost everything is sent the jobs that no worker has taken again, and only those."""
    laid(6)
    driver = drive(ALL)
    driver.step()
    driver.work(most=2)
    driver.queue.waiting.clear()
    driver.step()
    assert sorted(driver.queue.waiting) == [f"batch-1.{n:08d}" for n in (3, 4, 5, 6)]
    assert driver.finish().outcomes == {"verified": 6}


def test_a_broker_that_is_away_keeps_no_step_from_counting(laid, drive):
    """What could not be sent is sent by a later step."""
    laid(3)
    driver = drive(ALL)

    def away() -> None:
        raise OSError

    driver.queue.before = away
    driver.step()
    assert driver.queue.sent == []
    driver.queue.before = lambda: None
    assert driver.finish().outcomes == {"verified": 3}


def test_the_last_step_comes_when_the_rest_is_expected_to_be_done(laid, drive, context, monkeypatch):
    """A batch waits as long as its rest is expected to take, at most a period; without progress it waits longer."""
    monkeypatch.setitem(context.settings.page.__dict__, "objects", 4)
    monkeypatch.setitem(context.settings.batch.__dict__, "step", timedelta(hours=1))
    laid(12)
    driver = drive(ALL)

    def wait() -> timedelta:
        driver.step()
        with context.catalogue._database.read() as connection:
            return connection.execute(sa.select(tables.batches.c.next_step_at)).scalar_one() - clock.now()

    wait()
    assert wait() > timedelta(hours=2)  # nothing has begun
    driver.work(most=2)
    assert wait() < timedelta(minutes=30)


@pytest.mark.usefixtures("one_each")
def test_a_second_message_for_a_step_ends_there(laid, drive, context):
    """A message that comes before its step is due does nothing, calls for no other, and leaves the progress alone."""
    laid(3)
    driver = drive(ALL)
    driver.step()
    progress = context.catalogue.ledger.get("batch-1").progress
    job = driver._take("batch-1", "batch", {})
    with pytest.raises(Continue) as step:
        batches.batch(ALL, job, driver.queue)
    assert step.value.seconds is None
    assert len(driver.queue.sent) == 3
    assert progress["objects_total"] == 3


def test_a_prefix_leaves_the_rest_alone(laid, drive, context):
    """Only what begins with the prefix is deleted, and everything of it, in every store."""
    laid(3, "a/")
    laid(2, "b/")
    request = BatchRequest(verb="delete", bucket="releases", prefix="a/")
    assert drive(request).finish().outcomes == {"deleted": 3}
    assert [artifact.key for artifact in context.catalogue.artifacts.page("releases")] == ["b/000", "b/001"]


@pytest.mark.usefixtures("one_each")
def test_what_comes_later_is_not_deleted(laid, drive, context, monkeypatch):
    """An artifact whose upload has ended after the batch had been begun is none of its business.

    A delete that can be undone counts as the delete that it is, too, and once.
    """
    laid(2, "a/")
    artifacts, stores = context.catalogue.artifacts, ["primary", "dr"]
    begun = artifacts.record("releases", "c", Digest(1, "a" * 64), {}, clock.now(), stores=stores).artifact
    driver = drive(BatchRequest(verb="delete", bucket="releases", everything=True, in_flight=1))
    driver.step()
    laid(1, "b/")
    artifacts.finish_copies([FinishedCopy(begun, "dr", "1")], now=clock.now())
    assert driver.finish().objects == 2
    assert [artifact.key for artifact in artifacts.page("releases")] == ["b/000", "c"]
    monkeypatch.setitem(context.settings.delete.__dict__, "grace", timedelta(days=7))
    both = [drive(BatchRequest(verb="delete", bucket="releases", prefix="b/")) for _ in range(2)]
    for number, again in enumerate(both, 2):
        again.id = f"batch-{number}"
        assert again.step() is None
    assert [again.finish().outcomes for again in both] == [{"deleted": 1}, {"already_gone": 1}]


def test_the_objects_that_leave_pages_are_jobs_of_the_batch_in_flight(laid, drive, context, monkeypatch):
    """A page whose objects all leave it is counted when there is room for their jobs, and none is left out."""

    def fail(*_: Any, **__: Any) -> None:
        raise NotFound("not in a page")

    laid(20)
    monkeypatch.setitem(context.settings.page.__dict__, "objects", 5)
    monkeypatch.setattr("tasks.pages.replicate_and_delete.delete_artifact", fail)
    driver = drive(BatchRequest(verb="delete", bucket="releases", prefix="a/", in_flight=3))
    waiting = [3]
    while (result := driver.step()) is None:
        waiting.append(len(driver.queue.waiting))
        driver.work()
    assert max(waiting) <= 2 + 5
    assert result.outcomes == {"deleted": 20}


def test_copies_are_brought_to_a_store(laid, drive, context):
    """A batch replicates, says what it did, and says when there was nothing to do."""
    laid(3)
    request = BatchRequest(verb="replicate", bucket="releases", to=("cold",))
    assert drive(request).finish().outcomes == {"stored": 3}
    again = drive(request)
    again.id = "batch-2"
    assert again.finish().outcomes == {"already_there": 3}


@pytest.mark.usefixtures("one_each")
def test_a_list_names_what_is_done(laid, drive, source_root, context):
    """Exactly what the file lists is done, from as many buckets as it names; what is not there is a failure by name."""
    laid(3)
    laid(1, "é ", bucket="other")
    listed = source_root / "list.txt"
    listed.write_bytes("\ufeffreleases/a/002\r\n\nother/é 000\nreleases/nothing\nreleases/a/000".encode())

    result = drive(BatchRequest(verb="verify", keys_from=str(listed), in_flight=2)).finish()

    assert (result.objects, result.outcomes) == (4, {"verified": 3, "failed": 1})
    assert [(each.key, each.outcome) for each in result.failures] == [("nothing", "failed")]
    assert "nothing is not in the catalogue" in result.failures[0].message
    asked = [(job.request["bucket"], job.request["key"]) for job in sorted(children(context), key=lambda job: job.id)]
    assert asked == [("releases", "a/002"), ("other", "é 000"), ("releases", "nothing"), ("releases", "a/000")]


def test_a_list_with_wrong_lines_is_refused_whole(laid, drive, source_root, context):
    """Lines that name no artifact are told by their numbers, however long they are, and nothing at all is done."""
    laid(1)
    listed = source_root / "list.txt"
    lines = [b"releases/a/000", b"no-slash", b"releases/../x", b"releases/\xff", b"releases/" + b"x" * 100_000]
    listed.write_bytes(b"\n".join([*lines, b"releases/a/000", *[b"/"] * 5]))
    driver = drive(BatchRequest(verb="delete", keys_from=str(listed)))
    with pytest.raises(BadKeyList) as refused:
        driver.step()
    message = str(refused.value)
    assert "9 of its lines name no artifact: line 2: it has no slash" in message
    assert all(f"line {n}: " in message for n in (2, 3, 4, 5, 7))
    assert message.endswith("and 4 more")
    assert len(message) < 1000
    assert (children(context), context.catalogue.batches.get("batch-1")) == ([], None)


@pytest.mark.usefixtures("one_each")
def test_a_list_that_changes_under_its_batch_stops_it(laid, drive, source_root):
    """The bytes at a recorded offset of the file are others now, so that nothing more is read from it."""
    laid(3)
    listed = source_root / "list.txt"
    listed.write_text("releases/a/000\nreleases/a/001\n")
    driver = drive(BatchRequest(verb="delete", keys_from=str(listed), in_flight=1))
    driver.step()
    driver.work()
    listed.write_text("releases/a/002\nreleases/a/002\n\n")
    with pytest.raises(BadKeyList, match="was changed while"):
        driver.step()
    assert len(driver.queue.sent) == 1


def test_nothing_to_do_is_no_success(drive, laid):
    """A prefix without artifacts was mistyped: verifying it fails, and deleting it is done already."""
    laid(1)
    for verb in ({"verb": "verify"}, {"verb": "replicate", "to": ("dr",)}):
        with pytest.raises(NotFound, match="releases/b/"):
            drive(BatchRequest(bucket="releases", prefix="b/", **verb)).step()
    assert drive(BatchRequest(verb="delete", bucket="releases", prefix="b/")).step().objects == 0


def test_a_store_that_there_is_not_is_told_before_anything_is_done(drive, laid, context):
    """A misspelt store is one error, not a million."""
    laid(1)
    with pytest.raises(UnknownStore, match="primary"):
        drive(BatchRequest(verb="replicate", bucket="releases", to=("primray",))).step()
    assert children(context) == []


@pytest.mark.usefixtures("one_each")
def test_a_batch_that_ends_ends_its_jobs(laid, drive, context, monkeypatch):
    """When a batch ends before its jobs have, they are cancelled, once; other jobs are not."""
    laid(4)
    asked: list[list[str]] = []
    monkeypatch.setattr(batches, "request_cancel", lambda _, ids: asked.append(ids) or True)
    driver = drive(ALL)
    driver.step()
    driver.work(most=1)
    batches.end_batch_items(context, None)
    assert asked == []
    context.catalogue.job_admin.cancel("batch-1", {"type": "Cancelled"}, clock.now())
    batches.end_batch_items(context, None)
    batches.end_batch_items(context, None)
    assert asked == [[f"batch-1.{n:08d}" for n in (2, 3, 4)]]


def test_where_the_broker_is_no_redis_jobs_become_due(laid, drive, context):
    """Lost messages cannot be found there, so that a job is sent again when it reports nothing."""
    laid(1)
    with Celery(broker="memory://", backend="disabled", set_as_current=False) as app:
        app.conf.task_queues = queues()
        driver = drive(ALL)
        driver.queue = Outbox(app)
        driver.step()
        with app.connection_for_read() as connection:
            message = connection.SimpleQueue("sweep").get(timeout=WITHIN)
            message.ack()
    headers = message.headers
    assert (headers["id"], headers["parent_id"], headers["ignore_result"]) == ("batch-1.00000001", "batch-1", True)
    assert context.catalogue.ledger.get("batch-1.00000001").due_at > clock.now()


@pytest.mark.usefixtures("one_each")
def test_a_clock_that_was_set_back_stops_no_batch_and_hides_no_artifact(context, laid, monkeypatch):
    """A batch that a clock two hours ahead planned goes on at once, and finds what was stored by that clock."""
    true = clock.now
    with monkeypatch.context() as ahead:
        ahead.setattr(clock, "now", lambda: true() + timedelta(hours=2))
        laid(3)
        begun_ahead = Driver(context, ALL.model_copy(update={"in_flight": 1}))
        begun_ahead.deliver()
    begun_ahead.work()
    begun_ahead.deliver()
    assert begun_ahead.queue.sent == ["batch-1.00000001", "batch-1.00000002"]

    begun_after = Driver(context, ALL)
    begun_after.id = "batch-2"
    assert begun_after.finish().objects == 3


def test_an_artifact_that_was_stored_after_a_batch_began_is_no_part_of_it(context, laid):
    """A batch works on what was there when it began, also where the clock says that it was there before."""
    laid(2)
    driver = Driver(context, ALL.model_copy(update={"in_flight": 1}))
    driver.step()
    laid(1, prefix="z/")
    with context.catalogue._database.write() as connection:
        connection.execute(sa.update(tables.artifacts).values(committed_at=clock.now() - timedelta(days=1)))
    driver.work()
    assert driver.finish().objects == 2


@pytest.mark.parametrize("state", [JobState.DEAD, JobState.CANCELLED])
def test_the_list_of_a_batch_that_ended_early_goes(drive, files, context, monkeypatch, state):
    """A dead batch has no other end, and its list would stay in the catalogue."""
    monkeypatch.setattr(batches, "request_cancel", lambda *_: True)
    driver = drive(files)
    driver.step()
    record = context.catalogue.ledger.get(driver.id)
    lease = {"owner": "test", "writes_to": None, "parent": None, "now": clock.now(), "lease": timedelta(0)}
    fence = context.catalogue.ledger.acquire(driver.id, "batch", record.request, **lease).record.fence
    context.catalogue.ledger.finish(driver.id, fence, state, now=clock.now(), error={"type": "a", "message": "b"})
    assert list(context.catalogue.batch_lists.rows(driver.id, 0))
    batches.end_batch_items(context, None)
    assert not list(context.catalogue.batch_lists.rows(driver.id, 0))
