"""Probe whether a store works, with a small object of the worker's own."""

import io
import secrets
import shutil
from contextlib import suppress

from worker.storage import Store, Verdict
from worker.storage.config import FilesystemConfig, StoreConfig
from worker.storage.errors import AlreadyExists, NotDeleted
from worker.storage.keys import PROBE_BUCKET

LEAST_FREE = 1024**3
"""Bytes: a disk with less free is nearly full."""
PROBE = b"zot-artifacts wrote this and takes it away again\n"


def probe(store: Store) -> str | None:
    """Write, read, verify, list and delete a small object; return the first error that the store made, or None.

    Raises:
        StorageError: the store cannot be reached, or does not allow one of these.
    """
    if not store.capabilities.reserved_buckets:  # `advice` says so
        store.health_check()
        return None
    key = f"probe-{secrets.token_hex(8)}"
    store.create_bucket(PROBE_BUCKET)
    try:
        store.write_object(PROBE_BUCKET, key, io.BytesIO(PROBE), condition="create_only")
        if store.capabilities.conditional_writes and not _refuses_second(store, key):
            fault = "it replaces an object by a write that must not do so: two writers may overwrite each other"
            for_s3 = f"with the type s3, set stores.{store.name}.conditional_writes: false"
            for_others = "of the other types only emulators do so, which are for trials alone"
            return f"{store.name}: {fault}; {for_s3}; {for_others}"
        with store.read_object(PROBE_BUCKET, key) as reader:
            if b"".join(reader) != PROBE:
                return f"{store.name}: what was written came back different"
        if store.verify_object(PROBE_BUCKET, key).verdict != Verdict.VERIFIED:
            return f"{store.name}: what was written does not verify"
        if key not in {listed.key for listed in store.list_objects(PROBE_BUCKET, key)}:
            return f"{store.name}: what was written is not listed"
    finally:
        kept = _delete(store, key)
    return kept


def has_little_room(config: StoreConfig | None) -> bool:
    """Return whether the disk of a store is nearly full; that of a cloud, or of a directory that is away, is not."""
    if isinstance(config, FilesystemConfig):
        with suppress(OSError):
            return shutil.disk_usage(config.root).free < LEAST_FREE
    return False


def _delete(store: Store, key: str) -> str | None:
    try:
        store.delete_object(PROBE_BUCKET, key)
    except NotDeleted as error:
        return error.message
    return None


def _refuses_second(store: Store, key: str) -> bool:
    try:
        store.write_object(PROBE_BUCKET, key, io.BytesIO(PROBE), condition="create_only")
    except AlreadyExists:
        return True
    return False
