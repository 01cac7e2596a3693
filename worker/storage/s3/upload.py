"""Write one object to S3, in one request, in parts, or by copying parts from an object that the store has."""

import base64
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NotRequired, TypedDict
from urllib.parse import quote

from botocore.exceptions import ClientError

from worker.storage.cloud.conditional_write import Found, Write, as_found, broken_condition, settle
from worker.storage.cloud.error_mapping import Origin
from worker.storage.cloud.plain_requests import RealObject
from worker.storage.cloud.small_writes import BegunPut, PlainWrites
from worker.storage.driver import Body, Match, ObjectStat, Part, PartData
from worker.storage.errors import (
    NotFound,
    PermanentError,
    SizeMismatch,
    StorageError,
    TransientError,
    Unavailable,
    UnexpectedAnswer,
    UploadEnded,
)
from worker.storage.integrity.verifying_reader import drain
from worker.storage.s3.errors import SDK_ERRORS, code_of, translate, translated
from worker.storage.s3.object_stat import to_found, version_of, written_stat
from worker.storage.s3.providers import GIB
from worker.storage.s3.requests_without_sdk import HEADERS, headers_of
from worker.storage.s3.signature import PAYLOAD
from worker.storage.transfer.server_copy import Between, OnUpload
from worker.storage.transfer.split_into_parts import MIB, md5_of, plan_parts, rewound, sha256_of, whole_body

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

MIN_PART = 5 * MIB
MAX_PART = 5 * GIB
MAX_PARTS = 10_000
COPY_PART = GIB
"""Bytes that one request copies, because a job can be stopped only between two requests."""
DAMAGED = b"these bytes are damaged on their way to the store"
"""The bytes that are sent to find out whether a store checks checksums."""
_ALGORITHM: Final = "SHA256"
"""S3's name of the checksum of parts. It compares a part with the recorded digest of a chunk."""
_DAMAGE_CODES = {
    *("BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody"),
    *("SignatureDoesNotMatch", "InvalidRequest", "400"),
}
"""The codes with which stores refuse bytes that do not match their checksum or signature."""
_NO_TAGS = {
    *("AccessDenied", "403", "NotImplemented", "501", "InvalidTag", "InvalidArgument", "InvalidRequest", "400"),
}
"""The codes with which stores may refuse a write for its tags."""
_REFUSED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}


logger = logging.getLogger(__name__)


class Address(TypedDict):
    """A real object as the SDK names it in every request."""

    Bucket: str
    Key: str
    ExpectedBucketOwner: NotRequired[str]


class _Conditions(TypedDict, total=False):
    IfNoneMatch: str
    IfMatch: str


@dataclass(frozen=True, slots=True)
class S3Write(Write):
    """One write, and the features of the store for it.

    Attributes:
        address: the real object.
        conditional: whether the store decides conditions itself.
        checksums: whether the store checks the checksums of S3.
    """

    address: Address
    conditional: bool
    checksums: bool


@dataclass(slots=True)
class PartTags:
    """What a store without the checksums of S3 returns as the tag of a part.

    The MD5 of the bytes that arrived proves that they are those that were sent. To send the MD5 beside them would let
    the store compute it a second time: 1.3 of the 6.5 s of processor time that `rclone serve s3` takes for a GiB.

    Attributes:
        are_md5: False once a part came back with another tag: damaged, or from a store whose tags are something else.
            It is True again if the tag of that part, sent again, is its MD5.
    """

    are_md5: bool = True


