"""A delete removes exactly the requested copies, and never the last good one by accident."""

import dataclasses
import errno
import io
from pathlib import Path

import pytest

from tasks.delete import LastCopy, delete
from tasks.sweeps.purge import sweep_purge
from tasks.upload import upload
from tasks.verify import verify
from worker import clock
from worker.catalogue import Scope, UndeleteRefused
from worker.catalogue.deletions import Deletions
from worker.context import Context
from worker.jobs.running_job import RunningJob
from worker.limits.snooze import Paused
from worker.settings.section_models import DeleteSettings
from worker.storage import Digest, Stores
from worker.storage.configured_stores import UnknownStore
from worker.storage.errors import Archived, Conflict, NotFound, Unavailable
from worker.storage.filesystem import atomic_write
from zot_artifact_client.contract import DeleteRequest, SweepPurgeRequest, UploadRequest, VerifyRequest


@pytest.fixture
def catalogue(catalogue_url):
    """Run everything here on both kinds of catalogue."""
    return catalogue_url


@pytest.fixture(autouse=True)
def uploaded(run, source):
    return run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(b"release one")))


def request(*stores: str, allow_last: bool = False) -> DeleteRequest:
    return DeleteRequest(bucket="releases", key="app.tgz", stores=stores or None, allow_last=allow_last)


def test_one_copy_goes_and_the_others_stay(run, stored):
    """Deleting from one store leaves the copies in the others."""
    result = run(delete, request("dr"))
    assert [(copy.store, copy.outcome) for copy in result.copies] == [("dr", "deleted")]
    assert not stored("dr").exists()
    assert not stored("dr", "app.tgz.sha256").exists()
    assert stored("primary").read_bytes() == b"release one"


def test_the_last_good_copy_is_refused_unless_it_was_meant(run, stored):
    """The last copy stays when only its store was named, and goes when the request says that it may."""
    run(delete, request("dr"))
    with pytest.raises(LastCopy, match="no good copy would remain outside primary"):
        run(delete, request("primary"))
    assert stored("primary").exists()

    run(delete, request("primary", allow_last=True))
    assert not stored("primary").exists()


def test_naming_every_store_is_not_a_way_around_it(run, stored):
    """Naming all stores one by one is refused like naming the last one."""
    with pytest.raises(LastCopy):
        run(delete, request("primary", "dr"))
    assert stored("dr").exists()


def test_a_corrupt_copy_elsewhere_does_not_count(run, stored):
    """A copy that is known to be bad is no reason to let the last good one go."""
    stored("dr").write_bytes(b"release 1!!")
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    with pytest.raises(LastCopy):
        run(delete, request("primary"))


def test_a_copy_that_its_store_does_not_have_does_not_count(run, stored):
    """A copy that only the catalogue believes in is no reason to let the last real one go, nor is half of a copy."""
    stored("dr").write_bytes(b"release")
    with pytest.raises(LastCopy):
        run(delete, request("primary"))
    stored("dr").unlink()
    with pytest.raises(LastCopy):
        run(delete, request("primary"))


def test_a_paused_store_is_not_asked_whether_it_has_the_copy_that_would_remain(run, context, stored):
    """While the store of the copy that would remain is paused the job waits, and deletes nothing on its word."""
    context.catalogue.pauses.begin(Scope.STORE, "dr", reason=None, now=clock.now())
    with pytest.raises(Paused, match="dr: the store is paused"):
        run(delete, request("primary"))
    assert stored("primary").exists()
    context.catalogue.pauses.end(Scope.STORE, "dr")
    assert [copy.outcome for copy in run(delete, request("primary")).copies] == ["deleted"]


def test_everywhere_is_everywhere(run, stored):
    """Naming no store deletes every copy, and the artifact is not there any more."""
    assert run(delete, request()).everywhere
    assert not stored("primary").exists()
    assert not stored("dr").exists()
    with pytest.raises(NotFound):
        run(verify, VerifyRequest(bucket="releases", key="app.tgz"))


