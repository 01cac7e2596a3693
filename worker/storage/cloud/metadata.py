"""The metadata that a cloud keeps beside the bytes: the digest, the token of the write, and the user's own."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from worker.storage.cloud.listing import size_of
from worker.storage.driver import ObjectProperties, ObjectStat, WriteInfo
from worker.storage.errors import InvalidMetadata, UnexpectedAnswer

SHA256 = "sha256"
UNKNOWN_TIME = datetime.fromtimestamp(0, UTC)
"""In place of a time that the store does not give; no decision depends on it."""
NO_PROPERTIES = ObjectProperties()
_HEADERS = tuple(field.name for field in fields(ObjectProperties) if field.name != "tags")
_DEFAULT_TYPES = {"application/octet-stream", "binary/octet-stream"}
"""The types that stores give to objects without one."""
_DIGITS = 64
_SHA256_HEX = re.compile(rf"[0-9a-f]{{{_DIGITS}}}")
_TOKEN = 32
"""Characters of the token of a write at most."""
_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")


@dataclass(frozen=True, slots=True)
class MetadataFormat:
    """How one provider keeps metadata; it is the provider's `MetadataRules`.

    Attributes:
        writer: the name under which the token of the write is kept.
        name: the pattern that a user's name must match.
        rule: the same in words, for messages.
        percent_encoded: values travel as HTTP headers, so all but visible ASCII is percent-encoded; spaces too, because
            headers lose them at their ends.
        limit: bytes of all names and values that the provider takes.
    """

    writer: str
    name: re.Pattern[str]
    rule: str
    percent_encoded: bool
    limit: int

    def encode(self, info: WriteInfo, writer: str, where: str) -> dict[str, str]:
        """Return the metadata to send: the digest, the token `writer`, and the user's own.

        Raises:
            InvalidMetadata: a name that the provider cannot keep or that is reserved, a value that is not Unicode, or
                more than the provider keeps; `where` names store and key in the message.
        """
        check_properties(info.properties, where)
        if info.metadata:
            self.check(info.metadata, where)
        user = {name: self._encode_item(name, value, where) for name, value in info.metadata.items()}
        return user | {SHA256: str(info.sha256), self.writer: writer}

    def check(self, metadata: Mapping[str, str], where: str) -> None:
        """Check the user's own metadata; raise as `encode`."""
        size = self._ours + sum(self._size_of(name, value, where) for name, value in metadata.items())
        if size > self.limit:
            raise InvalidMetadata(f"{where}: the metadata takes {size} bytes, the store keeps at most {self.limit}")

    def kept(self, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """Return the part of the user's metadata that the store can keep; the largest values are left out first."""
        sizes: dict[str, int] = {}
        for name, value in metadata.items():
            with suppress(InvalidMetadata):
                sizes[name] = self._size_of(name, value, "")
        while self._ours + sum(sizes.values()) > self.limit:
            del sizes[max(sizes, key=lambda name: (sizes[name], name))]
        return {name: value for name, value in metadata.items() if name in sizes}

    def stored(self, answered: Mapping[str, str] | None) -> Mapping[str, str]:
        """Return the metadata of an answer with lower-case names: some stores return `Sha256` or `SHA256`."""
        ours = {SHA256, self.writer}
        folds = self.percent_encoded  # header names have no case; only Cloud Storage keeps it
        return {
            (name.lower() if folds or name.lower() in ours else name): value for name, value in (answered or {}).items()
        }

    def make_stat(
        self,
        store: str,
        bucket: str,
        key: str,
        *,
        size: Any,
        version: Any,
        modified: Any,
        stored: Mapping[str, str],
        tags: Mapping[str, str | None],
        sha256: str | None = None,
        properties: ObjectProperties = NO_PROPERTIES,
        not_carried: Mapping[str, object] | None = None,
    ) -> ObjectStat:
        """Return the stat of an object from the fields of an answer.

        A missing or impossible time becomes UNKNOWN_TIME.

        Args:
            store: its name, for messages.
            bucket: the logical bucket.
            key: the key in it.
            size: in bytes; a number, or digits.
            version: the version tag.
            modified: a datetime, if the answer gives one.
            stored: the metadata; see `stored`.
            tags: weaker evidence; empty ones are left out.
            sha256: the digest that the store itself has computed, if it gives one; metadata goes first.
            properties: the headers that the store keeps.
            not_carried: what else it keeps, by name; empty values are left out.

        Raises:
            UnexpectedAnswer: the answer has no version tag or no size.
        """
        if not version or size_of(size) is None:
            lacking = "the version tag" if not version else "the size"
            raise UnexpectedAnswer(f"{store}: {bucket}/{key}: the answer of the store lacks {lacking}")
        return ObjectStat(
            bucket=bucket,
            key=key,
            size=int(str(size)),
            version=str(version),
            modified=modified if isinstance(modified, datetime) else UNKNOWN_TIME,
            sha256=sha256_of(stored.get(SHA256)) or sha256,
            metadata={name: self._decode(value) for name, value in stored.items() if name not in {SHA256, self.writer}},
            storage_tags={name: tag for name, tag in tags.items() if tag},
            properties=properties,
            not_carried=tuple(name for name, value in (not_carried or {}).items() if value),
        )

    @property
    def _ours(self) -> int:
        """Return the bytes of the digest and of the longest token of a write, with their names."""
        return len(SHA256) + _DIGITS + len(self.writer) + _TOKEN

    def _size_of(self, name: str, value: str, where: str) -> int:
        return len(name) + len(self._encode_item(name, value, where).encode())

    def _encode_item(self, name: str, value: str, where: str) -> str:
        if name in {SHA256, self.writer} or not self.name.fullmatch(name):
            raise InvalidMetadata(
                f"{where}: metadata {name!r} is not allowed: {self.rule}, and neither {SHA256!r} nor {self.writer!r}"
            )
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidMetadata(f"{where}: the value of metadata {name!r} is not valid Unicode") from None
        return quote(value, safe=_PRINTABLE) if self.percent_encoded else value

    def _decode(self, value: str) -> str:
        """Return a value as the user gave it, or as it is stored if it is not percent-encoded UTF-8."""
        if not self.percent_encoded:
            return value
        try:
            return unquote_to_bytes(value).decode()
        except UnicodeError:
            return value


def properties_of(said: Callable[[str], object]) -> ObjectProperties:
    """Return the properties in `said` by the names of ObjectProperties; a default type is left out."""
    found = {name: str(value) for name in _HEADERS if (value := said(name))}
    if found.get("content_type") in _DEFAULT_TYPES:
        del found["content_type"]
    return ObjectProperties(**found)


def check_properties(properties: ObjectProperties, where: str) -> None:
    """Raise InvalidMetadata if a property cannot travel as an HTTP header."""
    for name, value in set_properties(properties).items():
        if not is_header(value):
            raise InvalidMetadata(f"{where}: {name} {value!r} is not printable ASCII, as HTTP headers are")


def is_header(value: str) -> bool:
    """Return whether a text can be the value of an HTTP header."""
    return value.isascii() and value.isprintable()


@lru_cache(maxsize=64)
def set_properties(properties: ObjectProperties) -> MappingProxyType[str, str]:
    """Return the headers that are set, by name. The objects of a page have the same."""
    return MappingProxyType({name: value for name in _HEADERS if (value := getattr(properties, name)) is not None})


@lru_cache(maxsize=8)
def moment_of(date: str) -> datetime:
    """Return the time in a header of an answer; the answers of one second have the same.

    Raises:
        ValueError: it is none.
    """
    return parsedate_to_datetime(date)


def sha256_of(claimed: str | None) -> str | None:
    """Return a SHA-256 in lower-case hex digits, or None for anything else."""
    digits = (claimed or "").strip().lower()
    return digits if _SHA256_HEX.fullmatch(digits) else None
