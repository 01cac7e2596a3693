"""Make a blob visible, from one request or from blocks, and find out what an unclear answer to that means."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from azure.storage.blob import BlobBlock, BlobClient

from worker.storage.azure.client import COMMIT_TIMEOUT
from worker.storage.azure.errors import SDK_ERRORS, code_of, translate, translated
from worker.storage.azure.objects import (
    SHA256,
    WRITER,
    conditions,
    is_object,
    stored_metadata,
    to_stat,
    written_stat,
)
from worker.storage.cloud.error_mapping import Origin
from worker.storage.driver import Body, Condition, Match, ObjectStat
from worker.storage.errors import (
    AlreadyExists,
    NotFound,
    PreconditionFailed,
    StorageError,
    TransientError,
    Unavailable,
)
from worker.storage.integrity.verifying_reader import drain
from worker.storage.transfer.parts import next_part

REFUSED = {"ConditionNotMet", "TargetConditionNotMet", "BlobAlreadyExists", "409", "412"}
_GONE = {"InvalidBlockList"}


@dataclass(frozen=True, slots=True)
class Write:
    """One write.

    Attributes:
        bucket: the logical bucket, for messages and the stat.
        key: the key in it.
        size: how many bytes there will be.
        metadata: what is stored beside them, with the writer's token.
        condition: see `Driver.put`.
        settings: the SDK's arguments for tier and encryption.
    """

    bucket: str
    key: str
    size: int
    metadata: Mapping[str, str]
    condition: Condition
    settings: Mapping[str, Any]

    @property
    def what(self) -> str:
        return f"{self.bucket}/{self.key}"


class Upload:
    """Carries out one write."""

    def __init__(self, blob: BlobClient, origin: Origin, write: Write) -> None:
        self._blob = blob
        self._origin = origin
        self._write = write

    def whole(self, body: Body) -> ObjectStat:
        """Send an object in one request."""
        data = bytes(next_part(body, self._write.size))  # the SDK takes a bytearray for a list of strings here
        drain(body)  # the end is where a body says that it was wrong
        return self._commit(
            lambda: self._blob.upload_blob(
                data,
                length=len(data),
                overwrite=True,  # or the SDK adds a condition of its own
                metadata=dict(self._write.metadata),
                **conditions(self._write.condition),
                **self._write.settings,
            )
        )

    def from_blocks(self, ids: list[str]) -> ObjectStat:
        """Make an object of staged blocks."""
        return self._commit(
            lambda: self._blob.commit_block_list(
                [BlobBlock(found) for found in ids],
                metadata=dict(self._write.metadata),
                read_timeout=COMMIT_TIMEOUT,
                **conditions(self._write.condition),
                **self._write.settings,
            )
        )

    def settle(self, failure: StorageError, *, refused: bool = False) -> ObjectStat:
        """Find out what became of a write whose answer was an error.

        The SDK sends a request again whose answer got lost. The second one then meets our own object and is refused,
        or finds the blocks used up: so whoever's object lies there decides, not the answer.
        """
        try:
            found = self._found()
        except StorageError:  # nobody can tell; what was said first is the better answer
            raise failure from None
        if found and self._is_ours(*found):
            return found[0]
        if contradiction := self._contradiction(found and found[0]):
            raise contradiction from None
        if refused:
            failure = Unavailable(f"{self._where}: another write was under way at the same time")
        raise failure from None

    def _commit(self, send: Callable[[], Any]) -> ObjectStat:
        write = self._write
        try:
            reply = send()
        except SDK_ERRORS as error:
            failure, code = translate(error, self._origin, write.what), code_of(error)
        else:
            return written_stat(write.bucket, write.key, write.size, write.metadata, reply)
        if code in REFUSED | _GONE or isinstance(failure, TransientError):
            return self.settle(failure, refused=code in REFUSED)
        raise failure

    @property
    def _where(self) -> str:
        return f"{self._origin.store}: {self._write.what}"

    def _is_ours(self, stat: ObjectStat, metadata: Mapping[str, str]) -> bool:
        ours = self._write.metadata
        return metadata.get(WRITER) == ours[WRITER] and stat.size == self._write.size and stat.sha256 == ours[SHA256]

    def _contradiction(self, found: ObjectStat | None) -> StorageError | None:
        """Return what the condition says of the object that is there, if it forbids the write."""
        condition = self._write.condition
        if condition == "create_only" and found:
            return AlreadyExists(f"{self._where} exists already")
        if isinstance(condition, Match) and (found is None or found.version != condition.version):
            there = f"version {found.version}" if found else "nothing"
            return PreconditionFailed(f"{self._where} was expected in version {condition.version}, {there} is there")
        return None

    def _found(self) -> tuple[ObjectStat, Mapping[str, str]] | None:
        try:
            with translated(self._origin, self._write.what):
                properties = self._blob.get_blob_properties()
        except NotFound:
            return None
        if not is_object(properties):
            return None
        return to_stat(self._write.bucket, self._write.key, properties), stored_metadata(properties)
