"""A delete can be undone within its grace period, purge removes only what was deleted, and a hold forbids both."""

import errno
import hashlib
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tasks.delete import delete
from tasks.replicate import replicate
from tasks.sweeps.purge import sweep_purge
from tasks.upload import upload
from tasks.verify import verify
from tests.integration.tasks.test_delete import without
from worker import clock
from worker.catalogue import CopyState, Leased, LostLease, OnHold, Scope, Tombstone, UndeleteRefused
from worker.catalogue.deletions import Deletions
from worker.catalogue.tables import jobs
from worker.context import Context
from worker.jobs.running_job import RunningJob
from worker.limits.limited_store import LimitedStore
from worker.limits.snooze import Snooze
from worker.settings import Settings
from worker.settings.section_models import DeleteSettings
from worker.storage import Digest, Verification
from worker.storage.configured_stores import UnknownStore
from worker.storage.errors import AccessDenied, NotFound, PreconditionFailed
from worker.storage.filesystem import atomic_write
from zot_artifact_client.contract import (
    DeleteRequest,
    DeleteResult,
    JobState,
    ReplicateRequest,
    SweepPurgeRequest,
    SweepPurgeResult,
    UploadRequest,
    VerifyRequest,
)

GRACE = timedelta(days=7)
Put = Callable[..., None]


@pytest.fixture
def catalogue(catalogue_url: str) -> str:
    """Run everything here on both kinds of catalogue."""
    return catalogue_url


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"delete": DeleteSettings(grace=GRACE)})


@pytest.fixture
def put(run, source) -> Put:
    def put(content: bytes = b"release one", *stores: str) -> None:
        wanted = stores or None
        run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(content), stores=wanted))

    return put


@pytest.fixture
def remove(run, put: Put) -> Callable[..., DeleteResult]:
    """Upload an artifact to two stores, and return what deletes it."""
    put()

    def remove(**more: Any) -> DeleteResult:
        result: DeleteResult = run(delete, DeleteRequest(bucket="releases", key="app.tgz", **more))
        return result

    return remove


@pytest.fixture
def purge(run, monkeypatch) -> Callable[[], SweepPurgeResult]:
    """Return what runs the purge after the grace period, on a machine whose sweeps have run before."""

    def purge(after: timedelta = GRACE) -> SweepPurgeResult:
        run(sweep_purge, SweepPurgeRequest())
        now, uptime, by = clock.host_time, clock.uptime, after + timedelta(minutes=1)
        with monkeypatch.context() as later:
            later.setattr(clock, "follow", lambda _, **__: None)
            later.setattr(clock, "host_time", lambda: now() + by)
            later.setattr(clock, "uptime", lambda: uptime() + by.total_seconds())
            later.setattr(Deletions, "database_time", lambda _: None)
            result: SweepPurgeResult = run(sweep_purge, SweepPurgeRequest())
        return result

    return purge


def test_a_delete_keeps_the_bytes_and_can_be_undone(context: Context, run, remove, stored) -> None:
    """The artifact cannot be reached, who and why are recorded, and `undo` brings the very version back."""
    result = remove(by="ana", reason="wrong build")
    assert (result.unchanged, result.copies, result.purge_after is not None) == (False, (), True)
    assert stored("dr").read_bytes() == stored("primary").read_bytes() == b"release one"
    with pytest.raises(NotFound, match=r"was deleted at .*`zot-artifacts undelete releases/app\.tgz` brings it back"):
        run(replicate, ReplicateRequest(bucket="releases", key="app.tgz", to=("cold",)))
    tombstone = context.catalogue.deletions.get("releases", "app.tgz")
    assert tombstone is not None
    assert (tombstone.by, tombstone.reason, tombstone.version) == ("ana", "wrong build", 1)
    again = remove()
    assert (again.unchanged, again.purge_after) == (True, result.purge_after)
    assert context.catalogue.deletions.undo("releases", "app.tgz", now=clock.now()).version == 1
    assert run(replicate, ReplicateRequest(bucket="releases", key="app.tgz", to=("cold",))).copies
    with pytest.raises(UndeleteRefused):
        context.catalogue.deletions.undo("releases", "app.tgz", now=clock.now())


