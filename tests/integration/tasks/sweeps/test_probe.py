"""A broken store is found before a job needs it."""

import contextlib
import dataclasses
import hashlib
import io
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
import sqlalchemy as sa

from tasks.delete import delete
from tasks.sweeps.backup import sweep_backup
from tasks.sweeps.probe import sweep_probe
from tasks.sweeps.purge import sweep_purge
from tasks.sweeps.reconcile import sweep_reconcile
from tasks.sweeps.verify import sweep_verify
from tasks.upload import upload
from tasks.verify import verify
from tests.conformance.targets import make_s3_bucket, s3_config
from worker import clock
from worker.artifacts.records_kept_in_stores import keep_records
from worker.artifacts.verification_log.kept_head import accept_head
from worker.catalogue import Catalogue, load_export, tables
from worker.context import Context
from worker.jobs.running_job import RunningJob
from worker.limits.snooze import StoreRefuses
from worker.settings.section_models import BackupSweepSettings, DeleteSettings
from worker.storage import Digest, Stores
from worker.storage.errors import OtherWriter
from zot_artifact_client.contract import (
    DeleteRequest,
    SweepBackupRequest,
    SweepProbeRequest,
    SweepPurgeRequest,
    SweepReconcileRequest,
    SweepVerifyRequest,
    UploadRequest,
    VerifyRequest,
)


def test_stores_that_work_have_no_fault_and_keep_nothing_of_the_probe(run, settings, monkeypatch):
    """A probe of good stores finds nothing wrong and leaves no object behind; it notes disks with little room."""
    result = run(sweep_probe, SweepProbeRequest())
    assert (set(result.probed), result.faults, result.little_room) == ({"primary", "dr", "cold"}, {}, ())
    assert not list(settings.stores["dr"].root.glob("zot-probe/*"))
    usage, full = shutil.disk_usage("/"), settings.stores["dr"].root
    monkeypatch.setattr(shutil, "disk_usage", lambda of: usage._replace(free=5 << 20 if of == full else 1 << 40))
    result = run(sweep_probe, SweepProbeRequest())
    assert (result.faults, result.little_room) == ({}, ("dr",))


def test_a_store_that_is_away_is_named_and_the_others_are_probed(run, settings):
    """One store that cannot be reached is a fault of that store only."""
    settings.stores["dr"].root.rename(settings.stores["dr"].root.with_name("unplugged"))
    result = run(sweep_probe, SweepProbeRequest())
    assert list(result.faults) == ["dr"]
    assert "dr" in result.faults["dr"]


@contextmanager
def cut_log(context: Context) -> Iterator[None]:
    """Take the rows of the verification log away, and bring them back."""
    database, table = context.catalogue._database, tables.verifications
    with database.write() as connection:
        rows = [dict(row._mapping) for row in connection.execute(sa.select(table))]
        connection.exec_driver_sql("DROP TRIGGER verifications_are_never_deleted")
        connection.execute(sa.delete(table))
    yield
    with database.write() as connection:
        connection.execute(sa.insert(table), rows)


def test_a_log_that_was_cut_is_a_finding_until_it_fits_again(run, context, source):
    """A store that keeps the head of a row that is gone opens a finding; a log that fits what is kept resolves it."""
    run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(b"1")))
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    run(sweep_probe, SweepProbeRequest())
    with cut_log(context):
        result = run(sweep_probe, SweepProbeRequest())
        assert "has lost rows" in result.faults["dr"]
        assert {(each.kind, each.store) for each in context.catalogue.findings.page()} == {
            ("log_changed", store) for store in ("primary", "dr", "cold")
        }
    assert run(sweep_probe, SweepProbeRequest()).faults == {}
    assert context.catalogue.findings.page() == []


def test_a_store_that_ignores_create_if_absent_is_found_out(run, context, rclone, caplog):
    """A store that lets a second writer win although it was asked not to is called by that name, with the way out."""
    bucket = f"real-{os.urandom(4).hex()}"
    make_s3_bucket(rclone, bucket)
    caplog.set_level(logging.WARNING)
    for conditional in (True, False):
        config = s3_config(rclone, bucket=bucket, conditional_writes=conditional)
        stores = Stores({"cloud": config})
        probed = dataclasses.replace(context, stores=stores)
        result = run(sweep_probe, SweepProbeRequest(), context=probed)
        stores.close()
        if conditional:
            assert "stores.cloud.conditional_writes: false" in result.faults["cloud"]
        else:
            assert not result.faults
            assert "only our own lease" in caplog.text


def test_each_verify_sweep_keeps_the_head_of_the_log(run, context, settings, source):
    """Every store that can be reached keeps the head after the sweep; one that is away does not stop it."""
    run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(b"1")))
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    settings.stores["dr"].root.rename(settings.stores["dr"].root.with_name("unplugged"))
    run(sweep_verify, SweepVerifyRequest())
    kept = {
        name: list(settings.stores[name].root.glob("zot-probe/verification-log/*.json")) for name in ("primary", "cold")
    }
    assert all(len(paths) == 1 for paths in kept.values())
    head = context.catalogue.verifications.head()
    assert head.hash in kept["primary"][0].read_text()


