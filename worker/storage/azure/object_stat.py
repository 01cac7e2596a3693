"""Convert Azure's properties of a blob to an ObjectStat, and download the bytes of one version."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobClient, BlobProperties

from worker.storage.cloud.conditional_write import Found, Write
from worker.storage.cloud.metadata import MetadataFormat, properties_of
from worker.storage.cloud.response_body import HttpBody
from worker.storage.driver import Condition, Match, ObjectStat

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


def written_stat(store: str, write: Write, reply: Mapping[str, Any], *, md5: str | None = None) -> ObjectStat:
    """Return the ObjectStat of a write from the answer to it. `md5`: what Azure keeps with a blob from one request.

    Another request could already show the version of another writer.

    Raises:
        UnexpectedAnswer: the answer has no ETag.
    """
    version = version_of(reply.get("etag"))
    tags = {"etag": version, "content_md5": md5}
    return write.stat(METADATA, store, version=version, modified=reply.get("last_modified"), tags=tags)


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


def download(blob: BlobClient, offset: int, length: int | None) -> tuple[BlobProperties, HttpBody]:
    """Ask for a range, as it is stored, and return the properties of the blob and the bytes, which are still to come.

    Raises:
        HttpResponseError: among others when the range is past the end.
    """
    answers: list[Any] = []

    def keep(reply: Any) -> None:
        """Let the SDK take nothing of the body: it would hold all of it in memory, for a moment twice."""
        answers.append(reply.http_response)
        reply.http_response.stream_download = lambda *_args, **_more: _Untaken(reply.http_response)

    start = None if not offset and length is None else offset  # the SDK knows a way for empty blobs only without it
    try:
        properties: BlobProperties = blob.download_blob(
            offset=start, length=length, max_concurrency=1, decompress=False, raw_response_hook=keep
        ).properties
        properties.size = int(str(properties.content_range).rpartition("/")[2])
    except ValueError:  # an answer without what Azure always says
        _close(answers)
        raise HttpResponseError("no answer of Azure") from None
    except BaseException:
        _close(answers)
        raise
    end = properties.size if length is None else min(offset + length, properties.size)
    # The SDK puts the range that it asked for into the properties, not the one of the answer.
    said = answers[-1].headers.get("Content-Range")
    if offset < end and said and not said.startswith(f"bytes {offset}-{end - 1}/"):
        _close(answers)
        raise HttpResponseError("the answer has other bytes than were asked for")
    return properties, HttpBody(answers[-1].internal_response.raw)


class _Untaken:
    """The body of an answer as the SDK sees it: empty. It puts the properties of the blob here."""

    properties: BlobProperties

    def __init__(self, response: Any) -> None:
        self.response = response
        self.content_length = 0

    def __iter__(self) -> Iterator[bytes]:
        return iter(())


def _close(answers: Sequence[Any]) -> None:
    for answer in answers:
        answer.internal_response.close()
