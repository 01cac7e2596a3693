"""The digests of its bytes that an HTTP host announces, in the headers that hosts use for them."""

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Protocol

import google_crc32c

Told = frozenset[tuple[str, bytes]]
"""Algorithms, each with a digest."""


class Hash(Protocol):
    """Computes one digest."""

    def update(self, data: bytes, /) -> None:
        """Hash more bytes."""
        ...

    def digest(self) -> bytes:
        """Return the digest of the bytes so far."""
        ...


_HASHES: Mapping[str, Callable[[], Hash]] = {
    "sha-256": hashlib.sha256,
    "sha-512": hashlib.sha512,
    "sha": partial(hashlib.sha1, usedforsecurity=False),
    "md5": partial(hashlib.md5, usedforsecurity=False),
    "crc32c": google_crc32c.Checksum,
}
"""The algorithms by the names that RFC 9530 and 3230 give them; the computed value has the size of a right one."""
_SIZES = {name: len(make().digest()) for name, make in _HASHES.items()}
ALGORITHMS = frozenset(_HASHES)
_LISTS = ("Repr-Digest", "Digest", "X-Goog-Hash")
"""Headers with `NAME=BASE64` entries about the whole resource, also in an answer that is a range of it."""
_HEX = {"X-Checksum-Sha256": "sha-256", "X-Checksum-Sha512": "sha-512", "X-Checksum-Sha1": "sha",
        "X-Checksum-Md5": "md5"}  # fmt: skip
"""Headers of Artifactory and other repositories, about the whole resource."""


def hashes(names: Iterable[str]) -> dict[str, Hash]:
    """Return a new hash for each of these algorithms."""
    return {name: _HASHES[name]() for name in names}


def digests_of(headers: Mapping[str, str], *, whole: bool) -> Told:
    """Return the digests that headers or trailers announce; what cannot be read is left out.

    Args:
        headers: of the answer.
        whole: the answer is the whole resource; of a range, what is said of the message itself does not count.
    """
    found = set()
    for header in (*_LISTS, *(["Content-Digest"] if whole else [])):
        if header == "X-Goog-Hash" and headers.get("X-Goog-Stored-Content-Encoding", "identity") != "identity":
            continue  # it is of the bytes as they are stored, which are decompressed on the way
        for entry in headers.get(header, "").split(","):
            name, _, text = entry.strip().partition("=")
            found.add((name.lower(), _base64(text.strip(":"))))
    if whole:
        found.add(("md5", _base64(headers.get("Content-MD5", "").strip())))
    for header, name in _HEX.items():
        with suppress(ValueError):
            found.add((name, bytes.fromhex(headers.get(header, ""))))
    return frozenset((name, digest) for name, digest in found if len(digest) == _SIZES.get(name))


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""