def test_a_log_that_was_cut_changes_no_list_that_a_store_keeps(run, context, settings, source):
    """A restored catalogue is such a one: the rebuild needs the list of deletes that was made after its backup."""
    run(upload, UploadRequest(bucket="releases", key="app.tgz", source=source(b"1")))
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    grace = settings.model_copy(update={"delete": DeleteSettings(grace=timedelta(days=7))})
    later = dataclasses.replace(context, settings=grace)
    run(delete, DeleteRequest(bucket="releases", key="app.tgz"), context=later)
    run(sweep_verify, SweepVerifyRequest())
    [kept] = settings.stores["primary"].root.glob("zot-probe/tombstones/*.jsonl.gz")
    before = kept.read_bytes()
    with cut_log(context):
        context.catalogue.deletions.undo("releases", "app.tgz", now=clock.now())
        run(sweep_verify, SweepVerifyRequest())
        assert kept.read_bytes() == before
    run(sweep_verify, SweepVerifyRequest())
    assert kept.read_bytes() != before


def test_a_restored_catalogue_changes_nothing_that_another_one_keeps(
    run, context, settings, source, tmp_path, monkeypatch
):
    """Until the restore is accepted, also where no verdict was lost; from then on the other one changes nothing."""
    monkeypatch.setattr("worker.storage.identity._NOTED_SECONDS", 0.0)
    for key in ("app.tgz", "kept.tgz"):
        run(upload, UploadRequest(bucket="releases", key=key, source=source(b"1")))
    run(sweep_verify, SweepVerifyRequest())
    backup = io.BytesIO()
    context.catalogue.export(backup)
    now, of = clock.now(), context.catalogue.artifact("releases", "app.tgz")
    context.catalogue.deletions.begin(of, now=now, until=now, by="ana", reason=None, job="delete")
    run(sweep_verify, SweepVerifyRequest())
    [kept] = settings.stores["primary"].root.glob("zot-probe/tombstones/*.jsonl.gz")
    before = kept.read_bytes()
    backup.seek(0)
    url = f"sqlite:///{tmp_path / 'restored.sqlite3'}"
    load_export(url, backup, restore=True)
    with contextlib.closing(Catalogue(url)) as restored:
        ids = restored.store_identities(settings.stores)
        stores = Stores(settings.stores, spool_dir=settings.spool_dir, known_ids=ids)

        def keep(_: SweepVerifyRequest, job: RunningJob) -> None:
            job.catalogue, job.unlimited_stores = restored, stores
            keep_records(job, ["primary"])

        def sweep() -> list[str]:
            run(keep, SweepVerifyRequest())
            return [each.kind for each in restored.findings.page(store="primary")]

        assert sweep() == ["log_changed"]
        assert kept.read_bytes() == before
        with pytest.raises(OtherWriter, match="was restored from its backup"):
            stores["primary"].delete_object("releases", "app.tgz")
        restored.backup_times.accept_restored()
        assert sweep() == ["log_changed"], "the catalogue of the backup may still be in use"
        with pytest.raises(OtherWriter, match=f"another copy of this catalogue, {settings.home}/catalogue.sqlite3 of "):
            stores["primary"].delete_object("releases", "app.tgz")
        accept_head(stores["primary"], restored)
        assert sweep() == []
        assert kept.read_bytes() != before

        stores["primary"].write_object("releases", "kept.tgz", io.BytesIO(b"2"))

    # The first catalogue is told, and changes nothing either: its jobs wait, also in a process that has written before.
    before = kept.read_bytes()
    run(sweep_verify, SweepVerifyRequest())
    assert [(each.kind, each.store) for each in context.catalogue.findings.page()] == [("log_changed", "primary")]
    assert kept.read_bytes() == before
    backup_to = settings.sweep.model_copy(update={"backup": BackupSweepSettings(stores=("primary",))})
    context = dataclasses.replace(context, settings=settings.model_copy(update={"sweep": backup_to}))

    def verify_small(_: SweepVerifyRequest, job: RunningJob) -> None:
        list(
            job.stores["primary"].verify_objects(
                [("releases", "kept.tgz", Digest(1, hashlib.sha256(b"1").hexdigest()))]
            )
        )

    for work, request in (
        (verify_small, SweepVerifyRequest()),
        (upload, UploadRequest(bucket="releases", key="b", source=source(b"2"), stores=("primary",))),
        (verify, VerifyRequest(bucket="releases", key="kept.tgz", stores=("primary",))),
    ):
        with pytest.raises(StoreRefuses, match=f"{url.removeprefix('sqlite:///')} of .*stop the programs of this one"):
            run(work, request, context=context)
    for sweep_, asked in (
        (sweep_verify, SweepVerifyRequest(store="primary")), (sweep_reconcile, SweepReconcileRequest(store="primary")),
        (sweep_backup, SweepBackupRequest()), (sweep_purge, SweepPurgeRequest()),
    ):  # fmt: skip
        assert "primary" not in str(run(sweep_, asked, context=context))
    found = [(each.kind, each.store) for each in context.catalogue.findings.page()]
    assert found == [("log_changed", "primary")], "what the other copy has written is no finding of this one"
