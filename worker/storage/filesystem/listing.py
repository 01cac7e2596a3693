"""List the objects of a bucket in the order of their keys, with one directory's names in memory at a time."""

import errno
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from worker.storage.driver import ListedObject
from worker.storage.filesystem.atomic_write import is_foreign
from worker.storage.filesystem.layout import (
    HIDDEN_SIDECAR,
    SIDECAR,
    SIDECAR_SIZES,
    is_encodable,
    objects_in,
    to_time,
    version_of,
)
from worker.storage.filesystem.open_without_symlinks import UNREADABLE, Tree, stat_of

_BATCH = 1000
"""Files whose stat is read while their directory is open: a suspended listing keeps no directory open."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A key, or with a slash at its end all keys below it; `name` is that of the file or directory."""

    key: str
    name: str

    @property
    def is_directory(self) -> bool:
        return self.key.endswith("/")


class Listing:
    """The keys of one tree."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def rows(self, bucket: str, prefix: str, after: str) -> Iterator[ListedObject]:
        """Yield the objects of a bucket; see `Driver.iter_objects`."""
        open_directories = [self._entries((bucket,), prefix, after)]
        while open_directories:
            entry = next(open_directories[-1], None)
            if entry is None:
                open_directories.pop()
            elif isinstance(entry, ListedObject):
                yield entry
            else:
                open_directories.append(self._entries((bucket, *entry.key[:-1].split("/")), prefix, after))

    def _entries(self, path: tuple[str, ...], prefix: str, after: str) -> Iterator[ListedObject | _Entry]:
        base = "".join(f"{name}/" for name in path[1:])
        files, directories = self._tree.scan(path, strict=len(path) == 1)
        foreign = self._foreign(path, files)
        keys = [_Entry(base + segment, name) for segment, name in objects_in(files, foreign).items()]
        below = [_Entry(f"{base}{name}/", name) for name in directories]
        wanted = list[_Entry]()
        for entry in keys + below:
            if not is_encodable(entry.key):
                error = OSError(errno.EILSEQ, "its name is not UTF-8, as keys are: rename it")
                self._tree.report((*path, entry.name), error)
            elif _is_wanted(entry.key, prefix, after):
                wanted.append(entry)
        wanted.sort(key=lambda entry: entry.key.encode())
        for start in range(0, len(wanted), _BATCH):
            yield from self._rows(path, wanted[start : start + _BATCH])

    def _foreign(self, path: tuple[str, ...], files: set[str]) -> list[str]:
        """Return the files with a sidecar's name that other programs wrote; beside an object, the size tells them."""
        sidecars = [name for name in files if name.endswith(SIDECAR)]
        if not sidecars:
            return []
        foreign = []
        with self._tree.directory_or_none(path) as directory:
            if directory is None:
                return []
            for name in sidecars:
                data = name.removesuffix(SIDECAR)
                with suppress(OSError):
                    if (
                        HIDDEN_SIDECAR + data in files
                        or stat_of(directory, name).st_size not in SIDECAR_SIZES
                        or ((data not in files or data.endswith(SIDECAR)) and is_foreign(directory, name))
                    ):
                        foreign.append(name)
        return foreign

    def _rows(self, path: tuple[str, ...], entries: list[_Entry]) -> list[ListedObject | _Entry]:
        rows: list[ListedObject | _Entry] = []
        with self._tree.directory_or_none(path) as directory:
            if directory is None:
                return []
            for entry in entries:
                if entry.is_directory:
                    rows.append(entry)
                    continue
                try:
                    stat = stat_of(directory, entry.name)
                    rows.append(ListedObject(entry.key, stat.st_size, version_of(stat), to_time(stat.st_mtime)))
                except FileNotFoundError:
                    continue  # deleted since the directory was read
                except OSError as error:
                    if error.errno not in UNREADABLE:
                        raise
                    self._tree.report((*path, entry.name), error)
        return rows


def _is_wanted(key: str, prefix: str, after: str) -> bool:
    first, last = _bytes(prefix), _bytes(after)
    own = key.encode()
    if not key.endswith("/"):
        return own.startswith(first) and own > last
    return (own.startswith(first) or first.startswith(own)) and (own > last or last.startswith(own))


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