def test_an_artifact_that_was_lost_is_lost_again_after_its_undelete(context: Context, run, remove, stored) -> None:
    """Otherwise `status` would say that its copies wait for a repair, which has nothing to repair them from."""

    def lost() -> list[str]:
        return [each.key for each in context.catalogue.findings.page() if each.kind == "lost"]

    for store in ("primary", "dr"):
        stored(store).write_bytes(b"release 0ne")
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    assert lost() == ["app.tgz"]
    remove()
    assert lost() == []
    context.catalogue.deletions.undo("releases", "app.tgz", now=clock.now())
    assert lost() == ["app.tgz"]


def test_a_copy_that_rots_before_the_undelete_is_repaired_after_it(
    context: Context, run, remove, put: Put, stored
) -> None:
    """The verify sweep reads what is deleted; repairs wait, and take the bad copy as soon as the artifact is back."""
    remove()
    stored("dr").write_bytes(b"release 0ne")
    version = context.catalogue.artifacts.version("releases", "app.tgz", 1)
    run(verify, VerifyRequest(bucket="releases", key="app.tgz", version=1))
    assert context.catalogue.artifacts.copies(version)["dr"].state == "corrupt"
    repairable = partial(context.catalogue.repairs.count_repairable, "dr", sources=["primary", "dr"])
    assert repairable() == 0
    context.catalogue.deletions.undo("releases", "app.tgz", now=clock.now())
    assert repairable() == 1
    run(replicate, ReplicateRequest(bucket="releases", key="app.tgz", to=("dr",)))
    assert stored("dr").read_bytes() == b"release one"


def test_purge_removes_the_bytes_after_the_grace_period(context: Context, remove, purge, stored) -> None:
    """Before it ends nothing goes; then all copies go, once, and the delete cannot be undone."""
    remove()
    assert purge(GRACE / 2).purged == 0
    assert stored("dr").exists()
    result = purge()
    assert (result.purged, result.copies) == (1, {"primary": 1, "dr": 1})
    assert not stored("dr").exists()
    assert not stored("primary").exists()
    assert purge().purged == 0
    with pytest.raises(UndeleteRefused):
        context.catalogue.deletions.undo("releases", "app.tgz", now=clock.now())


def test_a_delete_at_once_removes_the_bytes(context: Context, run, put: Put, remove, stored) -> None:
    """`now` leaves nothing to undo, also after a delete that could be; from one store alone it leaves the others.

    Where no store with a copy is configured it changes nothing: the delete can still be undone. Where one is, its copy
    goes.
    """
    remove()
    left = without(context, "primary", "dr")
    with pytest.raises(UnknownStore, match="nothing was deleted: .*says whether it was renamed"):
        run(delete, DeleteRequest(bucket="releases", key="app.tgz", now=True), context=left)
    context.catalogue.deletions.undo("releases", "app.tgz", now=clock.now())
    remove()
    assert [copy.store for copy in remove(now=True, stores=("primary",)).copies] == ["primary"]
    assert context.catalogue.deletions.get("releases", "app.tgz") is not None
    assert stored("dr").exists()
    result = remove(now=True)
    assert {copy.outcome for copy in result.copies} == {"deleted"}
    assert not stored("dr").exists()
    assert context.catalogue.deletions.get("releases", "app.tgz") is None
    for away, there in (("primary", "dr"), ("dr", "primary")):
        put()
        remove()
        now = DeleteRequest(bucket="releases", key="app.tgz", now=True)
        assert run(delete, now, context=without(context, away)).not_configured == (away,)
        assert (stored(there).exists(), stored(away).exists()) == (False, True)
        assert [copy.store for copy in remove(now=True).copies] == [away], "it is back"


def test_a_clock_that_is_ahead_purges_nothing_early(context: Context, run, remove, purge, monkeypatch, stored) -> None:
    """A grace period is over when the machine has run for it, whatever its clock, or that of the database, says."""
    remove()
    assert run(sweep_purge, SweepPurgeRequest()).purged == 0
    now = clock.now
    with monkeypatch.context() as wrong:
        wrong.setattr(clock, "now", lambda: now() + 2 * GRACE)
        assert run(sweep_purge, SweepPurgeRequest()).purged == 0
        wrong.setattr(clock, "not_ahead", lambda *_, **__: clock.now())  # as on another machine
        wrong.setattr(Deletions, "database_time", lambda _: now())
        assert run(sweep_purge, SweepPurgeRequest()).purged == 0
    assert run(sweep_purge, SweepPurgeRequest()).purged == 0
    assert stored("dr").exists()
    context.catalogue.deletions.undo("releases", "app.tgz", now=clock.now())
    remove()
    assert purge().purged == 1


