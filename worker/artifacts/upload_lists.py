"""Upload lists: the files that a batch uploads, and the keys that they get.

A list has one JSON object on each line: `bucket`, `key`, `path`, and the `size` in bytes and `mtime_ns` that the file
had when it was listed. So a file that changes before it is read is found. The command `upload -r` writes a list into a
file; a batch that lists a directory itself keeps the list in the catalogue, where the workers of every machine find it.
"""

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, BinaryIO

from worker.artifacts.key_lists import BadKeyList
from worker.artifacts.sources import open_source
from worker.catalogue import Catalogue
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


Lines = Iterator[tuple[int, ListedFile]]
"""Files, each with where the one after it begins: an offset in bytes, or in the catalogue a number."""


@dataclass(frozen=True, slots=True)
class CheckedList:
    """How many files a list names, their bytes, and the tag by which a change of the list is found."""

    count: int
    size: int
    tag: str


@dataclass(frozen=True, slots=True)
class Extent:
    """The lines of one page: where the next page begins, and how many files and bytes they name."""

    end: int
    count: int
    size: int


def check(name: str, settings: Settings, heartbeat: Callable[[], object], *, job: str) -> CheckedList:
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
        return CheckedList(count, size, _tag(file))


@contextmanager
def opened(name: str, settings: Settings, job: str, *, offset: int, tag: str) -> Iterator[Lines]:
    """Open a list that is a file, and give its lines from an offset on.

    Raises:
        BadKeyList: the list was changed since it was checked; its lines raise it for one that names no file.
        SourceRefused, NotFound, AccessDenied: it cannot be opened.
    """
    with _opened(name, settings, job) as file:
        if _tag(file) != tag:
            raise BadKeyList(f"{name}: it was changed while its batch ran; send the rest as a new batch")
        file.seek(offset)
        yield _lines(name, file)


def of_batch(catalogue: Catalogue, batch: str, begin: int) -> Lines:
    """Yield the files of a list that a batch has made, from a number on."""
    for first, lines in catalogue.upload_lists.rows(batch, begin):
        for number, line in enumerate(lines.splitlines(), first):
            if number >= begin:
                yield number + 1, _listed(json.loads(line))


def extents(lines: Lines, *, objects: Iterator[int], size: int, limit: int) -> list[Extent]:
    """Return up to `limit` pages of these lines, each with at most so many bytes, or one object.

    `objects` says how many objects the next page has at most, and has no end.
    """
    found: list[Extent] = []
    end = count = total = 0
    most = next(objects)
    for after, listed in lines:
        if count and (count >= most or total + listed.size > size):
            found.append(Extent(end, count, total))
            if len(found) >= limit:
                return found
            count, total, most = 0, 0, next(objects)
        count, total, end = count + 1, total + listed.size, after
    return [*found, Extent(end, count, total)] if count else found


def up_to(lines: Lines, end: int) -> list[ListedFile]:
    """Return the files of one page: those of these lines up to where the next page begins."""
    return [listed for _, listed in takewhile(lambda line: line[0] <= end, lines)]


@contextmanager
def _opened(name: str, settings: Settings, job: str) -> Iterator[BinaryIO]:
    with open_source(name, settings, job=job) as source:
        assert isinstance(source.file, io.RawIOBase)
        yield io.BufferedReader(source.file)


def _lines(name: str, file: BinaryIO) -> Lines:
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
