"""The partial file of a download, which the next attempt of its job resumes."""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from worker.settings import Settings
from worker.settings.private_data_directory import open_own
from worker.storage.driver import BUFFER_SIZE
from worker.storage.errors import PermanentError
from worker.storage.filesystem.open_without_symlinks import translate
from worker.storage.spooling import spooling_in

_FILE = ".zot-download"
_STATE = ".zot-download.json"


class Partial:
    """The bytes that were received, and the strong ETag of the version that they are of."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = 0
        self.total: int | None = None
        self.etag: str | None = None
        self._hash = hashlib.sha256()

    def begin(self, total: int | None, etag: str | None) -> None:
        """Discard the bytes received so far."""
        self.size, self.total, self.etag, self._hash = 0, total, etag, hashlib.sha256()
        self.file.seek(0)
        self.file.truncate()

    def append(self, piece: bytes) -> None:
        self.file.write(piece)
        self.file.flush()
        self._hash.update(piece)
        self.size += len(piece)

    @property
    def sha256(self) -> bytes:
        """Return the SHA-256 of the bytes received so far."""
        return self._hash.digest()

    def state(self, url: str) -> dict[str, Any]:
        """Return what the next attempt needs. The URL may hold secrets, so only its digest is kept."""
        known = {"etag": self.etag, "total": self.total, "size": self.size, "sha256": self._hash.hexdigest()}
        return known | {"url": hashlib.sha256(url.encode()).hexdigest()}

    def resume(self, state: dict[str, Any], url: str, heartbeat: Callable[[], object]) -> None:
        """Resume from the bytes of an earlier attempt, if a full read shows that they are the ones that it received."""
        self.file.seek(0)
        while self.size < state["size"] and (piece := self.file.read(min(BUFFER_SIZE, state["size"] - self.size))):
            self._hash.update(piece)
            self.size += len(piece)
            heartbeat()
        self.etag, self.total = state["etag"], state["total"]
        if self.state(url) == state and self.etag is not None:
            self.file.truncate(self.size)  # bytes that were written after the state
        else:
            self.begin(None, None)


@contextmanager
def partial_download(
    url: str, settings: Settings, job: str | None, heartbeat: Callable[[], object]
) -> Iterator[Partial]:
    """Yield the file of a job's download; it stays for the next attempt after anything but a permanent error."""
    directory = settings.staging_dir / (job or "")
    with ExitStack() as held:
        try:
            with spooling_in(settings.staging_dir):
                file = _claimed(directory, held) if job else None
            with spooling_in(settings.spool_dir):
                other = file or held.enter_context(tempfile.TemporaryFile(dir=settings.spool_dir, prefix="zot-spool-"))
        except OSError as error:
            raise translate(error, "the file of the download", settings.home) from error
        partial = Partial(other)
        if file is None:  # another delivery of the job has the file
            yield partial
            return
        try:
            with os.fdopen(open_own(directory, _STATE, os.O_RDONLY), "rb") as state:
                kept = json.load(state)
            partial.resume(kept, url, heartbeat)
        except (OSError, ValueError, KeyError, TypeError):  # there is none, or the disk does not give it back
            partial.begin(None, None)
        try:
            yield partial
        except PermanentError:
            _remove(directory)
            raise
        except BaseException:
            if partial.etag is not None and partial.size:
                with suppress(OSError):  # without the state, the next attempt begins anew
                    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                    with os.fdopen(open_own(directory, _STATE, flags), "w") as state:
                        json.dump(partial.state(url), state)
            raise
        _remove(directory)


def remove_partial(settings: Settings, job: str) -> None:
    """Remove what an interrupted download of a job has left on this machine."""
    _remove(settings.staging_dir / job)


def _claimed(directory: Path, held: ExitStack) -> BinaryIO | None:
    fd = open_own(directory, _FILE, os.O_RDWR | os.O_CREAT)
    file = held.enter_context(os.fdopen(fd, "r+b"))
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    return file


def _remove(directory: Path) -> None:
    with suppress(OSError):  # what stays is removed by the cleanup sweep
        for name in (_FILE, _STATE):
            (directory / name).unlink(missing_ok=True)
        directory.rmdir()
