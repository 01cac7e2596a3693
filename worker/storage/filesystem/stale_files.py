"""Find and remove what dead writers left: temporary files, intents, sidecars without data, empty directories."""

from collections.abc import Collection, Iterator
from contextlib import suppress

from worker.storage.driver import StaleUpload
from worker.storage.errors import InvalidKey
from worker.storage.filesystem.atomic_write import ObjectFiles, is_orphan
from worker.storage.filesystem.layout import (
    HIDDEN_SIDECAR,
    INTENTS,
    OWN,
    SIDECAR,
    TEMP,
    ObjectPath,
    is_encodable,
    segment_of,
    to_time,
)
from worker.storage.filesystem.listing import Listing
from worker.storage.filesystem.open_without_symlinks import Tree, stat_of
from worker.storage.filesystem.temp_files import remove_dead
from worker.storage.keys import check_bucket


class StaleFiles:
    """The files of a tree that belong to no object."""

    def __init__(self, store: str, tree: Tree, files: ObjectFiles, listing: Listing) -> None:
        self._store = store
        self._tree = tree
        self._files = files
        self._listing = listing

    def rows(self) -> Iterator[StaleUpload]:
        """Yield temporary files, intents and sidecars without data, those of living writers included."""
        _, directories = self._tree.scan((), strict=True)
        for name in filter(_is_ours, directories):
            yield from self._below((name,))

    def discard(self, token: tuple[str, ...]) -> bool:
        """Remove a file or complete an intent; return False if it is gone, in use, or its writer is alive."""
        path, name = token[:-1], token[-1]
        if name.startswith(HIDDEN_SIDECAR):
            return self._files.remove_hidden(path, name)
        if path == INTENTS and not name.startswith(TEMP):
            return self._files.settle_intent(name)
        if name.startswith(TEMP):
            with self._tree.directory_or_none(path) as directory:
                removed = directory is not None and remove_dead(directory, name)
        else:
            segment = segment_of(name.removesuffix(SIDECAR))
            removed = self._files.remove_orphan(ObjectPath(path[0], "/".join((*path[1:], segment))))
        self._tree.prune(path, keep=2 if path[0] == OWN else 1)
        return removed

    def clear(self, path: tuple[str, ...]) -> None:
        """Remove a directory and what dead writers left in it, unless it contains an object."""
        if next(self._listing.rows(path[0], "".join(f"{name}/" for name in path[1:]), ""), None) is not None:
            return
        for stale in self._below(path):
            self.discard(stale.token)
        for below, _ in reversed(list(self._tree.walk(path))):
            self._tree.prune(below, keep=len(below) - 1)

    def _below(self, path: tuple[str, ...]) -> Iterator[StaleUpload]:
        for below, files in self._tree.walk(path):
            yield from self._in(below, files)

    def _in(self, path: tuple[str, ...], files: Collection[str]) -> list[StaleUpload]:
        stale = [name for name in files if name.startswith(TEMP) or path == INTENTS or _has_no_data(name, files)]
        if not stale:
            return []
        found: list[StaleUpload] = []
        with self._tree.directory_or_none(path) as directory:
            if directory is None:
                return []
            for name in stale:
                if name.startswith(TEMP):
                    what = "temporary file"
                elif path == INTENTS:
                    what = "intent of a replacement"
                elif name.startswith(HIDDEN_SIDECAR) or _is_orphan(directory, name):
                    what = "sidecar without data"
                else:
                    continue
                with suppress(FileNotFoundError):
                    since = to_time(stat_of(directory, name).st_ctime)
                    where = "/".join((*path, name))
                    found.append(StaleUpload(f"{self._store}: {what} {where}", since, (*path, name)))
        return found


def _has_no_data(name: str, files: Collection[str]) -> bool:
    """Return whether this has the name of a sidecar, hidden or not, and there is no data that it would belong to."""
    leaf = name.removeprefix(HIDDEN_SIDECAR) if name.startswith(HIDDEN_SIDECAR) else name.removesuffix(SIDECAR)
    moving = segment_of(leaf)  # the name that the original gave it: the next write completes its move
    return leaf != name and leaf not in files and moving not in files and is_encodable(leaf)


def _is_orphan(directory: int, name: str) -> bool:
    """Return whether a file without data is a sidecar of ours, and not what another program keeps."""
    try:
        return is_orphan(directory, name)
    except OSError:
        return False  # what cannot be read stays


def _is_ours(name: str) -> bool:
    """Return whether a directory below the root is a bucket or our own; a disk has others, such as `lost+found`."""
    try:
        return name == OWN or bool(check_bucket(name, reserved=True))
    except InvalidKey:
        return False
