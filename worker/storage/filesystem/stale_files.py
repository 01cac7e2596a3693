"""Find and remove what dead writers left: temporary files, intents, sidecars without data, empty directories."""

from collections.abc import Collection, Iterator
from contextlib import suppress

from worker.storage.driver import StaleUpload
from worker.storage.errors import InvalidKey
from worker.storage.filesystem.atomic_write import ObjectFiles
from worker.storage.filesystem.layout import HIDDEN_SIDECAR, INTENTS, OWN, TEMP, ObjectPath, is_encodable, orphans_in
from worker.storage.filesystem.listing import Listing, to_time
from worker.storage.filesystem.open_without_symlinks import Tree, stat_of
from worker.storage.filesystem.temp_files import remove_dead
from worker.storage.keys import check_any_bucket


class StaleFiles:
    """The files of a tree that belong to no object."""

    def __init__(self, store: str, tree: Tree, files: ObjectFiles, listing: Listing) -> None:
        self._store = store
        self._tree = tree
        self._files = files
        self._listing = listing

    def rows(self) -> Iterator[StaleUpload]:
        """Yield temporary files and intents, those of living writers included."""
        _, directories = self._tree.scan((), strict=True)
        for name in filter(_is_ours, directories):
            yield from self._below((name,))

    def discard(self, token: tuple[str, ...]) -> bool:
        """Remove a temporary file or complete an intent; return False if it is gone or its writer is alive."""
        path, name = token[:-1], token[-1]
        if name.startswith(HIDDEN_SIDECAR):
            return self._files.remove_hidden(path, name)
        if not name.startswith(TEMP):
            return self._files.settle_intent(name)
        with self._tree.directory_or_none(path) as directory:
            removed = directory is not None and remove_dead(directory, name)
        self._tree.prune(path, keep=2 if path[0] == OWN else 1)
        return removed

    def clear(self, path: tuple[str, ...]) -> None:
        """Remove a directory and what dead writers left in it, unless it contains an object."""
        if next(self._listing.rows(path[0], "".join(f"{name}/" for name in path[1:]), ""), None) is not None:
            return
        for stale in self._below(path):
            self.discard(stale.token)
        for below, files in reversed(list(self._tree.walk(path))):
            for segment in filter(is_encodable, orphans_in(files)):
                self._files.remove_orphan(ObjectPath(path[0], "/".join((*below[1:], segment))))
            self._tree.prune(below, keep=len(below) - 1)

    def _below(self, path: tuple[str, ...]) -> Iterator[StaleUpload]:
        for below, files in self._tree.walk(path):
            yield from self._in(below, files)

    def _in(self, path: tuple[str, ...], files: Collection[str]) -> list[StaleUpload]:
        stale = [name for name in files if name.startswith(TEMP) or path == INTENTS or _is_left(name, files)]
        if not stale:
            return []
        found: list[StaleUpload] = []
        with self._tree.directory_or_none(path) as directory:
            if directory is None:
                return []
            for name in stale:
                with suppress(FileNotFoundError):
                    since = to_time(stat_of(directory, name).st_ctime)
                    what = "temporary file" if name.startswith(TEMP) else "intent of a replacement"
                    what = "sidecar without data" if name.startswith(HIDDEN_SIDECAR) else what
                    where = "/".join((*path, name))
                    found.append(StaleUpload(f"{self._store}: {what} {where}", since, (*path, name)))
        return found


def _is_left(name: str, files: Collection[str]) -> bool:
    """Return whether this is a hidden sidecar that a killed delete left: its data is gone."""
    leaf = name.removeprefix(HIDDEN_SIDECAR)
    return leaf != name and leaf not in files and is_encodable(leaf)


def _is_ours(name: str) -> bool:
    """Return whether a directory below the root is a bucket or our own; a disk has others, such as `lost+found`."""
    try:
        return name == OWN or bool(check_any_bucket(name))
    except InvalidKey:
        return False
