"""Keep the head of the verification log in the stores, where a rewritten database cannot change it."""

import io
import json
import logging
import secrets
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from worker.catalogue import Catalogue, LogHead
from worker.storage import Store
from worker.storage.errors import NotFound, StorageError
from worker.storage.keys import PROBE_BUCKET

logger = logging.getLogger(__name__)

_LARGEST = 4096


def keep_head(store: Store, catalogue: Catalogue) -> str | None:
    """Compare the log with the head that a store keeps, then keep the present head there.

    Return what is wrong with the log, or None. A head that does not fit the log is not changed, because it is the
    evidence. A store without a bucket for the worker's own objects keeps no head.

    Raises:
        StorageError: the store cannot be reached, or does not allow it.
    """
    if not store.capabilities.reserved_buckets:
        return None
    fault = check_kept_head(store, catalogue)
    head = catalogue.verifications.head()
    if fault or head is None:
        return fault
    store.create_bucket(PROBE_BUCKET)
    store.write_object(PROBE_BUCKET, _key(catalogue), io.BytesIO(_bytes_of(head)))
    return None


def check_kept_head(store: Store, catalogue: Catalogue) -> str | None:
    """Compare the log with the head that a store keeps; return what is wrong, or None if it fits or none is kept.

    Raises:
        StorageError: the store cannot be reached, or does not allow it.
    """
    if not store.capabilities.reserved_buckets:
        return None
    try:
        with store.read_object(PROBE_BUCKET, _key(catalogue)) as reader:
            body = reader.read(_LARGEST)
    except NotFound:
        return None
    try:
        head = _head_of(body)
    except (ValueError, KeyError, TypeError):
        raise StorageError(
            f"{store.name}: {PROBE_BUCKET}/{_key(catalogue)} is not a head of a verification log"
        ) from None
    fault = catalogue.verifications.check_head(head)
    return f"{fault}; the head is kept in {store.name} at {PROBE_BUCKET}/{_key(catalogue)}" if fault else None


def log_faults(stores: Iterable[Store], catalogue: Catalogue, checked: LogHead | None = None) -> list[str]:
    """Return what is wrong with the verification log: its chain, and the heads that the stores keep.

    `checked` is a row up to which the chain was whole before; only the rows after it are read. A store that cannot be
    reached says nothing about the log.
    """
    cut = catalogue.verifications.check_head(checked) if checked else None
    broken = None if cut else catalogue.verifications.first_broken(checked)
    faults = [cut] if cut else []
    faults += [] if broken is None else [f"the verification log was changed at row {broken}"]
    for store in stores:
        try:
            fault = check_kept_head(store, catalogue)
        except StorageError as error:
            logger.warning("the head of the verification log that %s keeps was not compared: %s", store.name, error)
        else:
            faults += [fault] if fault else []
    return faults


class CheckedLog:
    """The row up to which this machine has found the log whole, in a file outside the catalogue."""

    def __init__(self, directory: Path, catalogue: Catalogue) -> None:
        self._file = directory / f"log-checked-{catalogue.identity}.json"

    def get(self) -> LogHead | None:
        """Return the row, or None if the log has to be read from its beginning."""
        try:
            return _head_of(self._file.read_bytes())
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, head: LogHead) -> None:
        """Record that the log is whole up to this row."""
        temporary = self._file.with_name(f".{self._file.name}.{secrets.token_hex(4)}")
        temporary.write_bytes(_bytes_of(head))
        temporary.replace(self._file)


def _head_of(body: bytes) -> LogHead:
    kept = json.loads(body)
    return LogHead(int(kept["id"]), str(kept["hash"]), datetime.fromisoformat(kept["at"]))


def _bytes_of(head: LogHead) -> bytes:
    return json.dumps({"id": head.id, "hash": head.hash, "at": head.at.isoformat()}).encode()


def _key(catalogue: Catalogue) -> str:
    return f"verification-log/{catalogue.identity}.json"
