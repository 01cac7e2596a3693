"""Keep the head of the verification log in the stores: what the catalogue's database cannot rewrite."""

import io
import json
import logging
from collections.abc import Iterable
from datetime import datetime

from worker.catalogue import Catalogue, LogHead
from worker.storage import Store
from worker.storage.errors import NotFound, StorageError
from worker.storage.keys import PROBE_BUCKET

logger = logging.getLogger(__name__)

_LARGEST = 4096


def keep_head(store: Store, catalogue: Catalogue) -> str | None:
    """Compare the log with the head that a store keeps, then keep the present head there.

    Return what is wrong with the log, or None. A head that does not fit the log stays as it is: it is the evidence.
    A store without a bucket for what is ours keeps no head.

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
    kept = {"id": head.id, "hash": head.hash, "at": head.at.isoformat()}
    store.write_object(PROBE_BUCKET, _key(catalogue), io.BytesIO(json.dumps(kept).encode()))
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
        kept = json.loads(body)
        head = LogHead(int(kept["id"]), str(kept["hash"]), datetime.fromisoformat(kept["at"]))
    except (ValueError, KeyError, TypeError):
        raise StorageError(f"{store.name}: {PROBE_BUCKET}/{_key(catalogue)} is no head of a verification log") from None
    fault = catalogue.verifications.check_head(head)
    return f"{fault}; the head is kept in {store.name} at {PROBE_BUCKET}/{_key(catalogue)}" if fault else None


def log_faults(stores: Iterable[Store], catalogue: Catalogue) -> list[str]:
    """Return what is wrong with the verification log: its chain, and the heads that the stores keep.

    A store that cannot be reached says nothing about the log.
    """
    broken = catalogue.verifications.first_broken()
    faults = [] if broken is None else [f"the verification log was changed at row {broken}"]
    for store in stores:
        try:
            fault = check_kept_head(store, catalogue)
        except StorageError as error:
            logger.warning("the head of the verification log that %s keeps was not compared: %s", store.name, error)
        else:
            faults += [fault] if fault else []
    return faults


def _key(catalogue: Catalogue) -> str:
    return f"verification-log/{catalogue.identity}.json"
