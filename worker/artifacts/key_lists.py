"""Key lists: files that name artifacts in UTF-8, one `bucket/key` on each line.

No key of an upload has a line end in it, so nothing is quoted; an adopted key that has one can be named by a prefix.
Empty lines are ignored, and so are a byte order mark and the carriage returns of Windows.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from worker.artifacts.sources import open_source
from worker.settings import Settings
from worker.storage.errors import InvalidKey, PermanentError
from worker.storage.keys import check_bucket, check_existing_key

_MAX_LINE = 8192
"""Bytes; no `bucket/key` has as many."""
_MAX_NAMED = 5
"""Bad lines that the error names; it counts the others."""
_MAX_MESSAGE = 50
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HEARTBEAT_LINES = 1000


class BadKeyList(PermanentError):
    """The key list of a batch has lines that name no artifact, or was changed."""


@dataclass(frozen=True, slots=True)
class CheckedList:
    """How many artifacts a key list names, and the tag by which a change of the file is found."""

    count: int
    tag: str


@dataclass(frozen=True, slots=True)
class Line:
    """One line that names an artifact, and the offset of the next line in the file."""

    bucket: str
    key: str
    end: int


def check(name: str, settings: Settings, heartbeat: Callable[[], object], *, job: str | None = None) -> CheckedList:
    """Read a whole list and return how many artifacts it names; `heartbeat` is called often and may raise.

    Raises:
        BadKeyList: lines of it name no artifact; names the first and why.
        SourceRefused, NotFound, AccessDenied: it cannot be opened.
    """
    count, bad = 0, 0
    named: list[str] = []
    with opened_list(name, settings, job) as file:
        for number, _, raw in _lines(file, 0):
            if number % _HEARTBEAT_LINES == 0:
                heartbeat()
            fault = _fault(raw)
            bad += fault is not None
            count += fault is None
            if fault is not None and len(named) < _MAX_NAMED:
                named.append(f"line {number}: {fault}")
        tag = tag_of(file)
    if bad:
        more = f"; and {bad - len(named)} more" if bad > len(named) else ""
        raise BadKeyList(f"{name}: nothing was done, {bad} of its lines name no artifact: {'; '.join(named)}{more}")
    return CheckedList(count, tag)


def page(name: str, settings: Settings, *, offset: int, tag: str, limit: int, job: str | None = None) -> list[Line]:
    """Return the next artifacts of a checked list, from an offset in bytes.

    Raises:
        BadKeyList: it was changed since it was checked.
        SourceRefused, NotFound, AccessDenied: it cannot be opened.
    """
    found: list[Line] = []
    with opened_list(name, settings, job, at=(offset, tag)) as file:
        for _, end, raw in _lines(file, offset):
            bucket, _, key = raw.decode().partition("/")
            found.append(Line(bucket, key, end))
            if len(found) >= limit:
                break
    return found


@contextmanager
def opened_list(
    name: str, settings: Settings, job: str | None, *, at: tuple[int, str] | None = None
) -> Iterator[BinaryIO]:
    """Open a list, from an offset on if it is checked already and has this tag.

    Raises:
        BadKeyList: it was changed since it was checked.
        SourceRefused, NotFound, AccessDenied: it cannot be opened.
    """
    with open_source(name, settings, job=job) as source:
        assert isinstance(source.file, io.RawIOBase)
        file = io.BufferedReader(source.file)
        if at is not None:
            if tag_of(file) != at[1]:
                raise BadKeyList(f"{name}: it was changed while its batch ran; send the rest as a new batch")
            file.seek(at[0])
        yield file


def _lines(file: BinaryIO, offset: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number of each line that is not empty, the offset of its end, and its content."""
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        start, offset = offset, offset + len(line)
        while not line.endswith(b"\n") and (rest := file.readline(_MAX_LINE)):
            offset += len(rest)
            line = line[:_MAX_LINE] + rest[-1:]
        said = line.removesuffix(b"\n").removesuffix(b"\r")
        said = said.removeprefix(_BYTE_ORDER_MARK) if start == 0 else said
        if said:
            yield number, offset, said


def _fault(raw: bytes) -> str | None:
    try:
        bucket, slash, key = raw.decode().partition("/")
        if not slash:
            return "it has no slash; write bucket/key"
        check_existing_key(check_bucket(bucket), key)
    except UnicodeDecodeError:
        return "it is not in UTF-8"
    except InvalidKey as error:
        return error.message if len(error.message) <= _MAX_MESSAGE else f"{error.message[:_MAX_MESSAGE]}…"
    return None


def tag_of(file: BinaryIO) -> str:
    """Return the tag by which a change of an open list is found."""
    found = os.fstat(file.fileno())
    return f"{found.st_size}-{found.st_mtime_ns}"