def test_everywhere_finds_old_versions_too(run, source, stored):
    """An older version in a store that the new one never went to is deleted with it."""
    run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(b"release two"), stores=("primary",)))
    assert stored("dr").read_bytes() == b"release one"
    run(delete, request())
    assert not stored("dr").exists()


def test_deleting_what_is_gone_is_a_success_that_says_so(run):
    """Deleting twice succeeds twice; the second time says that nothing was there."""
    assert not run(delete, request()).unchanged
    assert run(delete, request()).unchanged
    assert run(delete, request("dr")).unchanged


def test_a_store_that_is_down_keeps_the_artifact_on_record(run, settings, stored):
    """While a copy cannot be deleted the artifact is not called deleted, and asking again finishes it."""
    root = settings.stores["dr"].root
    root.rename(root.with_name("unplugged"))
    with pytest.raises(Unavailable, match="dr"):
        run(delete, request())
    assert not stored("primary").exists()

    root.with_name("unplugged").rename(root)
    result = run(delete, request())
    assert [(copy.store, copy.outcome) for copy in result.copies] == [("dr", "deleted")]


@pytest.mark.parametrize("stores", [(), ("dr",)])
def test_what_is_written_while_a_copy_is_deleted_stays(run, stored, monkeypatch, stores):
    """A worker that was frozen before the request to the store deletes no bytes that another job has written since."""
    confirm = RunningJob.confirm_lease

    def thaw(job):
        confirm(job)
        for path in filter(Path.exists, map(stored, ("primary", "dr"))):
            path.unlink()
            path.write_bytes(b"release two")

    monkeypatch.setattr(RunningJob, "confirm_lease", thaw)
    with pytest.raises(Conflict, match="dr: releases/app.tgz was replaced"):
        run(delete, request(*stores))
    assert stored("dr").read_bytes() == b"release two"

    monkeypatch.undo()
    assert [(copy.store, copy.outcome) for copy in run(delete, request("dr", allow_last=True)).copies] == [
        ("dr", "deleted")
    ]


def test_a_file_that_may_not_be_opened_is_deleted(run, stored, monkeypatch):
    """The directory decides about a delete, and not the file, which may be another user's."""
    opened = atomic_write.open_regular

    def refuse(directory, name):
        if name == "app.tgz":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(directory, name)

    monkeypatch.setattr(atomic_write, "open_regular", refuse)
    assert [copy.outcome for copy in run(delete, request()).copies] == ["deleted", "deleted"]
    assert not stored("dr").exists()


def test_after_a_deletion_the_same_bytes_are_a_new_version(run, source):
    """An artifact that was deleted and comes back does not take up the old version."""
    run(delete, request())
    again = run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(b"release one")))
    assert (again.version, again.unchanged) == (2, False)


def test_an_old_version_in_a_named_store_is_deleted_too(run, source, stored):
    """A store that still holds the version before is emptied when it is named; the current version stays elsewhere."""
    run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(b"release two"), stores=("primary",)))
    assert [copy.outcome for copy in run(delete, request("dr")).copies] == ["deleted"]
    assert not stored("dr").exists()
    assert stored("primary").read_bytes() == b"release two"


def test_what_a_killed_upload_has_written_is_deleted_too(run, context, stored):
    """Bytes that a job wrote and had no time to report do not outlive the artifact."""
    digest = Digest(7, "a" * 64)
    context.catalogue.artifacts.record("releases", "half.tgz", digest, {}, clock.now(), stores=["primary"])
    context.stores["primary"].write_object("releases", "half.tgz", io.BytesIO(b"written"))
    result = run(delete, DeleteRequest(bucket="releases", key="half.tgz"))
    assert [(copy.store, copy.outcome) for copy in result.copies] == [("primary", "deleted")]
    assert not stored("primary", "half.tgz").exists()


def test_a_key_that_the_catalogue_never_had_is_an_error(run):
    """Deleting a mistyped key fails with the nearest key that there is; one that was deleted before is gone already."""
    with pytest.raises(NotFound, match=r"did you mean 'releases/app\.tgz'"):
        run(delete, DeleteRequest(bucket="releases", key="app.tgx"))
    with pytest.raises(NotFound):
        run(delete, DeleteRequest(bucket="releases", key="app.tgx", stores=("dr",)))
    run(delete, request())
    assert run(delete, request()).unchanged


