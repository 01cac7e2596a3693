"""Download artifacts: every byte is verified before it is sent, and comes from the first copy that is right."""

import asyncio
import base64
import hashlib
import re
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from worker.artifacts.verified_download import VerifiedDownload
from worker.catalogue import Artifact
from worker.gateway.artifacts import readable
from worker.gateway.problems import ERRORS, Problem
from worker.gateway.request_authorization import services_of
from worker.gateway.services import Services
from worker.storage.errors import StorageError

router = APIRouter(prefix="/v1/objects", tags=["objects"], responses=ERRORS)

_SEND = 1 << 20
"""Bytes that are given to the server at a time. A client that does not take them within its time is cut off."""
_SLOT_WITHIN = 5.0
"""Seconds that a download waits for another one to end."""
_RANGE = re.compile(r"bytes=[ \t]*(\d{0,30})-(\d{0,30})[ \t]*", re.ASCII)
_OCTETS: dict[int | str, dict[str, object]] = {
    200: {"description": "All bytes.", "content": {"application/octet-stream": {}}},
    206: {"description": "The bytes of the range.", "content": {"application/octet-stream": {}}},
    304: {"description": "The client has these bytes already."},
    412: {"description": "The artifact has other bytes than those of If-Match."},
    416: {"description": "The artifact ends before the range."},
}


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes to send."""

    offset: int
    length: int


@router.api_route(
    "/{bucket}/{key:key}",
    methods=["GET"],
    operation_id="downloadObject",
    response_class=Response,
    responses=_OCTETS,
)
async def download(  # noqa: PLR0917 - the framework passes parameters by name
    request: Request,
    bucket: str,  # noqa: ARG001 - for the OpenAPI document; `readable` reads the path
    key: str,  # noqa: ARG001
    range_: Annotated[
        str | None, Header(alias="Range", description="One range of bytes, such as `bytes=0-1023`.")
    ] = None,
    if_match: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    """Download an artifact, or one range of it.

    No byte is sent before its chunk is verified. If that fails in mid-object in all copies, the connection is closed
    before the announced length was sent. The ETag is the SHA-256 of all bytes.
    """
    services = services_of(request)
    artifact = await readable(request, "/v1/objects/")
    tag = f'"{artifact.digest.sha256}"'
    headers = _headers(artifact, tag)
    if if_match is not None and not _matches(if_match, tag, weak=False):
        detail = f"{artifact.path} has the SHA-256 {artifact.digest.sha256}: fetch this one, or leave If-Match out"
        raise Problem(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed", detail)
    if if_none_match is not None and _matches(if_none_match, tag, weak=True):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": tag, "Cache-Control": _CACHE})
    size, status = artifact.digest.size, HTTPStatus.OK
    span = Span(0, size)
    if range_ is not None and request.method == "GET" and (if_range is None or if_range.strip() == tag):
        asked = parse_range(range_, size, artifact.path)
        if asked is not None:
            span, status = asked, HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {span.offset}-{span.offset + span.length - 1}/{size}"
    if status is HTTPStatus.OK:
        headers["Content-Digest"] = headers["Repr-Digest"]
    headers["Content-Length"] = str(span.length)
    if request.method == "HEAD" or span.length == 0:
        return Response(status_code=status, headers=headers)
    return await _send(services, artifact, span, status, headers)


router.add_api_route("/{bucket}/{key:key}", download, methods=["HEAD"], operation_id="headObject", responses=_OCTETS)

_CACHE = "private, no-cache"
"""Shared caches must not answer to those who show no token, whatever the artifact's own property says."""


