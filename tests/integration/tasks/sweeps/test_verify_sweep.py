"""The sweep that verifies: it plans pages, each of which claims copies that are due and records their verdicts."""

from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa

from tasks.page import page
from tasks.sweeps.verify import sweep_verify
from tasks.upload import upload
from tests.integration.tasks.conftest import NullReporter
from worker import clock
from worker.artifacts.verify_copy import confirm_verdict
from worker.catalogue import Artifact, Copy, Leased, LostLease, pages, tables
from worker.context import Context
from worker.jobs.running_job import Requeue, RunningJob
from worker.limits.snooze import Snooze, StoreRefuses
from worker.storage import Store, Verification
from worker.storage.errors import AccessDenied
from worker.storage.filesystem.driver import FilesystemDriver
from zot_artifact_client.contract import JobState, PageRequest, PageResult, SweepVerifyRequest, UploadRequest
from zot_artifact_client.outgoing_messages import Outgoing


class Messages:
    """The broker: what was sent, by the job's id."""

    def __init__(self) -> None:
        self.sent: dict[str, Outgoing] = {}

    def send(self, jobs: list[Outgoing]) -> None:
        self.sent |= {job.job_id: job for job in jobs}

    def lost(self, ids: list[str]) -> set[str] | None:
        return set(ids) - set(self.sent)


