"""Copy a file that is outside sources.roots into the staging directory, where the worker can read it."""

import hashlib
import os
import secrets
import select
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from worker.cli.arguments import local_path
from worker.cli.errors import WAYS_OUT_OF_WRITE, Failure
from worker.exit_status import Status
from worker.settings import Settings
from worker.settings.private_data_directory import open_own, sync_directory
from worker.storage.driver import BUFFER_SIZE
from worker.storage.filesystem.open_without_symlinks import is_link_refusal
from worker.storage.integrity.verifying_reader import OnBytes


@dataclass(frozen=True, slots=True)
class Staged:
    """A file that was copied for one job; the worker removes it at the end of the job."""

    path: Path
    sha256: str
    fresh: bool = True
    """Whether this command made it; an earlier request with the same idempotency key may need a file that was there."""

    def drop(self) -> None:
        """Remove the file, because its job was not sent."""
        if self.fresh:
            _remove(self.path)


def check_file(name: str) -> Path:
    """Return the absolute path of a file that can be read.

    Raises:
        Failure: there is no such file, or it cannot be uploaded; says why.
    """
    path = local_path(name).absolute()
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise Failure(
                f"source {path} is a directory: upload the files in it with --recursive", type_="SourceRefused"
            )
        if not stat.S_ISREG(mode):
            raise Failure(f"source {path}: is no regular file; copy it into one first", type_="SourceRefused")
        path.open("rb").close()
    except FileNotFoundError:
        raise Failure(f"source {path}: there is no such file", type_="NotFound") from None
    except OSError as error:
        raise Failure(f"source {path}: {error.strerror}", type_="SourceUnreadable") from None
    return path


def within_roots(path: Path, settings: Settings) -> bool:
    """Return whether the worker can read the file where it is. A message cannot hold a name that is not text."""
    real = Path(os.path.realpath(path))
    inside = any(root.resolve() in real.parents for root in settings.sources.roots)
    return inside and str(path).isprintable()


def stage(
    path: Path,
    settings: Settings,
    job_id: str,
    sha256: str | None = None,
    on_bytes: OnBytes = lambda _: None,
    *,
    named_by_digest: bool = False,
) -> Staged:
    """Copy a file into the staging directory of a job, hashing it on the way.

    It keeps its name, or is named by its digest where the request has no other place for it.

    Raises:
        Failure: it cannot be read or changes meanwhile, there is no room, or its SHA-256 is not the one given; no
            staged file is left.
    """
    try:
        source = path.open("rb", buffering=0)
    except OSError as error:
        raise Failure(f"source {path}: {error.strerror}", type_="SourceUnreadable") from error
    with source:
        name = path.name if path.name.isprintable() else "source"
        return _stage(source, None if named_by_digest else name, settings.staging_dir / job_id, sha256, on_bytes)


def has_changed(file: BinaryIO, before: os.stat_result, *, more_than: int | None = None) -> bool:
    """Return whether an open file was written to since `before`: what was read of it may be of both contents.

    While it is read, `more_than` is the number of bytes so far. Up to the size that it had, that is not asked; beyond
    it, a file that grows as fast as it is read would have no end.
    """
    if more_than is not None and more_than <= before.st_size:
        return False
    after = os.fstat(file.fileno())
    return (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)


def stage_stream(
    source: BinaryIO, settings: Settings, job_id: str, sha256: str | None = None, on_bytes: OnBytes = lambda _: None
) -> Staged:
    """Copy standard input into the staging directory of a job, as `stage` does with a file.

    Where it is a pipe, a producer that ended too early cannot be told from one that has written all.
    """
    return _stage(source, "stdin", settings.staging_dir / job_id, sha256, on_bytes)


def _stage(source: BinaryIO, name: str | None, directory: Path, sha256: str | None, on_bytes: OnBytes) -> Staged:
    what = "standard input" if source is sys.stdin.buffer else f"source {source.name}"
    partial = directory / f".zot-partial-{secrets.token_hex(8)}"
    try:
        fd = open_own(directory, partial.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(fd, "wb", buffering=0) as copy:
            digest = _copy(source, copy, on_bytes, what)
            os.fsync(copy.fileno())
        staged = _placed(partial, directory / (name or digest), digest)
    except OSError as error:
        ways_out = [WAYS_OUT_OF_WRITE[error.errno]] if error.errno in WAYS_OUT_OF_WRITE else []
        ways_out += ["add the file's directory to sources.roots"] if source is not sys.stdin.buffer else []
        reason = "; ".join([str(error.strerror), *filter(None, [", or ".join(ways_out)])])
        raise Failure(f"{what}: it cannot be staged in {directory.parent}: {reason}", type_="StagingFailed") from error
    finally:
        _remove(partial)  # also when Ctrl-C ends it
    if sha256 is not None and sha256 != staged.sha256:
        staged.drop()
        raise Failure(
            f"{what}: its SHA-256 is {staged.sha256}, not the announced {sha256}; nothing was sent",
            type_="DigestMismatch",
        )
    return staged


def _placed(partial: Path, path: Path, digest: str) -> Staged:
    """Rename a staged file to its name, unless an earlier request with the same key has staged the same bytes."""
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        fd = open_own(path.parent, path.name, os.O_RDONLY)
        with os.fdopen(fd, "rb") as there:
            if hashlib.file_digest(there, "sha256").hexdigest() == digest:
                return Staged(path, digest, fresh=False)
        raise Failure(
            "the idempotency key was used for another file, which waits for a worker: use another key for this one",
            Status.USAGE,
            type_="OtherRequest",
        ) from None
    except OSError as error:
        if not is_link_refusal(error):
            raise
        partial.replace(path)  # no hard links on this disk
    sync_directory(path.parent)
    sync_directory(path.parent.parent)
    return Staged(path, digest)


def _remove(path: Path) -> None:
    """Remove a staged file, and its directory if nothing else is there."""
    with suppress(OSError):  # the cleanup sweep removes what stays
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def _copy(source: BinaryIO, copy: BinaryIO, on_bytes: OnBytes, what: str) -> str:
    digest, before, count = hashlib.sha256(), _state_of_file(source), 0
    while piece := _read(source, what):
        digest.update(piece)
        left = memoryview(piece)
        while left:
            left = left[copy.write(left) :]
        count += len(piece)
        on_bytes(len(piece))
        if before and has_changed(source, before, more_than=count):
            break
    if before and has_changed(source, before):
        raise Failure(f"{what}: it has changed while it was copied; nothing was sent", type_="SourceChanged")
    return digest.hexdigest()


def _state_of_file(source: BinaryIO) -> os.stat_result | None:
    """Return the state of a regular file; None for a pipe, which has no size that could change."""
    try:
        found = os.fstat(source.fileno())
    except OSError:  # it is no file of the system
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _read(source: BinaryIO, what: str) -> bytes:
    # One call of the system at a time: Python notices a signal between two, and `read` of standard input makes many.
    read: Callable[[int], bytes] = getattr(source, "read1", source.read)
    try:
        if not _is_blocking(source):  # a read of nothing yet looks like the end
            select.select([source], [], [])
        return read(BUFFER_SIZE)
    except OSError as error:
        raise Failure(f"{what}: it cannot be read: {error.strerror}", type_="SourceUnreadable") from error


def _is_blocking(source: BinaryIO) -> bool:
    """Return whether reads wait for bytes; another program that has the same standard input may have changed that."""
    try:
        return os.get_blocking(source.fileno())
    except OSError:  # it is no file of the system
        return True
