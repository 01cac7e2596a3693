"""Convert Azure's properties of a blob to an ObjectStat, and download the bytes of one version."""

import re
from collections.abc import Mapping
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobClient, BlobProperties

from worker.storage.azure.client import CHUNK
from worker.storage.azure.errors import SDK_ERRORS, code_of
from worker.storage.cloud.conditional_write import Found
from worker.storage.cloud.metadata import MetadataFormat, properties_of
from worker.storage.driver import Condition, Match, ObjectStat
from worker.storage.errors import Unavailable

METADATA = MetadataFormat(
    writer="zot_writer",
    name=re.compile(r"[a-z][a-z0-9_]*"),  # an identifier of C#
    rule="use lower-case ASCII letters, digits and '_', a letter first",
    percent_encoded=True,
    limit=8 * 1024,
)
DROPPING = "ended"
"""In place of a token: marks an empty blob that exists only to drop the blocks of an upload, and is deleted at once."""


def to_stat(store: str, bucket: str, key: str, properties: BlobProperties) -> ObjectStat:
    """Return the ObjectStat of the properties of a whole blob.

    Raises:
        UnexpectedAnswer: it has no ETag or no size.
    """
    md5 = properties.content_settings.content_md5
    version = version_of(properties.etag)
    return METADATA.make_stat(
        store,
        bucket,
        key,
        size=properties.size,
        version=version,
        modified=properties.last_modified,
        stored=METADATA.stored(properties.metadata),
        tags={"etag": version, "content_md5": bytes(md5).hex() if md5 else None},
        properties=properties_of(lambda name: getattr(properties.content_settings, name, None)),
        not_carried={
            "tags": properties.tag_count,
            "immutability policy": properties.immutability_policy.policy_mode,
            "legal hold": properties.has_legal_hold,
        },
    )


def to_found(store: str, bucket: str, key: str, properties: BlobProperties) -> Found:
    """Return an object with the token of its write."""
    return Found(to_stat(store, bucket, key, properties), writer_of(properties))


def written_stat(store: str, path: str, size: int, metadata: Mapping[str, str], reply: Mapping[str, Any]) -> ObjectStat:
    """Return the ObjectStat of a write to `path`, bucket and key, from the answer to the write.

    Another request could already show the version of another writer.

    Raises:
        UnexpectedAnswer: the answer has no ETag.
    """
    bucket, _, key = path.partition("/")
    version = version_of(reply.get("etag"))
    return METADATA.make_stat(
        store,
        bucket,
        key,
        size=size,
        version=version,
        modified=reply.get("last_modified"),
        stored=metadata,
        tags={"etag": version},
    )


def writer_of(properties: BlobProperties) -> str | None:
    """Return the token of the write that made a blob, if the worker made it."""
    return METADATA.stored(properties.metadata).get(METADATA.writer)


def is_object(properties: BlobProperties) -> bool:
    """Return whether a blob is an object: no folder, no unfinished copy and no blob that drops blocks."""
    metadata = METADATA.stored(properties.metadata)
    if metadata.get("hdi_isfolder") == "true" or metadata.get(METADATA.writer) == DROPPING:
        return False
    return properties.copy.status in {None, "success"}


def version_of(etag: object) -> str:
    """Return an ETag without the quotes that it has in headers and not in listings."""
    return str(etag or "").removeprefix("W/").strip('"')


def conditions(condition: Condition) -> dict[str, Any]:
    """Return the SDK's arguments for a condition."""
    if isinstance(condition, Match):
        return {"etag": f'"{condition.version}"', "match_condition": MatchConditions.IfNotModified}
    return {"match_condition": MatchConditions.IfMissing} if condition == "create_only" else {}


class BlobStream:
    """The bytes of one version of a blob, fetched in chunks that name it. At most one chunk is in memory."""

    def __init__(self, blob: BlobClient, store: str, stat: ObjectStat, first: bytes, span: range) -> None:
        """Read a range of a blob whose beginning is already here.

        Args:
            blob: the blob.
            store: its store, for errors.
            stat: of the version that is being read.
            first: the bytes that the first request has brought.
            span: the offsets of those that are still to be fetched.
        """
        self._blob = blob
        self._store = store
        self._stat = stat
        self._chunk = memoryview(first)
        self._span = span

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, `b""` only at the end.

        Raises:
            Unavailable: the object was overwritten or deleted meanwhile.
        """
        if not self._chunk and self._span:
            self._chunk = memoryview(self._fetch())
        data, self._chunk = bytes(self._chunk[:size]), self._chunk[size:]
        return data

    def close(self) -> None:
        self._chunk = memoryview(b"")
        self._span = range(0)

    def _fetch(self) -> bytes:
        wanted, self._span = self._span[:CHUNK], self._span[CHUNK:]
        pinned = conditions(Match(self._stat.version))
        what = f"{self._store}: {self._stat.bucket}/{self._stat.key}"
        try:
            data = download(self._blob, wanted.start, len(wanted), **pinned)[1]
        except SDK_ERRORS as error:
            if code_of(error) in {"ConditionNotMet", "BlobNotFound", "412"}:
                raise Unavailable(f"{what} was overwritten or deleted while it was read") from None
            raise
        if len(data) != len(wanted):
            raise Unavailable(f"{what}: the answer has {len(data)} bytes, {len(wanted)} were asked for")
        return data


def download(blob: BlobClient, offset: int, length: int | None, **pinned: Any) -> tuple[BlobProperties, bytes]:
    """Ask for at most one chunk, as it is stored, and return the properties of the blob and the bytes.

    Raises:
        HttpResponseError: among others when the range is past the end.
    """
    told: list[str] = []  # the SDK puts the range that it asked for into the properties, not the one of the answer
    start = None if not offset and length is None else offset  # the SDK knows a way for empty blobs only without it
    try:
        stream = blob.download_blob(
            offset=start,
            length=length and min(length, CHUNK),
            max_concurrency=1,
            decompress=False,
            raw_response_hook=lambda reply: told.append(reply.http_response.headers.get("Content-Range") or ""),
            **pinned,
        )
        first = next(stream.chunks(), b"")  # `read` would copy it twice
        properties: BlobProperties = stream.properties
        properties.size = int(str(properties.content_range).rpartition("/")[2])
    except ValueError:  # an answer without what Azure always says
        raise HttpResponseError("no answer of Azure") from None
    if first and told[-1] and not told[-1].startswith(f"bytes {offset}-{offset + len(first) - 1}/"):
        raise HttpResponseError("the answer has other bytes than were asked for")
    return properties, first
