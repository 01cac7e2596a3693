"""Backups of the catalogue in the stores: write and verify them, rehearse a restore, restore one."""

import re
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from worker import clock
from worker.artifacts.packed_lines import pack, packed_lines, write_and_read_back
from worker.catalogue import BadExport, Catalogue, CatalogueError, ExportSummary, FindingKind, load_export
from worker.counted import counted
from worker.limits.limited_store import AnyStore
from worker.limits.snooze import Snooze
from worker.settings.section_models import BackupSweepSettings
from worker.storage import Verdict
from worker.storage.errors import IntegrityError, OutOfSpace, PermanentError, StorageError
from worker.storage.integrity.verifying_reader import OnBytes
from worker.storage.keys import BACKUP_BUCKET
from worker.storage.spooling import spooling_in

_TIME = "%Y%m%dT%H%M%S.%fZ"
_KEY = re.compile(
    r"(?P<identity>[0-9a-f-]{36})/(?P<at>\d{8}T\d{6}\.\d{6}Z)\.(?P<job>[A-Za-z0-9][A-Za-z0-9._-]*)\.jsonl\.gz"
)


class NoBackup(PermanentError):
    """A store has no backup of a catalogue, or none of this name."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup in a store: the catalogue that it is of, when it was made and by which job, and its bytes."""

    store: str
    key: str
    identity: str
    at: datetime
    job: str
    size: int | None


@dataclass(frozen=True, slots=True)
class BackedUp:
    """The result of one run: by store the backup, by store its fault, and the number of rows of a backup."""

    written: Mapping[str, str]
    faults: Mapping[str, str]
    rehearsed: Sequence[str]
    removed: int
    failures: Sequence[StorageError | Snooze] = field(default=())
    """The errors of the stores that have no backup now."""


def backups(store: AnyStore, identity: str | None = None) -> list[Backup]:
    """Return the backups in a store, of one catalogue or of all, the newest first.

    Raises:
        StorageError, Snooze: the store does not list them.
    """
    if not store.capabilities.reserved_buckets:
        return []
    found = []
    for listed in store.list_objects(BACKUP_BUCKET, f"{identity}/" if identity else ""):
        if name := _KEY.fullmatch(listed.key):
            at = datetime.strptime(name["at"], _TIME).replace(tzinfo=UTC)
            found.append(Backup(store.name, listed.key, name["identity"], at, name["job"], listed.size))
    return sorted(found, key=lambda each: (each.at, each.key), reverse=True)


def back_up(
    catalogue: Catalogue,
    stores: Sequence[AnyStore],
    settings: BackupSweepSettings,
    spool_dir: Path,
    *,
    job: str,
    on_bytes: OnBytes | None = None,
) -> BackedUp:
    """Write one export of the catalogue to each store, read it back, and rehearse a restore where that is due.

    A store that has a good backup by this job already, from an earlier attempt, gets no second one. Older backups are
    removed only from stores that have a new one. A store without a good backup has a finding from then on.
    """
    run = _Run(catalogue, spool_dir, job, on_bytes)
    failures: dict[str, StorageError | Snooze] = {}
    missing = []
    for store in stores:
        try:
            if not run.is_there(store):
                missing.append(store)
        except (StorageError, Snooze) as error:
            failures[store.name] = error
    failures |= run.write(missing)
    faults = {name: str(error) for name, error in failures.items()}
    removed, rehearsed = 0, []
    for store in stores:
        if store.name in failures:
            continue
        try:
            catalogue.backup_times.set_written(store.name, clock.now())
            removed += _remove_old(store, catalogue.identity, settings.keep, run.written[store.name])
            if run.is_rehearsal_due(store, settings):
                rehearsed.append(store.name)
                if fault := run.rehearse(store):
                    faults[store.name] = fault
        except (StorageError, Snooze) as error:
            failures[store.name], faults[store.name] = error, str(error)
    for store in stores:
        evidence = {"detail": faults[store.name], "job": job} if store.name in faults else None
        catalogue.findings.see_store(FindingKind.BACKUP, store.name, evidence, now=clock.now())
    return BackedUp(run.written, faults, rehearsed, removed, list(failures.values()))


def restore(backup: Backup, store: AnyStore, url: str, on_bytes: OnBytes | None = None) -> ExportSummary:
    """Load a backup into the empty catalogue at this URL: all of it, or nothing.

    Raises:
        BadExport, IntegrityError: it is damaged.
        NotEmpty: the catalogue has rows.
        StorageError: the store does not give it.
    """
    with packed_lines(store, backup.key, on_bytes) as lines:
        return load_export(url, lines, restore=True)


def restore_newest(found: Sequence[Backup], store: AnyStore, url: str) -> tuple[Backup, ExportSummary, dict[str, str]]:
    """Load the first undamaged backup; return it, its summary, and why each one before it was left out, by its key.

    `found` is sorted, newest first. A backup with a time in the future is tried last, because a wrong clock named it.

    Raises:
        NoBackup: all are damaged; says why for each.
        BadExport, IntegrityError: the only one is damaged.
        NotEmpty, StorageError: as `restore`.
    """
    latest = clock.now() + clock.SKEW
    skipped: dict[str, str] = {}
    for each in sorted(found, key=lambda each: each.at > latest):
        try:
            return each, restore(each, store, url), skipped
        except (BadExport, IntegrityError) as error:
            if len(found) == 1:
                raise
            skipped[each.key] = str(error)
    told = "; ".join(f"{key}: {why}" for key, why in skipped.items())
    raise NoBackup(f"{store.name} has no backup that is whole: {told}")


