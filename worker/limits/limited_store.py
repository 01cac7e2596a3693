"""A store as a running job uses it: admission control for every call, and each error counts against its store."""

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Unpack

from worker import tracing
from worker.limits.admission import Admission
from worker.limits.concurrency import Slot
from worker.limits.refusals import Refusals
from worker.limits.snooze import Snooze, StoreRefuses
from worker.limits.store_wait import StoreWait
from worker.metric_counters import STORE_BYTES, STORE_ERRORS, STORE_OBJECTS, STORE_SECONDS
from worker.settings import SettingsError, stores_in_file
from worker.storage import (
    Digest,
    ListedObject,
    Match,
    ObjectStat,
    StaleUpload,
    Store,
    Verification,
)
from worker.storage.configured_stores import Stores, UnknownStore
from worker.storage.driver import BUFFER_SIZE, HashedBytes, ObjectReader, SmallPut
from worker.storage.errors import (
    OtherWriter,
    StorageError,
)
from worker.storage.identity import Purpose
from worker.storage.integrity.manifest import Chunk, Manifest
from worker.storage.integrity.verifying_reader import OnBytes, Readable, VerifiedReader
from worker.storage.store import BesideBytes, CopyOptions, WriteOptions

_RESTARTED_WITHIN = 15.0
"""Seconds after which a job asks again for a worker with newer settings."""
_ADMITTED_FOR = 1.0
"""Seconds for which a job that was admitted to a store is not checked again, unless the store fails it."""
_OTHER_WRITER_FOR = 60.0
"""Seconds after which a job asks again whether another copy of the catalogue still writes to the store."""


class Job(Protocol):
    """The part of a running job that the limits use."""

    id: str
    fence: int

    def heartbeat(self, _count: int = 0) -> None:
        """Raise if the job has to stop."""
        ...

    def confirm_lease(self) -> None:
        """Raise if another worker may have the job by now, because this one was frozen."""
        ...


@dataclass(slots=True)
class NoJob:
    """In place of a running job, for a command, a download, or the cleanup after a job.

    Nothing asks it to stop, and it has no lease.
    """

    id: str
    fence: int = 0

    def heartbeat(self, _count: int = 0) -> None:
        """Do nothing."""

    def confirm_lease(self) -> None:
        """Do nothing."""


