"""Bytes to write, and sources that fail on the way."""

import hashlib
import io
import random
from dataclasses import dataclass

from worker.storage import Digest


def some_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{size}-{seed}").randbytes(size)


def digest_of(data: bytes) -> Digest:
    return Digest(len(data), hashlib.sha256(data).hexdigest())


def source(data: bytes) -> io.BytesIO:
    return io.BytesIO(data)


@dataclass
class Breaking:
    """A source that raises after its bytes instead of ending."""

    data: bytes
    error: BaseException

    def __post_init__(self) -> None:
        self._rest = io.BytesIO(self.data)

    def read(self, size: int, /) -> bytes:
        data = self._rest.read(size)
        if not data:
            raise self.error
        return data
