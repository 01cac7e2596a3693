"""A delete of more artifacts than `delete.approval_above` waits for a second person."""

from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from tasks.delete import delete
from tasks.page import page
from tasks.upload import upload
from tests.integration.tasks.test_batch import Driver, drive, laid  # noqa: F401 - fixtures
from worker import clock
from worker.artifacts.wait_for_delete_approval import NotApproved, WaitsForApproval, check_batch, check_delete
from worker.catalogue import ApprovalState, CannotDecide, FindingKind, tables
from worker.catalogue.holds import Holds
from worker.context import Context
from worker.storage import Digest
from zot_artifact_client.contract import (
    BatchRequest,
    DeleteRequest,
    JobState,
    PageRequest,
    RangeSelection,
    UploadRequest,
)

WANTED = BatchRequest(verb="delete", bucket="releases", prefix="a/", by="ana", reason="old builds")


@pytest.fixture
def limit(context: Context, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set `delete.approval_above`."""
    return lambda above: monkeypatch.setitem(context.settings.delete.__dict__, "approval_above", above)


def approve(context: Context, job: str = "batch-1", by: str = "eva", state: ApprovalState = ApprovalState.APPROVED):
    return context.catalogue.delete_approvals.decide(job, state, by=by, origin="t@t", note="seen", now=clock.now())


def open_findings(context: Context) -> list[str]:
    return [each.key for each in context.catalogue.findings.page(kind=FindingKind.DELETE_WAITING)]


def test_a_large_delete_waits_for_another_person_and_is_done_once(context, limit, laid, drive, monkeypatch):  # noqa: F811
    """Nothing goes before the approval, the requester cannot give it, and a second approval is refused."""
    monkeypatch.setitem(context.settings.delete.__dict__, "grace", timedelta(days=7))
    limit(2)
    laid(3)
    driver: Driver = drive(WANTED)
    with pytest.raises(WaitsForApproval, match="deletes approve batch-1"):
        driver.step()
    with pytest.raises(WaitsForApproval):
        driver.step()
    assert (driver.queue.sent, open_findings(context)) == ([], ["batch-1"])
    with pytest.raises(CannotDecide, match="another person"):
        approve(context, by=" ANA ")
    assert context.catalogue.artifacts.measure("releases", "a/")[0] == 3

    made = approve(context)
    assert (made.requested_by, made.decided_by, made.objects, made.reason) == ("ana", "eva", 3, "old builds")
    with pytest.raises(CannotDecide, match="was approved by eva"):
        approve(context, by="ida", state=ApprovalState.REJECTED)
    result = driver.finish()
    assert (result.outcomes, open_findings(context)) == ({"deleted": 3}, [])
    tombstone = context.catalogue.deletions.get("releases", "a/000")
    assert tombstone is not None
    assert (tombstone.by, tombstone.reason) == ("ana", "old builds")


def test_what_comes_while_a_delete_waits_is_no_part_of_it(context, limit, laid, drive, run, source):  # noqa: F811
    """The approval is for the artifacts that were there when the delete was requested."""
    limit(2)
    laid(3)
    driver: Driver = drive(WANTED)
    with pytest.raises(WaitsForApproval):
        driver.step()
    run(upload, UploadRequest(bucket="releases", key="a/late", source=source(b"late")))
    approve(context)
    driver.finish()
    assert [each.key for each in context.catalogue.artifacts.page("releases", "a/")] == ["a/late"]


@pytest.mark.parametrize("names", [["a/000"], ["a/000", "a/001", "a/late"]], ids=["job", "page"])
def test_a_list_that_waits_is_for_the_versions_of_its_request(
    context, limit, laid, drive, run, source, source_root, monkeypatch, names  # noqa: F811
):  # fmt: skip
    """A version that is uploaded, or completed, after the request stays; no clock decides which one that is."""
    limit(0)
    laid(2)
    (source_root / "keys").write_text("".join(f"releases/{name}\n" for name in names))
    artifacts = context.catalogue.artifacts
    begun = artifacts.record("releases", "a/late", Digest(1, "a" * 64), {}, clock.now(), stores=["dr"]).artifact
    driver: Driver = drive(BatchRequest(verb="delete", keys_from=str(source_root / "keys"), by="ana"))
    with pytest.raises(WaitsForApproval):
        driver.step()
    now = clock.now()
    with monkeypatch.context() as behind:
        behind.setattr(clock, "now", lambda: now - timedelta(minutes=4))
        run(upload, UploadRequest(bucket="releases", key="a/000", source=source(b"other bytes")))
        artifacts.finish_copy(begun, "dr", tag="1", evidence={}, now=clock.now())
    approve(context)
    outcomes = driver.finish().outcomes
    assert outcomes == ({"kept": 1} if len(names) == 1 else {"kept": 2, "deleted": 1})
    left = {each.key for each in artifacts.page("releases", "a/")}
    assert left == {"a/000", "a/001", "a/late"} - {*names[1:2]}


def waiting_job(context: Context, id_: str) -> Any:
    return SimpleNamespace(
        id=id_, parent=None, created_at=clock.now(), settings=context.settings, catalogue=context.catalogue
    )


def waiting_delete(context, companions=()) -> tuple[DeleteRequest, Any]:
    """Request the delete of one artifact, which waits for its approval; return it and its job."""
    wanted = DeleteRequest(bucket="releases", key="a/000", by="ana")
    job = waiting_job(context, "single")
    with pytest.raises(WaitsForApproval):
        check_delete(wanted, job, companions=companions)
    return wanted, job


def test_a_version_that_comes_while_its_delete_waits_stays(context, limit, laid, run, source, monkeypatch):  # noqa: F811
    """The approval of the delete of one artifact is for the version that was there when it was requested."""
    limit(0)
    laid(1)
    wanted, job = waiting_delete(context)
    approve(context, "single")
    check_delete(wanted, job)
    with monkeypatch.context() as behind:
        behind.setattr(clock, "now", lambda: job.created_at - timedelta(minutes=4))
        run(upload, UploadRequest(bucket="releases", key="a/000", source=source(b"other bytes")))
    with pytest.raises(NotApproved, match="uploaded again after this delete was requested"):
        check_delete(wanted, job)


def test_a_delete_that_was_requested_before_an_upgrade_is_done(context, limit, laid, run, source):  # noqa: F811
    """Its row has no versions: what was complete when it was requested is what the second person approved."""
    limit(0)
    laid(1)
    wanted, job = waiting_delete(context)
    with context.catalogue._database.write() as connection:
        connection.execute(sa.update(tables.delete_requests).values(versions=sa.null()))
    approve(context, "single")
    check_delete(wanted, job)
    run(upload, UploadRequest(bucket="releases", key="a/000", source=source(b"other bytes")))
    with pytest.raises(NotApproved, match="uploaded again after this delete was requested"):
        check_delete(wanted, job)


def test_a_companion_that_comes_while_a_delete_waits_stays(context, limit, laid, run, source):  # noqa: F811
    """The approval is for the companions that were there, too."""
    limit(0)
    laid(1)
    asked = UploadRequest(bucket="releases", key="a/000.sig", source=source(b"signature"))
    run(upload, asked)
    companions = context.catalogue.companions
    wanted, job = waiting_delete(context, companions.of("releases", "a/000"))
    approve(context, "single")
    run(upload, asked.model_copy(update={"source": source(b"another signature")}))
    with pytest.raises(NotApproved, match="releases/a/000.sig was uploaded again"):
        check_delete(wanted, job, companions=companions.of("releases", "a/000"))


def test_a_companion_that_comes_at_the_last_moment_counts(context, limit, laid, run, source, monkeypatch):  # noqa: F811
    """One that is uploaded after the companions were counted, and before they are locked, stays with its artifact."""
    limit(1)
    laid(1)
    check = Holds.check

    def late(*args: object) -> None:
        monkeypatch.setattr(Holds, "check", check)
        run(upload, UploadRequest(bucket="releases", key="a/000.sig", source=source(b"signature")))
        check(*args)

    monkeypatch.setattr(Holds, "check", late)
    with pytest.raises(NotApproved, match="more companions than when this delete was requested; send it again"):
        run(delete, DeleteRequest(bucket="releases", key="a/000", by="ana"))
    assert [each.key for each in context.catalogue.artifacts.page("releases", "a/")] == ["a/000", "a/000.sig"]


def test_an_approval_is_for_one_delete_only(context, limit):
    """A later delete under the id of a job that was pruned is not the one that was approved."""
    limit(2)
    job = waiting_job(context, "batch-1")
    with pytest.raises(WaitsForApproval):
        check_batch(WANTED, job, 3, 30)
    approve(context)
    check_batch(WANTED, job, 3, 30)
    with pytest.raises(NotApproved, match="the id of another delete, releases/a/"):
        check_batch(WANTED.model_copy(update={"prefix": "b/"}), job, 3, 30)


@pytest.mark.parametrize("how", ["rejected", "expired"])
def test_a_delete_that_is_not_approved_deletes_nothing(context, limit, laid, drive, monkeypatch, how):  # noqa: F811
    """A rejected delete names who and why; one without an approval in time fails too, and cannot be approved later."""
    limit(0)
    laid(1)
    driver: Driver = drive(WANTED)
    with pytest.raises(WaitsForApproval):
        driver.step()
    if how == "rejected":
        approve(context, state=ApprovalState.REJECTED)
    else:
        now = clock.now()
        monkeypatch.setattr(clock, "now", lambda: now + timedelta(days=4))
    with pytest.raises(NotApproved, match="rejected by eva: seen" if how == "rejected" else "expired"):
        driver.step()
    with pytest.raises(CannotDecide, match=how):
        approve(context)
    assert open_findings(context) == []
    assert context.catalogue.artifacts.measure("releases", "a/")[0] == 1


def test_many_small_deletes_of_one_requester_count_together(context, limit, laid, run):  # noqa: F811
    """The delete that exceeds the limit within the window waits; another attempt of one counts nothing twice."""
    limit(2)
    laid(4)

    def remove(number: int, by: str = "ana"):
        return run(delete, DeleteRequest(bucket="releases", key=f"a/{number:03d}", by=by))

    remove(0)
    remove(1)
    with pytest.raises(WaitsForApproval):
        remove(2)
    remove(3, by="eva")
    assert context.catalogue.artifacts.measure("releases", "a/")[0] == 1
    [waiting] = context.catalogue.delete_approvals.page()
    assert (waiting.requested_by, waiting.what) == ("ana", "releases/a/002 in all stores")


def test_a_delete_of_copies_in_one_store_waits_too(context, limit, laid, drive, stored):  # noqa: F811
    """`--store` is no way around the approval, and neither is a page that no batch has planned."""
    limit(2)
    laid(3)
    with pytest.raises(WaitsForApproval):
        drive(WANTED.model_copy(update={"stores": ("dr",)})).step()
    assert stored("dr", "a/000").exists()


def test_a_page_of_no_batch_is_refused(context, limit, laid, run):  # noqa: F811
    """A page message that deletes cannot be sent without a batch that was allowed."""
    limit(2)
    laid(3)
    everything = RangeSelection(bucket="releases", prefix="a/", until="b")
    with pytest.raises(NotApproved, match="batch"):
        run(page, PageRequest(verb="delete", range=everything))
    assert context.catalogue.artifacts.measure("releases", "a/")[0] == 3


def test_a_requester_has_to_say_who_it_is(context, limit, laid, drive):  # noqa: F811
    """Without `by` a large delete fails at once, and nothing waits."""
    limit(2)
    laid(3)
    with pytest.raises(NotApproved, match="set `by`"):
        drive(WANTED.model_copy(update={"by": None})).step()
    assert context.catalogue.delete_approvals.page(every=True) == []


def test_a_delete_whose_job_has_ended_cannot_be_approved(context, limit, laid, drive):  # noqa: F811
    """A cancelled delete leaves no finding open, and an approval of it is refused."""
    limit(2)
    laid(3)
    driver: Driver = drive(WANTED)
    with pytest.raises(WaitsForApproval):
        driver.step()
    record = context.catalogue.ledger.get("batch-1")
    assert record is not None
    context.catalogue.ledger.finish("batch-1", record.fence, JobState.CANCELLED, now=clock.now())
    with pytest.raises(CannotDecide, match="withdrawn"):
        approve(context)
    assert open_findings(context) == []


def test_an_approval_counts_for_no_later_delete_with_the_same_id(context, limit, laid, drive, monkeypatch):  # noqa: F811
    """The ledger forgets jobs and keeps decisions: a new delete under the id of an approved one is refused."""
    limit(2)
    laid(3)
    now = clock.now()
    with monkeypatch.context() as earlier:
        earlier.setattr(clock, "now", lambda: now - timedelta(days=2))
        with pytest.raises(WaitsForApproval):
            drive(WANTED).step()
        record = context.catalogue.ledger.get("batch-1")
        approve(context)
        context.catalogue.ledger.finish("batch-1", record.fence, JobState.CANCELLED, now=clock.now())
        context.catalogue.batches.close("batch-1")
    assert context.catalogue.ledger.prune(before=now) == 1
    with pytest.raises(NotApproved, match="the id batch-1 is that of an earlier delete"):
        drive(WANTED).step()
    assert context.catalogue.artifacts.measure("releases", "a/")[0] == 3
    monkeypatch.setitem(context.settings.delete.__dict__, "approval_above", None)
    assert drive(WANTED).finish().outcomes == {"deleted": 3}


def test_within_the_limit_nothing_waits(context, limit, laid, drive):  # noqa: F811
    """A delete of as many artifacts as the limit is done at once."""
    limit(3)
    laid(3)
    assert drive(WANTED).finish().outcomes == {"deleted": 3}
    assert open_findings(context) == []
