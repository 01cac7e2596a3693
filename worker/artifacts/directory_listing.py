"""List the files of a directory that are to be uploaded, and the keys that they get."""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from worker.artifacts.batch_lists import ListedFile
from worker.storage.errors import InvalidKey
from worker.storage.keys import check_key
from zot_artifact_client.globs import Pattern, compiled, matches

Symlinks = Literal["skip", "follow", "error"]
_MAX_NAMED = 100


@dataclass(frozen=True, slots=True)
class Filters:
    """Which files are wanted: those that match an `include` pattern, or all without one, and no `exclude` pattern.

    A pattern without a slash is matched with each name in the path, one with a slash with the whole path below the
    directory. `*` and `?` match within a name, `**` any number of directories.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    symlinks: Symlinks = "skip"


class _Level(NamedTuple):
    """A directory on the way to a file: its path below the root, its device and inode, and the entries not yet read."""

    below: str
    inode: tuple[int, int]
    entries: Iterator[os.DirEntry[str]]


@dataclass(slots=True)
class DirectoryListing:
    """A walk through a directory. What it counts is complete when its files are listed.

    `problems` are the first of the `failed` files and directories that cannot be uploaded, each with its reason.
    """

    directory: Path
    bucket: str
    prefix: str
    filters: Filters = Filters()
    count: int = 0
    size: int = 0
    links: int = 0
    special: int = 0
    failed: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    _unwanted: list[Pattern] = field(init=False)

    def __post_init__(self) -> None:
        """Compile the patterns. Raise ValueError: one is not valid."""
        self._unwanted = [compiled(pattern) for pattern in self.filters.exclude]

    @property
    def name(self) -> str:
        """Return a name for the list that is the same only for this directory, place of the artifacts and filters."""
        what = repr((os.fspath(self.directory), self.bucket, self.prefix, self.filters))
        return f"list-{hashlib.sha256(what.encode()).hexdigest()[:32]}"

    def files(self) -> Iterator[ListedFile]:
        """Yield the files in the order of their paths, each with its size and time of change."""
        wanted = [compiled(pattern) for pattern in self.filters.include]
        for below, path, found in self._walk():
            if wanted and not matches(wanted, below):
                continue
            if not stat.S_ISREG(found.st_mode):
                self.special += 1
                continue
            key = self.prefix + below
            try:
                key.encode()
                check_key(self.bucket, key)
            except UnicodeEncodeError:
                self.refuse(below, "its name is not UTF-8, as keys are; rename it")
                continue
            except InvalidKey as error:
                self.refuse(below, error.message)
                continue
            self.count += 1
            self.size += found.st_size
            yield ListedFile(self.bucket, key, path, found.st_size, found.st_mtime_ns)

    def _walk(self) -> Iterator[tuple[str, str, os.stat_result]]:
        """Yield each file below the directory: its path relative to it, its path, and its stat.

        The directories on the way to it are in a list: a disk has more levels than Python allows nested calls.
        """
        open_: list[_Level] = []
        self._enter(open_, os.fspath(self.directory), "")
        while open_:
            entry = next(open_[-1].entries, None)
            if entry is None:
                open_.pop()
                continue
            path = f"{open_[-1].below}{entry.name}"
            if matches(self._unwanted, path):
                continue
            try:
                found = self._stat(entry, path)
            except OSError as error:
                self.refuse(path, error.strerror or str(error))
                continue
            if found is None:
                continue
            if stat.S_ISDIR(found.st_mode):
                self._enter(open_, entry.path, f"{path}/")
            else:
                yield path, entry.path, found

    def _enter(self, open_: list["_Level"], directory: str, below: str) -> None:
        """Add a directory to the open ones, unless it cannot be read or is one of them already."""
        try:
            here = os.stat(directory)  # noqa: PTH116 - a million paths are no objects
            with os.scandir(directory) as entries:
                names = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.refuse(below or ".", error.strerror or str(error))
            return
        if any((here.st_dev, here.st_ino) == level.inode for level in open_):
            self.refuse(below, "a symbolic link leads back to a directory above it")
            return
        open_.append(_Level(below, (here.st_dev, here.st_ino), iter(names)))

    def _stat(self, entry: os.DirEntry[str], path: str) -> os.stat_result | None:
        """Return the stat of an entry, or None if it is a symbolic link that is not followed."""
        if not entry.is_symlink() or self.filters.symlinks == "follow":
            return entry.stat()
        if self.filters.symlinks == "error":
            self.refuse(path, "it is a symbolic link; see --symlinks")
        else:
            self.links += 1
        return None

    def refuse(self, path: str, reason: str) -> None:
        """Count a file or directory that cannot be uploaded; bytes of its name that are no text are shown in hex."""
        self.failed += 1
        if len(self.problems) < _MAX_NAMED:
            self.problems.append((os.fsencode(path).decode(errors="backslashreplace"), reason))
