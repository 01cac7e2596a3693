"""Write a large object as a multipart upload: parallel, within fixed memory, resumed after a kill."""

from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Semaphore
from typing import Protocol

from worker.storage.driver import (
    Body,
    ComparedBody,
    Condition,
    Driver,
    FullDriver,
    ObjectStat,
    Part,
    PartData,
    WriteInfo,
)
from worker.storage.errors import Conflict, DigestMismatch, NotFound, PermanentError, StorageError, Unavailable
from worker.storage.transfer.split_into_parts import md5_of, next_part, plan_parts, sha256_of, spool_part
from worker.storage.transfer.upload_intents import announced

MEMORY = 64 * 1024 * 1024
"""Most bytes of parts in memory per transfer, including the part that is being read."""
PARALLEL_PARTS = 2
"""Most parts in flight, which are sent again after a kill. One more is hashed meanwhile if it fits into memory."""


@dataclass(frozen=True, slots=True)
class UploadPlan:
    """How parts are sent.

    Attributes:
        prepared: how many are in flight or hashed before that.
        spooled: they wait on the disk and not in memory.
    """

    prepared: int
    spooled: bool


def plan_upload(part_size: int, memory: int = MEMORY) -> UploadPlan:
    """Return how to send parts of this size within this memory: from the disk where fewer than two of them fit."""
    prepared = min(PARALLEL_PARTS + 1, memory // part_size - 1)
    if prepared < 1:
        return UploadPlan(PARALLEL_PARTS, spooled=True)
    return UploadPlan(prepared, spooled=False)


def part_size_of(driver: Driver, size: int) -> int:
    """Return the size of the parts in which an object of `size` bytes is sent to a store that has parts."""
    limits = driver.capabilities.parts
    assert limits is not None
    return plan_parts(size, min_part=limits.min_size, max_part=limits.max_size, max_parts=limits.max_parts)


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part that the store has confirmed, and the SHA-256 of the bytes that were sent for it."""

    part: Part
    sha256: str


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """An unfinished multipart upload: its token, the size of its parts in bytes, and the confirmed parts."""

    token: str
    part_size: int
    sent: Mapping[int, SentPart]


class Chunks(Protocol):
    """The recorded chunks of an object: their size in bytes, and the SHA-256 of each by its number from 0."""

    @property
    def chunk_size(self) -> int: ...
    def sha256_of(self, number: int, /) -> str: ...


class Checkpoint:
    """Records the progress of a multipart upload, so that another process can resume it.

    This one records nothing: its upload is aborted on every failure.
    """

    def resume(self) -> OpenUpload | None:
        """Return the unfinished upload, if there is one."""
        return None

    def begins(self) -> None:
        """Record that an upload is about to begin, in a store that does not record who began an upload."""

    def begun(self, token: str, part_size: int) -> None:
        """Record an upload that has just begun, in place of the record of `begins`."""

    def sent(self, part: SentPart) -> None:
        """Record a part that the store has confirmed. Called from several threads."""

    def ended(self) -> None:
        """Remove the record of the upload, which was completed or aborted."""

    def worth_keeping(self, error: BaseException) -> bool:  # noqa: ARG002
        """Return whether the upload will be resumed after this failure."""
        return False


class MultipartWrite:
    """One multipart upload. The caller guarantees that size and digest are known and that the store has parts."""

    def __init__(
        self,
        driver: FullDriver,
        bucket: str,
        key: str,
        info: WriteInfo,
        checkpoint: Checkpoint,
        *,
        manifest: Chunks | None = None,
        other_place: tuple[str, str] | None = None,
        memory: int = MEMORY,
        spool_dir: Path | None = None,
    ) -> None:
        """Prepare the upload, without a request.

        Args:
            driver: the store.
            bucket: the logical bucket.
            key: the key in it.
            info: size, digest and metadata of the object.
            checkpoint: records the progress.
            manifest: the digests of the chunks, recorded with the digest of the whole. Where parts are as large as
                chunks, each part is compared with its chunk, and the whole is not hashed once more. A store that
                compares a part with its SHA-256 does that itself; elsewhere the part is hashed before it is sent.
            other_place: bucket and key at which an earlier attempt may have begun the upload; it is aborted there.
            memory: most bytes of parts to keep in memory.
            spool_dir: where parts wait that are too large for that; the system's temporary directory by default.
        """
        self._driver = driver
        self._memory = memory
        self._spool_dir = spool_dir
        self._place = (bucket, key)
        self._other_place = other_place
        self._info = info
        self._checkpoint = checkpoint
        self._manifest = manifest
        limits = driver.capabilities.parts
        self._compared_with = limits.compared_with if limits is not None else None
        self._stopped = False

    def run(self, body: ComparedBody, condition: Condition) -> ObjectStat:
        """Send the parts that the store does not have yet, and make the object of them.

        A part counts as sent only if the store still has it with the confirmed tag, and the bytes sent then are the
        recorded ones, or those that are read now. `body` is read to its end, and checked there, before the object is
        made.

        Raises:
            Unavailable: also if the store made an object of another size. It stays: the next attempt reads it.
        """
        begun = self._resumed() or self._begin()
        if self._manifest is not None and self._manifest.chunk_size != begun.part_size:
            self._manifest = None
        if self._manifest is not None:
            body.compare_only_size()
        try:
            parts = self._send(body, begun)
            stat = self._driver.complete_upload(*self._place, begun.token, parts, self._info, condition=condition)
        except NotFound as error:
            self._abort(begun.token)  # it is still open if the store has only lost a part
            raise Conflict(f"{self._driver.name}: the multipart upload must begin anew: {error}") from error
        except BaseException as error:
            if not self._checkpoint.worth_keeping(error):
                self._abort(begun.token)
            raise
        self._checkpoint.ended()
        if stat.size != self._info.size:
            where = "{}: {}/{}".format(self._driver.name, *self._place)
            raise Unavailable(f"{where}: the store made an object of {stat.size} bytes of {self._info.size}")
        return stat

    def _resumed(self) -> OpenUpload | None:
        """Return the unfinished upload with those of its parts that the store still has."""
        begun = self._checkpoint.resume()
        if begun is None:
            return None
        try:
            there = {part.number: part for part in self._driver.list_parts(*self._place, begun.token)}
        except NotFound:
            for place in filter(None, (self._place, self._other_place)):  # it may be open here and take no parts
                with suppress(PermanentError):  # a store that forbids the abort may take the write
                    self._driver.abort_upload(*place, begun.token)
            return None
        sent = {number: sent for number, sent in begun.sent.items() if there.get(number) == sent.part}
        return OpenUpload(begun.token, begun.part_size, sent)

    def _begin(self) -> OpenUpload:
        assert self._info.size is not None
        part_size = part_size_of(self._driver, self._info.size)
        with announced(self._driver, self._checkpoint.begins):
            begun = OpenUpload(self._driver.begin_upload(*self._place, self._info), part_size, {})
        self._checkpoint.begun(begun.token, part_size)
        return begun

    def _send(self, body: Body, begun: OpenUpload) -> list[Part]:
        plan = plan_upload(begun.part_size, self._memory)
        sending = Semaphore(PARALLEL_PARTS)
        parts: list[Part] = []
        under_way: dict[Future[Part], PartData] = {}
        spare: list[bytearray] = []
        data: PartData = b""
        with ThreadPoolExecutor(plan.prepared, thread_name_prefix="part") as pool:
            try:
                number = 0
                while data := self._next(body, begun.part_size, spare, spooled=plan.spooled):
                    number += 1
                    if len(under_way) >= plan.prepared:
                        spare += _take_finished(under_way, parts)
                    under_way[pool.submit(self._send_part, begun, number, data, sending)] = data
                while under_way:
                    _take_finished(under_way, parts)
            except BaseException:
                self._stopped = True
                pool.shutdown()  # those in flight end, the others see that it is stopped
                for left in (data, *under_way.values()):
                    _close_part(left)
                raise
        return sorted(parts, key=lambda part: part.number)

    def _next(self, body: Body, size: int, spare: list[bytearray], *, spooled: bool) -> PartData:
        if not spooled:
            return next_part(body, size, spare.pop() if spare else None)
        part = spool_part(body, size, self._spool_dir)
        if not part:
            part.close()
        return part

    def _send_part(self, begun: OpenUpload, number: int, data: PartData, sending: Semaphore) -> Part:
        if self._manifest is not None and self._compared_with == "sha256":
            digest = self._manifest.sha256_of(number - 1)
        else:
            digest = self._digest_of(number, data)
        known = begun.sent.get(number)
        if known and known.sha256 == digest:
            return known.part
        md5 = md5_of(data) if self._compared_with == "md5" else None
        with sending:
            if self._stopped:
                raise CancelledError
            try:
                part = self._driver.upload_part(*self._place, begun.token, number, data, sha256=digest, md5=md5)
            except StorageError:
                self._digest_of(number, data)  # the store is right to refuse a part if the source has changed
                raise
            self._checkpoint.sent(SentPart(part, digest))
        return part

    def _digest_of(self, number: int, data: PartData) -> str:
        """Return the SHA-256 of a part.

        Raises:
            DigestMismatch: another one is recorded.
        """
        digest = sha256_of(data)
        if self._manifest is not None and digest != (recorded := self._manifest.sha256_of(number - 1)):
            what = "{}/{}".format(*self._place)
            raise DigestMismatch(
                f"the source of {what} has SHA-256 {digest} in part {number}, not the announced {recorded}"
            )
        return digest

    def _abort(self, token: str) -> None:
        """Abort the upload, then remove its record: cleanup takes an upload without one for that of another program."""
        with suppress(StorageError):  # the first error is raised
            self._driver.abort_upload(*self._place, token)
            self._checkpoint.ended()


def _take_finished(under_way: dict[Future[Part], PartData], parts: list[Part]) -> list[bytearray]:
    """Wait until a part was sent, move all sent parts to `parts`, and return their memory, which is used again."""
    spare: list[bytearray] = []
    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
        data = under_way.pop(future)
        try:
            parts.append(future.result())
        finally:
            _close_part(data)
        if isinstance(data, bytearray):
            spare.append(data)
    return spare


def _close_part(data: PartData) -> None:
    if not isinstance(data, bytes | bytearray):
        data.close()
