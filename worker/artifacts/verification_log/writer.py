"""Keep in each store which copy of the catalogue writes to it, and find out that another copy does."""

from contextlib import suppress
from datetime import datetime, timedelta

from worker import clock
from worker.catalogue import ALIVE, Catalogue
from worker.storage import Store
from worker.storage.errors import AccessDenied, InvalidKey, OutOfSpace
from worker.storage.writer_record import Sign, WriterRecord

_RENEWED = timedelta(seconds=50)
"""A token that is younger than this is not renewed, which waits for the disk several times."""


def see_writer(store: Store, catalogue: Catalogue) -> str | None:
    """Return why this copy of the catalogue must not write to a store, or None; then the record is of this copy.

    The other copy is told by an objection, see `told_of_copies`, and goes on.

    Raises:
        StorageError: the store cannot be reached, or does not allow it.
    """
    now, record = clock.now(), store.writer(catalogue.identity)
    fault = catalogue.writers.refusal(store.name, record)
    if fault is None:
        if record is None or not timedelta() <= now - record.writer.at < _RENEWED:
            _renew(store, catalogue, record, now, decided=False)
    elif record is not None and (objected := catalogue.writers.objection(store.name, record, now=now)):
        store.set_writer(catalogue.identity, objected)
    return fault


def told_of_copies(store: Store, catalogue: Catalogue) -> str | None:
    """Return why this copy of the catalogue must not write to a store, or which other one must not; or None.

    Raises:
        StorageError: the store cannot be reached.
    """
    if not store.capabilities.reserved_buckets:
        return None
    record = store.writer(catalogue.identity)
    return catalogue.writers.refusal(store.name, record) or catalogue.writers.told_objection(store.name, record)


def is_refused(store: Store, catalogue: Catalogue) -> bool:
    """Return whether this copy of the catalogue must not write to a store.

    Raises:
        StorageError: the store cannot be reached.
    """
    return catalogue.writers.refusal(store.name, store.writer(catalogue.identity)) is not None


def running_copy(store: Store, catalogue: Catalogue) -> Sign | None:
    """Return the sign of another copy of the catalogue that may still run, and not at the place of this one.

    Raises:
        StorageError: the store cannot be reached.
    """
    if not store.capabilities.reserved_buckets:
        return None
    other = catalogue.writers.other(store.name, store.writer(catalogue.identity))
    if other is None or other.place == catalogue.writers.place() or clock.now() - other.at >= ALIVE:
        return None
    return other


def accept_as_writer(store: Store, catalogue: Catalogue) -> None:
    """Let this copy of the catalogue write to a store: an operator has decided so.

    Raises:
        StorageError: the store cannot be reached, or does not allow it.
    """
    if store.capabilities.reserved_buckets:
        _renew(store, catalogue, store.writer(catalogue.identity), clock.now(), decided=True)


def _renew(store: Store, catalogue: Catalogue, record: WriterRecord | None, now: datetime, *, decided: bool) -> None:
    # A store that refuses this key may take all other writes. A full one keeps the record that it has.
    with suppress(AccessDenied, InvalidKey, *(() if decided else (OutOfSpace,))):
        store.set_writer(catalogue.identity, catalogue.writers.renewed(store.name, record, now=now, decided=decided))
