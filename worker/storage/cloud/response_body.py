"""Receive the bodies of HTTP responses: an object's into the caller's memory, any other up to a limit."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import requests

LONGEST_ANSWER = 32 * 1024 * 1024
"""Bytes of an answer that is no object. The longest is Azure's list of all blocks that a blob can have, 22 MiB."""
TOO_LONG = f"the answer has more than {LONGEST_ANSWER // 1024**2} MiB, and is no object"
_PIECE = 64 * 1024


def received_whole(pieces: Iterable[bytes]) -> bytes | None:
    """Return the body of an answer that is no object; None as soon as it is longer than any such answer.

    The SDKs receive it whole before they parse it: without a limit a gateway could use up the memory of the worker.
    """
    received = bytearray()
    for piece in pieces:
        received += piece
        if len(received) > LONGEST_ANSWER:
            return None
    return bytes(received)


def limit_answer(reply: requests.Response, *, stream: bool = False, **_options: object) -> None:
    """Receive an answer of `requests`, as one of its hooks, unless it is the object that the caller streams.

    Raises:
        InvalidJSONError: the answer is longer than any that is no object.
    """
    if stream and reply.status_code < HTTPStatus.MULTIPLE_CHOICES:
        return
    content = received_whole(reply.iter_content(_PIECE))
    if content is None:
        reply.close()
        raise requests.exceptions.InvalidJSONError(TOO_LONG)
    reply._content = content  # noqa: SLF001  the library offers no other place


class HttpBody:
    """The bytes of a response of urllib3, as the store sends them: encoded ones stay encoded."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, `b""` only at the end. Raises urllib3's errors."""
        return bytes(self._response.read(size, decode_content=False))

    def readinto(self, buffer: memoryview) -> int:
        """Receive at most `len(buffer)` bytes and return how many, 0 only at the end. Raises urllib3's errors.

        urllib3's own `readinto` receives into new memory and copies that, which costs a large object as much as hashing
        half of it. The response below it, of Python's library, receives into the buffer.
        """
        response = self._response
        with response._error_catcher():  # noqa: SLF001  it translates errors, and keeps the connection at the end
            count: int = response._fp.readinto(buffer)  # noqa: SLF001
            return count

    def close(self) -> None:
        """Drop the connection where bytes are left: to read them, only to reuse the connection, could take hours."""
        self._response.close()
