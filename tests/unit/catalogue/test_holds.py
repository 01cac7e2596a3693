"""A hold and a delete that begin together: exactly one of them is refused."""

from datetime import timedelta

import pytest

from tests.unit.catalogue.test_store_records import copied
from worker import clock
from worker.catalogue import Catalogue, HoldTooLate, Leased, OnHold, UndeleteRefused
from zot_artifact_client.contract import JobState

LEASE = timedelta(seconds=30)


@pytest.fixture
def begin(catalogue: Catalogue):
    """Return what leases a job on the artifact, as a worker does before the job looks for a hold."""
    copied(catalogue, "app", "primary", "dr")

    def begin(kind: str, request: dict[str, object] | None = None, holds: str | None = "releases/app"):
        begun = catalogue.ledger.acquire(
            f"job-{kind}", kind.partition("-")[0], request or {}, owner="w", writes_to=holds, parent=None,
            now=clock.now(), lease=LEASE,
        )  # fmt: skip
        assert isinstance(begun, Leased)
        return begun.record

    return begin


def place(catalogue: Catalogue) -> None:
    catalogue.holds.place("releases", "app", by="ana", reason="case 4711", now=clock.now())


@pytest.mark.parametrize("kind", ["delete", "upload"])
def test_a_hold_is_refused_once_a_delete_or_upload_has_begun(catalogue: Catalogue, begin, kind: str) -> None:
    """A job that has begun may have removed bytes already, also between two attempts; after its end one can hold."""
    job = begin(kind)
    with pytest.raises(HoldTooLate, match=f"jobs cancel job-{kind}"):
        place(catalogue)
    catalogue.holds.check("releases", "app")
    catalogue.ledger.retry(job.id, job.fence, {"type": "Unavailable"}, due=clock.now())
    with pytest.raises(HoldTooLate):
        place(catalogue)
    again = begin(kind)
    catalogue.ledger.finish(again.id, again.fence, JobState.FAILED, now=clock.now())
    place(catalogue)


def test_a_delete_that_begins_after_the_hold_is_refused(catalogue: Catalogue, begin) -> None:
    """The other order: the hold was accepted, so the job finds it."""
    place(catalogue)
    begin("delete")
    with pytest.raises(OnHold, match="held by ana"):
        catalogue.holds.check("releases", "app")


def test_a_page_that_deletes_refuses_a_hold_on_its_artifacts(catalogue: Catalogue, begin) -> None:
    """A page has locked its artifacts; one that replicates takes nothing away."""
    locks = catalogue.artifact_locks
    for verb in ("replicate", "delete"):
        page = begin(f"page-{verb}", {"verb": verb}, None)
        locks.acquire(page.id, page.fence, [("releases", "app")], now=clock.now(), lease=LEASE)
        if verb == "delete":
            with pytest.raises(HoldTooLate):
                place(catalogue)
        else:
            place(catalogue)
            catalogue.holds.release("releases", "app")
        locks.release(page.id, page.fence)
    place(catalogue)


def test_what_is_being_purged_cannot_be_held(catalogue: Catalogue, begin) -> None:
    """A purge decides in one transaction; a hold before it keeps the bytes, one after it comes too late."""
    now, artifact = clock.now(), catalogue.artifacts.current("releases", "app")
    assert artifact is not None
    tombstone = catalogue.deletions.begin(artifact, now=now, until=now, by=None, reason=None, job="job-1")
    place(catalogue)
    assert catalogue.deletions.begin_purge(tombstone, now=now) is None
    catalogue.holds.release("releases", "app")
    assert len(catalogue.deletions.begin_purge(tombstone, now=now) or ()) == 2
    with pytest.raises(HoldTooLate, match="being purged"):
        place(catalogue)


def test_the_bytes_of_a_companion_are_not_purged_while_its_artifact_is_held(catalogue: Catalogue, begin) -> None:
    """Also where the hold of the companion itself was released."""
    copied(catalogue, "app.sig", "primary")
    now, companion = clock.now(), catalogue.artifacts.current("releases", "app.sig")
    assert companion is not None
    tombstone = catalogue.deletions.begin(companion, now=now, until=now, by=None, reason=None, job="job-1")
    place(catalogue)
    catalogue.holds.release("releases", "app.sig")
    assert catalogue.deletions.begin_purge(tombstone, now=now) is None


def test_a_delete_is_not_undone_while_a_job_deletes_the_bytes(catalogue: Catalogue, begin) -> None:
    """`delete --now` after a delete removes the bytes: an undo meanwhile would make an artifact without a copy."""
    now, artifact = clock.now(), catalogue.artifacts.current("releases", "app")
    assert artifact is not None
    catalogue.deletions.begin(artifact, now=now, until=now + LEASE, by=None, reason=None, job="job-1")
    job = begin("delete")
    with pytest.raises(UndeleteRefused, match="job job-delete has begun"):
        catalogue.deletions.undo("releases", "app", now=clock.now())
    catalogue.ledger.finish(job.id, job.fence, JobState.FAILED, now=clock.now())
    assert catalogue.deletions.undo("releases", "app", now=clock.now()).version == 1