def parse_range(text: str, size: int, path: str) -> Span | None:
    """Return the bytes that a Range header asks for; None where it is no single range of bytes, and all are sent.

    Raises:
        Problem: 416, the artifact ends before it.
    """
    found = _RANGE.fullmatch(text)
    if found is None or not (found[1] or found[2]):
        return None
    if found[1]:
        first = int(found[1])
        last = min(int(found[2]), size - 1) if found[2] else size - 1
        if found[2] and int(found[2]) < first:
            return None
    else:
        first, last = max(0, size - int(found[2])), size - 1
    if first > last:
        raise Problem(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            "RangeNotSatisfiable",
            f"{path} has {size} bytes: ask for a range within them",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return Span(first, last - first + 1)


def _matches(header: str, tag: str, *, weak: bool) -> bool:
    given = [each.strip() for each in header.split(",")]
    return "*" in given or tag in given or (weak and f"W/{tag}" in given)


def _headers(artifact: Artifact, tag: str) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(artifact.digest.sha256)).decode()
    name = quote(artifact.key.rpartition("/")[2], safe="")  # a key may hold line ends and quotes
    headers = {
        "ETag": tag,
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Cache-Control": _CACHE,
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Zot-Version": str(artifact.version),
    }
    for field, header in (
        ("content_type", "Content-Type"),
        ("content_encoding", "Content-Encoding"),
        ("content_language", "Content-Language"),
    ):
        value = artifact.properties.get(field)
        if value and value.isascii() and value.isprintable():
            headers[header] = value
    return headers


async def _send(
    services: Services, artifact: Artifact, span: Span, status: HTTPStatus, headers: dict[str, str]
) -> Response:
    """Read and verify the first piece, so that its errors have a status, and then answer."""
    slot = await services.take_slot(_SLOT_WITHIN)
    pieces: _Pieces | None = None
    try:
        pieces = await services.read(_open, services, artifact, span)
        first = await services.fetch(pieces.next)
        assert first is not None
        if status is HTTPStatus.PARTIAL_CONTENT and len(first) == span.length:
            digest = await services.fetch(_digest, first)
            headers["Content-Digest"] = f"sha-256=:{digest}:"
    except BaseException:
        services.free_slot(slot, pieces.close if pieces else None)
        raise
    free = partial(services.free_slot, slot, pieces.close)
    return _Download(_stream(services, pieces, first), free, status, headers)


class _Download(StreamingResponse):
    """An answer that frees the slot of its download as soon as it ends, also if it cannot begin."""

    body_iterator: AsyncGenerator[memoryview]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, body: AsyncGenerator[memoryview], free: Callable[[], None], status: HTTPStatus, headers: dict[str, str]
    ) -> None:
        super().__init__(body, status, headers)
        self._free = free

    async def stream_response(self, send: Send) -> None:
        """Send the bytes; free the slot, also if the client goes away."""
        try:
            await super().stream_response(send)
        finally:
            await self.body_iterator.aclose()  # otherwise it waits for the garbage collector
            self._free()


class _Pieces:
    """The pieces of a download, taken by one thread at a time: a client may go away while one is read."""

    def __init__(self, pieces: Generator[memoryview]) -> None:
        self._pieces = pieces
        self._lock = threading.Lock()

    def next(self) -> memoryview | None:
        """Return the next piece, None at the end."""
        with self._lock:
            return next(self._pieces, None)

    def close(self) -> None:
        """Remove what was spooled; wait for the piece that is being read."""
        with self._lock:
            self._pieces.close()


def _open(services: Services, artifact: Artifact, span: Span) -> _Pieces:
    def on_bad(store: str, error: StorageError) -> None:
        services.verify_later(artifact, store, error)

    download = VerifiedDownload(services.context, artifact, on_bad=on_bad, avoided=services.avoided)
    return _Pieces(download.pieces(span.offset, span.length))


def _digest(piece: memoryview) -> str:
    return base64.b64encode(hashlib.sha256(piece).digest()).decode()


async def _stream(services: Services, pieces: _Pieces, first: memoryview) -> AsyncGenerator[memoryview]:
    """Yield the pieces; the next one is read and verified while one is sent."""
    piece: memoryview | None = first
    while piece is not None:
        ahead = asyncio.ensure_future(services.fetch(pieces.next))
        try:
            for start in range(0, len(piece), _SEND):
                yield piece[start : start + _SEND]
            piece = await ahead
        finally:
            ahead.cancel()
