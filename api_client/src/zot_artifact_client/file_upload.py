"""Send a file of this machine to the gateway, in parts that a broken line or a killed process does not lose."""

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from typing import Annotated
from urllib.parse import quote

from pydantic import Field

from zot_artifact_client.contract import Progress, Result
from zot_artifact_client.errors import BrokerUnavailable, ClientError, GatewayUnavailable
from zot_artifact_client.gateway import Gateway
from zot_artifact_client.signed_parts import send_parts

_PART = 64 * 1024 * 1024
"""Bytes of one request; the gateway keeps what arrived of one that breaks off."""
_PIECE = 1024 * 1024
_TRIES = 9
"""Requests in a row that may fail without a byte having arrived.

With their pauses they take longer than the 30 s for which a gateway waits for bytes on a broken line.
"""
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 10.0

OnProgress = Callable[[Progress], object]


class _Begun(Result):
    """What the gateway says of an upload that has begun."""

    upload: str
    offset: Annotated[int, Field(ge=0)]
    direct: bool = False


def send_file(
    gateway: Gateway,
    path: str | os.PathLike[str],
    fields: Mapping[str, object],
    *,
    idempotency_key: str | None,
    on_progress: OnProgress | None,
) -> str:
    """Send the bytes of a file for an upload with these fields, and return the id of its job.

    The SHA-256 is computed first, unless `fields` has it, and announced: a job whose bytes have another one fails. The
    progress of that is `hashing`, with 0 bytes done. The same call with the same idempotency key continues after the
    bytes that have arrived.

    Raises:
        OSError: the file cannot be read.
        GatewayUnavailable, BrokerUnavailable: the bytes do not arrive, or their job cannot be sent.
        ClientError: the gateway refuses them.
    """
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file, whose size is known before it is read", str(path))
        size = found.st_size
        announced = {**fields, "size": size, "sha256": fields.get("sha256") or _sha256(file, size, on_progress)}
        headers = {} if idempotency_key is None else {"Idempotency-Key": quote(idempotency_key, safe=":/")}
        begun = gateway.ask(
            "POST", "/v1/uploads?direct=true", announced, read=_Begun.read, headers=headers, again=bool(headers)
        )
        if begun.direct:
            return send_parts(gateway, begun.upload, file, on_progress)
        at, offset = f"/v1/uploads/{quote(begun.upload, safe='')}", begun.offset
        tries, pause, broken = _TRIES, _FIRST_PAUSE, False
        while offset < size:
            _tell(on_progress, offset, size)
            before = offset
            try:
                if broken:
                    offset, broken = gateway.offset(at), False
                if (length := min(_PART, size - offset)) > 0:
                    gateway.send(at, offset, length, _pieces(file, offset, length, size, on_progress))
                    offset += length
            except (GatewayUnavailable, BrokerUnavailable):
                tries -= 1
                if not tries:
                    raise
                broken = True
                time.sleep(pause)
                pause = min(_LONGEST_PAUSE, 2 * pause)
            if offset > before:
                tries, pause = _TRIES, _FIRST_PAUSE
        if offset > size:
            raise GatewayUnavailable(
                f"gateway {gateway.url} says that it has {offset} of {size} bytes: see what answers there, and what is "
                "in between"
            )
        _tell(on_progress, size, size)
    return begun.upload


def _sha256(file: FileIO, size: int, on_progress: OnProgress | None) -> str:
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
        _tell(on_progress, 0, size, "hashing")  # a cancelled transfer ends here
    return digest.hexdigest()


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # to open a FIFO would wait for its writer


def _pieces(
    file: FileIO, offset: int, length: int, size: int, on_progress: OnProgress | None
) -> Iterator[bytes]:  # fmt: skip
    """Yield the bytes of a part."""
    end = offset + length
    while offset < end:
        piece = os.pread(file.fileno(), min(_PIECE, end - offset), offset)
        if not piece:
            raise ClientError(f"{file.name} has become shorter while it was sent")
        yield piece
        offset += len(piece)
        _tell(on_progress, offset, size)


def _tell(on_progress: OnProgress | None, done: int, size: int, step: str = "sending") -> None:
    if on_progress is not None:
        on_progress(Progress(bytes_done=done, bytes_total=size, step=step))