def rehearse(
    backup: Backup, store: AnyStore, catalogue: Catalogue, spool_dir: Path, on_bytes: OnBytes | None = None
) -> str | None:
    """Restore a backup into a temporary database and compare it; return what is wrong with it, or None.

    The rows of each table, the chain of the verification log and its head must be those that the backup names, and the
    log of the catalogue must still have this head.

    Raises:
        StorageError, Snooze: the store does not give it.
    """
    scratch = spool_dir / f"zot-rehearsal-{secrets.token_hex(8)}.sqlite3"
    url = f"sqlite:///{scratch}"
    where = f"the backup of {backup.at:%Y-%m-%d %H:%M:%S} UTC in {backup.store}"
    try:
        summary = restore(backup, store, url, on_bytes)
        restored = Catalogue(url)
        try:
            fault = _difference(restored, summary, catalogue)
        finally:
            restored.close()
    except (CatalogueError, IntegrityError) as error:
        return f"{where} cannot be restored: {error}"
    finally:
        for suffix in ("", "-wal", "-shm", "-id"):
            scratch.with_name(f"{scratch.name}{suffix}").unlink(missing_ok=True)
    return f"{where}: {fault}" if fault else None


def _difference(restored: Catalogue, summary: ExportSummary, catalogue: Catalogue) -> str | None:
    found = restored.count_rows()
    changed = {"artifact_locks", "pages", "sweep_cursors"}  # by a restore
    for table, count in summary.rows.items():
        if table not in changed and found.get(table) != count:
            return (
                f"{table} has {counted(found.get(table) or 0, 'row')} in the scratch database, the backup has {count}"
            )
    if (broken := restored.verifications.first_broken()) is not None:
        return f"the chain of its verification log is broken at row {broken}"
    head = restored.verifications.head()
    if head != summary.log_head:
        return "its verification log ends with another row than the backup says"
    return catalogue.verifications.check_head(head) if head else None


class _Run:
    """One run of `back_up`."""

    def __init__(self, catalogue: Catalogue, spool_dir: Path, job: str, on_bytes: OnBytes | None) -> None:
        self._catalogue = catalogue
        self._spool_dir = spool_dir
        self._job = job
        self._on_bytes = on_bytes
        self.written: dict[str, str] = {}

    def is_there(self, store: AnyStore) -> bool:
        """Return whether an earlier attempt of this job has left a good backup in a store."""
        if not store.capabilities.reserved_buckets:
            raise PermanentError(
                f"{store.name}: the store has no bucket for the worker's own objects: set "
                f"stores.{store.name}.reserved_bucket, or name another store in sweep.backup.stores"
            )
        for each in backups(store, self._catalogue.identity):
            if each.job == self._job:
                seen = store.verify_object(BACKUP_BUCKET, each.key, on_bytes=self._on_bytes)
                if seen.verdict is Verdict.VERIFIED:
                    self.written[store.name] = each.key
                    return True
        return False

    def write(self, stores: Sequence[AnyStore]) -> dict[str, StorageError | Snooze]:
        """Write one export to stores and read it back from each; return the errors by store."""
        failures: dict[str, StorageError | Snooze] = {}
        if not stores:
            return failures
        try:
            with spooling_in(self._spool_dir):
                self._write(stores, failures)
        except OutOfSpace as error:  # of the disk of this machine
            return {store.name: error for store in stores}
        return failures

    def _write(self, stores: Sequence[AnyStore], failures: dict[str, StorageError | Snooze]) -> None:
        with tempfile.TemporaryFile(dir=self._spool_dir, prefix="zot-backup-") as spool:
            digest, summary = pack(spool, self._catalogue.export, self._on_bytes)
            key = f"{self._catalogue.identity}/{summary.exported_at:{_TIME}}.{self._job}.jsonl.gz"
            for store in stores:
                try:
                    write_and_read_back(store, key, spool, digest, self._on_bytes)
                except (StorageError, Snooze) as error:
                    failures[store.name] = error
                else:
                    self.written[store.name] = key

    def is_rehearsal_due(self, store: AnyStore, settings: BackupSweepSettings) -> bool:
        last = self._catalogue.backup_times.rehearsed(store.name)
        bad = self._catalogue.findings.page(kind=FindingKind.BACKUP, store=store.name, limit=1)
        return last is None or bool(bad) or clock.now() - last >= settings.rehearse

    def rehearse(self, store: AnyStore) -> str | None:
        found = backups(store, self._catalogue.identity)
        written = next(each for each in found if each.key == self.written[store.name])
        fault = rehearse(written, store, self._catalogue, self._spool_dir, self._on_bytes)
        self._catalogue.backup_times.set_rehearsed(store.name, clock.now())
        return fault


def _remove_old(store: AnyStore, identity: str, keep: int, written: str) -> int:
    """Remove the oldest backups, but not the one just written: others may be from a clock that was ahead."""
    old = [each for each in backups(store, identity)[keep:] if each.key != written]
    return sum(store.delete_object(BACKUP_BUCKET, each.key) for each in old)