class LimitedStore:
    """One store for one job, and for all threads of that job.

    Each method is that of `Store` with the same name. In addition:

    - Before the store is asked, the pause and the circuit breaker are checked, at most once a second.
    - Before an object is written or deleted, the lease of the job is confirmed, and again when the last byte of the
      source was read: so a job whose worker was frozen does not write what was deleted since, and does not delete what
      was written since.
    - Bytes are read and written under one of the store's concurrency slots, of which a job has one whatever the number
      of its transfers, and within its bandwidth. `on_bytes` is called with the size of each piece, by default the job's
      `heartbeat`; what it raises ends the transfer.
    - A StorageError has the name of the store that it is about in `store`. One that is `of_store` counts
      against the circuit breaker of that store and of no other. An error of one object never counts.
    - Where the job has said so, a store that has refused 10 requests of one verb is not asked again, if it has no space
      left, has served none of that verb, or refuses a probe: the read of its marker, or the write of a small object.
      One that is the place of another store is not asked again after the first of them.

    Raises:
        Snooze: from any method: the store is paused, its breaker is open, its slots are all taken, it refuses all that
            the job asks, or another copy of the catalogue writes to it. The store was not asked. `store` names it.
        Unavailable: in place of that, from the store of a command, which has waited.
    """

    def __init__(
        self,
        store: Store,
        admission: Admission,
        job: Job,
        *,
        refused_for: float | None = None,
        wait: StoreWait | None = None,
    ) -> None:
        """Bind a store to a job; `refused_for`: see `LimitedStores.snooze_refused`; `wait`: of a command."""
        self.name, self.capabilities = store.name, store.capabilities
        self._store = store
        self._admission = admission
        self.limits = admission.limits_of(store.name)
        self._job = job
        self._lock = threading.RLock()
        self._admitted_until = 0.0
        self._failing = False
        """Failures of the store are being counted, so a success has to be recorded."""
        self._wait = wait
        self._refusals = Refusals(store, refused_for)
        self._slot: Slot | None = None
        self._transfers = 0

    # Metadata

    def stat_object(self, bucket: str, key: str, *, as_copy: bool = False) -> ObjectStat:
        with self._request("stat"):
            found = self._store.stat_object(bucket, key, as_copy=as_copy)
            self._refusals.served("stat")
            return found

    def get_object_version(self, bucket: str, key: str) -> str:
        with self._request("stat"):
            found = self._store.get_object_version(bucket, key)
            self._refusals.served("stat")
            return found

    def delete_object(self, bucket: str, key: str, *, condition: Match | None = None) -> bool:
        with self._request("delete"):
            self._job.confirm_lease()
            deleted = self._store.delete_object(bucket, key, condition=condition)
            self._succeeded("delete")
            return deleted

    def tags(self, bucket: str, key: str) -> dict[str, str]:
        with self._request("tags"):
            return self._store.tags(bucket, key)

    def check_identity(self, purpose: Purpose) -> None:
        with self._request("stat"):
            self._store.check_identity(purpose)

    def create_bucket(self, bucket: str) -> bool:
        with self._request("create_bucket"):
            return self._store.create_bucket(bucket)

    def list_buckets(self) -> list[str]:
        with self._request("list"):
            return self._store.list_buckets()

    def list_objects(self, bucket: str, prefix: str = "", *, after: str = "") -> Iterator[ListedObject]:
        with self._request("list"):
            yield from self._store.list_objects(bucket, prefix, after=after)

    def iter_stale_uploads(self) -> Iterator[StaleUpload]:
        with self._request("list"):
            yield from self._store.iter_stale_uploads()

    def is_unused_upload(self, stale: StaleUpload, bucket: str, key: str) -> bool:
        with self._request("stat"):
            return self._store.is_unused_upload(stale, bucket, key)

    def remove_stale_upload(self, stale: StaleUpload) -> bool:
        with self._request("abort"):
            return self._store.remove_stale_upload(stale)

    def read_first_byte(self, bucket: str, key: str) -> None:
        """Raise unless the store returns the first byte of an object, or the object is empty."""
        with self._request("read"), self._store.read_object_range(bucket, key, 0, 1) as reader:
            reader.read(1)

    # Bytes

    def read_object(
        self, bucket: str, key: str, *, expected: Digest | None = None, on_bytes: OnBytes | None = None
    ) -> "LimitedReader":
        """Open an object; the concurrency slot is held until the reader is closed."""
        with ExitStack() as held:
            metered = held.enter_context(self._transfer("read", on_bytes))
            reader = self._store.read_object(bucket, key, expected=expected, on_bytes=metered)
            self._answered()
            held.callback(reader.close)
            return LimitedReader(self, reader, held.pop_all())

    def read_chunk(self, bucket: str, key: str, chunk: Chunk) -> bytes | bytearray:
        with self._transfer("read", None) as metered:
            found = self._store.read_chunk(bucket, key, chunk)
            metered(len(found))
        self._succeeded("read")
        return found

    def download_object(self, bucket: str, key: str, file: int, expected: Digest) -> None:
        with self._transfer("read", None) as metered:
            self._store.download_object(bucket, key, file, expected, on_bytes=metered)
        self._succeeded("read")

    def write_object(
        self,
        bucket: str,
        key: str,
        source: Readable | HashedBytes,
        *,
        on_bytes: OnBytes | None = None,
        **options: Unpack[WriteOptions],
    ) -> tuple[ObjectStat, Digest]:
        """Write an object; an error of its source is raised unchanged, and does not count against this store."""
        with self._transfer("write", on_bytes) as metered:
            self._job.confirm_lease()
            try:
                written = self._store.write_object(
                    bucket,
                    key,
                    source if isinstance(source, HashedBytes) else _Source(source, self._job.confirm_lease),
                    on_bytes=metered,
                    on_read_back=partial(self._meter, "verify", self._job.heartbeat),
                    **options,
                )
            except SourceError as failure:
                raise failure.error from failure.error.__cause__
            self._succeeded("write")
            return written

    def write_objects(self, puts: Iterable[SmallPut]) -> list[ObjectStat | StorageError]:
        """Write small objects as a group; the limits are those of `write_object`, for each of them.

        Those without a result have to be written by themselves, also where the store takes no job any more.
        """
        with self._transfer("write", None) as metered:
            self._job.confirm_lease()
            written = self._store.write_objects(self._confirmed(puts, metered))
            STORE_OBJECTS.add(self.name, "write", count=len(written) - 1)  # the group counts as one
            failed = [each for each in written if isinstance(each, StorageError)]
            if len(failed) < len(written):
                self._succeeded("write")
            for error in failed:
                if isinstance(error, OtherWriter):
                    raise error
                self._blame(error, "write")
            return written

    def _confirmed(self, puts: Iterable[SmallPut], metered: OnBytes) -> Iterator[SmallPut]:
        """Yield each object when it may be written; end where the store takes no job any more."""
        for put in puts:
            try:
                self.admit()
                metered(put.body.digest.size)
            except Snooze as error:
                if error.store != self.name:
                    raise
                return
            self._job.confirm_lease()
            yield put

    def expect_writes(self, paths: Iterable[tuple[str, str]]) -> None:
        self._store.expect_writes(paths)

    def verify_object(
        self,
        bucket: str,
        key: str,
        expected: Digest | None = None,
        *,
        manifest: Manifest | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Verification:
        with self._transfer("verify", on_bytes) as metered:
            self._store.check_writer()
            seen = self._store.verify_object(bucket, key, expected, manifest=manifest, on_bytes=metered)
            if seen.error is None:
                self._succeeded("verify")
            else:
                self._blame(seen.error, "verify")
            return seen

    def verify_objects(self, wanted: Sequence[tuple[str, str, Digest]]) -> Iterator[Verification]:
        """Verify small objects one after the other; the limits are those of `verify_object`, for each of them."""
        with self.slot():
            for seen in self._store.verify_objects(self._admitted("verify", wanted)):
                if seen.error is not None:
                    self._blame(seen.error, "verify")
                else:
                    self._succeeded("verify")
                yield seen

    def read_objects(self, wanted: Sequence[tuple[str, str, Digest]]) -> Iterator[bytes | None]:
        """Read small objects; the limits are those of `verify_objects`, and an object that is not right is None."""
        with self.slot():
            for data in self._store.read_objects(self._admitted("read", wanted)):
                if data is not None:
                    self._succeeded("read")
                yield data

    def quarantine_object(self, bucket: str, key: str, label: str) -> str:
        with self._transfer("quarantine", None) as metered:
            self._job.confirm_lease()  # under this label are the bytes that another attempt has kept
            kept = self._store.quarantine_object(bucket, key, label, on_bytes=metered)
            self._refusals.served("quarantine")
            return kept

    def copy_object(
        self,
        origin: "LimitedStore",
        bucket: str,
        key: str,
        expected: Digest,
        **options: Unpack[CopyOptions],
    ) -> ObjectStat | None:
        """Have the provider copy an object; a failure counts against neither store, because copying is optional."""
        origin.admit()
        with self.slot(), self._request("copy"):
            self._job.confirm_lease()
            try:
                made = self._store.copy_object(
                    origin._store,  # noqa: SLF001 - it is one of us
                    bucket,
                    key,
                    expected,
                    between=self._go_on,
                    **options,
                )
            except StorageError as error:
                error.store = error.store or self.name  # an error that names a store is not counted
                raise
            self._refusals.served("write")
            return made

    def patch_object(
        self,
        found: ObjectStat,
        manifest: Manifest,
        expected: Digest,
        bad: Sequence[Chunk],
        read: Callable[[Chunk], bytes | bytearray],
        **beside: Unpack[BesideBytes],
    ) -> ObjectStat | None:
        with self._transfer("write", None) as metered:

            def read_metered(chunk: Chunk) -> bytes | bytearray:
                data = read(chunk)
                metered(len(data))
                return data

            self._job.confirm_lease()
            made = self._store.patch_object(
                found, manifest, expected, bad, read_metered, between=self._go_on,
                on_read_back=partial(self._meter, "verify", self._job.heartbeat), **beside,
            )  # fmt: skip
            if made is not None:
                self._succeeded("write")
            return made

    # Limits

    def _admitted(self, verb: str, wanted: Iterable[tuple[str, str, Digest]]) -> Iterator[tuple[str, str, Digest]]:
        """Yield each object when it may be read."""
        limit = self.limits.bytes_per_second
        objects = size = 0
        try:
            for each in wanted:
                self.admit()
                self._check_slot()
                if verb == "verify":
                    self._check_writer()
                if limit is not None:
                    self._admission.take_bandwidth(self.name, each[2].size, limit, self._job.heartbeat)
                objects, size = objects + 1, size + each[2].size
                yield each
        finally:  # once, because counting takes as long as reading a very small object
            STORE_OBJECTS.add(self.name, verb, count=objects)
            STORE_BYTES.add(self.name, verb, count=size)

    def admit(self) -> None:
        """Raise Snooze if the store is paused, its circuit breaker is open, or it refuses all that the job asks."""
        self._refusals.check()
        if time.monotonic() >= self._admitted_until:
            self._until_taken(self._check_admission)

    def _check_admission(self) -> None:
        with self._lock:  # one thread of the job checks for all
            if time.monotonic() >= self._admitted_until:
                self._failing = self._admission.check(self.name)
                self._admitted_until = time.monotonic() + _ADMITTED_FOR

    def _until_taken(self, ask: Callable[[], object]) -> None:
        """Ask once whether the store takes the job; a command asks until it does, or has waited too long."""
        while True:
            try:
                ask()
            except Snooze as error:
                if self._wait is None:
                    raise
                self._wait.snoozed(error)
            else:
                return

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Admit the job and hold its concurrency slot over several transfers: no other job takes it between them."""
        self.admit()
        if self.limits.concurrency is None:
            yield
            return

        def take() -> None:
            with self._lock:
                self._take_slot()
                self._transfers += 1

        self._until_taken(take)
        try:
            yield
        finally:
            with self._lock:
                self._transfers -= 1
                if self._transfers == 0 and self._slot is not None:
                    slot, self._slot = self._slot, None
                    slot.release()

    def _take_slot(self) -> None:
        """Take a slot, unless the job has one; raise Snooze if all are taken."""
        limit = self.limits.concurrency
        with self._lock:
            if limit is not None and (self._slot is None or self._slot.lost):
                self._slot = self._admission.acquire_slot(self.name, f"{self._job.id}:{self._job.fence}", limit)

    @contextmanager
    def _request(self, verb: str) -> Iterator[None]:
        """Admit the job, then count, time and trace what the block asks of the store, and count its failure."""
        self.admit()
        STORE_OBJECTS.add(self.name, verb)
        began = time.monotonic()
        try:
            with tracing.span(f"store {verb}", store=self.name):
                yield
        except OtherWriter as error:
            raise self._refused(error) from error
        except StorageError as error:
            self._blame(error, verb)
            raise
        else:
            self._answered()
        finally:
            STORE_SECONDS.observe(self.name, verb, value=time.monotonic() - began)

    def _check_writer(self) -> None:
        try:
            self._store.check_writer()
        except OtherWriter as error:
            raise self._refused(error) from error

    def _refused(self, error: OtherWriter) -> OtherWriter | StoreRefuses:
        """Return what a job gets, which waits, and a command, which does not."""
        return error if self._wait is not None else StoreRefuses(error.message, _OTHER_WRITER_FOR, self.name)

    def _answered(self) -> None:
        """End the wait of a command: its next one may take as long again."""
        if self._wait is not None:
            self._wait.ended()

    @contextmanager
    def _transfer(self, verb: str, on_bytes: OnBytes | None) -> Iterator[OnBytes]:
        """Hold a slot, and yield the function to call with the size of every piece."""
        with self.slot(), self._request(verb):
            yield partial(self._meter, verb, on_bytes or self._job.heartbeat)

    def _meter(self, verb: str, tell: OnBytes, count: int) -> None:
        """Count a piece of so many bytes, wait for the bandwidth, and call `tell`."""
        if count:
            STORE_BYTES.add(self.name, verb, count=count)
        self._check_slot()
        if (limit := self.limits.bytes_per_second) is not None:
            self._admission.take_bandwidth(self.name, count, limit, self._job.heartbeat)
        tell(count)

    def _go_on(self) -> None:
        """Raise if the job has to stop, or may have lost its lease: the next request may make the object."""
        self._job.heartbeat()
        self._job.confirm_lease()

    def _check_slot(self) -> None:
        """Take another slot in place of one that expired, as after Ctrl-Z: another job may have that one by now."""
        if self._slot is not None and self._slot.lost:
            self._until_taken(self._take_slot)
            self._answered()

    def _blame(self, error: StorageError, verb: str) -> None:
        """Set this store in an error that names none yet, and count the error if it is one of the store."""
        if error.store is not None:
            return
        error.store = self.name
        STORE_ERRORS.add(self.name, type(error).__name__)
        if error.of_store:
            self._admitted_until = 0.0
            self._admission.record_failure(self.name, error.message)
        self._refusals.count(error, verb)

    def _succeeded(self, verb: str) -> None:
        """Reset the store's failures, after bytes were moved: a stat may work while nothing else does."""
        self._refusals.served(verb)
        if self._failing:
            self._failing = False
            self._admission.breaker(self.name).record_success()


class LimitedReader(ObjectReader):
    """An object's bytes; see `VerifiedReader`. It has the store's concurrency slot until it is closed."""

    def __init__(self, store: LimitedStore, reader: VerifiedReader, held: ExitStack) -> None:
        self._store = store
        self._reader = reader
        self._held = held

    @property
    def stat(self) -> ObjectStat:
        """Return the stat of the version that is being read."""
        return self._reader.stat

    def read(self, size: int = BUFFER_SIZE, /) -> bytes:
        """Return at most `size` bytes, `b""` only at an end that was right; raise IntegrityError otherwise."""
        try:
            data = self._reader.read(size)
        except StorageError as error:
            self._store._blame(error, "read")  # noqa: SLF001 - both belong to one store
            raise
        if not data:
            self._store._succeeded("read")  # noqa: SLF001
        return data

    def close(self) -> None:
        self._held.close()


AnyStore = Store | LimitedStore
"""A store with limits, as a job has it, or without them, as a command has it."""


class LimitedStores(Mapping[str, LimitedStore]):
    """The stores as one running job uses them, by name."""

    def __init__(self, stores: Stores, admission: Admission, job: Job) -> None:
        self._stores = stores
        self._admission = admission
        self._job = job
        self._limited: dict[str, LimitedStore] = {}
        self._refused_for: float | None = None

    def __getitem__(self, name: str) -> LimitedStore:
        """Return a store.

        Raises:
            UnknownStore: there is none; names those that are configured.
            Snooze: this worker has older settings: the file of its settings has the store by now, or cannot be read.
        """
        found = self._limited.get(name)
        if found is None:
            made = LimitedStore(self._store(name), self._admission, self._job, refused_for=self._refused_for)
            found = self._limited.setdefault(name, made)
        return found

    def _store(self, name: str) -> Store:
        try:
            return self._stores[name]
        except UnknownStore as error:  # the command or the service that sent the job may have newer settings
            try:
                is_newer = name in stores_in_file()
            except (SettingsError, OSError) as unreadable:  # such as one that is being edited
                told = f"{error.message}; the file of the settings cannot be read now: {unreadable}"
            else:
                if not is_newer:
                    raise UnknownStore(
                        f"{error.message}; a worker that has older settings has to be restarted"
                    ) from None
                told = (
                    f"the worker on {socket.gethostname()} has older settings, without the store {name!r}: restart it"
                )
            raise Snooze(told, _RESTARTED_WITHIN, name) from None

    def __contains__(self, name: object) -> bool:
        return name in self._stores

    def __iter__(self) -> Iterator[str]:
        return iter(self._stores)

    def __len__(self) -> int:
        return len(self._stores)

    def snooze_refused(self, seconds: float) -> None:
        """Snooze the job for so long where a store refuses all that it asks: called before a store is used.

        For a job on many objects, which would otherwise try each of them.
        """
        self._refused_for = seconds

    def close_breaker(self, name: str) -> None:
        """Close the circuit breaker of a store that was probed with success."""
        self._admission.breaker(name).close()

    def admitting(self, names: Iterable[str]) -> list[LimitedStore]:
        """Return these stores for work that serves all of them, if at least one takes a job now; an empty set, too.

        Raises:
            UnknownStore: as `__getitem__`.
            Snooze: no store takes a job now; it is the shortest of their snoozes.
        """
        stores = [self[name] for name in names]
        closed: list[Snooze] = []
        for store in stores:
            try:
                store.admit()
                if store.limits.concurrency is not None:
                    self._admission.check_slots(store.name, store.limits.concurrency)
            except Snooze as error:
                closed.append(error)
            else:
                return stores
        if closed:
            raise min(closed, key=lambda error: error.seconds)
        return stores


class SourceError(Exception):
    """A source failed. It is not a StorageError, because drivers would take that for an error of the target.

    Only `write_object` and the checkpoint of its upload see it.
    """

    def __init__(self, error: StorageError) -> None:
        super().__init__(error)
        self.error = error


class _Source:
    """A file, or a copy in another store, that is read while it is written to this store.

    A driver makes the object after the end was read: `at_end` is called just before that.
    """

    def __init__(self, reader: Readable, at_end: Callable[[], None]) -> None:
        self._reader = reader
        self._at_end = at_end

    def read(self, size: int, /) -> bytes:
        try:
            data = self._reader.read(size)
        except StorageError as error:
            raise SourceError(error) from error
        if not data:
            self._at_end()
        return data