class Sweeper:
    """Plans sweeps, and takes up the pages as a worker does."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.messages = Messages()

    def take(self, id_: str, kind: str, request: dict[str, Any]) -> RunningJob:
        begun = self.context.catalogue.ledger.acquire(
            id_, kind, request, owner="test", writes_to=None, parent=None, now=clock.now(), lease=timedelta(0)
        )
        assert isinstance(begun, Leased), begun
        return RunningJob(begun.record, self.context, NullReporter())

    def plan(self, id_: str = "sweep-1") -> Any:
        job = self.take(id_, "sweep.verify", {})
        return sweep_verify(SweepVerifyRequest(), job, self.messages)

    def page(self, id_: str, *, ends: bool = True) -> PageResult:
        request = self.messages.sent[id_].payload
        job = self.take(id_, "page", request)
        result = page(PageRequest.read(request), job)
        if ends:
            self.context.catalogue.ledger.finish(
                id_, job.fence, JobState.SUCCEEDED, now=clock.now(), result=result.model_dump(mode="json")
            )
        return result

    def pages(self) -> list[PageResult]:
        """Take up all pages that wait."""
        waiting = list(self.messages.sent)
        results = [self.page(id_) for id_ in waiting]
        for id_ in waiting:
            del self.messages.sent[id_]
        return results

    def verdicts(self) -> list[tuple[str, str, str]]:
        table = tables.verifications.c
        with self.context.catalogue._database.read() as connection:
            rows = connection.execute(sa.select(table.store, table.key, table.verdict).order_by(table.store, table.key))
            return [tuple(row) for row in rows]


@pytest.fixture
def sweeper(context: Context) -> Sweeper:
    return Sweeper(context)


@pytest.fixture
def due(run, source, context) -> Callable[[int], None]:
    """Upload so many small artifacts to two stores, and make their copies due."""

    def lay(number: int) -> None:
        for n in range(number):
            run(upload, UploadRequest(bucket="releases", key=f"a/{n:03d}", source=source(f"bytes {n}".encode())))
        with context.catalogue._database.write() as connection:
            connection.execute(sa.update(tables.copies).values(read_at=clock.now() - timedelta(days=60)))

    return lay


def test_a_sweep_sends_pages_that_verify_what_is_due(sweeper, due, context, monkeypatch):
    """Each copy that is due gets one verdict, from as many pages as it takes; nothing is due after that."""
    monkeypatch.setitem(context.settings.sweep.verify.__dict__, "page", 3)
    due(5)
    planned = sweeper.plan()
    assert (planned.claimed, planned.pages) == ({"primary": 5, "dr": 5, "cold": 0}, {"primary": 2, "dr": 2, "cold": 0})
    results = [sweeper.page(id_) for id_ in list(sweeper.messages.sent)]
    assert [result.outcomes for result in results] == [{"verified": 3}, {"verified": 2}] * 2
    assert len(sweeper.verdicts()) == len(set(sweeper.verdicts())) == 10
    assert context.catalogue.verifications.first_broken() is None
    assert sweeper.plan("sweep-2").pages == {"primary": 0, "dr": 0, "cold": 0}


def test_pages_that_wait_are_not_planned_twice(sweeper, due, context, monkeypatch):
    """A sweep that runs while the pages of the one before it wait adds none for the same copies.

    The copies that a page had no time for are those of the next sweep, at once.
    """
    due(2)
    sweeper.plan()
    assert sweeper.plan("sweep-2").pages == {"primary": 0, "dr": 0, "cold": 0}
    assert len(sweeper.messages.sent) == 2
    with monkeypatch.context() as short:
        short.setitem(context.settings.page.__dict__, "time", timedelta())
        assert [page.objects for page in sweeper.pages()] == [0, 0]
    sweeper.plan("sweep-3")
    assert [page.objects for page in sweeper.pages()] == [2, 2]


def test_a_sweep_that_died_before_its_messages_sends_them_at_its_next_attempt(sweeper, due, context, monkeypatch):
    """The pages are in the ledger before their messages, so that the next attempt sends those and plans no others.

    It opens the findings on the stores, too.
    """
    due(2)
    with monkeypatch.context() as dying:
        dying.setattr(sweeper.messages, "send", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sweeper.plan()
    assert sweeper.messages.sent == {}
    sweeper.plan()
    assert sorted(sweeper.messages.sent) == ["sweep-1.00000001", "sweep-1.00000002"]
    found = {(each.kind, each.store) for each in context.catalogue.findings.page()}
    assert found == {("overdue", "primary"), ("overdue", "dr")}
    sweeper.page("sweep-1.00000001")
    sweeper.messages.sent.clear()
    monkeypatch.setattr(sweeper.messages, "lost", lambda _: None)  # a broker that cannot tell
    sweeper.plan()
    assert list(sweeper.messages.sent) == ["sweep-1.00000002"]


def test_a_page_records_the_version_tag_of_the_object_that_it_has_read(sweeper, due, stored, context):
    """A copy that another program wrote again with the same bytes gets the new tag, and the others keep theirs."""
    due(2)
    written = stored("primary", "a/001")
    again = written.with_name("again")
    again.write_bytes(written.read_bytes())
    again.replace(written)
    artifacts = context.catalogue.artifacts

    def tags() -> list[str | None]:
        found = [artifacts.current("releases", f"a/{n:03d}") for n in range(2)]
        return [artifacts.copies(each)["primary"].tag for each in found]

    before = tags()
    sweeper.plan()
    assert sweeper.page("sweep-1.00000001").outcomes == {"verified": 2}
    there = context.stores["primary"].stat_object("releases", "a/001").version
    assert tags() == [before[0], there]
    assert there != before[1]


def test_bad_copies_are_read_twice_and_named(sweeper, due, stored, context):
    """A corrupt and a missing copy have one bad verdict each, after a second read, and the page names them."""
    due(4)
    stored("primary", "a/001").write_bytes(b"rotten!")
    stored("primary", "a/003").unlink()
    sweeper.plan()
    result = sweeper.page("sweep-1.00000001")
    assert (result.objects, result.failed, result.outcomes) == (4, 2, {"verified": 2, "corrupt": 1, "missing": 1})
    assert [(each.key, each.outcome) for each in result.failures] == [("a/001", "corrupt"), ("a/003", "missing")]
    artifact = context.catalogue.artifacts.current("releases", "a/001")
    copy = context.catalogue.artifacts.copies(artifact)["primary"]
    assert (copy.state, copy.last_verified_at) == ("corrupt", None)


def test_an_unreadable_copy_is_due_again_soon(sweeper, due, stored, context, monkeypatch):
    """A copy that cannot be read keeps its state, and is read again within the hour; the others are verified.

    So it is where the store refuses that one alone.
    """
    due(3)
    open_ = FilesystemDriver.open

    def refuse_one(driver: FilesystemDriver, bucket: str, key: str, *args: Any, **options: Any) -> Any:
        if key == "a/002":
            raise AccessDenied(f"{driver.name}: not this one")
        return open_(driver, bucket, key, *args, **options)

    monkeypatch.setattr(Store, "_small_reads", lambda _: None)
    monkeypatch.setattr(FilesystemDriver, "open", refuse_one)
    path = stored("primary", "a/000")
    path.unlink()
    path.mkdir()
    (path / "x").symlink_to("/nowhere")
    path.rename(path.with_name("kept"))
    path.symlink_to("kept")
    sweeper.plan()
    assert sweeper.page("sweep-1.00000001").outcomes == {"unreadable": 2, "verified": 1}
    for key in ("a/000", "a/002"):
        copy = context.catalogue.artifacts.copies(context.catalogue.artifacts.current("releases", key))["primary"]
        assert copy.state == "stored"
        assert clock.now() < copy.next_due_at < clock.now() + timedelta(hours=2)


def test_a_page_that_was_stopped_goes_on_with_what_it_has_claimed(sweeper, due, context, monkeypatch):
    """The copies that were read keep their verdicts, the others are read at the next delivery, none is read twice."""
    due(8)
    monkeypatch.setitem(context.settings.page.__dict__, "threads", 1)
    sweeper.plan()
    calls = []

    def stop(job: RunningJob, count: int) -> None:
        calls.append(count)
        if len(calls) == 3:
            raise Requeue("the worker shuts down")

    with monkeypatch.context() as stopping:
        stopping.setattr(RunningJob, "advance", stop)
        with pytest.raises(Requeue):
            sweeper.page("sweep-1.00000001")
    read = len(sweeper.verdicts())
    assert 0 < read < 8
    assert sweeper.page("sweep-1.00000001").outcomes == {"verified": 8}
    assert len(sweeper.verdicts()) == len(set(sweeper.verdicts())) == 8


def test_a_page_whose_lease_was_lost_records_nothing(sweeper, due, monkeypatch):
    """Of two deliveries of a page at once, the one without the lease writes no verdict."""
    due(3)
    sweeper.plan()
    start = RunningJob.start
    other: list[PageResult] = []

    def start_frozen(job: RunningJob, *args: Any) -> None:
        monkeypatch.setattr(RunningJob, "start", start)
        other.append(sweeper.page("sweep-1.00000001"))
        start(job, *args)

    monkeypatch.setattr(RunningJob, "start", start_frozen)
    with pytest.raises(LostLease):
        sweeper.page("sweep-1.00000001")
    assert other[0].outcomes == {"verified": 3}
    assert len(sweeper.verdicts()) == 3


def test_a_copy_that_another_page_has_read_meanwhile_is_not_read_again(sweeper, due, context, monkeypatch):
    """Between finding what is due and claiming it, another page claims and reads the same copies: it keeps them."""
    monkeypatch.setitem(context.settings.sweep.verify.__dict__, "page", 2)
    due(4)
    sweeper.plan()
    find, other = pages.due_copies, []

    def find_late(*args: Any, **options: Any) -> list[int]:
        found = find(*args, **options)
        if not other:
            other.append(None)
            other[0] = sweeper.page("sweep-1.00000002")
        return found

    monkeypatch.setattr(pages, "due_copies", find_late)
    assert sweeper.page("sweep-1.00000001").outcomes == other[0].outcomes == {"verified": 2}
    assert len(sweeper.verdicts()) == len(set(sweeper.verdicts())) == 4


def test_a_large_copy_leaves_the_page_as_a_job_of_its_own(sweeper, due, context, monkeypatch):
    """A page sends a verify job for each copy above `page.large`; what `page.size` has no room for, another page."""
    due(2)
    monkeypatch.setitem(context.settings.page.__dict__, "large", 6)
    sent: list[Any] = []
    monkeypatch.setattr(
        "tasks.pages.verify.send_child", lambda *args, **options: sent.append((args[1].key, options["id_"]))
    )
    sweeper.plan()
    result = sweeper.page("sweep-1.00000001")
    assert (result.objects, result.left) == (0, ("releases/a/000", "releases/a/001"))
    assert [key for key, _ in sent] == ["a/000", "a/001"]
    monkeypatch.setitem(context.settings.page.__dict__, "large", 100)
    monkeypatch.setitem(context.settings.page.__dict__, "size", 1)
    result = sweeper.page("sweep-1.00000002")
    assert (result.objects, result.left) == (1, ())
    sweeper.messages.sent.clear()
    sweeper.plan("sweep-2")
    assert sum(page.objects for page in sweeper.pages()) == 1, "the copies of jobs of their own stay claimed"


def test_a_paused_store_keeps_its_page_waiting(sweeper, due, context):
    """A page of a store that takes no job now claims nothing and reads nothing."""
    due(1)
    sweeper.plan()
    context.catalogue.pauses.begin("store", "primary", reason=None, now=clock.now())
    with pytest.raises(Snooze):
        sweeper.page("sweep-1.00000001")
    assert (context.catalogue.pages.get("sweep-1.00000001"), sweeper.verdicts()) == (None, [])


def test_a_store_that_begins_to_refuse_reads_keeps_the_rest_of_its_page_waiting(sweeper, due, context, monkeypatch):
    """Such as where a credential expires in mid-page: it refuses its marker, too, and no copy becomes a job."""
    due(16)
    sweeper.plan()
    open_, opened = FilesystemDriver.open, count()

    def begin_to_refuse(driver: FilesystemDriver, *args: Any, **options: Any) -> Any:
        if next(opened) >= 4:
            raise AccessDenied(f"{driver.name}: expired")
        return open_(driver, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_small_reads", lambda _: None)
        patch.setattr(FilesystemDriver, "open", begin_to_refuse)
        with pytest.raises(StoreRefuses, match="primary: it refuses all that a page asks: expired"):
            sweeper.page("sweep-1.00000001")
    waiting = context.catalogue.pages.get("sweep-1.00000001")
    assert (sum(waiting.outcomes.values()) + len(waiting.open), waiting.left) == (16, [])
    assert waiting.outcomes.keys() == {"verified"}
    assert sweeper.page("sweep-1.00000001").outcomes == {"verified": 16}


def test_a_copy_that_one_read_found_bad_is_suspect_until_the_second(sweeper, due, stored, context, monkeypatch):
    """A worker that dies between both reads leaves a suspect; the second read ends that."""
    due(4)
    for n in range(4):
        stored("primary", f"a/{n:03d}").write_bytes(b"rotten!")
    sweeper.plan()
    with monkeypatch.context() as dying:
        dying.setattr("tasks.pages.verify.confirm_verdict", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sweeper.page("sweep-1.00000001")
    open_ = {(each.kind, each.key) for each in context.catalogue.findings.page(store="primary") if each.key}
    assert open_ == {("suspect", f"a/{n:03d}") for n in range(4)}
    stored("primary", "a/001").write_bytes(b"bytes 1")
    upload_ = sweeper.take("upload-1", "upload", {})  # it has written a newer version, and has not recorded that yet
    _, newer = context.stores["primary"].write_object("releases", "a/002", BytesIO(b"newer"))
    context.catalogue.artifacts.record("releases", "a/002", newer, {}, clock.now(), stores=["primary"], job=upload_.id)

    def confirm(job: RunningJob, of: Artifact, copy: Copy) -> Verification | None:
        if of.key == "a/003":
            context.catalogue.artifacts.delete_copies([copy])
        return confirm_verdict(job, of, copy)

    monkeypatch.setattr("tasks.pages.verify.confirm_verdict", confirm)
    assert sweeper.page("sweep-1.00000001").outcomes == {"corrupt": 1, "verified": 1, "superseded": 2}
    still = [(each.kind, each.key) for each in context.catalogue.findings.page() if each.key]
    assert still == [("corrupt", "a/000")]
    how = {each.key: each.how for each in context.catalogue.findings.page(resolved=True) if each.kind == "suspect"}
    assert how == {
        "a/000": "found corrupt by job sweep-1.00000001", "a/001": "verified by job sweep-1.00000001",
        "a/002": "replaced before the second read", "a/003": "deleted",
    }  # fmt: skip


def test_a_sweep_opens_what_is_overdue_or_not_configured_and_resolves_it(sweeper, due, context):
    """A store with overdue copies is a finding until they were read, and a store without settings until it has some."""
    due(1)
    made = context.catalogue.artifacts.current("releases", "a/000")
    context.catalogue.artifacts.ensure_copy(made, "old")
    context.catalogue.artifacts.finish_copy(made, "old", tag="1", evidence={}, now=clock.now())
    sweeper.plan()
    found = {(each.kind, each.store): each.evidence["copies"] for each in context.catalogue.findings.page()}
    assert found == {("overdue", "primary"): 1, ("overdue", "dr"): 1, ("store_not_configured", "old"): 1}
    for id_ in list(sweeper.messages.sent):
        sweeper.page(id_)
    context.catalogue.store_records.forget("old", dry_run=False)
    sweeper.plan("sweep-2")
    assert context.catalogue.findings.page() == []
