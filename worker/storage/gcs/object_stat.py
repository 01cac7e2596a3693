"""Convert Cloud Storage's properties of an object to an ObjectStat, and back."""

import re
from collections.abc import Mapping
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import requests
from requests.exceptions import InvalidJSONError

from worker.storage.cloud.conditional_write import Found
from worker.storage.cloud.metadata import NO_PROPERTIES, UNKNOWN_TIME, MetadataFormat, properties_of, set_properties
from worker.storage.driver import Match, ObjectProperties, ObjectStat

METADATA = MetadataFormat(
    writer="zot-writer",
    name=re.compile(r"[a-z0-9][a-z0-9._-]*"),
    rule="use lower-case ASCII letters, digits, '.', '_' or '-'",
    percent_encoded=False,
    limit=8 * 1024,
)
CONTENT_TYPE = "application/octet-stream"
CACHE_CONTROL = "no-transform"
"""Otherwise a download could be decompressed, with other bytes than the stored ones."""
_NEVER = 1
"""A generation that no object has: they are microseconds since 1970."""


def described(
    metadata: Mapping[str, str], storage_class: str | None, properties: ObjectProperties = NO_PROPERTIES
) -> dict[str, Any]:
    """Return the properties of an object for a request to the store."""
    described = {"metadata": dict(metadata), "contentType": CONTENT_TYPE, "cacheControl": CACHE_CONTROL}
    for name, value in set_properties(properties).items():
        first, *rest = name.split("_")
        described[first + "".join(rest).title()] = value
    return described | ({"storageClass": storage_class} if storage_class else {})


def generation_of(condition: Match) -> int:
    """Return the generation that a condition names; one of no object for a version tag of another store."""
    return int(condition.version) if condition.version.isdecimal() else _NEVER


def to_stat(store: str, bucket: str, key: str, blob: Any) -> ObjectStat:
    """Return the ObjectStat of an object whose properties were loaded.

    Raises:
        UnexpectedAnswer: it has no generation or no size.
    """
    facts = getattr(blob, "_properties", {})
    return METADATA.make_stat(
        store,
        bucket,
        key,
        size=blob.size,
        version=blob.generation,
        modified=updated(blob),
        stored=METADATA.stored(blob.metadata),
        tags={"crc32c": blob.crc32c, "md5": blob.md5_hash, "etag": blob.etag},
        properties=properties_of(lambda name: _property(blob, name)),
        not_carried={
            "custom time": facts.get("customTime"),
            "hold": facts.get("eventBasedHold") or facts.get("temporaryHold"),
            "object retention": facts.get("retention"),
        },
    )


def to_found(store: str, bucket: str, key: str, blob: Any) -> Found:
    """Return an object whose properties were loaded, with the token of its write."""
    return Found(to_stat(store, bucket, key, blob), METADATA.stored(blob.metadata).get(METADATA.writer))


def _property(blob: Any, name: str) -> object:
    value = getattr(blob, name, None)
    return None if (name, value) == ("cache_control", CACHE_CONTROL) else value  # the worker sets it if none is given


def blob_of(reply: requests.Response) -> Any:
    """Return the object in an answer, with the attributes of the library's class, which cannot be made from an answer.

    Raises:
        InvalidJSONError: the answer describes no object.
    """
    try:
        resource = reply.json()
        return SimpleNamespace(
            name=resource["name"],
            size=int(resource["size"]),
            generation=int(resource["generation"]),
            updated=_time(resource.get("updated")),
            metadata=resource.get("metadata"),
            crc32c=resource.get("crc32c"),
            md5_hash=resource.get("md5Hash"),
            etag=resource.get("etag"),
            content_type=resource.get("contentType"),
            content_encoding=resource.get("contentEncoding"),
            content_disposition=resource.get("contentDisposition"),
            content_language=resource.get("contentLanguage"),
            cache_control=resource.get("cacheControl"),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        msg = "the answer describes no object"
        raise InvalidJSONError(msg) from None


def updated(blob: Any) -> datetime:
    """Return when an object was written, or UNKNOWN_TIME if the store gives no valid time."""
    try:
        return blob.updated or UNKNOWN_TIME
    except (ValueError, OverflowError):  # the library parses it when it is asked for
        return UNKNOWN_TIME


def _time(said: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(said))
    except ValueError:
        return None
