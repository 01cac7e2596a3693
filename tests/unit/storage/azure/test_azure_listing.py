"""A listing comes in the order of UTF-8 whatever the store's is, within bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.storage.azure import sorted_listing as azure_listing
from worker.storage.azure.sorted_listing import ByteOrder, safe_start

# Few characters, so that keys share beginnings: plain ones, some of U+E000 to U+FFFD, some above U+FFFF.
KEYS = st.sets(st.text(alphabet="az/\ue000\uff5e\U00010000\U0001f680", min_size=1, max_size=6), max_size=60)


@dataclass(frozen=True)
class Named:
    key: str


def utf16(key: str) -> bytes:
    return key.encode("utf-16-be")


def utf8(key: str) -> bytes:
    return key.encode()


@dataclass
class Service:
    """A store that lists in some order, and counts the rows it was asked for."""

    keys: set[str]
    order: object
    rows: int = 0

    def list(self, prefix: str = "", start: str = "", after: str = "") -> Iterator[Named]:
        order = self.order
        assert callable(order)
        for key in sorted(self.keys, key=order):
            if key.startswith(prefix) and order(key) >= order(start):
                self.rows += 1
                if key > after:
                    yield Named(key)


@pytest.mark.parametrize("order", [utf8, utf16])
@pytest.mark.parametrize("held", [1, 2, 1_000])
@given(keys=KEYS, data=st.data())
def test_order(order: object, held: int, keys: set[str], data: st.DataObject) -> None:
    """Every key comes once, by its UTF-8 bytes, also behind any key, however few rows may be held back."""
    after = data.draw(st.sampled_from(["", *sorted(keys)]))
    service = Service(keys, order)
    expected = sorted((key for key in keys if key > after), key=utf8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(azure_listing, "HELD", held)
        listing = ByteOrder[Named](lambda prefix, start: service.list(prefix, start, after))
        got = [row.key for row in listing.sort(service.list("", safe_start(after), after))]
    assert got == expected


def test_bounded() -> None:
    """Many keys that have to wait are listed again rather than held: no more than the bound is ever ahead."""
    high = {f"x/\U0001f680/{number:05}" for number in range(5_000)}
    late = {f"x/\uff5e/{number:05}" for number in range(5_000)}
    service = Service(high | late, utf16)
    rows = ByteOrder[Named](service.list).sort(service.list())
    for number, row in enumerate(rows):
        assert row.key in (late if number < 5_000 else high)
        if number < 5_000:
            assert service.rows <= 2 * number + azure_listing.HELD + 3


def test_unknown_order_is_an_error() -> None:
    """A store that lists in another order is an error, never a listing with keys left out."""
    with pytest.raises(ValueError, match="lists 'a' after 'b'"):
        list(ByteOrder[Named](lambda _prefix, _start: iter(())).sort(iter([Named("b"), Named("a")])))
