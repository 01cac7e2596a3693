"""Convert S3's answers about an object to an ObjectStat."""

import base64
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from worker.storage.cloud.conditional_write import Found, Write
from worker.storage.cloud.metadata import MetadataFormat, moment_of, properties_of
from worker.storage.driver import ObjectStat

METADATA = MetadataFormat(
    writer="zot-writer",
    name=re.compile(r"[a-z0-9][a-z0-9._-]*"),
    rule="use lower-case ASCII letters, digits, '.', '_' or '-'",
    percent_encoded=True,
    limit=2 * 1024,
)


class Facts(Protocol):
    """The fields that the answers to HEAD and GET share."""

    def get(self, name: Any, /) -> Any: ...


def to_stat(store: str, bucket: str, key: str, facts: Facts) -> ObjectStat:
    """Return the ObjectStat of the answer to a HEAD or a GET.

    Raises:
        UnexpectedAnswer: it has no ETag or no size.
    """
    etag = version_of(facts.get("ETag"))
    return METADATA.make_stat(
        store,
        bucket,
        key,
        size=_whole_size(facts),
        version=etag,
        modified=facts.get("LastModified"),
        stored=METADATA.stored(facts.get("Metadata")),
        tags={"etag": etag},
        sha256=_full_object_sha256(facts),
        properties=properties_of(lambda name: facts.get(header_name(name))),
        not_carried={
            "tags": facts.get("TagCount"),
            "Expires": facts.get("Expires") or facts.get("ExpiresString"),
            "website redirect": facts.get("WebsiteRedirectLocation"),
            "object lock": facts.get("ObjectLockMode") or facts.get("ObjectLockLegalHoldStatus"),
        },
    )


def to_found(store: str, bucket: str, key: str, facts: Facts) -> Found:
    """Return the object that the answer to a HEAD gives, with the token of its write."""
    return Found(to_stat(store, bucket, key, facts), METADATA.stored(facts.get("Metadata")).get(METADATA.writer))


def written_stat(store: str, write: Write, reply: Mapping[str, Any]) -> ObjectStat:
    """Return the ObjectStat of a write from the answer to it.

    Another request could already show the version of another writer. The time is that of the answer, by the store's
    clock.

    Raises:
        UnexpectedAnswer: the answer has no ETag.
    """
    etag = version_of(reply.get("ETag"))
    modified = reply.get("LastModified") or _date_of(reply)
    return write.stat(METADATA, store, version=etag, modified=modified, tags={"etag": etag})


def header_name(name: str) -> str:
    """Return the SDK's name of a property, such as ContentType."""
    return name.title().replace("_", "")


def version_of(etag: object) -> str:
    """Return an ETag without quotes and mark.

    Some stores quote it in one answer and not in the next. A proxy that compresses answers marks it as weak, `W/"…"`,
    but a condition must name it without the mark.
    """
    return str(etag or "").removeprefix("W/").strip('"')


def _full_object_sha256(facts: Facts) -> str | None:
    """Return the SHA-256 that S3 computed of the whole object; None for a composite one of the parts' digests."""
    claimed = str(facts.get("ChecksumSHA256") or "")
    if not claimed or "-" in claimed or facts.get("ChecksumType") == "COMPOSITE" or facts.get("ContentRange"):
        return None
    try:
        digest = base64.b64decode(claimed, validate=True)
    except ValueError:
        return None
    return digest.hex() if len(digest) == 32 else None  # noqa: PLR2004  bytes of a SHA-256


def _whole_size(facts: Facts) -> object:
    """Return the size of the object, of which a range is only a part."""
    _, _, total = str(facts.get("ContentRange") or "").rpartition("/")
    return total if total.isdecimal() else facts.get("ContentLength")


def _date_of(reply: Mapping[str, Any]) -> datetime:
    try:
        return moment_of(reply["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, ValueError):
        return datetime.now(UTC)
