"""Open the source of an upload, and remove what was staged for it."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from worker.artifacts.sources.download import downloaded
from worker.artifacts.sources.errors import SourceRefused, mark_source_error, shown
from worker.artifacts.sources.local_file import file_error, open_file, staging_name
from worker.settings import Settings
from worker.storage.driver import Digest, HashedBytes
from worker.storage.errors import DigestMismatch, SizeMismatch, Unavailable
from worker.storage.integrity.manifest import Manifest, compute_digests
from worker.storage.integrity.verifying_reader import OnBytes, Readable

logger = logging.getLogger(__name__)


_SMALL = 1 << 20
"""Bytes of a source that is read into memory."""


@dataclass(frozen=True, slots=True)
class Source:
    """The bytes of an upload, in a file on this machine that can be read several times.

    Attributes:
        received: the SHA-256 of the bytes of a download, computed while they were received.
    """

    name: str
    file: BinaryIO
    size: int
    received: str | None = None

    def rewind(self) -> "Source":
        """Return this, to be read from its first byte."""
        self.file.seek(0)
        return self

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes. An error of the disk counts against the source, and against no store."""
        try:
            return self.file.read(size)
        except OSError as error:
            raise mark_source_error(file_error(self.name, error)) from error

    def hashed(self, sha256: str | None, on_bytes: OnBytes) -> "HashedSource":
        """Read all bytes and hash them, as a whole and by chunks. A small source stays in memory.

        Raises:
            DigestMismatch, SizeMismatch: they do not have the SHA-256 that was announced, or the file has grown or
                shrunk since it was opened.
            Unavailable: the disk does not give them now, or gives others than were received.
        """
        if self.size > _SMALL:
            digest, manifest = compute_digests(self.rewind(), size=self.size, what=self.name, on_bytes=on_bytes)
            found = HashedSource(self, digest, manifest)
        else:
            reader, data = self.rewind(), b""
            while len(data) <= self.size and (piece := reader.read(self.size + 1 - len(data))):
                data += piece
                on_bytes(len(piece))
            if len(data) != self.size:
                raise SizeMismatch(f"{self.name} has {len(data)} bytes, not the announced {self.size}")
            content = HashedBytes.of(data)
            found = HashedSource(self, content.digest, None, content)
        if self.received not in {None, found.digest.sha256}:
            raise Unavailable(f"{self.name}: the data directory has not kept the bytes as they were received")
        if sha256 is not None and found.digest.sha256 != sha256:
            raise DigestMismatch(f"{self.name} has SHA-256 {found.digest.sha256}, not the announced {sha256}")
        return found


@dataclass(frozen=True, slots=True)
class HashedSource:
    """A source with its digest. `in_memory` has the bytes of a small one, whose digest is its manifest."""

    source: Source
    digest: Digest
    manifest: Manifest | None
    in_memory: HashedBytes | None = None

    def body(self) -> Readable | HashedBytes:
        """Return the bytes for one write: those in memory are hashed once for all stores."""
        return self.in_memory or self.source.rewind()


def remove_staged_directory(settings: Settings, job: str) -> None:
    """Remove all files that were staged for a job."""
    shutil.rmtree(settings.staging_dir / staging_name(job), ignore_errors=True)


@contextmanager
def open_source(
    name: str,
    settings: Settings,
    *,
    job: str | None = None,
    sha256: str | None = None,
    heartbeat: Callable[[], object] = lambda: None,
) -> Iterator[Source]:
    """Open a source: an absolute path or an http(s) URL. A URL is downloaded to a temporary file first.

    Args:
        name: the path or the URL.
        settings: which sources are allowed.
        job: the job that uploads it; it may open what was staged for it, and no other staged file.
        sha256: the announced digest, with which the end of a download is known also where its host does not tell it.
        heartbeat: called at least once a second during a download; what it raises ends the download.

    Raises:
        SourceRefused: it is neither, or not one that the settings allow; names the setting that would allow it.
        NotFound: the file or the resource does not exist.
        AccessDenied: the worker may not read it.
        SizeMismatch: it is larger than the settings allow.
        TransientError: the host or the disk does not answer, is too slow, or asks for a retry later.
        OutOfSpace: the data directory has no space left for the download.
    """
    scheme = name.partition("://")[0].lower() if "://" in name else ""
    if scheme in {"http", "https"}:
        announced = sha256 is not None
        with downloaded(name, settings, job=job, announced=announced, heartbeat=heartbeat) as received:
            yield Source(shown(name), received.file, received.size, received.sha256.hex())
    elif scheme:
        raise SourceRefused(f"source {shown(name)}: only files and http(s) URLs can be uploaded")
    else:
        with open_file(name, settings, job) as file:
            yield Source(name, file, os.fstat(file.fileno()).st_size)


def remove_staged(name: str, settings: Settings, job: str) -> None:
    """Remove a file that was staged for this job, and the job's own directory; no other file, whatever the name."""
    path = Path(os.path.realpath(name))
    if path.parent != settings.staging_dir.resolve() / staging_name(job):
        return
    try:
        path.unlink(missing_ok=True)
        path.parent.rmdir()
    except FileNotFoundError:
        return  # an earlier delivery of the job has done it
    except OSError as error:
        logger.warning("the staged file %s cannot be removed: %s", path, error.strerror)
