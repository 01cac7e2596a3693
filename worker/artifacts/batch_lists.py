"""Lists of what a batch works on: the files that it uploads, or the objects that it adopts, one on each line.

A line is one JSON object. For a file it has `bucket`, `key`, `path`, `size` in bytes and `mtime_ns`. The last two are
of the moment of the listing: they show whether the file has changed before it is read. For an object to adopt it has
`bucket`, `key`, and `size` and `sha256` if they are known; the bare `bucket/key` of a key list is also allowed.
A command writes a list into a file; a batch that lists a directory or a store itself keeps the list in the catalogue,
where the workers of every machine find it.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from json.encoder import encode_basestring_ascii
from typing import Any, BinaryIO, ClassVar, Protocol, Self, TypeVar

from worker.artifacts.key_lists import BadKeyList, opened_list, tag_of
from worker.catalogue import Catalogue
from worker.settings import Settings
from worker.storage.errors import InvalidKey
from worker.storage.keys import check_bucket, check_existing_key, check_key
from zot_artifact_client.input_rules import unique_names

_MAX_LINE = 1 << 16
_HEARTBEAT_LINES = 1000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DECODER = json.JSONDecoder(object_pairs_hook=unique_names)
"""`json.loads` makes one for each line, which takes as long as the rest."""
_MOST_BYTES = 2**63 - 1
"""Bytes of the objects of a list that the catalogue can count."""
_SHA256 = re.compile("[0-9a-fA-F]{64}")


class ListedLine(Protocol):
    """One line of a list. `list_name` is the name of such a list in messages."""

    list_name: ClassVar[str]

    @property
    def bucket(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def size(self) -> int: ...

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read a line; raise ValueError, TypeError or KeyError if it is not one of this kind."""
        ...

    def line(self) -> bytes:
        """Return it as a line of a list."""
        ...

    def check(self) -> None:
        """Raise InvalidKey if no object of this kind can have the key."""
        ...


LineT = TypeVar("LineT", bound=ListedLine)


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file to upload. A path may have bytes that are no text, as Python's surrogate escapes."""

    list_name: ClassVar[str] = "an upload list"

    bucket: str
    key: str
    path: str
    size: int
    mtime_ns: int

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read a line; see `ListedLine`."""
        row = _row_of(line.removeprefix(_BYTE_ORDER_MARK))
        listed = cls(row["bucket"], row["key"], row["path"], row["size"], row["mtime_ns"])
        _check_types((listed.bucket, listed.key, listed.path), (listed.size, listed.mtime_ns))
        return listed

    def line(self) -> bytes:
        """Return it as a line of a list."""
        bucket, key, path = map(encode_basestring_ascii, (self.bucket, self.key, self.path))
        return (  # `json.dumps` takes five times as long
            f'{{"bucket": {bucket}, "key": {key}, "path": {path}, "size": {self.size}, "mtime_ns": {self.mtime_ns}}}\n'
        ).encode()

    def check(self) -> None:
        """Raise InvalidKey if no artifact can be uploaded under the key."""
        check_key(check_bucket(self.bucket), self.key)


@dataclass(frozen=True, slots=True)
class ListedAdoption:
    """An object to adopt. `size` is 0 where it is not known; `sha256` is the digest that its bytes must have."""

    list_name: ClassVar[str] = "an adopt list"

    bucket: str
    key: str
    size: int = 0
    sha256: str | None = None

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read a line; see `ListedLine`."""
        text = line.removeprefix(_BYTE_ORDER_MARK).rstrip(b"\r\n")
        if not text.startswith(b"{"):
            bucket, slash, key = text.decode().partition("/")
            if not slash:
                msg = "it has no slash"
                raise ValueError(msg)
            return cls(bucket, key)
        row = _row_of(text)
        sha256 = row.get("sha256")
        listed = cls(row["bucket"], row["key"], row.get("size", 0), sha256 and sha256.lower())
        _check_types((listed.bucket, listed.key, sha256 or ""), (listed.size,))
        if sha256 is not None and not _SHA256.fullmatch(sha256):
            msg = "it has no SHA-256"
            raise ValueError(msg)
        return listed

    def line(self) -> bytes:
        """Return it as a line of a list."""
        row = {"bucket": self.bucket, "key": self.key, "size": self.size}
        return json.dumps(row | ({"sha256": self.sha256} if self.sha256 else {})).encode() + b"\n"

    def check(self) -> None:
        """Raise InvalidKey if no store can have an object under the key."""
        check_existing_key(check_bucket(self.bucket), self.key)


