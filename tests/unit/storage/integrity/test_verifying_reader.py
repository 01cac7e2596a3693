"""Readers that hash bytes, and raise at the end unless they are the announced ones."""

import hashlib
import io
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import WITHIN
from worker.storage.driver import BUFFER_SIZE, Digest
from worker.storage.errors import DigestMismatch, IntegrityError, SizeMismatch
from worker.storage.integrity.verifying_reader import VerifyingReader, drain

CONTENT = b"some content"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def read_all(reader: VerifyingReader, size: int = 5) -> bytes:
    return b"".join(iter(lambda: reader.read(size), b""))


@given(content=st.binary(max_size=200), piece=st.integers(1, 50))
def test_right_bytes_pass_unchanged(content: bytes, piece: int) -> None:
    """Whatever the size of the pieces, the bytes read are the bytes of the source, with their digest."""
    sha256 = hashlib.sha256(content).hexdigest()
    reader = VerifyingReader(io.BytesIO(content), size=len(content), sha256=sha256)
    assert read_all(reader, piece) == content
    assert reader.digest == Digest(len(content), sha256)


@given(content=st.binary(min_size=1, max_size=100), data=st.data())
def test_one_flipped_bit_is_found(content: bytes, data: st.DataObject) -> None:
    """No single changed bit gets to the end unnoticed."""
    sha256 = hashlib.sha256(content).hexdigest()
    wrong = bytearray(content)
    wrong[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    reader = VerifyingReader(io.BytesIO(bytes(wrong)), size=len(content), sha256=sha256, what="main: b/k")
    with pytest.raises(DigestMismatch, match=f"main: b/k has SHA-256 .*, not the announced {sha256}"):
        drain(reader)
    with pytest.raises(RuntimeError, match="has not been read to its end"):
        _ = reader.digest


def test_too_many_bytes_are_found_before_they_are_passed_on() -> None:
    """The piece that goes beyond the announced size is not handed out: a source without end does not fill a disk."""
    reader = VerifyingReader(io.BytesIO(CONTENT), size=len(CONTENT) - 1)
    with pytest.raises(SizeMismatch, match=f"more than the announced {len(CONTENT) - 1} bytes"):
        reader.read(100)


def test_too_few_bytes_are_found_at_the_end() -> None:
    """A source that ends early is refused with both sizes."""
    reader = VerifyingReader(io.BytesIO(CONTENT), size=100)
    with pytest.raises(SizeMismatch, match=f"has {len(CONTENT)} bytes, not the announced 100"):
        drain(reader)


def test_a_wrong_end_stays_wrong() -> None:
    """Who reads on after the error gets it again, and never the `b""` that allows a commit."""
    reader = VerifyingReader(io.BytesIO(CONTENT), sha256="0" * 64)
    for _ in range(2):
        with pytest.raises(IntegrityError):
            drain(reader)


def test_the_end_may_be_read_again() -> None:
    """After an end that was right, reading on gives the end again."""
    reader = VerifyingReader(io.BytesIO(CONTENT), size=len(CONTENT), sha256=SHA256)
    drain(reader)
    assert reader.read(1) == b""
    assert reader.digest.sha256 == SHA256


def test_a_digest_is_not_told_before_the_end() -> None:
    """The digest of a part is no object's digest."""
    reader = VerifyingReader(io.BytesIO(CONTENT))
    reader.read(len(CONTENT))
    with pytest.raises(RuntimeError, match="has not been read to its end"):
        _ = reader.digest


def test_nothing_announced_is_hashed_all_the_same() -> None:
    """Where size and digest are unknown, they are found out."""
    reader = VerifyingReader(io.BytesIO(CONTENT))
    drain(reader)
    assert reader.digest == Digest(len(CONTENT), SHA256)


def test_every_piece_is_told() -> None:
    """Progress counts every byte once."""
    told: list[int] = []
    read_all(VerifyingReader(io.BytesIO(CONTENT), on_bytes=told.append))
    assert told == [5, 5, 2]


def test_who_is_told_may_end_the_transfer() -> None:
    """What the listener raises passes through, so that a cancelled job stops between two pieces."""

    def cancel(_count: int) -> None:
        raise InterruptedError("cancelled")

    reader = VerifyingReader(io.BytesIO(CONTENT), on_bytes=cancel)
    with pytest.raises(InterruptedError, match="cancelled"):
        reader.read(5)
    with pytest.raises(RuntimeError, match="has not been read to its end"):
        _ = reader.digest


def test_no_bytes_are_bytes_too() -> None:
    """An empty object has a size and a digest like any other."""
    reader = VerifyingReader(io.BytesIO(b""), size=0, sha256=hashlib.sha256(b"").hexdigest())
    assert reader.read(10) == b""
    assert reader.digest.size == 0


LARGE = bytes(range(256)) * (3 * BUFFER_SIZE // 256) + b"the end"


@pytest.mark.parametrize("piece", [BUFFER_SIZE, BUFFER_SIZE - 1, 2 * BUFFER_SIZE])
def test_large_pieces_have_the_same_digest(piece: int) -> None:
    """What is hashed in a thread beside the reading is hashed in its order and to its end."""
    digest = Digest(len(LARGE), hashlib.sha256(LARGE).hexdigest())
    reader = VerifyingReader(io.BytesIO(LARGE), size=digest.size, sha256=digest.sha256)
    assert read_all(reader, piece) == LARGE
    assert reader.digest == digest


def test_one_flipped_bit_of_a_large_piece_is_found() -> None:
    """A wrong last piece is found at the end, although it is hashed while it is handed out."""
    wrong = LARGE[: 2 * BUFFER_SIZE] + b"!" + LARGE[2 * BUFFER_SIZE + 1 : 3 * BUFFER_SIZE]
    sha256 = hashlib.sha256(LARGE[: 3 * BUFFER_SIZE]).hexdigest()
    reader = VerifyingReader(io.BytesIO(wrong), size=len(wrong), sha256=sha256)
    with pytest.raises(DigestMismatch):
        drain(reader)
    with pytest.raises(DigestMismatch):
        reader.read(1)


def test_who_stops_early_leaves_no_thread() -> None:
    """The thread of a reader that is not read to its end ends with it."""
    before = set(threading.enumerate())
    reader = VerifyingReader(io.BytesIO(LARGE))
    reader.read(BUFFER_SIZE)
    [thread] = set(threading.enumerate()) - before
    del reader
    thread.join(WITHIN)
    assert not thread.is_alive()
