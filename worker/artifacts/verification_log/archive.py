"""Archive whole months of the verification log in the stores, check the archives, and remove archived rows."""

import gzip
import logging
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from worker import clock
from worker.artifacts.packed_lines import pack, packed_lines, write_and_read_back
from worker.catalogue import BadArchive, Catalogue, FindingKind, LogArchive, LogMonth, check_lines
from worker.catalogue.verifications import FIRST_PREVIOUS
from worker.storage.errors import IntegrityError, NotFound, StorageError
from worker.storage.integrity.verifying_reader import OnBytes
from worker.storage.keys import BACKUP_BUCKET
from worker.storage.spooling import spooling_in

if TYPE_CHECKING:
    from worker.limits.limited_store import AnyStore  # it imports the clients of the broker

logger = logging.getLogger(__name__)

_COPIES = 2


def archive_key(catalogue: Catalogue, month: LogMonth) -> str:
    """Return the key of an archive: another chain of the same month has another one."""
    return f"{catalogue.identity}/verification-log/{month.month}.{month.hash[:16]}.jsonl.gz"


def archive_log(
    catalogue: Catalogue,
    stores: Sequence["AnyStore"],
    spool_dir: Path,
    *,
    before: datetime,
    check: Callable[[], object] = lambda: None,
    on_bytes: OnBytes | None = None,
) -> list[str]:
    """Write each month of the log that ended before a time to all of these stores, then remove its rows.

    Each archive is read back from each store, and recorded before any of its rows is removed. A second run completes
    a run that was killed. An archive that a store lacks is copied to it first. Return the months that were archived;
    none while the log has a finding. `check` is called between the transactions that remove rows.

    Raises:
        CatalogueError: the log was changed.
        OutOfSpace: the disk of this machine is full.
        StorageError, Snooze: a store does not take an archive, or lacks one and no other store has it.
    """
    if catalogue.findings.page(kind=FindingKind.LOG_CHANGED, limit=1):
        logger.error("the verification log does not fit what a store keeps: nothing of it is archived")
        return []
    for archive in catalogue.log_archives.all():
        _copy_where_it_is_absent(catalogue, archive, stores, spool_dir, on_bytes)
    catalogue.log_archives.remove_rows(check)
    done: list[str] = []
    while True:
        with spooling_in(spool_dir), tempfile.TemporaryFile(dir=spool_dir, prefix="zot-log-") as spool:
            digest, month = pack(spool, partial(catalogue.log_archives.write_month, before=before), on_bytes)
            if month is None:
                return done
            for store in stores:
                write_and_read_back(store, archive_key(catalogue, month), spool, digest, on_bytes)
        catalogue.log_archives.add(month, digest, now=clock.now())
        catalogue.log_archives.remove_rows(check)
        done.append(month.month)


def archive_faults(stores: Iterable["AnyStore"], catalogue: Catalogue, *, read: bool = False) -> list[str]:
    """Return what is wrong with the archives of the log: they must be one chain, and two stores must have each.

    With `read` all their bytes are read, and the chain of their rows is computed; otherwise the stores are only asked
    for size and digest. A store that cannot be reached is not a fault.
    """
    faults, previous = [], FIRST_PREVIOUS
    stores = [store for store in stores if store.capabilities.reserved_buckets]
    for archive in catalogue.log_archives.all():
        what = f"the archive of the verification log of {archive.month}"
        if archive.previous != previous:
            faults.append(f"{what} does not go on from the one before it")
        previous = archive.hash
        has, silent = [], False
        for store in stores:
            try:
                if not _is_there(catalogue, archive, store):
                    continue
                has.append(store.name)
                if read:
                    _check(catalogue, archive, store)
            except (IntegrityError, BadArchive) as error:
                faults.append(f"{what} in {store.name} cannot be relied on: {error}")
            except StorageError as error:
                silent = True
                logger.warning("%s was not looked for in %s: %s", what, store.name, error)
        if len(has) < _COPIES and not silent:
            faults.append(f"{what} is in {f'{has[0]} alone' if has else 'no store'}: two stores must have it")
    return faults


def _is_there(catalogue: Catalogue, archive: LogArchive, store: "AnyStore") -> bool:
    key = archive_key(catalogue, archive)
    try:
        stat = store.stat_object(BACKUP_BUCKET, key)
    except NotFound:
        return False
    if stat.size != archive.digest.size or stat.sha256 not in {None, archive.digest.sha256}:
        raise IntegrityError(f"{store.name}: {BACKUP_BUCKET}/{key} is another object than the one that was written")
    return True


def _check(catalogue: Catalogue, archive: LogArchive, store: "AnyStore") -> None:
    with packed_lines(store, archive_key(catalogue, archive), expected=archive.digest) as lines:
        try:
            check_lines(lines, archive)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise BadArchive(f"it is damaged: {error}") from None


def _copy_where_it_is_absent(
    catalogue: Catalogue, archive: LogArchive, stores: Sequence["AnyStore"], spool_dir: Path, on_bytes: OnBytes | None
) -> None:
    key = archive_key(catalogue, archive)
    there = {store.name: _is_there(catalogue, archive, store) for store in stores}
    for store in stores:
        if there[store.name]:
            continue
        source = next((each for each in stores if there[each.name]), None)
        if source is None:
            raise NotFound(f"no store has {BACKUP_BUCKET}/{key}, an archive of the verification log")
        logger.warning("%s lacks %s/%s: it is copied from %s", store.name, BACKUP_BUCKET, key, source.name)
        with spooling_in(spool_dir), tempfile.TemporaryFile(dir=spool_dir, prefix="zot-log-") as spool:
            with source.read_object(BACKUP_BUCKET, key, expected=archive.digest, on_bytes=on_bytes) as reader:
                while data := reader.read():
                    spool.write(data)
            write_and_read_back(store, key, spool, archive.digest, on_bytes)
