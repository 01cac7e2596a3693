"""Uploads that are not complete yet: their bytes and their state, in the staging directory.

The bytes of an upload are in `ID/source`, where the worker finds what is staged for the job of that id. `ID.upload`
beside it holds what the upload is for. Both outlive the gateway; the cleanup sweep removes what is not continued.
"""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

from worker import clock
from worker.artifacts.parts_staged_in_store import source_of
from worker.gateway.problems import Problem
from worker.settings import Settings
from worker.settings.private_data_directory import open_own, sync_directory
from worker.storage.errors import Unavailable
from worker.storage.spooling import FULL
from zot_artifact_client.contract import UploadRequest
from zot_artifact_client.idempotency_conflicts import idempotency_mismatch

_SOURCE = "source"
_ELSEWHERE = ".in-store"
"""An empty file in the directory of an upload whose bytes are in a store, so that it counts as an open one."""
_STATE = ".upload"
_MOST_OPEN = 100
"""Uploads of one token that may be incomplete at a time."""
_KEPT_FREE = 64 * 1024 * 1024
"""Bytes that uploads leave free on the disk of the data directory."""


@dataclass(frozen=True, slots=True)
class StagedUpload:
    """One upload: the request that its job will be, without a source, and how many bytes it has.

    `sent`: the job was sent, so that the bytes are the worker's.
    """

    id: str
    token: str
    size: int
    request: dict[str, Any]
    sent: bool = False
    store: str | None = None
    """The store that gets its parts by signed URLs; without one, its bytes are here."""


