"""Keep the head of the verification log in the stores, where a rewritten database cannot change it."""

import io
import json
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from worker import clock
from worker.artifacts.verification_log.archive import archive_faults
from worker.artifacts.verification_log.signature import LogKeys
from worker.artifacts.verification_log.writer import accept_as_writer, see_writer, told_of_copies
from worker.catalogue import Catalogue, FindingKind, LogHead
from worker.storage import Store
from worker.storage.errors import IntegrityError, NotFound, StorageError
from worker.storage.keys import PROBE_BUCKET

logger = logging.getLogger(__name__)

_LARGEST = 4096
_NOTED = 512
"""Bytes of a head in a file, spaces at its end included: so a write replaces all of the one before."""
_READS = 3
"""How often a file is read that another process is writing just then."""
_LAST_ROW = (1 << 63) - 1
_NO_HEAD = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""The errors of reading a head from what another program has written."""
_NO_KEYS = LogKeys()


@dataclass(frozen=True, slots=True)
class KeptHead:
    """A head as a store keeps it: the row, how many rows the log had with it, and the signature if there is one."""

    head: LogHead
    count: int | None
    signature: str | None = None


def keep_head(store: Store, catalogue: Catalogue, keys: LogKeys = _NO_KEYS) -> str | None:
    """Compare the log with the head that a store keeps, then keep the present head there.

    Return what is wrong with the log, or None. A head that does not fit the log is not changed, because it is the
    evidence. Nothing is changed either where another copy of the catalogue writes to the store. A log that was restored
    fits no head until `log accept`, also if no verdict was lost: what else the store keeps may be later. A store
    without a bucket for the worker's own objects keeps no head.

    Raises:
        StorageError: the store cannot be reached, or does not allow it.
        BadKeyFile: a configured key cannot be read.
    """
    if not store.capabilities.reserved_buckets:
        return None
    kept, fault = _compare(store, catalogue, keys)
    fault = see_writer(store, catalogue) or fault
    head = catalogue.verifications.durable_head()
    if fault or head is None or (kept is not None and kept.head == head):
        return fault
    store.create_bucket(PROBE_BUCKET)
    _write(store, catalogue, _counted(catalogue, head, kept), keys)
    return None


def see_head(store: Store, catalogue: Catalogue, keys: LogKeys) -> str | None:
    """Do as `keep_head`, and open or resolve the finding of the store, also about another copy of the catalogue."""
    fault = keep_head(store, catalogue, keys)
    told = fault or told_of_copies(store, catalogue)
    evidence = {"detail": told} if told else None
    catalogue.findings.see_store(FindingKind.LOG_CHANGED, store.name, evidence, now=clock.now())
    return fault


def check_kept_head(store: Store, catalogue: Catalogue, keys: LogKeys = _NO_KEYS) -> str | None:
    """Compare the log with the head that a store keeps; return what is wrong, or None if it fits or none is kept.

    Raises:
        StorageError: the store cannot be reached, or does not allow it.
        BadKeyFile: a configured key cannot be read.
    """
    if not store.capabilities.reserved_buckets:
        return None
    return catalogue.backup_times.unaccepted() or _compare(store, catalogue, keys)[1]


def check_noted_head(catalogue: Catalogue, noted: LogHead | None) -> str | None:
    """Compare the log with a row that this machine has noted, if there is one; return what is wrong, or None."""
    fault = catalogue.verifications.check_head(noted) if noted else None
    way_out = "after a restore that was accepted on another machine, run `zot-artifacts log accept --yes` here, too"
    return f"{fault}, which this machine has noted: {way_out}" if fault else None


def accept_head(store: Store, catalogue: Catalogue, keys: LogKeys = _NO_KEYS) -> str | None:
    """Keep the present head in a store although another one is there, such as after a backup was restored.

    Return the key under which the store keeps the other head that was there, as evidence, or None.

    Raises:
        StorageError: the store cannot be reached, or does not allow it.
        BadKeyFile: a configured key cannot be read.
    """
    head = catalogue.verifications.durable_head()
    if not store.capabilities.reserved_buckets:
        return None
    accept_as_writer(store, catalogue)
    if head is None:
        return None
    store.create_bucket(PROBE_BUCKET)
    before, present = _body(store, catalogue), _counted(catalogue, head, None)
    aside = None
    if before is not None and before != _bytes_of(catalogue, present, keys):
        aside = f"{_key(catalogue).removesuffix('.json')}.replaced-{clock.now():%Y%m%dT%H%M%S.%fZ}.json"
        store.write_object(PROBE_BUCKET, aside, io.BytesIO(before))
    _write(store, catalogue, present, keys)
    catalogue.findings.see_store(FindingKind.LOG_CHANGED, store.name, None, now=clock.now())
    return aside


def signed_head(catalogue: Catalogue, keys: LogKeys = _NO_KEYS) -> dict[str, Any] | None:
    """Return the present head as a JSON document, with its signature if a key is configured; None for an empty log.

    Raises:
        BadKeyFile: a configured key cannot be read.
    """
    head = catalogue.verifications.durable_head()
    if head is None:
        return None
    found: dict[str, Any] = json.loads(_bytes_of(catalogue, _counted(catalogue, head, None), keys))
    return found | {"at": head.at}


def log_faults(
    stores: Sequence[Store],
    catalogue: Catalogue,
    checked: LogHead | None = None,
    keys: LogKeys = _NO_KEYS,
    *,
    written: LogHead | None = None,
    read_archives: bool = False,
) -> list[str]:
    """Return what is wrong with the verification log: its chain, its archives, and the heads that the stores keep.

    `checked` is a row up to which the chain was whole before; only the rows after it are read. `written` is the last
    row that a job of this machine has seen. A store that cannot be reached says nothing about the log. With
    `read_archives` the rows of all archives are read, and their chain is computed.

    Raises:
        BadKeyFile: a configured key cannot be read.
    """
    cut = check_noted_head(catalogue, checked) or check_noted_head(catalogue, written)
    broken = None if cut else catalogue.verifications.first_broken(checked)
    restored = catalogue.backup_times.unaccepted()
    faults = [fault for fault in (restored, cut) if fault]
    faults += [] if broken is None else [f"the verification log was changed at row {broken}"]
    faults += archive_faults(stores, catalogue, read=read_archives)
    for store in stores:
        try:
            fault = check_kept_head(store, catalogue, keys)
        except StorageError as error:
            logger.warning("the head of the verification log that %s keeps was not compared: %s", store.name, error)
        else:
            faults += [fault] if fault and fault != restored else []
    return faults


class _HeadFile:
    """A row of the log, in a file outside the catalogue."""

    _name: str

    def __init__(self, directory: Path, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._file = directory / f"{self._name}-{catalogue.identity}.json"

    def get(self) -> LogHead | None:
        """Return the row, or None if there is none."""
        for _ in range(_READS):
            try:
                body = self._file.read_bytes()
                head = _kept_of(body).head
                if len(body) < _NOTED or json.loads(body)["checksum"] == _checksum(head):  # earlier versions wrote none
                    return head
            except FileNotFoundError:
                return None
            except (OSError, *_NO_HEAD):
                continue
        return None

    def put(self, head: LogHead) -> None:
        """Record a row in place, because a new file for each page took 2 ms longer.

        A reader may see parts of two writes, also within one block, and so may the next start after a power cut. The
        checksum tells.
        """
        facts = _facts(KeptHead(head, None)) | {"checksum": _checksum(head)}
        try:
            file = self._open()
        except OSError:  # it belongs to another user, such as root: what is in a directory of ours can be replaced
            self.forget()
            file = self._open()
        try:
            os.pwrite(file, json.dumps(facts).encode().ljust(_NOTED), 0)
            os.ftruncate(file, _NOTED)
        finally:
            os.close(file)

    def _open(self) -> int:
        return os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)

    def forget(self) -> None:
        """Remove the record."""
        self._file.unlink(missing_ok=True)


class CheckedLog(_HeadFile):
    """The row up to which this machine has found the log whole; without it, the log is read from its beginning."""

    _name = "log-checked"


class WrittenLog(_HeadFile):
    """The last row after the latest job of this machine that wrote verdicts; the heads in the stores may be older."""

    _name = "log-written"

    def note_later(self) -> Callable[[], None]:
        """Return a function that records the present head; call it once the end of a job is durable.

        All rows up to this head are durable then. If the worker is killed before, the head of an earlier job stays.
        """
        return partial(self._note, self._catalogue.verifications.head())

    def _note(self, head: LogHead | None) -> None:
        try:
            if head is not None:
                self.put(head)
        except OSError as error:
            logger.warning("the head of the verification log is not written to %s: %s", self._file, error.strerror)


def _compare(store: Store, catalogue: Catalogue, keys: LogKeys) -> tuple[KeptHead | None, str | None]:
    """Return the head that a store keeps, and what is wrong with it or with the log; None for each if there is none."""
    body, where = _body(store, catalogue), f"{PROBE_BUCKET}/{_key(catalogue)}"
    if body is None:
        return None, None
    try:
        kept = _kept_of(body)
    except _NO_HEAD:
        told = f"{store.name}: {where} is not a head of a verification log"
        return None, f"{told}: if it was damaged there, `zot-artifacts log accept --yes` replaces it"
    fault = _fault(catalogue, kept, keys)
    return kept, f"{fault}; the head is kept in {store.name} at {where}" if fault else None


def _fault(catalogue: Catalogue, kept: KeptHead, keys: LogKeys) -> str | None:
    fault = catalogue.verifications.check_head(kept.head)
    # A store keeps the present head each hour, and months pass before it is archived: this may be a forged archive.
    if kept.head.id <= catalogue.log_archives.extent()[0]:
        fault = f"row {kept.head.id} of {kept.head.at:%Y-%m-%d} was archived since, and can no longer be compared"
    if fault is None and keys.configured:
        if kept.signature is None:
            fault = "the head of the verification log is not signed"
        elif not keys.is_signed(_signed(catalogue, kept), kept.signature):
            fault = "the head of the verification log is forged: no configured key made its signature"
    return fault


def _counted(catalogue: Catalogue, head: LogHead, kept: KeptHead | None) -> KeptHead:
    """Return a head with the number of rows up to it; only those after the kept head are counted."""
    counted = catalogue.log_archives.extent()
    if kept is not None and kept.count is not None:
        counted = kept.head.id, kept.count
    return KeptHead(head, counted[1] + catalogue.verifications.count(after=counted[0]))


def _write(store: Store, catalogue: Catalogue, kept: KeptHead, keys: LogKeys) -> None:
    store.write_object(PROBE_BUCKET, _key(catalogue), io.BytesIO(_bytes_of(catalogue, kept, keys)))


def _body(store: Store, catalogue: Catalogue) -> bytes | None:
    """Return the object of the head, also one with wrong bytes: the head in it tells what was changed."""
    body = b""
    try:
        with store.read_object(PROBE_BUCKET, _key(catalogue)) as reader, suppress(IntegrityError):
            while len(body) < _LARGEST and (data := reader.read(_LARGEST - len(body))):
                body += data
    except NotFound:
        return None
    return body


def _kept_of(body: bytes) -> KeptHead:
    kept = json.loads(body)
    if not 0 < int(kept["id"]) <= _LAST_ROW:
        raise ValueError("no row has this number")
    count, signature = kept.get("count"), kept.get("signature")
    return KeptHead(
        LogHead(int(kept["id"]), str(kept["hash"]), datetime.fromisoformat(kept["at"])),
        None if count is None else int(count),
        None if signature is None else str(signature),
    )


def _facts(kept: KeptHead) -> dict[str, object]:
    return {"id": kept.head.id, "hash": kept.head.hash, "at": kept.head.at.isoformat(), "count": kept.count}


def _checksum(head: LogHead) -> int:
    return zlib.crc32(json.dumps(_facts(KeptHead(head, None))).encode())


def _signed(catalogue: Catalogue, kept: KeptHead) -> bytes:
    """Return what is signed: the head with the id of its catalogue, as JSON with sorted names."""
    return json.dumps({"catalogue": catalogue.identity, **_facts(kept)}, sort_keys=True).encode()


def _bytes_of(catalogue: Catalogue, kept: KeptHead, keys: LogKeys) -> bytes:
    signature = keys.sign(_signed(catalogue, kept))
    return json.dumps(_facts(kept) | ({"signature": signature} if signature else {})).encode()


def _key(catalogue: Catalogue) -> str:
    return f"verification-log/{catalogue.identity}.json"
