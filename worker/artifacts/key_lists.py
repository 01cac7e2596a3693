"""A file that lists artifacts: in UTF-8, one `bucket/key` on each line.

No key that a store may hold has a line end in it, so that nothing needs to be quoted. Empty lines are passed over, and
so are a byte order mark and the carriage returns of Windows.
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
from worker.storage.keys import check_bucket, check_key

_LONGEST = 8192
"""Bytes; no `bucket/key` has as many."""
_TOLD = 5
"""Faults that are told by their lines; of the others it is told how many there are."""
_MOST_TOLD = 200
_MARK = b"\xef\xbb\xbf"
_EVERY = 1000


class BadKeyList(PermanentError):
    """The file that lists the artifacts of a batch has lines that name none, or is not the one that it was."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What a file lists, and by what it is known again."""

    count: int
    tag: str


@dataclass(frozen=True, slots=True)
class Line:
    """One line that names an artifact, and where the next one begins in the file."""

    bucket: str
    key: str
    end: int


def check(name: str, settings: Settings, tick: Callable[[int], None]) -> Listed:
    """Read a whole list and return how many artifacts it names; `tick` is called now and then and may raise.

    Raises:
        BadKeyList: lines of it name no artifact; says which and why.
        SourceRefused, NotFound, AccessDenied: it cannot be opened.
    """
    count, bad = 0, 0
    told: list[str] = []
    with _opened(name, settings) as file:
        for number, _, raw in _lines(file, 0):
            if number % _EVERY == 0:
                tick(0)
            fault = _fault(raw)
            bad += fault is not None
            count += fault is None
            if fault is not None and len(told) < _TOLD:
                told.append(f"line {number}: {fault}")
        tag = _tag(file)
    if bad:
        more = f"; and {bad - len(told)} more" if bad > len(told) else ""
        raise BadKeyList(f"{name}: nothing was done, {bad} of its lines name no artifact: {'; '.join(told)}{more}")
    return Listed(count, tag)


def page(name: str, settings: Settings, *, offset: int, tag: str, limit: int) -> list[Line]:
    """Return the next artifacts of a list that was checked, from a byte on.

    Raises:
        BadKeyList: it has been changed since it was checked.
        SourceRefused, NotFound, AccessDenied: it cannot be opened.
    """
    found: list[Line] = []
    with _opened(name, settings) as file:
        if _tag(file) != tag:
            raise BadKeyList(f"{name}: it has been changed while its batch was at work; send the rest as a new one")
        file.seek(offset)
        for _, end, raw in _lines(file, offset):
            bucket, _, key = raw.decode().partition("/")
            found.append(Line(bucket, key, end))
            if len(found) >= limit:
                break
    return found


@contextmanager
def _opened(name: str, settings: Settings) -> Iterator[BinaryIO]:
    with open_source(name, settings) as source:
        assert isinstance(source.file, io.RawIOBase)
        yield io.BufferedReader(source.file)


def _lines(file: BinaryIO, offset: int) -> Iterator[tuple[int, int, bytes]]:
    """Return the number of each line that is not empty, where it ends in the file, and what it says."""
    number = 0
    while line := file.readline(_LONGEST):
        number += 1
        start, offset = offset, offset + len(line)
        while not line.endswith(b"\n") and (rest := file.readline(_LONGEST)):
            offset += len(rest)
            line = line[:_LONGEST] + rest[-1:]
        said = line.removesuffix(b"\n").removesuffix(b"\r")
        said = said.removeprefix(_MARK) if start == 0 else said
        if said:
            yield number, offset, said


def _fault(raw: bytes) -> str | None:
    try:
        bucket, slash, key = raw.decode().partition("/")
        if not slash:
            return "it has no slash; write bucket/key"
        check_key(check_bucket(bucket), key)
    except UnicodeDecodeError:
        return "it is not in UTF-8"
    except InvalidKey as error:
        return error.message if len(error.message) <= _MOST_TOLD else f"{error.message[:_MOST_TOLD]}…"
    return None


def _tag(file: BinaryIO) -> str:
    found = os.fstat(file.fileno())
    return f"{found.st_size}-{found.st_mtime_ns}"
