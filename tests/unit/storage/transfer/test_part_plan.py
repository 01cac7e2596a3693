"""The part planner: any size fits, within every limit, without wasting memory."""

import io
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.storage.errors import SizeMismatch
from worker.storage.integrity.verifying_reader import VerifyingReader
from worker.storage.s3.upload import MAX_PART, MAX_PARTS, MIN_PART
from worker.storage.transfer.split_into_parts import MIB, next_part, plan_parts

TIB = 1024**4
LARGEST = MAX_PART * MAX_PARTS


def parts_of(size: int, part: int) -> int:
    return -(-size // part)


@given(size=st.integers(0, LARGEST), min_part=st.integers(MIN_PART, MAX_PART))
def test_every_size_fits_into_the_limits_of_s3(size: int, min_part: int) -> None:
    """Whatever S3 can hold is planned in at most 10,000 parts of 5 MiB to 5 GiB, none below the configured size."""
    part = plan_parts(size, min_part=min_part, max_part=MAX_PART, max_parts=MAX_PARTS)
    assert min_part <= part <= MAX_PART
    assert parts_of(size, part) <= MAX_PARTS


@given(
    size=st.integers(0, 10**6),
    min_part=st.integers(1, 1_000),
    room=st.integers(0, 10**5),
    max_parts=st.integers(1, 1_000),
    multiple=st.integers(1, 500),
)
def test_a_part_is_no_larger_than_it_has_to_be(
    size: int, min_part: int, room: int, max_parts: int, multiple: int
) -> None:
    """A part is held in memory, so the one planned is the smallest multiple that is enough, or the largest possible."""
    max_part = min_part + room
    if size > max_part * max_parts:
        with pytest.raises(SizeMismatch):
            plan_parts(size, min_part=min_part, max_part=max_part, max_parts=max_parts, multiple=multiple)
        return
    part = plan_parts(size, min_part=min_part, max_part=max_part, max_parts=max_parts, multiple=multiple)
    assert min_part <= part <= max_part
    assert parts_of(size, part) <= max_parts
    assert part == max_part or part % multiple == 0
    smaller = part - multiple
    assert part == max_part or smaller < min_part or parts_of(size, smaller) > max_parts


@pytest.mark.parametrize(
    ("size", "part"),
    [
        (0, 16 * MIB),
        (156 * 1024 * MIB, 16 * MIB),
        (157 * 1024 * MIB, 17 * MIB),
        (5 * TIB, 525 * MIB),
        (LARGEST, MAX_PART),
    ],
)
def test_known_sizes(size: int, part: int) -> None:
    """Parts of 16 MiB hold 156 GiB, and grow from there by whole MiB until 48.8 TiB."""
    assert plan_parts(size, min_part=16 * MIB, max_part=MAX_PART, max_parts=MAX_PARTS) == part


def test_too_large_is_refused_with_numbers() -> None:
    """An object that no parts can hold is refused before anything is sent, in numbers."""
    with pytest.raises(SizeMismatch, match=str(LARGEST + 1)):
        plan_parts(LARGEST + 1, min_part=MIN_PART, max_part=MAX_PART, max_parts=MAX_PARTS)


@given(data=st.binary(max_size=300), part=st.integers(1, 100), piece=st.integers(1, 50), over=st.booleans())
def test_parts_are_the_body(data: bytes, part: int, piece: int, over: bool) -> None:
    """Parts put together are the body, all full but the last, however little it gives at a time, also over old ones."""

    class ChunkedBody(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, piece))

    body = VerifyingReader(ChunkedBody(data), size=len(data))
    spare = bytearray(b"x" * part) if over else None
    parts = list(islice(iter(lambda: bytes(next_part(body, part, spare)), b""), len(data) + 1))
    assert b"".join(parts) == data
    assert all(len(one) == part for one in parts[:-1])
    assert body.digest.size == len(data)


def test_an_empty_part_means_that_the_end_was_seen() -> None:
    """A driver that sees the empty part has not missed the body's own check at its end."""
    body = VerifyingReader(io.BytesIO(b"12345"), size=6)
    assert next_part(body, 5) == b"12345"
    with pytest.raises(SizeMismatch):
        next_part(body, 5)


@pytest.mark.parametrize("rest", [0, 3, 5])
def test_a_last_part_needs_no_further_memory(rest: int) -> None:
    """A part that the body ends within is in the memory of the one before, too."""
    spare = bytearray(5)
    assert next_part(io.BytesIO(b"12345"[:rest]), 5, spare) is spare
    assert spare == b"12345"[:rest]
