"""What Cloud Storage says of an object, in our values: metadata both ways, the stat, and the bytes."""

import re
from collections.abc import Mapping
from datetime import datetime
from types import SimpleNamespace
from typing import Any, Self

import requests

from worker.storage.cloud.error_mapping import Origin
from worker.storage.driver import Match, ObjectStat, WriteInfo
from worker.storage.errors import PermanentError, Unavailable
from worker.storage.gcs.errors import SDK_ERRORS, translate

SHA256 = "sha256"
WRITER = "zot-writer"
"""A token of its own for every write: whose object lies there after a reply was lost."""
CONTENT_TYPE = "application/octet-stream"
CACHE_CONTROL = "no-transform"
"""Or a download could be handed out decompressed, with other bytes than those that were stored."""
_OURS = {SHA256, WRITER}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_HEX = re.compile(r"[0-9a-f]{64}")
_NEVER = 1
"""A generation that no object has: they are microseconds since 1970."""


def to_metadata(info: WriteInfo, writer: str) -> dict[str, str]:
    """Return the metadata to store: the digest, the writer's token, and the user's own.

    Names are those that every store can keep, so that an artifact can be replicated with them.

    Raises:
        PermanentError: a name that cannot be a header, or is ours.
    """
    for name in info.metadata:
        if name in _OURS or not _NAME.fullmatch(name):
            raise PermanentError(
                f"metadata {name!r} is not allowed: use lower-case ASCII letters, digits, '.', '_' or '-', "
                f"and neither {SHA256!r} nor {WRITER!r}"
            )
    return {**info.metadata, SHA256: str(info.sha256), WRITER: writer}


def described(metadata: Mapping[str, str], storage_class: str | None) -> dict[str, Any]:
    """Return all that an object has beside its bytes, as the store wants it in a request."""
    described = {"metadata": dict(metadata), "contentType": CONTENT_TYPE, "cacheControl": CACHE_CONTROL}
    return described | ({"storageClass": storage_class} if storage_class else {})


def generation_of(condition: Match) -> int:
    """Return the generation that a condition names; one that never was where it names another store's version."""
    return int(condition.version) if condition.version.isdecimal() else _NEVER


def to_stat(bucket: str, key: str, blob: Any) -> ObjectStat:
    """Return the stat of an object whose properties the library has loaded."""
    metadata = stored_metadata(blob)
    tags = {"crc32c": blob.crc32c, "md5": blob.md5_hash, "etag": blob.etag}
    return ObjectStat(
        bucket=bucket,
        key=key,
        size=int(blob.size or 0),
        version=str(blob.generation),
        modified=blob.updated,
        sha256=_digest(metadata),
        metadata={name: value for name, value in metadata.items() if name not in _OURS},
        storage_tags={name: value for name, value in tags.items() if value},
    )


def stored_metadata(blob: Any) -> Mapping[str, str]:
    """Return the metadata, our own names in lower case: other tools write `SHA256` as well."""
    stored: Mapping[str, str] = blob.metadata or {}
    return {(name.lower() if name.lower() in _OURS else name): value for name, value in stored.items()}


def blob_of(resource: Mapping[str, Any]) -> Any:
    """Return an answer's description of an object in the shape of the library's own, which cannot be made of one."""
    return SimpleNamespace(
        size=int(resource["size"]),
        generation=int(resource["generation"]),
        updated=datetime.fromisoformat(resource["updated"]),
        metadata=resource.get("metadata"),
        crc32c=resource.get("crc32c"),
        md5_hash=resource.get("md5Hash"),
        etag=resource.get("etag"),
    )


class GcsReader:
    """The bytes of one answer to a download; see `ObjectReader`. Without an answer there are none."""

    def __init__(self, stat: ObjectStat, reply: requests.Response | None, length: int, origin: Origin) -> None:
        self._stat = stat
        self._reply = reply
        self._left = length
        self._origin = origin

    @property
    def stat(self) -> ObjectStat:
        return self._stat

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes as they are stored, `b""` only at the end.

        Raises:
            Unavailable, Timeout: the answer broke off. Nothing is read again: who wants the rest opens it again.
        """
        wanted = min(size, self._left)
        if wanted == 0 or self._reply is None:
            return b""
        what = f"{self._stat.bucket}/{self._stat.key}"
        try:
            data: bytes = self._reply.raw.read(wanted, decode_content=False)
        except SDK_ERRORS as error:
            raise translate(error, self._origin, what) from error
        except OSError as error:
            raise Unavailable(f"{self._origin.store}: {what}: {self._origin.endpoint}: {error}") from error
        if not data:
            raise Unavailable(
                f"{self._origin.store}: {what}: {self._origin.endpoint}: broke off {self._left} bytes before the end"
            )
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Drop the connection where bytes are left: reading them only to use it again could take hours."""
        if self._reply is not None:
            self._reply.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _digest(metadata: Mapping[str, str]) -> str | None:
    claimed = metadata.get(SHA256, "").strip().lower()
    return claimed if _HEX.fullmatch(claimed) else None
