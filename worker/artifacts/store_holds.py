"""Have the stores hold artifacts themselves, where their buckets offer it."""

import io
import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from worker.catalogue import Catalogue, Copy, Hold
from worker.storage import Store
from worker.storage.errors import HoldNotOffered, StorageError
from worker.storage.keys import PROBE_BUCKET

logger = logging.getLogger(__name__)

HELD = "held"
"""The word for a store that holds its copy; the version tag of the held object follows it."""
NOT_OFFERED = "not offered"
LIFTED = "lifted for a repair"
"""The word that is recorded while a held copy is replaced, so that the next sweep places the hold again."""


def hold_copies(catalogue: Catalogue, stores: Mapping[str, Store], of: Hold, *, held: bool) -> dict[str, str]:
    """Place the hold of each store that offers one on its copy, or end it; return by store the word to record.

    If a store fails, its word is the error message, and the other stores are asked nevertheless.
    """
    current = catalogue.artifacts.current(of.bucket, of.key)
    copies = catalogue.artifacts.copies(current) if current else {}
    said = {}
    for name, copy in copies.items():
        if copy.state.present and name in stores and (held or of.stores.get(name) != NOT_OFFERED):
            said[name] = _said(stores[name], of, copy, held=held)
    return said


def hold_missing(catalogue: Catalogue, store: Store) -> None:
    """Place the holds that a store does not have yet: on bytes that were written later, or after an error."""
    if not store.capabilities.holds:
        return
    for of in catalogue.holds.all():
        before = of.stores.get(store.name)
        if before == NOT_OFFERED:
            continue
        current = catalogue.artifacts.current(of.bucket, of.key)
        copy = catalogue.artifacts.copies(current).get(store.name) if current else None
        if copy is not None and copy.state.present and before != _held(copy):
            word = _said(store, of, copy, held=True)
            if word != before:
                catalogue.holds.note_stores(of.bucket, of.key, {store.name: word})


@contextmanager
def lifted(catalogue: Catalogue, store: Store, bucket: str, key: str) -> Iterator[None]:
    """End a store's own hold on a bad copy while its bytes are replaced, where the store would refuse that.

    Raises:
        StorageError: the hold cannot be ended; nothing was replaced.
    """
    of = catalogue.holds.get(bucket, key) if store.capabilities.holds_refuse_writes else None
    if of is None or not is_held(of.stores.get(store.name, "")):
        yield
        return
    catalogue.holds.note_stores(bucket, key, {store.name: LIFTED})
    store.set_hold(bucket, key, held=False)
    try:
        yield
    finally:
        with suppress(StorageError):  # the next sweep tries again
            store.set_hold(bucket, key, held=True)


def is_held(word: str) -> bool:
    """Return whether this is the word for a store that holds its copy."""
    return word.startswith(HELD)


def tries_to_delete_held(store: Store) -> str | None:
    """Hold an object of our own in a store and try to delete it; return what is wrong, or None if the store refuses.

    Raises:
        HoldNotOffered: it has no holds.
        StorageError: the store could not be asked.
    """
    key = f"held-{secrets.token_hex(8)}"
    store.create_bucket(PROBE_BUCKET)
    store.write_object(PROBE_BUCKET, key, io.BytesIO(b"held"))
    try:
        store.set_hold(PROBE_BUCKET, key, held=True)
        if store.delete_held(PROBE_BUCKET, key):
            return "it deleted an object that it holds"
        store.set_hold(PROBE_BUCKET, key, held=False)
        return None if store.delete_held(PROBE_BUCKET, key) else "it does not delete an object after its hold has ended"
    finally:
        store.delete_object(PROBE_BUCKET, key)


def _said(store: Store, of: Hold, copy: Copy, *, held: bool) -> str:
    try:
        if not store.offers_hold(of.bucket):
            return NOT_OFFERED
        store.set_hold(of.bucket, of.key, held=held)
    except HoldNotOffered:
        return NOT_OFFERED
    except StorageError as error:
        logger.warning("%s: the hold on %s/%s: %s", store.name, of.bucket, of.key, error)
        return error.message
    return _held(copy) if held else "released"


def _held(copy: Copy) -> str:
    """Return the word for a store that holds this copy; an object that a repair writes has another tag, and no hold."""
    return f"{HELD} {copy.tag}"
