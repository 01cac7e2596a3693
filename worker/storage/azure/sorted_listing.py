"""Sort a listing by the UTF-8 of its keys, page by page.

Azure documents that it lists by name and not how names compare. Services on .NET and JavaScript compare UTF-16, where
characters above U+FFFF come before U+E000 to U+FFFF; in UTF-8 they come after. Nothing else differs. So this module
accepts both orders: after a common prefix, keys that continue with such a high character are held back until those that
continue with U+E000 to U+FFFF have been listed. At most `HELD` rows per level are held back: beyond that, the other
keys are listed with a request of their own first, and skipped later.
"""

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Generic, Protocol, TypeVar

HELD = 1_000
_AFTER_SURROGATES = "\ue000"
_ABOVE = "\uffff"


class Keyed(Protocol):
    """A row of a listing."""

    @property
    def key(self) -> str: ...


Row = TypeVar("Row", bound=Keyed)


def safe_start(after: str) -> str:
    """Return a key from which a listing, in either order, has all keys that come after `after` in UTF-8."""
    cut = next((at for at, char in enumerate(after) if _AFTER_SURROGATES <= char <= _ABOVE), len(after))
    return after[:cut]


class ByteOrder(Generic[Row]):
    """Sorts one listing.

    `again(prefix, start)` lists the keys with `prefix` again, from `start` on.
    """

    def __init__(self, again: Callable[[str, str], Iterator[Row]]) -> None:
        self._again = again
        self._last = ""

    def sort(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Yield the rows by the UTF-8 bytes of their keys.

        Raises:
            ValueError: the store lists in an order that is neither UTF-8 nor UTF-16.
        """
        for row in self._sort(_Ahead(rows), 0):
            if self._last and row.key <= self._last:
                msg = f"the store lists {row.key!r} after {self._last!r}"
                raise ValueError(msg)
            self._last = row.key
            yield row

    def _sort(self, rows: "_Ahead[Row]", base: int) -> Iterator[Row]:
        while (row := rows.peek()) is not None:
            at = next((at for at in range(base, len(row.key)) if row.key[at] > _ABOVE), None)
            if at is None:
                yield row
                next(rows)
            else:
                yield from self._below(rows, row.key[:at], at)

    def _below(self, rows: "_Ahead[Row]", beginning: str, at: int) -> Iterator[Row]:
        """Yield the keys with this prefix: first those that continue with U+E000 to U+FFFF, then the higher ones."""
        high = rows.during(lambda key: key.startswith(beginning) and key[at : at + 1] > _ABOVE)
        held = list(islice(high, HELD))
        late = rows.during(lambda key: key.startswith(beginning))
        if len(held) < HELD:
            yield from self._sort(_Ahead(late), at + 1)
            yield from sorted(held, key=lambda row: row.key)
            return
        anew = self._again(beginning, beginning + _AFTER_SURROGATES)
        yield from self._sort(_Ahead(row for row in anew if self._is_late(row.key, at)), at + 1)
        yield from self._sort(_Ahead(chain(held, high)), at + 1)
        for _ in late:  # seen already
            pass

    def _is_late(self, key: str, at: int) -> bool:
        return _AFTER_SURROGATES <= key[at : at + 1] <= _ABOVE and key > self._last


class _Ahead(Generic[Row]):
    """An iterator whose next row can be read before it is taken."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self._next: Row | None = None

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        row = self.peek()
        if row is None:
            raise StopIteration
        self._next = None
        return row

    def peek(self) -> Row | None:
        if self._next is None:
            self._next = next(self._rows, None)
        return self._next

    def during(self, belongs: Callable[[str], bool]) -> Iterator[Row]:
        """Yield rows as long as their keys belong; the first that does not stays."""
        while (row := self.peek()) is not None and belongs(row.key):
            yield next(self)