def test_a_machine_without_a_record_of_its_clock_purges_nothing_early(
    context: Context, run, remove, purge, monkeypatch, stored
) -> None:
    """On a new machine, such as one with a restored catalogue, the first purge waits for the whole grace period."""
    remove()
    now = clock.now
    with monkeypatch.context() as wrong:
        wrong.setattr(clock, "now", lambda: now() + 2 * GRACE)
        assert run(sweep_purge, SweepPurgeRequest()).purged == 0
    assert stored("dr").exists()
    assert purge().purged == 1


def test_what_was_uploaded_again_is_never_purged(context: Context, remove, put: Put, purge, stored) -> None:
    """A newer version under the same key keeps its bytes; only old copies in other stores go, and no undo is left."""
    remove()
    put(b"release two", "dr")
    with pytest.raises(UndeleteRefused, match="uploaded again"):
        context.catalogue.deletions.undo("releases", "app.tgz", now=clock.now())
    result = purge()
    assert (result.purged, result.copies) == (1, {"primary": 1})
    assert stored("dr").read_bytes() == b"release two"
    assert not stored("primary").exists()
    copies = context.catalogue.artifacts.copies(context.catalogue.artifact("releases", "app.tgz"))
    assert {store: copy.state.value for store, copy in copies.items()} == {"dr": "stored"}


def test_the_same_bytes_that_were_uploaded_again_stay_where_a_frozen_worker_wrote_late(
    context: Context, remove, put: Put, purge, stored
) -> None:
    """No condition tells the two versions apart: the catalogue says which of them the store has."""
    remove()
    deleted = context.catalogue.artifacts.version("releases", "app.tgz", 1)
    assert deleted
    put(b"release one", "dr")
    context.catalogue.artifacts.note_late_writes([deleted], "dr")
    assert purge().copies == {"primary": 1}
    assert stored("dr").read_bytes() == b"release one"


def test_what_another_job_writes_to_is_not_purged(context: Context, remove, purge, stored) -> None:
    """It may have written the same bytes and not recorded them yet: the next run purges what is left then."""
    remove()
    about: Any = {
        "owner": "test",
        "writes_to": "releases/app.tgz",
        "parent": None,
        "lease": context.settings.jobs.lease,
    }
    writer = context.catalogue.ledger.acquire(
        "writer", "upload", {}, now=clock.now() + GRACE + timedelta(minutes=1), **about
    )
    assert isinstance(writer, Leased)
    assert purge().copies == {}
    assert stored("dr").exists()
    context.catalogue.ledger.finish(writer.record.id, writer.record.fence, JobState.FAILED, now=clock.now())
    assert purge().purged == 1


def test_a_delete_is_not_undone_once_its_purge_has_begun(context: Context, remove) -> None:
    """Bytes may be gone already. Nor while another job has begun to write to its key."""
    remove()
    ledger, deletions, lease = context.catalogue.ledger, context.catalogue.deletions, timedelta(seconds=30)
    job = {"owner": "w", "writes_to": "releases/app.tgz", "parent": None, "now": clock.now(), "lease": lease}
    assert isinstance(ledger.acquire("writer", "upload", {}, **job), Leased)
    with pytest.raises(UndeleteRefused, match="job writer has begun"):
        deletions.undo("releases", "app.tgz", now=clock.now())
    tombstone = context.catalogue.deletions.get("releases", "app.tgz")
    assert tombstone
    assert context.catalogue.deletions.begin_purge(tombstone, now=tombstone.purge_after)
    with pytest.raises(UndeleteRefused, match="its bytes are being purged"):
        context.catalogue.deletions.undo("releases", "app.tgz", now=clock.now())


def test_a_copy_that_goes_before_it_is_read_is_no_finding(context: Context, remove, purge, stored, monkeypatch) -> None:
    """A restored copy has another version tag, so that the purge reads it; by then another program has deleted it."""
    remove()
    restore(stored("dr"))
    read = LimitedStore.verify_object

    def gone(store: LimitedStore, *of: Any, **how: Any) -> Verification:
        stored("dr").unlink()
        return read(store, *of, **how)

    monkeypatch.setattr(LimitedStore, "verify_object", gone)
    assert (purge().purged, context.catalogue.findings.page()) == (1, [])


