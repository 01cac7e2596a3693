"""Read small objects with one plain request, at about half of obstore's processor time.

Only the simplest answer counts: status 200, an ETag, and exactly the bytes that were asked for. After any other one the
SDK asks, which knows what it means.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from socket import socket

from worker.storage.cloud import small_reads_by_obstore
from worker.storage.cloud.metadata import sha256_of
from worker.storage.cloud.small_reads_by_obstore import RealObject, is_plain_name
from worker.storage.cloud.small_writes import Place, Places, request_head
from worker.storage.driver import WholeObject

_LONGEST_HEAD = 1 << 14
_OK = b"HTTP/1.1 200 "
_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """The headers of an answer, by their names in lower case, and its body, which is in memory as a whole."""

    headers: dict[str, str]
    body: memoryview


class PlainReads:
    """Reads small objects of one store."""

    def __init__(
        self,
        locate: Callable[[str], Place | None],
        read: Callable[[PlainAnswer], WholeObject | None],
        sdk_errors: tuple[type[Exception], ...],
    ) -> None:
        """Read from the places of real buckets.

        Args:
            locate: where a real bucket is; None for one that needs the SDK.
            read: returns what an answer says, None where that is not understood.
            sdk_errors: what the provider's SDK raises while it looks for credentials.
        """
        self._places = Places(locate)
        self._read = read
        self._failures: tuple[type[Exception], ...] = (OSError, ValueError, HTTPException, *sdk_errors)

    def read(self, target: RealObject, size: int) -> WholeObject | None:
        """Return an object that has exactly `size` bytes; None where the SDK has to ask."""
        if not is_plain_name(target.name):
            return None
        try:
            place = self._places.get(target.real)
            answer = None if place is None else _get(place, place.url_of(target.name), size)
            return None if answer is None else self._read(answer)
        except self._failures:
            return None

    def close(self) -> None:
        """End the connections."""
        self._places.close()


def whole_object(answer: PlainAnswer, digest: str, version_of: Callable[[object], str]) -> WholeObject | None:
    """Return the object of an answer that has an ETag; `digest` is the header with the SHA-256 beside the object."""
    version = version_of(answer.headers.get("etag"))
    return WholeObject(version, answer.body, sha256_of(answer.headers.get(digest)) or "") if version else None


def _get(place: Place, url: str, size: int) -> PlainAnswer | None:
    head = request_head("GET", url, place.sign(url, {}))
    connection = place.connected()
    answer = None
    try:
        connection.sendall(head)
        answer = _receive(connection, size, time.monotonic() + small_reads_by_obstore.PATIENCE)
    finally:
        if answer is None or answer.headers.get("connection", "keep-alive").lower() != "keep-alive":
            connection.close()  # what else it may hold would count as the next answer
        else:
            place.free.append(connection)
    return answer


def _receive(connection: socket, size: int, deadline: float) -> PlainAnswer | None:
    """Return an answer whose body has `size` bytes, and None as soon as it is another one."""
    buffer = bytearray(_LONGEST_HEAD + size)
    view, filled, body = memoryview(buffer), 0, 0
    headers: dict[str, str] = {}
    while not body or filled < body + size:
        received = connection.recv_into(view[filled:])
        filled += received
        if not received or filled == len(buffer) or time.monotonic() > deadline:
            return None
        if not body and (end := buffer.find(_END, 0, filled)) >= 0:
            if not buffer.startswith(_OK):
                return None
            lines = buffer[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            if headers.get("content-length") != str(size) or "transfer-encoding" in headers:
                return None
            body = end + len(_END)
    return PlainAnswer(headers, view[body:filled]) if filled == body + size else None