def _row_of(text: bytes) -> Any:
    return _DECODER.decode(text.decode(errors="surrogatepass"))


def _check_types(texts: tuple[Any, ...], numbers: tuple[Any, ...]) -> None:
    if not all(isinstance(each, str) for each in texts) or not all(type(each) is int for each in numbers):
        raise TypeError
    if numbers[0] < 0:
        raise ValueError


Lines = Iterator[tuple[int, LineT]]
"""Lines, each with where the one after it begins: an offset in bytes, or in the catalogue a number."""


@dataclass(frozen=True, slots=True)
class CheckedList:
    """How many objects a list names, their bytes, and the tag by which a change of the list is found."""

    count: int
    size: int
    tag: str


@dataclass(frozen=True, slots=True)
class Extent:
    """The lines of one page: where the next page begins, and how many objects and bytes they name."""

    end: int
    count: int
    size: int


def check(name: str, of: type[LineT], settings: Settings, heartbeat: Callable[[], object], *, job: str) -> CheckedList:
    """Read a whole list with lines of a kind; `heartbeat` is called often and may raise.

    Raises:
        BadKeyList: a line is of another kind, names no valid key, or has a size that cannot be counted; says which.
        SourceRefused, NotFound, AccessDenied: the list cannot be opened.
    """
    count = size = 0
    with opened_list(name, settings, job) as file:
        for _, listed in _lines(name, of, file):
            count, size = count + 1, size + listed.size
            try:
                listed.check()
            except InvalidKey as error:
                raise BadKeyList(f"{name}: nothing was done, line {count}: {error.message}") from None
            if size > _MOST_BYTES:
                raise BadKeyList(
                    f"{name}: nothing was done, line {count}: the sizes up to it are {size} bytes, which are too many"
                )
            if count % _HEARTBEAT_LINES == 0:
                heartbeat()
        return CheckedList(count, size, tag_of(file))


@contextmanager
def opened(
    name: str, of: type[LineT], settings: Settings, job: str, *, offset: int, tag: str
) -> Iterator[Lines[LineT]]:
    """Open a list that is a file, and give its lines from an offset on.

    Raises:
        BadKeyList: the list was changed since it was checked; its lines raise it for one of another kind.
        SourceRefused, NotFound, AccessDenied: it cannot be opened.
    """
    with opened_list(name, settings, job, at=(offset, tag)) as file:
        yield _lines(name, of, file)


def of_batch(catalogue: Catalogue, of: type[LineT], batch: str, begin: int) -> Lines[LineT]:
    """Yield the files of a list that a batch has made, from a number on."""
    for first, lines in catalogue.batch_lists.rows(batch, begin):
        for number, line in enumerate(lines.splitlines(), first):
            if number >= begin:
                yield number + 1, of.parse(line)


def extents(lines: Lines[LineT], *, objects: Iterator[int], size: int, limit: int) -> list[Extent]:
    """Return up to `limit` pages of these lines, each with at most so many bytes, or one object.

    `objects` yields the most objects of each next page, without end.
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


def up_to(lines: Lines[LineT], end: int) -> list[LineT]:
    """Return the lines of one page, up to the beginning of the next page."""
    return [listed for _, listed in takewhile(lambda line: line[0] <= end, lines)]


def _lines(name: str, of: type[LineT], file: BinaryIO) -> Lines[LineT]:
    offset = file.tell()
    while line := file.readline(_MAX_LINE):
        start, offset = offset, offset + len(line)
        if not line.strip():
            continue
        try:
            listed = of.parse(line)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise BadKeyList(f"{name}: the line at byte {start} is no line of {of.list_name}") from None
        yield offset, listed
