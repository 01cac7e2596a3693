"""Whether keys are free, as a listing tells: never by one that is old, in no order, or that does not reach a key."""

from collections.abc import Mapping
from typing import Any

import pytest

from worker.storage.errors import Unavailable
from worker.storage.s3 import check_free_keys_by_listing
from worker.storage.s3.check_free_keys_by_listing import FreeKeys

BUCKET = "releases"
KEYS = [f"d/{number:02d}" for number in range(10)]


class Listing:
    """A store that lists `there`, and the listings that it was asked for."""

    def __init__(self, *there: str) -> None:
        self.there: list[str] = list(there)
        self.asked: list[tuple[str, str]] = []
        self.rows: list[int] = []
        self.changes: dict[str, Any] = {}
        self.broken = False

    def __call__(self, bucket: str, prefix: str, after: str, rows: int) -> Mapping[str, Any]:
        assert bucket == BUCKET
        self.asked.append((prefix, after))
        self.rows.append(rows)
        if self.broken:
            raise Unavailable("it does not answer")
        found = [{"Key": key} for key in self.there if key.startswith(prefix) and key > after]
        return {"Contents": found[:rows], "IsTruncated": len(found) > rows} | self.changes


def _free(listing: Listing, keys: list[str] = KEYS) -> list[str]:
    asked = FreeKeys(listing)
    asked.expect(BUCKET, keys)
    return [key for key in keys if asked.is_free(BUCKET, key)]


def test_one_listing_tells_which_of_many_keys_are_free() -> None:
    """A group of keys takes one listing, below what their names have in common, from the first one on."""
    listing = Listing("d/00a", "d/03", "e")
    assert _free(listing) == [key for key in KEYS if key != "d/03"]
    assert listing.asked == [("d/0", "d/0/")]


def test_a_key_is_free_once() -> None:
    """After its first write a key counts as free no more, and neither does one that was not expected."""
    asked = FreeKeys(Listing())
    asked.expect(BUCKET, KEYS)
    assert [asked.is_free(BUCKET, KEYS[0]) for _ in range(2)] == [True, False]
    assert not asked.is_free(BUCKET, "other")
    assert not asked.is_free("other", KEYS[1])


def test_an_old_listing_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another program has written is found as soon as the listing is a second old."""
    listing, now = Listing(), [0.0]
    monkeypatch.setattr(check_free_keys_by_listing.time, "monotonic", lambda: now[0])
    asked = FreeKeys(listing)
    asked.expect(BUCKET, KEYS)
    assert asked.is_free(BUCKET, KEYS[0])
    listing.there, now[0] = [KEYS[1]], 1.01
    assert [asked.is_free(BUCKET, key) for key in KEYS[1:3]] == [False, True]
    assert listing.rows == [check_free_keys_by_listing._ROWS] * 2


def test_a_listing_that_ends_early_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a listing with more rows only the keys up to its last row are known, and the next key takes a longer one."""
    monkeypatch.setattr(check_free_keys_by_listing, "_ROWS", 3)
    listing = Listing("d/00", "d/01", "d/02", "d/06", "d/07")
    assert _free(listing) == ["d/03", "d/04", "d/05", "d/08", "d/09"]
    assert listing.rows == [3, 12]


@pytest.mark.parametrize(
    ("there", "changes"),
    [
        (["d/05", "d/01"], {}),  # no order
        ([], {"IsTruncated": True}),  # a page without a row
        (["d/"], {"IsTruncated": None, "Contents": [{"Key": "d/"}]}),  # it does not say that there is no more
    ],
)
def test_a_listing_that_proves_nothing_is_not_used(there: list[str], changes: dict[str, Any]) -> None:
    """Without order, without rows or without an end, a listing shows no key to be free, and is the last one."""
    listing = Listing(*there)
    listing.changes = changes
    assert _free(listing) == []
    assert len(listing.asked) == 1


def test_a_store_that_does_not_list_is_asked_key_by_key() -> None:
    """An error of the listing is none of the write: each key is asked for by itself, and so are few keys."""
    listing = Listing()
    listing.broken = True
    assert _free(listing) == []
    assert len(listing.asked) == 1
    assert _free(Listing(), KEYS[:2]) == []
