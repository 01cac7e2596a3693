"""Receive the body of an HTTP response straight into the caller's memory."""

from typing import Any


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
