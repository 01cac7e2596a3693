"""Send a file in parts to signed URLs of a store, past the gateway, which makes the URLs and keeps the credentials."""

import http.client
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from typing import Annotated
from urllib.parse import quote, urlsplit

from pydantic import Field

from zot_artifact_client.contract import Progress, Result
from zot_artifact_client.errors import ClientError, GatewayUnavailable
from zot_artifact_client.gateway import TIMEOUT, Gateway
from zot_artifact_client.http_final_response import PlainConnection, SecureConnection
from zot_artifact_client.tls_faults import TRUST, tls_fault

_TOGETHER = 4
_PIECE = 1024 * 1024
_ROUNDS = 6
"""Rounds in a row in which no part may have arrived."""
_FIRST_PAUSE = 0.5
_GOOD = range(200, 300)
_NO_URL = "the gateway returned what is no URL of a store"

OnProgress = Callable[[Progress], object]


class _Part(Result):
    offset: Annotated[int, Field(ge=0)]
    size: Annotated[int, Field(ge=0)]
    url: str
    headers: dict[str, str]


class _Missing(Result):
    """What the gateway says of an upload, with the next parts that it lacks."""

    done: int
    size: int
    complete: bool
    parts: tuple[_Part, ...]


def send_parts(gateway: Gateway, upload: str, file: FileIO, on_progress: OnProgress | None) -> str:
    """Send the parts that are missing and return the id of the job; what arrived stays, however this ends.

    The gateway says which parts are missing, so that a second call continues where a killed process stopped.

    Raises:
        GatewayUnavailable: the gateway or the store does not answer, or refuses the parts.
        ClientError: the file has become shorter.
    """
    path, pause, rounds = f"/v1/uploads/{quote(upload, safe='')}/parts", _FIRST_PAUSE, _ROUNDS
    before, failed = -1, None
    while True:
        missing = gateway.ask("POST", path, read=_Missing.read, of_bytes=True)
        if missing.complete:
            return upload
        if missing.done <= before:
            rounds -= 1
            if not rounds:
                raise failed or GatewayUnavailable("the staging store takes no part")
            time.sleep(pause)
            pause *= 2
        else:
            before, rounds, pause = missing.done, _ROUNDS, _FIRST_PAUSE
        failed = _send(file, missing.parts, _Told(missing.done, missing.size, on_progress))


class _Told:
    """Counts the bytes that several threads send."""

    def __init__(self, done: int, size: int, on_progress: OnProgress | None) -> None:
        self._done, self._size, self._on_progress = done, size, on_progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._on_progress is not None:
                self._on_progress(Progress(bytes_done=self._done, bytes_total=self._size, step="sending"))


def _send(file: FileIO, parts: Sequence[_Part], told: _Told) -> GatewayUnavailable | None:
    """Send parts, some at a time; return the error of one that the store did not take."""
    failed = None
    with ThreadPoolExecutor(_TOGETHER, thread_name_prefix="zot-artifact-send") as pool:
        for future in [pool.submit(_put, file, part, told) for part in parts]:
            try:
                future.result()
            except GatewayUnavailable as error:
                failed = error
    return failed


def _put(file: FileIO, part: _Part, told: _Told) -> None:
    """Send one part. No error shows the URL, which is a secret."""
    try:
        url = urlsplit(part.url)
        host, port = url.hostname, url.port
    except ValueError:
        raise ClientError(_NO_URL) from None
    if not host or url.scheme not in {"http", "https"}:
        raise ClientError(_NO_URL)
    where = f"the staging store {host}"
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        connection = SecureConnection(host, port, timeout=TIMEOUT, context=ssl.create_default_context())
    else:
        connection = PlainConnection(host, port, timeout=TIMEOUT)
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        while sent < part.size:
            piece = os.pread(file.fileno(), min(_PIECE, part.size - sent), part.offset + sent)
            if not piece:
                raise ClientError(f"{file.name} has become shorter while it was sent")
            yield piece
            sent += len(piece)
            told.add(len(piece))

    try:
        headers = {**part.headers, "Content-Length": str(part.size)}
        connection.request("PUT", f"{url.path}?{url.query}", pieces(), headers)
        answer = connection.getresponse()
        answer.read(_PIECE)
        if answer.status not in _GOOD:
            told.add(-sent)
            raise GatewayUnavailable(f"{where} answers {answer.status}")
    except (OSError, http.client.HTTPException) as error:
        told.add(-sent)
        reason = tls_fault(error, trust=TRUST) or type(error).__name__
        raise GatewayUnavailable(f"{where} cannot be reached: {reason}") from None
    finally:
        connection.close()