def test_an_undelete_brings_back_no_version_that_was_deleted_before(context: Context, remove, put: Put) -> None:
    """A version stays deleted since its own delete, also where a later delete is undone."""
    remove()
    first = context.catalogue.artifacts.version("releases", "app.tgz", 1)
    put(b"release two")
    remove()
    assert context.catalogue.deletions.undo("releases", "app.tgz", now=clock.now()).version == 2
    assert context.catalogue.artifacts.version("releases", "app.tgz", 1) == first


def test_a_copy_that_was_gone_already_is_not_counted(remove, purge, stored) -> None:
    """The count tells what the purge has removed from the stores."""
    remove()
    stored("dr").unlink()
    result = purge()
    assert (result.purged, result.copies) == (1, {"primary": 1})


@pytest.mark.parametrize("verified", ["never", "before", "after"])
def test_what_another_program_has_changed_is_not_purged(
    context: Context, run, remove, purge, stored, verified: str
) -> None:
    """An object that is not the one that the catalogue has stays as a finding, also where a verify has found it bad."""
    remove()
    if verified == "before":  # the copy is missing, and then another program writes
        stored("dr").unlink()
        run(verify, VerifyRequest(bucket="releases", key="app.tgz", version=1))
    stored("dr").unlink(missing_ok=True)
    stored("dr").write_bytes(b"of another program")
    if verified == "after":
        run(verify, VerifyRequest(bucket="releases", key="app.tgz", version=1))
    assert purge().copies == {"primary": 1}
    assert stored("dr").read_bytes() == b"of another program"
    (found,) = context.catalogue.findings.page()
    assert (found.kind, found.store, found.key) == ("orphan", "dr", "app.tgz")
    assert "it has other bytes than that version; copy it elsewhere" in found.evidence["detail"]
    assert "on a disk together with the version's digest in `KEY.sha256`" in found.evidence["detail"]


def test_rot_under_the_version_that_was_written_is_purged(context: Context, run, remove, purge, stored) -> None:
    """A disk that rots changes neither inode nor time: what is there is the copy that was deleted."""
    remove()
    before = stored("dr").stat()
    stored("dr").write_bytes(b"release 0ne")
    os.utime(stored("dr"), ns=(before.st_atime_ns, before.st_mtime_ns))
    run(verify, VerifyRequest(bucket="releases", key="app.tgz", version=1))
    assert purge().copies == {"primary": 1, "dr": 1}
    assert not stored("dr").exists()
    assert context.catalogue.findings.page() == []


@pytest.mark.parametrize(
    ("over_a_copy", "there"),
    [(False, b"release two"), (False, b"of another program"), (False, None), (True, b"release two")],
)
def test_what_a_killed_upload_wrote_and_did_not_record_is_purged(
    context: Context, run, remove, put: Put, purge, stored, over_a_copy: bool, there: bytes | None
) -> None:
    """Its bytes are of a version that was deleted, also in place of the copy before it; other bytes are no copy."""
    if not over_a_copy:
        remove(now=True)
    content = b"release two"
    digest = Digest(len(content), hashlib.sha256(content).hexdigest())
    context.catalogue.artifacts.record("releases", "app.tgz", digest, {}, clock.now(), stores=["dr"])
    if there is not None:
        context.stores["dr"].write_object("releases", "app.tgz", io.BytesIO(there))
    put(b"release three", "primary")
    run(delete, DeleteRequest(bucket="releases", key="app.tgz"))
    assert purge().copies == {"primary": 1} | ({"dr": 1} if there == content else {})
    assert stored("dr").exists() == (there == b"of another program")
    assert context.catalogue.findings.page() == []


def test_a_restored_copy_is_purged(remove, purge, stored) -> None:
    """A file system that was restored or mounted again has other inode numbers: the bytes say that it is our copy."""
    remove()
    restore(stored("dr"))
    assert purge().copies == {"primary": 1, "dr": 1}
    assert not stored("dr").exists()