class Staging:
    """The uploads in the staging directory of one data directory."""

    def __init__(self, settings: Settings) -> None:
        self._directory = settings.staging_dir
        self._age = settings.sweep.cleanup.age
        self._max_staged = int(settings.gateway.max_staged)

    def create(self, upload: StagedUpload) -> StagedUpload:
        """Make an upload; return the one that is there, if the same request has made it before.

        Raises:
            IdempotencyMismatch: its id belongs to another request.
            Problem: there is no room, or its token has too many open ones.
        """
        with disk_errors(), self._alone():
            there = self.find(upload.id)
            if there is None:
                self._check_room(upload)
                self.remove(upload)  # an expired one may have had this id
                name = _SOURCE if upload.store is None else _ELSEWHERE
                os.close(open_own(self._directory / upload.id, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
                sync_directory(self._directory / upload.id)  # that of its own name is synced with the state
                self._write(upload)
                return upload
        if (there.token, there.size, there.request) != (upload.token, upload.size, upload.request):
            raise idempotency_mismatch([upload.id])
        return there

    def find(self, id_: str) -> StagedUpload | None:
        """Return an upload that has not expired, or None. One whose job was sent stays until the sweep removes it."""
        try:
            with os.fdopen(open_own(self._directory, id_ + _STATE, os.O_RDONLY), "rb") as file:
                found = StagedUpload(**json.load(file))
            return found if found.sent or self.expires_at(id_) > clock.earliest() else None
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def expires_at(self, id_: str) -> datetime:
        """Return when an upload expires that gets no more bytes. Raise FileNotFoundError."""
        return datetime.fromtimestamp((self._directory / (id_ + _STATE)).stat().st_mtime, UTC) + self._age

    def source(self, upload: StagedUpload) -> Path:
        """Return the path of its bytes."""
        return self._directory / upload.id / _SOURCE

    def has_bytes(self, upload: StagedUpload) -> bool:
        """Return whether there are bytes here under the id of an upload, also of one that has expired."""
        return (self._directory / upload.id).exists()

    def offset(self, upload: StagedUpload) -> int | None:
        """Return how many bytes are there; None if they are gone, because the job has ended or they were removed."""
        if upload.sent:
            return upload.size
        try:
            return min(self.source(upload).stat().st_size, upload.size)
        except FileNotFoundError:
            return None

    @contextmanager
    def appending(self, upload: StagedUpload) -> Iterator[BinaryIO]:
        """Yield the file of its bytes, to append to. They are durable when the block ends.

        Raises:
            Problem: another request appends, there is no room, or the bytes are gone.
        """
        with disk_errors():
            try:
                fd = open_own(self._directory / upload.id, _SOURCE, os.O_WRONLY | os.O_APPEND)
            except FileNotFoundError:
                raise gone(upload.id) from None
            with os.fdopen(fd, "ab", buffering=0) as file:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    detail = f"another request sends bytes of upload {upload.id}: ask for its offset in a few seconds"
                    raise Problem(HTTPStatus.LOCKED, "Locked", detail, headers={"Retry-After": "2"}) from None
                try:
                    yield file
                finally:
                    os.fsync(fd)
                    with suppress(FileNotFoundError):
                        os.utime(self._directory / (upload.id + _STATE))

    def touch(self, upload: StagedUpload) -> None:
        """Record that a client is at work on an upload, so that it does not expire."""
        with suppress(FileNotFoundError):
            os.utime(self._directory / (upload.id + _STATE))
            os.utime(self._directory / upload.id / _ELSEWHERE)

    def mark_sent(self, upload: StagedUpload) -> None:
        """Record that the job of an upload was sent."""
        with disk_errors():
            self._write(replace(upload, sent=True))
            if upload.store is not None:
                shutil.rmtree(self._directory / upload.id, ignore_errors=True)

    def remove(self, upload: StagedUpload) -> None:
        """Remove an upload and its bytes."""
        (self._directory / (upload.id + _STATE)).unlink(missing_ok=True)
        shutil.rmtree(self._directory / upload.id, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one creation run at a time: the same request may arrive twice, and the room is shared."""
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)

    def _write(self, upload: StagedUpload) -> None:
        """Replace the state of an upload, atomically and durably."""
        temporary = f".{upload.id}.{secrets.token_hex(4)}"
        fields = {name: getattr(upload, name) for name in StagedUpload.__slots__}
        with os.fdopen(open_own(self._directory, temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
            json.dump(fields, file)
            file.flush()
            os.fsync(file.fileno())
        (self._directory / temporary).replace(self._directory / (upload.id + _STATE))
        sync_directory(self._directory)

    def _check_room(self, upload: StagedUpload) -> None:
        ids = [path.name for path in self._directory.iterdir() if path.is_dir()]  # a state outlives its bytes
        unsent = [each for id_ in ids if (each := self.find(id_)) is not None and not each.sent]
        if sum(each.token == upload.token for each in unsent) >= _MOST_OPEN:
            detail = f"token {upload.token} has {_MOST_OPEN} open uploads: complete some, or DELETE them"
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, "TooManyUploads", detail, headers={"Retry-After": "60"})
        own = upload.size + sum(each.size for each in unsent if each.token == upload.token)
        if own > self._max_staged:
            most = f"gateway.max_staged allows {self._max_staged}: complete some, or DELETE them"
            detail = f"token {upload.token} would have {own} bytes in open uploads, {most}"
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, "TooManyBytes", detail, headers={"Retry-After": "60"})
        if upload.store is not None:
            return
        missing = sum(each.size - (self.offset(each) or 0) for each in unsent if each.store is None)
        free = shutil.disk_usage(self._directory).free - missing - _KEPT_FREE
        if upload.size > free:
            raise no_room(f"the gateway has room for {max(0, free)} bytes, and {upload.size} were announced")


def request_of(upload: StagedUpload, source: Path) -> UploadRequest:
    """Return the request of the job of an upload."""
    place = str(source) if upload.store is None else source_of(upload.store, upload.id, upload.size)
    return UploadRequest.read({**upload.request, "source": place, "staged": True})


def gone(id_: str) -> Problem:
    """Return the answer for an upload that does not exist, has expired, or is of another token."""
    detail = f"there is no upload {id_}: it was removed, has expired, or is another token's; begin a new one"
    return Problem(HTTPStatus.NOT_FOUND, "UnknownUpload", detail)


def no_room(detail: str) -> Problem:
    """Return the answer for a disk that is full."""
    return Problem(HTTPStatus.INSUFFICIENT_STORAGE, "NoRoom", f"{detail}: try again later, or make room there")


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise NoRoom for a disk that is full, Unavailable for one that fails, in place of the error of the system."""
    try:
        yield
    except OSError as error:
        told = f"the staging directory of the gateway cannot be written: {error.strerror}"
        raise (no_room(told) if error.errno in FULL else Unavailable(told)) from error
