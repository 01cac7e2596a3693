"""The pages of a listing, with a bound on what a store can make of them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from worker.storage.cloud.error_mapping import Origin
from worker.storage.errors import Unavailable
from worker.storage.keys import RESERVED_SEGMENT

EMPTY_PAGES = 1_000
"""Pages without a row, one after the other, before a listing is given up. Some stores give a few, after deletions."""

_Row = TypeVar("_Row")


def rows_of(pages: Iterable[Any], rows: Callable[[Any], Iterable[_Row]], origin: Origin, what: str) -> Iterator[_Row]:
    """Yield the rows of the pages of a listing.

    Raises:
        Unavailable: the store gives empty pages without end.
    """
    empty = 0
    for page in pages:
        found = False
        for row in rows(page):
            found = True
            yield row
        empty = 0 if found else empty + 1
        if empty >= EMPTY_PAGES:
            raise Unavailable(
                f"{origin.store}: {what}: {origin.endpoint}: the listing gives {empty} empty pages in a row"
            )


def is_reserved(key: str) -> bool:
    """Return whether a key is one of ours, which no listing shows."""
    return f"/{RESERVED_SEGMENT}" in f"/{key}"
