"""What Azure says of a blob, in our values: metadata both ways, the stat, and the bytes."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self
from urllib.parse import quote, unquote

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobClient, BlobProperties

from worker.storage.azure.client import CHUNK
from worker.storage.azure.errors import SDK_ERRORS, code_of, translate
from worker.storage.cloud.error_mapping import Origin
from worker.storage.driver import Condition, Match, ObjectStat, WriteInfo
from worker.storage.errors import PermanentError, Unavailable

SHA256 = "sha256"
WRITER = "zot_writer"
"""A token of its own for every write: whose object lies there after a reply was lost."""
ENDED = "ended"
"""In place of a token: an empty blob that is only there to drop the blocks of a write, and goes at once."""
_OURS = {SHA256, WRITER}
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_HEX = re.compile(r"[0-9a-f]{64}")
_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")


def to_metadata(info: WriteInfo, token: str) -> dict[str, str]:
    """Return the metadata to store: the digest, the writer's token, and the user's own.

    Azure takes names that are identifiers of C#. Values may be anything: what is not visible ASCII is percent-encoded,
    spaces too, because headers lose those at their ends.

    Raises:
        PermanentError: a name that cannot be an identifier, or is ours.
    """
    for name in info.metadata:
        if name in _OURS or not _NAME.fullmatch(name):
            raise PermanentError(
                f"metadata {name!r} is not allowed: Azure takes lower-case ASCII letters, digits and '_', a letter "
                f"first, and {SHA256!r} and {WRITER!r} are ours"
            )
    user = {name: quote(value, safe=_PRINTABLE) for name, value in info.metadata.items()}
    return user | {SHA256: str(info.sha256), WRITER: token}


def to_stat(bucket: str, key: str, properties: BlobProperties) -> ObjectStat:
    """Return the stat that the properties of a whole blob give."""
    md5 = properties.content_settings.content_md5
    return _stat(
        bucket,
        key,
        size=properties.size,
        etag=str(properties.etag),
        modified=properties.last_modified,
        metadata=stored_metadata(properties),
        md5=bytes(md5) if md5 else None,
    )


def written_stat(bucket: str, key: str, size: int, metadata: Mapping[str, str], reply: Mapping[str, Any]) -> ObjectStat:
    """Return the stat of what was just written, from the answer to the write.

    Asking again would cost a request, and could already show the version of somebody else.
    """
    return _stat(
        bucket, key, size=size, etag=reply["etag"], modified=reply["last_modified"], metadata=metadata, md5=None
    )


def stored_metadata(properties: BlobProperties) -> Mapping[str, str]:
    """Return the metadata as it is stored, under lower-case names: others write `SHA256`."""
    return {name.lower(): value for name, value in (properties.metadata or {}).items()}


def is_object(properties: BlobProperties) -> bool:
    """Return whether a blob is an object: no folder, no copy that has not come to its end, not put there to go."""
    metadata = stored_metadata(properties)
    if metadata.get("hdi_isfolder") == "true" or metadata.get(WRITER) == ENDED:
        return False
    return properties.copy.status in {None, "success"}


def version_of(etag: str) -> str:
    """Return an ETag as we keep it: listings give it without the quotes that headers have."""
    return etag.strip('"')


def conditions(condition: Condition) -> dict[str, Any]:
    """Return the SDK's arguments for a condition."""
    if isinstance(condition, Match):
        return {"etag": f'"{condition.version}"', "match_condition": MatchConditions.IfNotModified}
    return {"match_condition": MatchConditions.IfMissing} if condition == "create_only" else {}


class AzureReader:
    """The bytes of one version of a blob, fetched in chunks that name it; see `ObjectReader`.

    At most one chunk is in memory.
    """

    def __init__(self, blob: BlobClient, origin: Origin, stat: ObjectStat, first: bytes, span: range) -> None:
        """Read a range of a blob whose beginning is already here.

        Args:
            blob: the blob.
            origin: for errors.
            stat: of the version that is being read.
            first: the bytes that the first request has brought.
            span: the offsets of those that are still to be fetched.
        """
        self._blob = blob
        self._origin = origin
        self._stat = stat
        self._chunk = memoryview(first)
        self._span = span

    @property
    def stat(self) -> ObjectStat:
        return self._stat

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, `b""` only at the end.

        Raises:
            Unavailable: the object was overwritten or deleted meanwhile, or the answer broke off.
        """
        if not self._chunk and self._span:
            self._chunk = memoryview(self._fetch())
        data, self._chunk = bytes(self._chunk[:size]), self._chunk[size:]
        return data

    def close(self) -> None:
        self._chunk = memoryview(b"")
        self._span = range(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _fetch(self) -> bytes:
        wanted, self._span = self._span[:CHUNK], self._span[CHUNK:]
        what = f"{self._stat.bucket}/{self._stat.key}"
        pinned = conditions(Match(self._stat.version))
        try:
            data = download(self._blob, wanted.start, len(wanted), **pinned)[1]
        except SDK_ERRORS as error:
            raise self._broken(error, what) from None
        if len(data) != len(wanted):
            raise Unavailable(f"{self._origin.store}: {what}: {self._origin.endpoint}: the answer was too short")
        return data

    def _broken(self, error: Exception, what: str) -> Exception:
        if code_of(error) in {"ConditionNotMet", "BlobNotFound", "412"}:
            return Unavailable(f"{self._origin.store}: {what} was overwritten or deleted while it was read")
        return translate(error, self._origin, what)


def download(blob: BlobClient, offset: int, length: int | None, **pinned: Any) -> tuple[BlobProperties, bytes]:
    """Ask for at most one chunk, as it is stored, and return the properties of the blob and the bytes.

    Raises:
        HttpResponseError: among others when the range is past the end.
    """
    start = None if not offset and length is None else offset  # the SDK knows a way for empty blobs only without it
    try:
        stream = blob.download_blob(
            offset=start, length=length and min(length, CHUNK), max_concurrency=1, decompress=False, **pinned
        )
        first = next(stream.chunks(), b"")  # `read` would copy it twice
    except ValueError:  # an answer without what Azure always says
        raise HttpResponseError("no answer of Azure") from None
    properties: BlobProperties = stream.properties
    properties.size = int(str(properties.content_range).rpartition("/")[2])
    return properties, first


def _stat(
    bucket: str, key: str, *, size: int, etag: str, modified: datetime, metadata: Mapping[str, str], md5: bytes | None
) -> ObjectStat:
    version = version_of(etag)
    return ObjectStat(
        bucket=bucket,
        key=key,
        size=size,
        version=version,
        modified=modified,
        sha256=_digest(metadata),
        metadata={name: unquote(value) for name, value in metadata.items() if name not in _OURS},
        storage_tags={"etag": version} | ({"content_md5": md5.hex()} if md5 else {}),
    )


def _digest(metadata: Mapping[str, str]) -> str | None:
    claimed = metadata.get(SHA256, "").strip().lower()
    return claimed if _HEX.fullmatch(claimed) else None