def test_a_restored_copy_that_cannot_be_read_is_not_forgotten(
    context: Context, remove, purge, stored, monkeypatch
) -> None:
    """It may be our copy: the tombstone stays until the bytes are gone or known to be another program's."""
    remove()
    restore(stored("dr"))
    opened = atomic_write.open_regular

    def refuse(directory: int, name: str) -> int:
        if name == "app.tgz":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(directory, name)

    with monkeypatch.context() as unreadable:
        unreadable.setattr(atomic_write, "open_regular", refuse)
        with pytest.raises(AccessDenied):
            purge()
    assert stored("dr").exists()
    assert context.catalogue.deletions.get("releases", "app.tgz")
    assert purge().copies == {"dr": 1}


def restore(path: Path) -> None:
    """Put a copy of a file in its place, as a restore from a backup does: the same bytes and time, another inode."""
    copied = path.with_name("copied")
    shutil.copy2(path, copied)
    copied.rename(path)


def test_a_store_that_takes_no_job_keeps_its_copy_for_a_later_run(
    context: Context, remove, purge, stored, monkeypatch
) -> None:
    """The tombstone stays until every copy is gone; the copies in other stores are deleted."""
    remove()
    delete_object = LimitedStore.delete_object

    def closed(store: LimitedStore, *where: str, **more: Any) -> bool:
        if store.name == "primary":
            raise Snooze("its breaker is open", 1.0)
        return delete_object(store, *where, **more)

    with monkeypatch.context() as breaker:
        breaker.setattr(LimitedStore, "delete_object", closed)
        with pytest.raises(Snooze):
            purge()
    assert (stored("primary").exists(), stored("dr").exists()) == (True, False)
    context.catalogue.pauses.begin("store", "primary", reason=None, now=clock.now())
    assert (purge().purged, stored("primary").exists()) == (0, True)
    context.catalogue.pauses.end("store", "primary")
    assert (purge().copies, stored("primary").exists()) == ({"primary": 1}, False)


def test_what_is_held_or_undeleted_while_its_purge_begins_stays(
    context: Context, remove, purge, monkeypatch, stored
) -> None:
    """What is held after the purge has found it can be undeleted; what is undeleted then keeps its bytes."""
    begin, deletions, holds = Deletions.begin_purge, context.catalogue.deletions, context.catalogue.holds

    def held_before(self: Deletions, of: Tombstone, *, now: datetime) -> object:
        holds.place("releases", "app.tgz", by="ana", reason="case 4711", now=now)
        return begin(self, of, now=now)

    def undone_before(self: Deletions, of: Tombstone, *, now: datetime) -> object:
        deletions.undo("releases", "app.tgz", now=now)
        return begin(self, of, now=now)

    for meanwhile in (held_before, undone_before):
        remove()
        with monkeypatch.context() as race:
            race.setattr(Deletions, "begin_purge", meanwhile)
            assert purge().purged == 0
        if meanwhile is held_before:
            assert deletions.undo("releases", "app.tgz", now=clock.now()).version == 1
            holds.release("releases", "app.tgz")
    assert stored("dr").read_bytes() == stored("primary").read_bytes() == b"release one"
    artifacts = context.catalogue.artifacts
    assert all(copy.state.good for copy in artifacts.copies(context.catalogue.artifact("releases", "app.tgz")).values())


def test_the_end_of_a_purge_leaves_a_later_delete(context: Context, remove) -> None:
    """A delete that was undone and done again while a purge ran has its own tombstone, which stays."""
    remove()
    first = context.catalogue.deletions.get("releases", "app.tgz")
    context.catalogue.deletions.undo("releases", "app.tgz", now=clock.now())
    remove()
    context.catalogue.deletions.end_purge([first])
    assert context.catalogue.deletions.undo("releases", "app.tgz", now=clock.now()).version == 1


def test_a_run_purges_no_more_than_its_limit(context: Context, run, source, remove, purge, monkeypatch) -> None:
    """`sweep.purge.batch` bounds what one run removes; what waits for a store that is away delays no other."""
    remove()
    run(upload, UploadRequest(bucket="releases", key="other", source=source(b"other"), stores=("primary",)))
    run(delete, DeleteRequest(bucket="releases", key="other"))
    monkeypatch.setitem(context.settings.sweep.purge.__dict__, "batch", 1)
    context.catalogue.pauses.begin(Scope.STORE, "dr", reason=None, now=clock.now())
    assert [purge().purged for _ in range(2)] == [0, 1]
    context.catalogue.pauses.end(Scope.STORE, "dr")
    assert [purge().purged for _ in range(2)] == [1, 0]


