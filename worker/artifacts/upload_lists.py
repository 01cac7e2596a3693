"""Upload lists: the files that a batch uploads, and the keys that they get.

A list is a file with one JSON object on each line: `bucket`, `key`, `path`, and the `size` in bytes and `mtime_ns` that
the file had when it was listed. So a file that changes before it is read is found.
"""

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from worker.artifacts.key_lists import BadKeyList
from worker.artifacts.sources import open_source
from worker.settings import Settings
from worker.storage.errors import InvalidKey
from worker.storage.keys import check_bucket, check_key

_MAX_LINE = 1 << 16
_HEARTBEAT_LINES = 1000


@dataclass(frozen=True, slots=True)
class ListedFile:
    """One line of a list. A path may have bytes that are no text, as Python's surrogate escapes."""

    bucket: str
    key: str
    path: str
    size: int
    mtime_ns: int

    def line(self) -> bytes:
        """Return it as a line of a list."""
        row = {
            "bucket": self.bucket, "key": self.key, "path": self.path, "size": self.size, "mtime_ns": self.mtime_ns
        }  # fmt: skip
        return json.dumps(row).encode() + b"\n"  # `asdict` takes longer than all of this


@dataclass(frozen=True, slots=True)
class CheckedDirectory:
    """How many files a list names, their bytes, and the tag by which a change of the list is found."""

    count: int
    size: int
    tag: str


@dataclass(frozen=True, slots=True)
class Extent:
    """The lines of one page: up to which offset they go, and how many files and bytes they name."""

    end: int
    count: int
    size: int


def check(name: str, settings: Settings, heartbeat: Callable[[], object], *, job: str) -> CheckedDirectory:
    """Read a whole list; `heartbeat` is called often and may raise.

    Raises:
        BadKeyList: a line names no file or no valid key; says which.
        SourceRefused, NotFound, AccessDenied: the list cannot be opened.
    """
    count = size = 0
    with _opened(name, settings, job) as file:
        for _, listed in _lines(name, file):
            count, size = count + 1, size + listed.size
            try:
                check_key(check_bucket(listed.bucket), listed.key)
            except InvalidKey as error:
                raise BadKeyList(f"{name}: nothing was done, line {count}: {error.message}") from None
            if count % _HEARTBEAT_LINES == 0:
                heartbeat()
        return CheckedDirectory(count, size, _tag(file))


def extents(
    name: str, settings: Settings, *, offset: int, tag: str, job: str, objects: Iterator[int], size: int, limit: int
) -> list[Extent]:
    """Return up to `limit` pages from an offset on, each with at most so many bytes, or one object.

    `objects` says how many objects the next page has at most, and has no end.

    Raises:
        BadKeyList: the list was changed since it was checked.
    """
    found: list[Extent] = []
    count = total = 0
    end, most = offset, next(objects)
    with _opened(name, settings, job, tag) as file:
        file.seek(offset)
        for after, listed in _lines(name, file):
            if count and (count >= most or total + listed.size > size):
                found.append(Extent(end, count, total))
                if len(found) >= limit:
                    return found
                count, total, most = 0, 0, next(objects)
            count, total, end = count + 1, total + listed.size, after
    return [*found, Extent(end, count, total)] if count else found


def read(name: str, settings: Settings, *, offset: int, end: int, tag: str, job: str) -> list[ListedFile]:
    """Return the files of one page.

    Raises:
        BadKeyList: the list was changed since it was checked.
        SourceRefused, NotFound, AccessDenied: it cannot be opened.
    """
    files: list[ListedFile] = []
    with _opened(name, settings, job, tag) as file:
        file.seek(offset)
        for after, listed in _lines(name, file):
            if after > end:
                break
            files.append(listed)
    return files


@contextmanager
def _opened(name: str, settings: Settings, job: str, tag: str | None = None) -> Iterator[BinaryIO]:
    with open_source(name, settings, job=job) as source:
        assert isinstance(source.file, io.RawIOBase)
        file = io.BufferedReader(source.file)
        if tag is not None and _tag(file) != tag:
            raise BadKeyList(f"{name}: it was changed while its batch ran; send the rest as a new batch")
        yield file


def _lines(name: str, file: BinaryIO) -> Iterator[tuple[int, ListedFile]]:
    """Yield each line and the offset of its end."""
    offset = file.tell()
    while line := file.readline(_MAX_LINE):
        start, offset = offset, offset + len(line)
        try:
            yield offset, _listed(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise BadKeyList(f"{name}: the line at byte {start} is no line of an upload list") from None


def _listed(row: Any) -> ListedFile:
    listed = ListedFile(row["bucket"], row["key"], row["path"], row["size"], row["mtime_ns"])
    texts = all(isinstance(each, str) for each in (listed.bucket, listed.key, listed.path))
    numbers = all(type(each) is int for each in (listed.size, listed.mtime_ns))
    if not texts or not numbers or listed.size < 0:
        raise TypeError
    return listed


def _tag(file: BinaryIO) -> str:
    found = os.fstat(file.fileno())
    return f"{found.st_size}-{found.st_mtime_ns}"
