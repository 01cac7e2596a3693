"""What S3 says of an object, in our values: metadata both ways, the stat, and the bytes."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, Self
from urllib.parse import quote, unquote

from botocore.exceptions import IncompleteReadError

from worker.storage.cloud.error_mapping import Origin
from worker.storage.driver import ObjectStat, WriteInfo
from worker.storage.errors import PermanentError, Unavailable
from worker.storage.s3.errors import SDK_ERRORS, translate

SHA256 = "sha256"
WRITER = "zot-writer"
"""A token of its own for every put: whose object lies there after a reply was lost."""
_OURS = {SHA256, WRITER}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_HEX = re.compile(r"[0-9a-f]{64}")
_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")


def to_metadata(info: WriteInfo, token: str) -> dict[str, str]:
    """Return the metadata to store: the digest, the writer's token, and the user's own.

    Names travel as HTTP headers, so they are lower-case ASCII. Values may be anything: what is not visible ASCII is
    percent-encoded, spaces too, because headers lose those at their ends.

    Raises:
        PermanentError: a name that cannot be a header, or is ours.
    """
    for name in info.metadata:
        if name in _OURS or not _NAME.fullmatch(name):
            raise PermanentError(
                f"metadata {name!r} is not allowed: use lower-case ASCII letters, digits, '.', '_' or '-', "
                f"and neither {SHA256!r} nor {WRITER!r}"
            )
    user = {name: quote(value, safe=_PRINTABLE) for name, value in info.metadata.items()}
    return user | {SHA256: str(info.sha256), WRITER: token}


class Facts(Protocol):
    """What the answers to HEAD and GET have in common."""

    def __getitem__(self, name: Any, /) -> Any: ...
    def get(self, name: Any, /) -> Any: ...


def to_stat(bucket: str, key: str, facts: Facts) -> ObjectStat:
    """Return the stat that the answer to a HEAD or a GET gives."""
    metadata = stored_metadata(facts)
    etag = str(facts["ETag"]).strip('"')  # some stores quote it in one answer and not in the next
    modified: datetime = facts["LastModified"]
    return ObjectStat(
        bucket=bucket,
        key=key,
        size=_whole_size(facts),
        version=etag,
        modified=modified,
        sha256=_digest(metadata),
        metadata={name: unquote(value) for name, value in metadata.items() if name not in _OURS},
        storage_tags={"etag": etag},
    )


def written_stat(bucket: str, key: str, size: int, metadata: Mapping[str, str], reply: Mapping[str, Any]) -> ObjectStat:
    """Return the stat of what was just written, from the answer to the write.

    Asking again would cost a request, and could already show the version of somebody else. The time is that of the
    answer, by the store's clock.
    """
    date = reply["ResponseMetadata"]["HTTPHeaders"].get("date")
    modified = reply.get("LastModified") or (parsedate_to_datetime(date) if date else datetime.now(UTC))
    facts = {"ETag": reply["ETag"], "LastModified": modified, "ContentLength": size, "Metadata": metadata}
    return to_stat(bucket, key, facts)


def stored_metadata(facts: Facts) -> Mapping[str, str]:
    """Return the metadata as it is stored, under lower-case names: some servers answer with `Sha256`."""
    return {name.lower(): value for name, value in (facts.get("Metadata") or {}).items()}


class S3Reader:
    """The bytes of one answer to a GET; see `ObjectReader`."""

    def __init__(self, stat: ObjectStat, stream: Any, length: int, origin: Origin) -> None:
        self._stat = stat
        self._stream = stream
        self._left = length
        self._origin = origin

    @property
    def stat(self) -> ObjectStat:
        return self._stat

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, `b""` only at the end.

        Raises:
            Unavailable, Timeout: the answer broke off. Nothing is read again: who wants the rest opens it again.
        """
        wanted = min(size, self._left)
        if wanted == 0:
            return b""
        try:
            data: bytes = self._stream.read(wanted)
        except (*SDK_ERRORS, OSError) as error:
            raise self._broken(error) from error
        if not data:
            raise self._broken(IncompleteReadError(actual_bytes=0, expected_bytes=self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Drop the connection where bytes are left: reading them only to use it again could take hours."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _broken(self, error: Exception) -> Exception:
        what = f"{self._stat.bucket}/{self._stat.key}"
        if isinstance(error, SDK_ERRORS):
            return translate(error, self._origin, what)
        return Unavailable(f"{self._origin.store}: {what}: {self._origin.endpoint}: {error}")


def _digest(metadata: Mapping[str, str]) -> str | None:
    claimed = metadata.get(SHA256, "").strip().lower()
    return claimed if _HEX.fullmatch(claimed) else None


def _whole_size(facts: Facts) -> int:
    """Return the size of the object, of which a range is only a part."""
    _, _, total = str(facts.get("ContentRange") or "").rpartition("/")
    return int(total) if total.isdecimal() else int(facts["ContentLength"])
