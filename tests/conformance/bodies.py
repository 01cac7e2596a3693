"""Bytes to write, sources that fail on the way, and whether a call is refused."""

import hashlib
import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest

from worker.storage import Digest


def sizes(*parts_and_more: tuple[int, int]) -> pytest.MarkDecorator:
    """Generate a case for each size, given as a number of parts of the store and bytes on top; `size` is in bytes."""
    ids = [f"{parts}parts{more:+}" for parts, more in parts_and_more]
    return pytest.mark.parametrize("size", parts_and_more, indirect=True, ids=ids)


@lru_cache(maxsize=8)
def some_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{size}-{seed}").randbytes(size)


def digest_of(data: bytes) -> Digest:
    return Digest(len(data), hashlib.sha256(data).hexdigest())


def source(data: bytes) -> io.BytesIO:
    return io.BytesIO(data)


def raises(error: type[Exception] | tuple[type[Exception], ...], call: Callable[..., Any], *args: Any) -> str:
    """Return what the error of a call says, and nothing if it raises none of this kind."""
    try:
        call(*args)
    except error as raised:
        return str(raised)
    return ""


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
