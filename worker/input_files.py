"""Open a file that a user or a setting names: to open a FIFO that no program writes to would never return."""

import errno
import os
import select
import stat
import time
from io import BufferedReader
from pathlib import Path

PATIENCE = 30.0
"""Seconds within which a pipe or a device must have something to read."""
_PIECE = 1 << 20
_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


def open_input(path: Path | str) -> BufferedReader:
    """Open a file, a pipe or a device for reading.

    Raises:
        OSError: as `open` does; also if a pipe or device has nothing to read within `PATIENCE`.
    """
    fd = _opened(path)
    try:
        if not _is_file(fd):
            _wait(fd, PATIENCE)
        os.set_blocking(fd, True)
        return open(fd, "rb")  # noqa: PTH123 - a descriptor
    except BaseException as error:
        os.close(fd)
        if isinstance(error, IsADirectoryError):
            error.filename = str(path)  # Python names the descriptor
        raise


def read_input(path: Path | str, most: int) -> bytes:
    """Return what is in a file, or comes from a pipe or a device, up to `most` bytes.

    Raises:
        OSError: as `open` and `read` do; also if a pipe or device has not come to its end within `PATIENCE`.
    """
    fd = _opened(path)
    try:
        waits, content, until = not _is_file(fd), b"", time.monotonic() + PATIENCE
        while len(content) < most:
            if waits:
                _wait(fd, until - time.monotonic())
            if not (piece := os.read(fd, min(_PIECE, most - len(content)))):
                break
            content += piece
        return content
    finally:
        os.close(fd)


def special_kind(path: Path | str) -> str | None:
    """Return what is there instead of a file that a library could read to its end; None for a file and for nothing."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - a name or a path
    except (OSError, ValueError):
        return None
    if str(path) == os.devnull:
        return None
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), None)


def _opened(path: Path | str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def _is_file(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _wait(fd: int, seconds: float) -> None:
    if not select.select([fd], [], [], max(0.0, seconds))[0]:
        raise TimeoutError(errno.ETIMEDOUT, f"it is no file, and nothing more comes from it within {PATIENCE:.0f} s")