def test_a_purge_that_was_frozen_deletes_nothing_that_another_job_has_written(
    context: Context, remove, purge, monkeypatch, stored
) -> None:
    """It learns from its lease that another job has the artifact since, also where the whole machine was suspended."""
    remove()
    begin, ledger = Deletions.begin_purge, context.catalogue.ledger

    def thaw(deletions: Deletions, *of: Any, **when: Any) -> Any:
        found, lease = begin(deletions, *of, **when), context.settings.jobs.lease
        with ledger._database.write() as connection:
            connection.execute(sa.update(jobs).values(lease_until=clock.now() - lease))
        about: Any = {"owner": "test", "writes_to": "releases/app.tgz", "parent": None, "lease": lease}
        ledger.acquire("newer", "upload", {}, now=clock.now(), **about)
        for artifact, _copy in found:  # the same bytes: no condition of the request to the store can tell
            context.catalogue.artifacts.record(
                "releases", "app.tgz", artifact.digest, {}, clock.now(), stores=["primary", "dr"]
            )
        uptime = clock.uptime
        monkeypatch.setattr(clock, "uptime", lambda: uptime() + 2 * lease.total_seconds())
        return found

    monkeypatch.setattr(Deletions, "begin_purge", thaw)
    with pytest.raises(LostLease):
        purge()
    assert stored("primary").exists()
    assert stored("dr").exists()


@pytest.mark.parametrize("state", [CopyState.STORED, CopyState.CORRUPT])
def test_what_is_written_while_a_copy_is_purged_stays(
    context: Context, remove, purge, monkeypatch, stored, state: CopyState
) -> None:
    """A worker that was frozen once its lease was confirmed deletes no bytes that another job has written since."""
    remove()
    begin, confirm = Deletions.begin_purge, RunningJob.confirm_lease

    def thaw(job: RunningJob) -> None:
        confirm(job)
        for path in filter(Path.exists, map(stored, ("primary", "dr"))):
            path.unlink()
            path.write_bytes(b"newer")

    def found(deletions: Deletions, *of: Any, **when: Any) -> Any:
        return [(artifact, replace(copy, state=state)) for artifact, copy in begin(deletions, *of, **when)]

    monkeypatch.setattr(Deletions, "begin_purge", found)
    monkeypatch.setattr(RunningJob, "confirm_lease", thaw)
    purge()
    assert stored("primary").read_bytes() == b"newer"


def test_what_replaces_a_restored_copy_after_it_was_read_stays(remove, purge, stored, monkeypatch) -> None:
    """The delete names the version that was read; the next run reads what is there then."""
    remove()
    restore(stored("dr"))
    read = LimitedStore.verify_object

    def replaced(store: LimitedStore, *of: Any, **how: Any) -> Verification:
        seen = read(store, *of, **how)
        stored("dr").write_bytes(b"newer")
        return seen

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(LimitedStore, "verify_object", replaced)
        with pytest.raises(PreconditionFailed):
            purge()
    assert purge().copies == {}
    assert stored("dr").read_bytes() == b"newer"


def test_what_is_held_is_neither_deleted_nor_replaced_nor_purged(
    context: Context, remove, put: Put, purge, stored
) -> None:
    """A hold names its author and reason to who wants to delete; release ends it."""
    holds = context.catalogue.holds
    holds.place("releases", "app.tgz", by="ana", reason="case 4711", now=clock.now())
    for more in ({}, {"now": True}, {"stores": ("dr",)}):
        with pytest.raises(OnHold, match="held by ana .* case 4711"):
            remove(**more)
    with pytest.raises(OnHold):
        put(b"release two")
    put()  # the same bytes
    assert stored("dr").read_bytes() == b"release one"
    holds.release("releases", "app.tgz")
    remove()
    holds.place("releases", "app.tgz", by="ana", reason="case 4711", now=clock.now())
    assert purge().purged == 0
    assert context.catalogue.deletions.due(now=clock.now() + 2 * GRACE, limit=1) == []  # it takes no other's place
    holds.release("releases", "app.tgz")
    assert (purge().purged, stored("dr").exists()) == (1, False)
