"""Fetch the files of an inventory report, from a configured store or from a directory, and check each as a whole."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from worker.artifacts.inventories.manifest import BadInventory, ReportFile
from worker.artifacts.sources import open_source
from worker.limits.limited_store import LimitedStores
from worker.settings import Settings
from worker.storage.driver import BUFFER_SIZE
from worker.storage.errors import NotFound
from worker.storage.filesystem.open_without_symlinks import translate
from worker.storage.spooling import spooling_in

_MANIFEST = 64 << 20
"""Bytes of the largest manifest, of a report of 100,000 files."""


class _Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


class ReportFiles:
    """The files beside a manifest, which is given as `STORE:BUCKET/KEY`, a path below a root, or an http(s) URL."""

    def __init__(self, place: str, stores: LimitedStores, settings: Settings, heartbeat: Callable[[], object]) -> None:
        self._place = place
        self._settings = settings
        self._heartbeat = heartbeat
        store, colon, path = place.partition(":")
        self._store = stores[store] if colon and store in stores else None
        self._bucket, _, self._key = path.partition("/") if self._store else ("", "", place)
        if self._store is None and colon and not place.startswith(("/", "http:", "https:")):
            raise BadInventory(f"{place}: no store is named {store!r}; write STORE:BUCKET/KEY, or an absolute path")

    def manifest(self) -> tuple[bytes, bytes | None]:
        """Return the bytes of the manifest, and those of the checksum beside it if there is one.

        Raises:
            BadInventory: it is larger than any manifest.
            StorageError: it cannot be read.
        """
        data = self._small(self._key)
        try:
            return data, self._small(self._key.removesuffix(".json") + ".checksum")
        except NotFound:
            return data, None

    @contextmanager
    def fetched(self, file: ReportFile) -> Iterator[IO[bytes]]:
        """Copy a file of the report to the disk, compare its size and MD5, and yield the copy.

        Raises:
            BadInventory: it is not there, not complete or another file.
            StorageError: it cannot be read.
        """
        digest, size = hashlib.md5(usedforsecurity=False), 0
        spool_dir = self._settings.spool_dir if self._settings.spool_dir.is_dir() else Path(tempfile.gettempdir())
        with ExitStack() as held:
            with spooling_in(spool_dir):
                copy = held.enter_context(tempfile.TemporaryFile(dir=spool_dir, prefix="zot-inventory-"))
            with self._found(file.name) as reader:
                while piece := reader.read(BUFFER_SIZE):
                    digest.update(piece)
                    size += len(piece)
                    self._heartbeat()
                    try:
                        copy.write(piece)
                    except OSError as error:
                        raise translate(error, f"a copy of {file.name}", spool_dir) from error
            if file.size is not None and size != file.size:
                raise BadInventory(f"{self._place}: {file.name} has {size} bytes, the manifest says {file.size}")
            if file.md5 is not None and digest.hexdigest() != file.md5:
                raise BadInventory(f"{self._place}: {file.name} has the MD5 {digest.hexdigest()}, not {file.md5}")
            copy.seek(0)
            yield copy

    @contextmanager
    def _found(self, name: str) -> Iterator[_Reader]:
        """Open a file by its name in its bucket, or beside the manifest, where a copied report has it."""
        leaf, directory = PurePosixPath(name).name, PurePosixPath(self._key).parent
        beside = [
            directory / leaf, directory / "data" / leaf, directory.parent / "data" / leaf, directory / "results" / leaf
        ]  # fmt: skip
        names = [name, *map(str, beside)] if self._store is not None else [*map(str, beside)]
        with ExitStack() as held:
            yield self._first(list(dict.fromkeys(names)), name, held)

    def _first(self, names: list[str], name: str, held: ExitStack) -> _Reader:
        for each in names:
            with suppress(NotFound):
                return held.enter_context(self._opened(each))
        raise BadInventory(f"{self._place}: the manifest names {name}, which is not there")

    @contextmanager
    def _opened(self, name: str) -> Iterator[_Reader]:
        if self._store is not None:
            with self._store.read_object(self._bucket, name) as reader:
                yield reader
        else:
            with open_source(name, self._settings, heartbeat=self._heartbeat) as source:
                yield source.rewind()

    def _small(self, name: str) -> bytes:
        data = bytearray()
        with self._opened(name) as reader:
            while piece := reader.read(BUFFER_SIZE):
                data += piece
                if len(data) > _MANIFEST:
                    raise BadInventory(f"{self._place}: {name} is larger than any manifest")
        return bytes(data)
