"""Keep in each store which copy of the catalogue writes to it, and find out that another copy does."""

from contextlib import suppress
from datetime import timedelta

from worker import clock
from worker.catalogue import ALIVE, Catalogue
from worker.storage import Store
from worker.storage.driver import Condition
from worker.storage.errors import AccessDenied, AlreadyExists, InvalidKey, OutOfSpace, StorageError
from worker.storage.writer_record import Sign, WriterRecord

_RENEWED = timedelta(seconds=50)
"""A token that is younger than this is not renewed, which waits for the disk several times."""


def see_writer(store: Store, catalogue: Catalogue) -> str | None:
    """Return why this copy of the catalogue must not write to a store, or None; then the record is of this copy.

    The other copy is told by an objection, see `told_of_copies`, and goes on.

    Raises:
        StorageError: the store cannot be reached, or does not allow it.
    """
    now = clock.now()
    record, condition = _record(store, catalogue)
    fault = catalogue.writers.see(store.name, record, now=now)
    if fault is None:
        if record is None or not timedelta() <= now - record.writer.at < _RENEWED:
            with suppress(OutOfSpace):  # a full store keeps the record that it has
                _write(store, catalogue, catalogue.writers.renewed(store.name, record, now=now), condition)
    elif record is not None and (objected := catalogue.writers.objection(store.name, record, now=now)):
        with suppress(StorageError):  # such as of credentials that may only read
            store.set_writer(catalogue.identity, objected)
    return fault


def told_of_copies(store: Store, catalogue: Catalogue) -> str | None:
    """Return why this copy of the catalogue must not write to a store, or which other one must not; or None.

    Raises:
        StorageError: the store cannot be reached.
    """
    if not store.capabilities.reserved_buckets:
        return None
    now, (record, _) = clock.now(), _record(store, catalogue)
    refused = catalogue.writers.refusal(store.name, record, now=now)
    return refused or catalogue.writers.told_objection(store.name, record, now=now)


def is_refused(store: Store, catalogue: Catalogue) -> bool:
    """Return whether this copy of the catalogue must not write to a store.

    Raises:
        StorageError: the store cannot be reached.
    """
    return catalogue.writers.refusal(store.name, store.writer(catalogue.identity), now=clock.now()) is not None


def running_copy(store: Store, catalogue: Catalogue) -> Sign | None:
    """Return the sign of another copy of the catalogue that may still run, and not at the place of this one.

    Raises:
        StorageError: the store cannot be reached.
    """
    if not store.capabilities.reserved_buckets:
        return None
    now = clock.now()
    other = catalogue.writers.other(store.name, store.writer(catalogue.identity), now=now)
    if other is None or other.place == catalogue.writers.place() or now - other.at >= ALIVE:
        return None
    return other


def accept_as_writer(store: Store, catalogue: Catalogue) -> None:
    """Let this copy of the catalogue write to a store: an operator has decided so.

    Raises:
        StorageError: the store cannot be reached, or does not allow it.
    """
    if store.capabilities.reserved_buckets:
        record, condition = _record(store, catalogue)
        accepted = catalogue.writers.renewed(store.name, record, now=clock.now(), decided=True)
        _write(store, catalogue, accepted, condition)


def _record(store: Store, catalogue: Catalogue) -> tuple[WriterRecord | None, Condition]:
    """Return the record of a store, or None, and the condition to replace it.

    A record that the store refuses to return, perhaps only for a moment, may be of another copy: it is not replaced.
    """
    try:
        return store.writer(catalogue.identity), None
    except AccessDenied:
        if catalogue.writers.was_refused(store.name):
            raise
        return None, "create_only"


def _write(store: Store, catalogue: Catalogue, record: WriterRecord, condition: Condition) -> None:
    if condition is None or store.capabilities.conditional_writes:
        with suppress(AccessDenied, InvalidKey, AlreadyExists):  # a store without this record may take all other writes
            store.set_writer(catalogue.identity, record, condition=condition)
