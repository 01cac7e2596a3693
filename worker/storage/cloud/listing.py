"""Read the pages of a listing, with limits against a store that lists without end."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from worker.storage.cloud.error_mapping import Origin
from worker.storage.driver import Driver
from worker.storage.errors import StorageError, Unavailable
from worker.storage.keys import RESERVED_SEGMENT

EMPTY_PAGES = 1_000
"""Pages without a row, one after the other, before a listing is given up. Some stores give a few, after deletions."""

_MAX_DIGITS = 16
"""Digits of a size. No store has objects of 10 PB, and the catalogue could not add up some hundred larger ones."""
_ROOT = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?[^>]*>\s*|<!--.*?-->\s*)*<(?:[A-Za-z0-9_]+:)?([A-Za-z0-9_]+)", re.DOTALL
)

_Row = TypeVar("_Row")


def listed_version(driver: Driver, bucket: str, key: str) -> str:
    """Return the version tag that a listing gives an object, where a proxy strips it from the answer about the object.

    It is empty where the store gives none there either, or may not be listed.
    """
    try:
        row = next(driver.iter_objects(bucket, key), None)
    except StorageError:
        return ""
    return row.version if row and row.key == key else ""


def rows_of(pages: Iterable[Any], rows: Callable[[Any], Iterable[_Row]], origin: Origin, what: str) -> Iterator[_Row]:
    """Yield the rows of the pages of a listing.

    Raises:
        Unavailable: the store gives empty pages, or the same page, without end.
    """
    empty = 0
    begun_with: object = None
    for page in pages:
        found = False
        for row in rows(page):
            if not found:
                facts = getattr(row, "_properties", row)  # two rows of Google's library are never equal
                if facts == begun_with:
                    raise Unavailable(
                        f"{origin.store}: {what}: {origin.endpoint}: the listing gives the same page again, so the "
                        "store ignores where a page begins and cannot be used; check `endpoint`"
                    )
                found, begun_with = True, facts
            yield row
        empty = 0 if found else empty + 1
        if empty >= EMPTY_PAGES:
            raise Unavailable(
                f"{origin.store}: {what}: {origin.endpoint}: the listing gives {empty} empty pages in a row"
            )


def inside(rows: Iterable[_Row], prefix: str, name: Callable[[_Row], object], origin: Origin) -> Iterator[_Row]:
    """Yield the rows of a listing whose names begin with the prefix that was asked for.

    Raises:
        Unavailable: a name does not. A gateway that ignores the prefix shows other buckets as part of this one, where
            cleanup would remove what it finds.
    """
    for row in rows:
        if not str(name(row)).startswith(prefix):
            raise Unavailable(
                f"{origin.store}: {origin.endpoint}: the listing of {prefix!r} has {str(name(row))[:200]!r}, so the "
                "store ignores prefixes and cannot be used; check `endpoint`"
            )
        yield row


def without_malformed(page: bytes, readable: Mapping[str, Callable[[str], object]]) -> bytes:
    """Return a page of a listing in XML without the values that its SDK could not read.

    One such value would make the SDK reject the whole page, so that no listing would get past it.

    Args:
        page: the answer of the store.
        readable: by element name, a function that raises ValueError for a malformed value.
    """

    def kept(found: re.Match[bytes]) -> bytes:
        try:
            readable[found[1].decode()](found[2].decode())
        except (ValueError, OverflowError):
            return b""
        return found[0]

    names = "|".join(map(re.escape, readable))
    return re.sub(rf"<({names})>([^<]*)</\1>".encode(), kept, page)


def is_document(page: bytes, root: str) -> bool:
    """Return whether an answer is an XML document with this root element.

    The SDKs take every other document, also that of a portal or of another request, for a listing without a row.
    """
    found = _ROOT.match(page)
    return found is not None and found[1].decode() == root


def size_of(said: object) -> int | None:
    """Return the size in a row of a listing, or None."""
    return int(str(said)) if str(said).isdecimal() and len(str(said)) <= _MAX_DIGITS else None


def check_size(said: str) -> None:
    """Raise ValueError for a text that is no size in bytes."""
    if size_of(said) is None:
        msg = f"{said!r} is no size"
        raise ValueError(msg)


def is_reserved(key: str) -> bool:
    """Return whether a key belongs to the worker, so that no listing shows it."""
    return f"/{RESERVED_SEGMENT}" in f"/{key}"