class Upload:
    """Carries out one write.

    `client` sends the bytes, `patient` the requests whose answer may take minutes. `tags` is that of the store.
    """

    def __init__(self, client: "S3Client", patient: "S3Client", origin: Origin, write: S3Write, tags: PartTags) -> None:
        self._client = client
        self._patient = patient
        self._origin = origin
        self._write = write
        self._tags = tags
        self._options: Any = write.options  # its keys are the SDK's

    def whole(self, body: Body, small: PlainWrites) -> ObjectStat:
        """Send an object in one request: that of `small`, unless it returns None."""
        data = whole_body(body, self._write.size)
        drain(body)  # a wrong body raises at its end
        return self.begin_whole(data, small).end()

    def begin_whole(self, data: Any, small: PlainWrites) -> BegunPut:
        """Send an object as `whole` does, and return what ends that.

        `data`: bytes; the type stubs lack that the SDK accepts a bytearray.
        """
        checksum, address = self._checksum(data), self._write.address
        target = RealObject(address["Bucket"], address["Key"], self._write.what)
        headers = headers_of(self._write, {**self._options, **checksum, **self._conditions()})
        request = small.begin(target, data, headers)

        def end() -> Mapping[str, Any]:
            return request.answer() or self._with_tags(
                lambda options: self._client.put_object(
                    **self._write.address,
                    **self._conditions(),
                    **checksum,
                    Body=data,
                    Metadata=self._write.metadata,
                    **options,
                )
            )

        return BegunPut(request, partial(self._commit, end))

    def check_condition(self) -> None:
        """Raise at the start the error that the store would raise at the end, or not at all."""
        if broken := broken_condition(self._write, self._origin, self._found()):
            raise broken

    # Parts

    def begin(self) -> str:
        """Begin a multipart upload and return its id."""
        algorithm: dict[str, Any] = {"ChecksumAlgorithm": _ALGORITHM} if self._write.checksums else {}
        with self._errors():
            begun = self._with_tags(
                lambda options: self._client.create_multipart_upload(
                    **self._write.address, Metadata=self._write.metadata, **algorithm, **options
                )
            )
        return str(self._required(begun, "UploadId"))

    def send_part(
        self,
        upload_id: str,
        number: int,
        data: PartData,
        sha256: str | None = None,
        *,
        md5: bytes | None = None,
        small: PlainWrites | None = None,
    ) -> Part:
        """Send one part and return it with the tag that `complete` needs.

        With its SHA-256, which the SDK would compute once more for the signature, by a request of `small`.

        Raises:
            UploadEnded: the store has other bytes for this part, as after damage on the way, and takes no more.
        """
        send = partial(self._send_part, upload_id, number, data, sha256=sha256, small=small)
        if self._write.checksums:
            return send(_checksum_sha256(sha256 or sha256_of(data)))
        try:
            return self._send_compared(send, md5 or md5_of(data))
        except PermanentError as error:
            if not any(part.number == number for part in self.list_parts(upload_id)):
                raise
            what = f"{self._origin.store}: {self._write.what}"
            raise UploadEnded(f"{what}: the store has other bytes for part {number}, and takes no more") from error

    def _send_compared(self, send: Callable[[Mapping[str, Any]], Part], md5: bytes) -> Part:
        """Send a part so that the tag or the store proves its bytes; once more after another tag than its MD5."""
        if self._tags.are_md5:
            part = send({})
            if _is_md5(part, md5):
                return part
            self._tags.are_md5 = False
            part = send(_content_md5(md5))
            self._tags.are_md5 = _is_md5(part, md5)
            return part
        return send(_content_md5(md5))

    def _send_part(
        self,
        upload_id: str,
        number: int,
        data: PartData,
        checksum: Mapping[str, Any],
        *,
        sha256: str | None,
        small: PlainWrites | None,
    ) -> Part:
        body: Any = rewound(data)
        reply: Mapping[str, Any] | None = None
        with self._errors():
            if small is not None and sha256 is not None and isinstance(data, bytes | bytearray):
                headers = {HEADERS[name]: value for name, value in checksum.items()} | {PAYLOAD: sha256}
                address = self._write.address
                target = RealObject(address["Bucket"], address["Key"], self._write.what)
                reply = small.put(target, data, headers, part=f"partNumber={number}&uploadId={quote(upload_id, '')}")
            reply = reply or self._client.upload_part(
                **self._write.address, **checksum, UploadId=upload_id, PartNumber=number, Body=body
            )
        self._required(reply, "ETag")
        return Part(number, len(data), _tag(reply))

    def list_parts(self, upload_id: str) -> list[Part]:
        """Return the parts that the store has, by number.

        Raises:
            UploadEnded: the upload was begun with another checksum, as by an earlier version, and takes no SHA-256.
        """
        with self._errors():
            found = self._client.get_paginator("list_parts").paginate(**self._write.address, UploadId=upload_id)
            pages = list(found)
        if self._write.checksums and any(page.get("ChecksumAlgorithm", _ALGORITHM) != _ALGORITHM for page in pages):
            what = f"{self._origin.store}: {self._write.what}"
            raise UploadEnded(f"{what}: the multipart upload was begun with other checksums; a new one begins")
        return [Part(row["PartNumber"], row["Size"], _tag(row)) for page in pages for row in page.get("Parts", [])]

    def complete(self, upload_id: str, parts: list[Part]) -> ObjectStat:
        """Make the object of these parts; its stat has the size that the store says."""
        completed = [_completed(part) for part in parts]
        return self._as_found(
            lambda: self._patient.complete_multipart_upload(
                **self._write.address, **self._conditions(), UploadId=upload_id, MultipartUpload={"Parts": completed}
            )
        )

    def _as_found(self, send: Callable[[], Any]) -> ObjectStat:
        """Commit an object whose bytes are not in the request, and return what the store then says of it.

        Raises:
            Conflict: there is no object.
        """
        return as_found(self._commit(send), self._write, self._origin, self._found)

    def abort(self, upload_id: str) -> None:
        """Abort a multipart upload; one that is not open any more is no error."""
        with suppress(NotFound), self._errors():
            self._client.abort_multipart_upload(**self._write.address, UploadId=upload_id)

    def copy_whole(self, source: Address, version: str) -> ObjectStat:
        """Make the object of exactly this version of `source` in one request, which takes up to 5 GiB.

        Its stat has the size that the store says.
        """
        if self._write.condition:
            self.check_condition()  # many stores ignore the condition of this request

        def copy() -> Mapping[str, Any]:
            reply = self._patient.copy_object(
                **self._write.address,
                **self._conditions(),
                CopySource={"Bucket": source["Bucket"], "Key": source["Key"]},
                CopySourceIfMatch=f'"{version}"',  # otherwise the digest would belong to other bytes
                MetadataDirective="REPLACE",
                Metadata=self._write.metadata,
                **self._options,
            )
            return {**reply["CopyObjectResult"], "ResponseMetadata": reply["ResponseMetadata"]}

        return self._as_found(copy)

    def copy(
        self, source: Address, version: str, part_size: int, *, between: Between, begun: OnUpload = lambda _id: None
    ) -> ObjectStat:
        """Make the object of exactly this version of `source`, in parts of at least `part_size` bytes.

        In parts even if one request could copy it all, because many stores ignore the condition of that request and
        honour the one of CompleteMultipartUpload.
        """
        size = self._write.size
        part_size = plan_parts(size, min_part=part_size, max_part=MAX_PART, max_parts=MAX_PARTS)

        def copy_all(upload_id: str) -> None:
            begun(upload_id)
            for number, span in enumerate(_spans(range(size), part_size), 1):
                between()
                self._copy_part(upload_id, number, source, version, span)

        return self._of_copies(copy_all)

    def patch(
        self,
        source: Address,
        version: str,
        part_size: int,
        replaced: Sequence[range],
        *,
        read: Callable[[range], bytes | bytearray],
        unit: int,
        between: Between,
    ) -> ObjectStat:
        """Make the object of exactly this version of `source`, and send the replaced ranges; see `FullDriver`.

        A range that is copied ends at a multiple of `unit`, so that none but the last part is smaller than S3 allows.
        """
        size = self._write.size
        most = MAX_PARTS - 2 * len(replaced)
        part_size = plan_parts(size, min_part=part_size, max_part=MAX_PART, max_parts=most, multiple=unit)
        starts = [0, *(span.stop for span in replaced)]
        ends = [*(span.start for span in replaced), size]
        copied = (span for run in map(range, starts, ends) for span in _spans(run, part_size))

        def send_and_copy(upload_id: str) -> None:
            for number, span in enumerate(sorted((*replaced, *copied), key=lambda span: span.start), 1):
                between()
                if span in replaced:
                    self.send_part(upload_id, number, read(span))
                else:
                    self._copy_part(upload_id, number, source, version, span)

        return self._of_copies(send_and_copy)

    def _of_copies(self, send: Callable[[str], None]) -> ObjectStat:
        """Make the object of the parts that `send` adds to a multipart upload, which is aborted if it fails."""
        upload_id = self.begin()
        try:
            send(upload_id)
            return self.complete(upload_id, self._copied(upload_id))
        except BaseException:
            with suppress(StorageError):  # must not replace the error above; cleanup ends stale uploads
                self.abort(upload_id)
            raise

    def _copy_part(self, upload_id: str, number: int, source: Address, version: str, span: range) -> None:
        # S3 copies no range of an object of 5 MB or less, so the whole object is never copied as a range.
        whole = len(span) == self._write.size
        part: dict[str, Any] = {} if whole else {"CopySourceRange": f"bytes={span.start}-{span.stop - 1}"}
        with self._errors():
            self._patient.upload_part_copy(
                **self._write.address,
                UploadId=upload_id,
                PartNumber=number,
                CopySource={"Bucket": source["Bucket"], "Key": source["Key"]},
                CopySourceIfMatch=f'"{version}"',  # otherwise the parts could be of different versions
                **part,
            )

    def _copied(self, upload_id: str) -> list[Part]:
        """Return the parts as the store lists them, because some stores report copies that they have not made."""
        parts = self.list_parts(upload_id)
        copied = sum(part.size for part in parts)
        if copied != self._write.size:
            raise SizeMismatch(
                f"{self._origin.store}: {self._write.what}: the store copied {copied} bytes of {self._write.size}"
            )
        return parts

    def refuses_damage(self, damaging: "S3Client") -> bool:
        """Return whether the store refuses an object and a part that the client `damaging` damages on their way."""
        address, checksum = self._write.address, self._checksum(DAMAGED)
        try:
            whole = self._refused(lambda: damaging.put_object(**address, **checksum, Body=DAMAGED))
        finally:
            with self._errors():
                self._client.delete_object(**address)
        upload_id = self.begin()
        try:
            return (
                self._refused(
                    lambda: damaging.upload_part(**address, **checksum, UploadId=upload_id, PartNumber=1, Body=DAMAGED)
                )
                and whole
            )
        finally:
            self.abort(upload_id)

    def _refused(self, send: Callable[[], object]) -> bool:
        try:
            with self._errors():
                send()
        except StorageError as error:
            if error.code in _DAMAGE_CODES:
                return True
            raise
        return False

    def _with_tags(self, send: Callable[[Any], Any]) -> Any:
        """Send a request with its options, and without the tags where the store does not take them.

        The credentials may lack s3:PutObjectTagging, and some stores know no tags.
        """
        try:
            return send(self._options)
        except ClientError as error:
            if "Tagging" not in self._options or code_of(error) not in _NO_TAGS:
                raise
            logger.warning("%s: %s: written without its tags: %s", self._origin.store, self._write.what, code_of(error))
            return send({name: value for name, value in self._options.items() if name != "Tagging"})

    # The request that makes the object visible

    def _conditions(self) -> _Conditions:
        condition = self._write.condition
        if condition is None or not self._write.conditional:
            return {}
        return {"IfMatch": f'"{condition.version}"'} if isinstance(condition, Match) else {"IfNoneMatch": "*"}

    def _checksum(self, data: PartData) -> dict[str, Any]:
        """Return the strongest checksum of the whole that the store checks.

        The SHA-256 is its own evidence afterwards. Stores that do not know it, and do not compare the SHA-256 that the
        signature covers either, know the MD5 of HTTP.
        """
        if not self._write.checksums:
            return _content_md5(md5_of(data))
        return _checksum_sha256(self._write.sha256)

    def _commit(self, send: Callable[[], Any]) -> ObjectStat:
        write = self._write
        failure: StorageError
        try:
            return written_stat(self._origin.store, write, send())
        except UnexpectedAnswer as error:  # the write may have succeeded
            failure, code = Unavailable(error.message), ""
        except StorageError as error:
            failure, code = error, error.code
        except SDK_ERRORS as error:
            failure, code = translate(error, self._origin, write.what), code_of(error)
        ended = isinstance(failure, UploadEnded)
        # The bucket may be missing, but most stores mean the object of the condition.
        refused = code in _REFUSED or (
            isinstance(failure, NotFound) and not ended and isinstance(write.condition, Match)
        )
        if not (refused or ended or isinstance(failure, TransientError)):
            raise failure
        outcome = settle(write, self._origin, failure, self._found, refused=refused)
        if isinstance(outcome, StorageError):
            raise outcome
        return outcome

    def _required(self, reply: Mapping[str, Any], name: str) -> object:
        if not reply.get(name):
            what = f"{self._origin.store}: {self._write.what}: {self._origin.endpoint}"
            raise Unavailable(f"{what}: the answer lacks {name}, which S3 always gives; check `endpoint`")
        return reply[name]

    def _found(self) -> Found | None:
        try:
            with self._errors():
                facts = self._client.head_object(**self._write.address)
        except NotFound:
            return None
        return to_found(self._origin.store, self._write.bucket, self._write.key, facts)

    def _errors(self) -> AbstractContextManager[None]:
        return translated(self._origin, self._write.what)


def _spans(run: range, part_size: int) -> Iterator[range]:
    return (range(first, min(first + part_size, run.stop)) for first in range(run.start, run.stop, part_size))


def _content_md5(md5: bytes) -> dict[str, Any]:
    return {"ContentMD5": base64.b64encode(md5).decode()}


def _checksum_sha256(digest: str) -> dict[str, Any]:
    return {"ChecksumSHA256": base64.b64encode(bytes.fromhex(digest)).decode()}


def _is_md5(part: Part, md5: bytes) -> bool:
    return part.tag.partition(":")[0] == md5.hex()


def _tag(facts: Mapping[str, Any]) -> str:
    return ":".join((version_of(facts["ETag"]), *filter(None, [facts.get("ChecksumSHA256")])))


def _completed(part: Part) -> "CompletedPartTypeDef":
    etag, _, digest = part.tag.partition(":")
    completed: CompletedPartTypeDef = {"ETag": f'"{etag}"', "PartNumber": part.number}
    if digest:
        completed["ChecksumSHA256"] = digest
    return completed
