"""Decide whether a conditional write succeeded although its answer was an error.

An SDK repeats a request whose answer got lost. The store then refuses the second request because of the object of the
first one, or because the multipart upload is completed. So the object under the key decides, and not the answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from worker.storage.cloud.error_mapping import Origin
from worker.storage.cloud.metadata import MetadataFormat
from worker.storage.driver import Condition, Match, ObjectProperties, ObjectStat
from worker.storage.errors import AlreadyExists, Conflict, PreconditionFailed, StorageError, TransientError


@dataclass(frozen=True, slots=True)
class Write:
    """One write of one object.

    Attributes:
        bucket: the logical bucket, for messages and the stat.
        key: the key in it.
        size: of the object, in bytes.
        sha256: of its bytes; "None" for the copy of an object without a digest.
        writer: the unique token of this write.
        metadata: what the store keeps beside the bytes, as it is sent; it has the digest and the token.
        condition: see `Driver.put`.
        options: the SDK's arguments for class and encryption.
        properties: the headers that the store keeps.
    """

    bucket: str
    key: str
    size: int
    sha256: str
    writer: str
    metadata: Mapping[str, str]
    condition: Condition
    options: Mapping[str, Any]
    properties: ObjectProperties

    @property
    def what(self) -> str:
        return f"{self.bucket}/{self.key}"

    def stat(
        self, form: MetadataFormat, store: str, *, version: Any, modified: Any, tags: Mapping[str, str | None]
    ) -> ObjectStat:
        """Return the stat of what this write has made, with the fields of its answer; raise as `make_stat`."""
        return form.make_stat(
            store, self.bucket, self.key, size=self.size, version=version, modified=modified, stored=self.metadata,
            tags=tags, properties=self.properties,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """The object under a key, and the token of the write, if the worker made it."""

    stat: ObjectStat
    writer: str | None

    def is_of(self, write: Write) -> bool:
        """Return whether this write made the object."""
        ours = (write.writer, write.size, write.sha256)
        return (self.writer, self.stat.size, str(self.stat.sha256)) == ours


def settle(
    write: Write, origin: Origin, failure: StorageError, find: Callable[[], Found | None], *, refused: bool
) -> ObjectStat | StorageError:
    """Return the stat of the object if this write made it after all, otherwise the error to raise.

    If the store refuses the write and does not answer `find` now, that is the error of `find`: the refusal may be due
    to the object that this write made, so the job has to try again.

    Args:
        write: the write that was answered with an error.
        origin: the store.
        failure: the meaning of the answer by itself.
        find: asks for the object under the key.
        refused: whether the answer means that the condition does not hold.
    """
    try:
        found = find()
    except StorageError as error:
        return error if refused and isinstance(error, TransientError) else failure
    if found and found.is_of(write):
        return found.stat
    broken = broken_condition(write, origin, found)
    return broken or (concurrent_write(write, origin) if refused else failure)


def as_found(made: ObjectStat, write: Write, origin: Origin, find: Callable[[], Found | None]) -> ObjectStat:
    """Return the stat of an object that the store made of bytes which were not in the request, with its real size.

    If the store does not answer now, or a later write has replaced the object, return `made`, the answer to the write.

    Raises:
        Conflict: there is no object.
    """
    try:
        found = find()
    except StorageError:
        return made
    if found is None:
        raise Conflict(f"{origin.store}: {write.what}: the store accepted the write and has no object")
    # Some stores answer with another version tag than they keep.
    return found.stat if found.writer == write.writer else made


def broken_condition(write: Write, origin: Origin, found: Found | None) -> StorageError | None:
    """Return the error if the condition does not hold for the object under the key, else None."""
    condition, where = write.condition, f"{origin.store}: {write.what}"
    if condition == "create_only" and found:
        return AlreadyExists(f"{where} exists already")
    if isinstance(condition, Match) and (found is None or found.stat.version != condition.version):
        return other_version(where, condition, found.stat.version if found else None)
    return None


def other_version(where: str, condition: Match, found: str | None) -> PreconditionFailed:
    """Return the error for an object that has another version than the condition names, or is not there."""
    there = "nothing" if found is None else f"version {found}"
    return PreconditionFailed(f"{where} was expected in version {condition.version}, {there} is there")


def check_copied(where: str, found: ObjectStat, version: str | None) -> None:
    """Raise Conflict if the object that was found is not the version that is to be copied."""
    if version not in {None, found.version}:
        raise Conflict(f"{where} was replaced by another writer before it was copied")


def concurrent_write(write: Write, origin: Origin) -> Conflict:
    """Return the error for a write that conflicts with another one."""
    return Conflict(f"{origin.store}: {write.what}: another write was under way at the same time")
