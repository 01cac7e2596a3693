"""Write one object to S3: the bytes in one request or in parts, and what an unclear answer to the last one means."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from worker.storage.cloud.error_mapping import Origin
from worker.storage.driver import Body, Condition, Match, ObjectStat, Part, PartData
from worker.storage.errors import AlreadyExists, NotFound, PreconditionFailed, StorageError, TransientError, Unavailable
from worker.storage.integrity.verifying_reader import drain
from worker.storage.s3.errors import SDK_ERRORS, code_of, translate, translated
from worker.storage.s3.objects import SHA256, WRITER, stored_metadata, to_stat, written_stat
from worker.storage.s3.providers import GIB
from worker.storage.transfer.parts import MIB, next_part, rewound

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

MIN_PART = 5 * MIB
MAX_PART = 5 * GIB
MAX_PARTS = 10_000


class Where(TypedDict):
    """An object as the SDK names it in every request."""

    Bucket: str
    Key: str


class _Conditions(TypedDict, total=False):
    IfNoneMatch: str
    IfMatch: str


@dataclass(frozen=True, slots=True)
class Write:
    """One write.

    Attributes:
        bucket: the logical bucket, for messages and the stat.
        key: the key in it.
        where: the real place.
        size: how many bytes there will be.
        metadata: what is stored beside them, with the writer's token.
        condition: see `Driver.put`.
        conditional: whether the store decides conditions itself.
        checksums: whether the SDK adds its CRC32 to every part.
        options: storage class and encryption, as the SDK names them.
    """

    bucket: str
    key: str
    where: Where
    size: int
    metadata: Mapping[str, str]
    condition: Condition
    conditional: bool
    checksums: bool
    options: Mapping[str, str]

    @property
    def what(self) -> str:
        return f"{self.bucket}/{self.key}"


class Upload:
    """Carries out one write.

    `client` is for the bytes, `patient` for the request that may take minutes to be answered.
    """

    def __init__(self, client: "S3Client", patient: "S3Client", origin: Origin, write: Write) -> None:
        self._client = client
        self._patient = patient
        self._origin = origin
        self._write = write
        self._options: Any = write.options  # its keys are the SDK's

    def whole(self, body: Body) -> ObjectStat:
        """Send an object in one request."""
        data: Any = next_part(body, self._write.size)  # its stubs do not know that the SDK takes a bytearray as it is
        drain(body)  # the end is where a body says that it was wrong
        return self._commit(
            lambda: self._client.put_object(
                **self._write.where, **self._conditions(), Body=data, Metadata=self._write.metadata, **self._options
            )
        )

    def check_condition(self) -> None:
        """Refuse before anything is sent what the store would refuse at the end, or would not refuse at all."""
        condition = self._write.condition
        found = self._found()
        stat = found and found[0]
        if condition == "create_only" and stat:
            raise self._refusal(stat)
        if isinstance(condition, Match) and (stat is None or stat.version != condition.version):
            raise self._refusal(stat)

    # Parts

    def begin(self) -> str:
        """Begin a multipart upload and return its id."""
        algorithm: dict[str, Any] = {"ChecksumAlgorithm": "CRC32"} if self._write.checksums else {}
        with self._errors():
            begun = self._client.create_multipart_upload(
                **self._write.where, Metadata=self._write.metadata, **algorithm, **self._options
            )
        return begun["UploadId"]

    def send_part(self, upload_id: str, number: int, data: PartData) -> Part:
        """Send one part; its tag is what `complete` has to say of it."""
        body: Any = rewound(data)
        with self._errors():
            reply = self._client.upload_part(**self._write.where, UploadId=upload_id, PartNumber=number, Body=body)
        return Part(number, len(data), _tag(reply))

    def list_parts(self, upload_id: str) -> list[Part]:
        """Return the parts that the store has, by number."""
        pages = self._client.get_paginator("list_parts").paginate(**self._write.where, UploadId=upload_id)
        with self._errors():
            return [Part(row["PartNumber"], row["Size"], _tag(row)) for page in pages for row in page.get("Parts", [])]

    def complete(self, upload_id: str, parts: list[Part]) -> ObjectStat:
        """Make the object of these parts."""
        completed = [_completed(part) for part in parts]
        stat = self._commit(
            lambda: self._patient.complete_multipart_upload(
                **self._write.where, **self._conditions(), UploadId=upload_id, MultipartUpload={"Parts": completed}
            )
        )
        with suppress(StorageError):  # not every store's answer has the ETag that it keeps; asking costs little here
            found = self._found()
            return found[0] if found and self._is_ours(*found) else stat
        return stat

    def abort(self, upload_id: str) -> None:
        """End a multipart upload; one that is not open any more is no error."""
        with suppress(NotFound), self._errors():
            self._client.abort_multipart_upload(**self._write.where, UploadId=upload_id)

    # The request that makes it visible

    def _conditions(self) -> _Conditions:
        condition = self._write.condition
        if condition is None or not self._write.conditional:
            return {}
        return {"IfMatch": f'"{condition.version}"'} if isinstance(condition, Match) else {"IfNoneMatch": "*"}

    def _commit(self, send: Callable[[], Any]) -> ObjectStat:
        write = self._write
        try:
            reply = send()
        except SDK_ERRORS as error:
            return self._settle(error)
        return written_stat(write.bucket, write.key, write.size, write.metadata, reply)

    def _settle(self, error: Exception) -> ObjectStat:
        """Find out what became of a write whose answer was an error.

        The SDK sends a request again whose answer got lost. The second one then meets our own object and is refused,
        or finds the upload completed and gone: so whoever's object lies there decides, not the answer.
        """
        failure = translate(error, self._origin, self._write.what)
        refused = code_of(error) in {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
        gone = code_of(error) == "NoSuchUpload"
        refused = refused or (isinstance(failure, NotFound) and not gone and isinstance(self._write.condition, Match))
        if not refused and not gone and not isinstance(failure, TransientError):
            raise failure from error
        with suppress(StorageError):
            found = self._found()
            if found and self._is_ours(*found):
                return found[0]
            if refused:
                failure = self._refusal(found and found[0])
        raise failure from error

    def _is_ours(self, stat: ObjectStat, metadata: Mapping[str, str]) -> bool:
        ours = self._write.metadata
        return metadata.get(WRITER) == ours[WRITER] and stat.size == self._write.size and stat.sha256 == ours[SHA256]

    def _refusal(self, found: ObjectStat | None) -> StorageError:
        condition, where = self._write.condition, f"{self._origin.store}: {self._write.what}"
        if condition == "create_only" and found:
            return AlreadyExists(f"{where} exists already")
        if isinstance(condition, Match) and (found is None or found.version != condition.version):
            there = f"version {found.version}" if found else "nothing"
            return PreconditionFailed(f"{where} was expected in version {condition.version}, {there} is there")
        return Unavailable(f"{where}: another write was under way at the same time")

    def _found(self) -> tuple[ObjectStat, Mapping[str, str]] | None:
        try:
            with self._errors():
                facts = self._client.head_object(**self._write.where)
        except NotFound:
            return None
        return to_stat(self._write.bucket, self._write.key, facts), stored_metadata(facts)

    def _errors(self) -> AbstractContextManager[None]:
        return translated(self._origin, self._write.what)


def _tag(facts: Mapping[str, Any]) -> str:
    return ":".join((str(facts["ETag"]).strip('"'), *filter(None, [facts.get("ChecksumCRC32")])))


def _completed(part: Part) -> "CompletedPartTypeDef":
    etag, _, crc32 = part.tag.partition(":")
    completed: CompletedPartTypeDef = {"ETag": f'"{etag}"', "PartNumber": part.number}
    if crc32:
        completed["ChecksumCRC32"] = crc32
    return completed
