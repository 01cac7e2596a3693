"""Ask for many keys with one listing whether they are free, before a store without conditions is written to.

Such a store decides no condition, so each write that only creates is preceded by a request for what is under its key.
For small objects those requests took a third of the time of all. A listing is used for a second at most: what another
program writes meanwhile is overwritten, as it is between any such request and its write.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from os.path import commonprefix
from typing import Any, NamedTuple

from worker.storage.errors import StorageError

_TRUSTED = 1.0
"""Seconds for which a listing says which keys are free."""
_ROWS = 4
"""Rows of the first listing: where no other key is in between, the first row tells that all are free."""
_MOST_ROWS = 100
"""Rows of a listing after others that did not come to the last key: more would cost more than they tell."""
_FEWEST = 4
"""Keys that are asked for together; fewer are asked for one by one."""

_LOWEST, _HIGHEST = ord("!"), ord("~")
"""Characters of a text that any store takes as it is."""

ListPage = Callable[[str, str, str, int], Mapping[str, Any]]
"""Returns the first page of a listing of a bucket: with a prefix, after a key, and with at most so many rows."""


class _Listed(NamedTuple):
    """What a listing of so many rows has told.

    `there` are the keys that are there from `first` to `last`, None for the end of all keys.
    """

    at: float
    rows: int
    first: str
    last: str | None
    there: frozenset[str]


class FreeKeys:
    """The keys that are about to be written, by bucket. Threads may share it."""

    def __init__(self, list_page: ListPage) -> None:
        self._list_page = list_page
        self._lock = threading.Lock()
        self._expected: dict[str, dict[str, None]] = {}
        self._listed: dict[str, _Listed] = {}

    def expect(self, bucket: str, keys: Sequence[str]) -> None:
        """Expect that these keys are written soon, each once, in place of those that were expected before."""
        with self._lock:
            self._listed.pop(bucket, None)
            self._expected.pop(bucket, None)
            if len(keys) >= _FEWEST:
                self._expected[bucket] = dict.fromkeys(sorted(keys))

    def is_free(self, bucket: str, key: str) -> bool:
        """Return whether a listing shows that an expected key is free. If not, it may be free nevertheless."""
        with self._lock:
            expected = self._expected.get(bucket, {})
            if key not in expected:
                return False
            listed = self._listed.get(bucket)
            if listed is None or time.monotonic() - listed.at > _TRUSTED or not _covers(listed, key):
                rows = _ROWS if listed is None or _covers(listed, next(reversed(expected))) else 4 * listed.rows
                listed = self._list(bucket, expected, min(rows, _MOST_ROWS))
            del expected[key]
            if listed is None or not _covers(listed, key):
                self._expected.pop(bucket)  # the next keys would cost a listing each, too
                return False
            self._listed[bucket] = listed
            return key not in listed.there

    def _list(self, bucket: str, expected: dict[str, None], rows: int) -> _Listed | None:
        first, last, begun = next(iter(expected)), next(reversed(expected)), time.monotonic()
        prefix = commonprefix((first, last))  # noqa: RUF071 - of characters, as a listing takes it
        try:
            page = self._list_page(bucket, prefix, _just_before(first), rows)
        except StorageError:  # the request for one key says what is wrong
            return None
        keys = [str(row["Key"]) for row in page.get("Contents") or ()]
        if any(one >= other for one, other in pairwise(keys)):  # then the last row says nothing about others
            return None
        if page.get("IsTruncated") is not False and not keys:
            return None
        return _Listed(begun, rows, first, None if page.get("IsTruncated") is False else keys[-1], frozenset(keys))


def _just_before(key: str) -> str:
    """Return a text that comes before a key, and after most keys that do."""
    code = ord(key[-1]) - 1
    return key[:-1] + (chr(code) if _LOWEST <= code <= _HIGHEST else "")


def _covers(listed: _Listed, key: str) -> bool:
    return listed.first <= key and (listed.last is None or key <= listed.last)
