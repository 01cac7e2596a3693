"""Find out which files a power cut would leave, from the calls that make them durable."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Synced:
    """What was made durable: the content of files, and the names in directories."""

    def __init__(self) -> None:
        self._contents: dict[tuple[int, int], tuple[int, int]] = {}
        self._names: dict[tuple[int, int], dict[str, int]] = {}
        self._replaced_early: set[str] = set()

    def keeps(self, path: Path) -> bool:
        """Return whether a file has its content and its name after a power cut at any moment from now on."""
        found = path.stat()
        return (
            self.has_name(path)
            and self._contents.get(_identity(found)) == _content(found)
            and str(path) not in self._replaced_early
        )

    def has_content(self, path: Path) -> bool:
        """Return whether a file has its content after a power cut, under whatever name it has then."""
        found = path.stat()
        return self._contents.get(_identity(found)) == _content(found)

    def has_name(self, path: Path) -> bool:
        """Return whether a file or directory has its name after a power cut."""
        return self._names.get(_identity(path.parent.stat()), {}).get(path.name) == path.stat().st_ino

    def add(self, fd: int) -> None:
        """Note that a file or directory was synced."""
        found = os.fstat(fd)
        if (where := Path(f"/proc/self/fd/{fd}").readlink()).is_dir():
            self._names[_identity(found)] = {entry.name: entry.inode() for entry in os.scandir(where)}
        else:
            self._contents[_identity(found)] = _content(found)

    def replaces(self, path: Path, target: Path) -> None:
        """Note that a file is about to get a name: before its content is durable, a power cut leaves neither."""
        found = path.stat()
        if self._contents.get(_identity(found)) != _content(found):
            self._replaced_early.add(str(target))


@contextmanager
def synced() -> Iterator[Synced]:
    """Note what is synced in this process during the block."""
    noted, fsync, replace = Synced(), os.fsync, os.replace

    def note(fd: Any) -> None:
        fsync(fd)
        noted.add(fd if isinstance(fd, int) else fd.fileno())

    def note_replaced(path: Any, target: Any, **options: Any) -> None:
        noted.replaces(Path(path), Path(target))
        replace(path, target, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", note)
        patch.setattr(os, "replace", note_replaced)
        yield noted


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _content(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns
