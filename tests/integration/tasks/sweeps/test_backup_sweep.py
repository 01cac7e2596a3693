"""Sweep backup, as a job runs it: through admission control, with the lease of the job."""

from datetime import timedelta

import pytest

from tasks.sweeps.backup import NoBackupStore, sweep_backup
from tasks.upload import upload
from worker import clock
from worker.artifacts.catalogue_backup import backups
from worker.artifacts.verification_log.kept_head import keep_head, log_faults
from worker.catalogue import FindingKind, Scope, VerdictRow
from worker.schedule import beat_schedule
from worker.storage.errors import StorageError
from zot_artifact_client.contract import SweepBackupRequest, UploadRequest

STORES = ("primary", "dr")


@pytest.fixture(autouse=True)
def _configured(context, monkeypatch) -> None:
    monkeypatch.setitem(context.settings.sweep.backup.__dict__, "stores", STORES)


def test_the_sweep_writes_to_each_store(context, run):
    """Each store of the settings gets a backup that was read back and restored; beat starts the sweep."""
    result = run(sweep_backup, SweepBackupRequest())
    assert (set(result.written), result.faults, set(result.rehearsed)) == (set(STORES), {}, set(STORES))
    assert [len(backups(context.stores[name])) for name in STORES] == [1, 1]
    assert "sweep.backup" in beat_schedule(context.settings)


def test_old_months_of_the_log_are_archived(context, run, source, monkeypatch):
    """With `verification_log.keep` their rows leave the catalogue, but not while one of the stores is paused."""
    run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(b"1")))
    artifact = context.catalogue.artifacts.current("releases", "app.tgz")
    copy = context.catalogue.artifacts.copies(artifact)["dr"]
    for days in (300, 299, 0):
        now = clock.now() - timedelta(days=days)
        context.catalogue.verifications.record(VerdictRow.of("job-1", artifact, copy, "verified"), now=now)
    monkeypatch.setitem(context.settings.verification_log.__dict__, "keep", timedelta(days=200))
    context.catalogue.pauses.begin(Scope.STORE, "dr", reason=None, now=clock.now())
    run(sweep_backup, SweepBackupRequest())
    assert context.catalogue.log_archives.all() == []
    context.catalogue.pauses.end(Scope.STORE, "dr")
    run(sweep_backup, SweepBackupRequest())
    assert context.catalogue.log_archives.extent()[1] == 2
    assert log_faults([context.stores[name] for name in STORES], context.catalogue, read_archives=True) == []


def test_the_stores_keep_the_present_head_before_older_ones_are_archived(context, run, source, monkeypatch):
    """After months without any verification the log has changed for no store, although their heads are archived."""
    run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(b"1")))
    artifact = context.catalogue.artifacts.current("releases", "app.tgz")
    copy = context.catalogue.artifacts.copies(artifact)["dr"]
    for days in (300, 0):
        now = clock.now() - timedelta(days=days)
        context.catalogue.verifications.record(VerdictRow.of("job-1", artifact, copy, "verified"), now=now)
        for name in STORES if days else ():
            assert keep_head(context.stores[name], context.catalogue) is None
    monkeypatch.setitem(context.settings.verification_log.__dict__, "keep", timedelta(days=200))
    run(sweep_backup, SweepBackupRequest())
    assert context.catalogue.log_archives.extent()[1] == 1
    assert [keep_head(context.stores[name], context.catalogue) for name in STORES] == [None, None]


def test_a_paused_store_is_left_out(context, run):
    """A store that an operator has paused gets no backup until it is resumed."""
    context.catalogue.pauses.begin(Scope.STORE, "dr", reason=None, now=clock.now())
    assert set(run(sweep_backup, SweepBackupRequest()).written) == {"primary"}


def test_a_store_that_fails_is_tried_again(context, run, stored):
    """The job is retried for the store that is away; the other has its backup and no finding."""
    root = stored("dr").parent.parent
    root.rename(root.with_name("away"))
    with pytest.raises(StorageError, match="dr"):
        run(sweep_backup, SweepBackupRequest())
    assert len(backups(context.stores["primary"])) == 1
    assert [each.store for each in context.catalogue.findings.page(kind=FindingKind.BACKUP)] == ["dr"]


def test_without_configured_stores_there_is_no_backup(context, run, monkeypatch):
    """The sweep says which setting is missing, and beat does not start it."""
    monkeypatch.setitem(context.settings.sweep.backup.__dict__, "stores", ())
    with pytest.raises(NoBackupStore, match=r"sweep\.backup\.stores"):
        run(sweep_backup, SweepBackupRequest())
    assert "sweep.backup" not in beat_schedule(context.settings)
