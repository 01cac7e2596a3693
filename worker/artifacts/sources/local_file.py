"""Files under the configured roots, and files that were staged for the job."""

import errno
import os
import stat
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from worker.artifacts.sources.errors import SourceRefused
from worker.settings import Settings
from worker.storage.errors import AccessDenied, NotFound, StorageError, Unavailable
from zot_artifact_client.contract import BATCH_JOB_ID

_ONLY_FILES = "only regular files under a configured root can be uploaded"
_ABOUT_THE_NAME = {
    errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG, errno.ENODEV, errno.ENOTDIR, errno.ENXIO,
}  # fmt: skip
"""The other errors are about the disk or the machine, such as EIO, ESTALE and EMFILE, and may pass."""


def open_file(name: str, settings: Settings, job: str | None) -> BinaryIO:
    """Open a regular file under a root, or one that was staged for this job, without a buffer.

    Raises:
        SourceRefused: it is not one of those; names the setting that would allow it.
        NotFound, AccessDenied: it does not exist, or the worker may not read it.
        Unavailable: the disk or the machine cannot open it now.
    """
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise SourceRefused(f"source {name!r}: no file can have this name") from None
    if "\0" in name:
        raise SourceRefused(f"source {name!r}: no file can have this name")
    if not os.path.isabs(name):  # noqa: PTH117 - here and below, a Path costs more than the call
        raise SourceRefused(f"source {name!r}: give an absolute path")
    real = _real(name)
    _check_allowed(name, real, settings, job)
    try:
        # Checked before the open as well: to open a device may already have an effect.
        if not stat.S_ISREG(os.stat(name).st_mode):  # noqa: PTH116
            raise SourceRefused(f"source {name}: {_ONLY_FILES}")
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # non-blocking: a FIFO must not hold a worker
    except OSError as error:
        raise file_error(name, error) from error
    try:
        # Checked again on the open file: a link may have changed between the check and the open.
        opened = f"/proc/self/fd/{fd}"
        with suppress(OSError):  # where it cannot be told, it is a path that does not exist
            opened = os.readlink(opened)  # noqa: PTH115 - a Path costs more
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SourceRefused(f"source {name}: {_ONLY_FILES}")
        if opened != real:
            # A file that was removed, or is of another mount namespace, has no path here but its name.
            path = opened if Path(opened).exists() else os.path.realpath(name)
            _check_allowed(name, path, settings, job)
            _check_same(name, path, fd)
        return os.fdopen(fd, "rb", buffering=0)
    except BaseException:
        os.close(fd)
        raise


def _check_same(name: str, path: str, fd: int) -> None:
    """Raise Unavailable if an open file is not the one of this path any more, and NotFound if there is none."""
    try:
        same = os.path.samestat(os.stat(path), os.fstat(fd))  # noqa: PTH116 - a Path costs more
    except OSError as error:
        raise file_error(name, error) from error
    if not same:
        raise Unavailable(f"source {name}: it was replaced while it was opened")


def file_error(name: str, error: OSError) -> StorageError:
    """Return the error of a source for an error of the operating system; those of the disk or machine are transient."""
    if isinstance(error, FileNotFoundError):
        return NotFound(f"source {name}: there is no such file")
    if isinstance(error, PermissionError):
        return AccessDenied(f"source {name}: the worker may not read it")
    if error.errno in _ABOUT_THE_NAME:
        return SourceRefused(f"source {name}: {error.strerror}")
    return Unavailable(f"source {name}: it cannot be read now: {error.strerror}")


def _check_allowed(name: str, real: str, settings: Settings, job: str | None) -> None:
    directory = os.path.dirname(real)  # noqa: PTH120 - a Path costs more than the check
    second = int(time.monotonic())  # pages open hundreds of files in the same second
    staging = _resolved(os.fspath(settings.staging_dir), second)
    if f"{directory}/".startswith(f"{staging}/"):
        if directory == f"{staging}/{staging_name(job)}":
            return
        raise SourceRefused(f"source {name}: it is staged for another job")
    roots = (_resolved(os.fspath(root), second).rstrip("/") for root in settings.sources.roots)
    if not any(f"{directory}/".startswith(f"{root}/") for root in roots):
        raise SourceRefused(f"source {name}: it is not under a configured root; add its directory to sources.roots")


def _real(name: str) -> str:
    """Return the resolved path of a file; its directory is resolved once a second, because pages open many files of it.

    A directory that a link replaces meanwhile is found after the open: the file has another path.
    """
    directory, last = os.path.split(name)
    if last in {"", ".", ".."} or os.path.islink(name):  # noqa: PTH114 - a Path costs more
        return os.path.realpath(name)
    return os.path.join(_resolved(directory, int(time.monotonic())), last)  # noqa: PTH118


@lru_cache(maxsize=64)
def _resolved(directory: str, second: int) -> str:
    """Return the resolved path of a directory."""
    del second  # what was resolved in another one is resolved again
    return os.path.realpath(directory)


def staging_name(job: str | None) -> str:
    """Return the name of the directory where the files of a job are staged; the jobs of a batch share its directory."""
    found = BATCH_JOB_ID.fullmatch(job or "")
    return found["batch"] if found else job or "-"