def without(context: Context, *names: str) -> Context:
    """Return the context after these stores have left the configuration."""
    configs = {name: config for name, config in context.settings.stores.items() if name not in names}
    settings = context.settings.model_copy(update={"stores": configs})
    return dataclasses.replace(context, settings=settings, stores=Stores(configs))


@pytest.mark.parametrize("by_sweep", [True, False])
def test_a_copy_in_a_store_that_left_the_configuration_is_told(run, context, stored, by_sweep, monkeypatch):
    """The copies that can be reached are deleted, and the result names the store whose copy stays.

    That is a delete on record, so that a rebuild keeps it, until the store is back and the bytes are gone there, too.
    It cannot be undone from the moment on at which it is recorded.
    """

    def by(who: str) -> DeleteRequest:
        return request().model_copy(update={"by": who})

    left = without(context, "dr")
    with monkeypatch.context() as dying:
        dying.setattr(Deletions, "begin_purge", None)  # no transaction follows the one that records it
        result = run(delete, by("ada"), context=left)
    assert [(copy.store, copy.outcome) for copy in result.copies] == [("primary", "deleted")]
    assert result.not_configured == ("dr",)
    assert not stored("primary").exists()
    assert stored("dr").exists()
    with pytest.raises(UndeleteRefused):
        context.catalogue.deletions.undo("releases", "app.tgz", now=clock.now())
    again = run(delete, by("bob"), context=left)
    assert (again.unchanged, again.not_configured) == (True, ("dr",))
    [kept] = context.catalogue.deletions.kept()
    assert kept.by == "ada", "who deleted it at that time"
    assert (kept.key, context.catalogue.deletions.is_being_purged(kept)) == ("app.tgz", True)
    if by_sweep:
        assert run(sweep_purge, SweepPurgeRequest(), context=left).purged == 0
        purged = run(sweep_purge, SweepPurgeRequest())
        assert (purged.purged, purged.copies) == (1, {"dr": 1}), "the store is back"
    else:
        assert [copy.outcome for copy in run(delete, request()).copies] == ["deleted"], "the store is back"
    assert (list(context.catalogue.deletions.kept()), stored("dr").exists()) == ([], False)


@pytest.mark.parametrize("named", [("dr",), ("primary", "dr"), ()])
def test_nothing_is_deleted_before_all_stores_are_resolved(run, context, stored, named):
    """A named store, or the only ones with a copy, that left the configuration are an error that says what to do."""
    left = without(context, "dr") if named else without(context, "dr", "primary")
    with pytest.raises(UnknownStore, match="'dr' is not configured: .*says whether it was renamed"):
        run(delete, request(*named, allow_last=bool(named)), context=left)
    assert stored("primary").exists()
    assert context.catalogue.artifacts.current("releases", "app.tgz") is not None


def test_a_copy_in_a_store_that_left_is_no_last_good_copy(run, context, stored):
    """What cannot be reached is no reason to let the last copy go that can."""
    left = without(context, "dr")
    with pytest.raises(LastCopy):
        run(delete, request("primary"), context=left)
    assert stored("primary").exists()


def test_an_archived_copy_is_the_last_good_one_only_if_the_settings_say_so(run, context, stored, monkeypatch):
    """A copy that has to be restored before it can be read lets no other go, unless it is allowed to."""
    driver = context.stores["dr"]._driver
    really = driver.open

    def archived(bucket, key, **more):
        if key == "app.tgz" and "length" in more:  # a stat still works
            raise Archived("dr: releases/app.tgz is archived")
        return really(bucket, key, **more)

    monkeypatch.setattr(driver, "open", archived)
    with pytest.raises(LastCopy):
        run(delete, request("primary"))
    assert stored("primary").exists()
    settings = context.settings.model_copy(update={"delete": DeleteSettings(archived_counts=True)})
    trusting = dataclasses.replace(context, settings=settings)
    run(delete, request("primary"), context=trusting)
    assert not stored("primary").exists()
