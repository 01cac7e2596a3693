"""Send large bodies a piece at a time, so that a slow line is told from a dead one.

A socket's timeout is for one whole call: sending a part of many megabytes in one would have to be done within the
timeout for connecting, five seconds, which a line of a few megabits shared by eight parts cannot do. Nor would another
try help. Of a piece that long without progress means that nobody takes the bytes any more.
"""

import os
from collections.abc import Iterator
from typing import Any, cast

import requests
from requests.adapters import HTTPAdapter

from worker.storage.driver import PartData
from worker.storage.parts import pieces_of

PIECE = 128 * 1024
"""Bytes."""


class Pieces:
    """A body of known length that HTTP libraries iterate over, as often as they send it."""

    def __init__(self, *sources: PartData | memoryview) -> None:
        self._sources = sources

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def __iter__(self) -> Iterator[bytes]:
        for source in self._sources:
            yield from cast("Iterator[bytes]", pieces_of(source, PIECE))  # requests' stubs do not know of memoryviews

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Do nothing: it begins anew whenever it is sent. The SDK for S3 asks for this before it tries again."""
        del whence
        return offset


class PiecewiseAdapter(HTTPAdapter):
    """Sends bytes in pieces, whatever made the request."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        request.body = in_pieces(request.body)
        return super().send(request, *args, **kwargs)


def in_pieces(body: Any) -> Any:
    """Return a body as what is sent piece by piece, if it is bytes and more than one piece."""
    return Pieces(body) if isinstance(body, bytes | bytearray | memoryview) and len(body) > PIECE else body
