"""A filesystem store with the files of another program, whose layout is verified."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from worker.artifacts.verify_layouts.checked_prefix import CheckedPrefix, Fault, NoLayout
from worker.storage.config import FilesystemConfig
from worker.storage.filesystem.driver import FilesystemDriver
from worker.storage.store import Store

Check = Callable[..., list[tuple[str, str]]]


class Laid:
    """Files below `root/there`, and what a sweep finds wrong in them."""

    def __init__(self, root: Path) -> None:
        self.root = root / "there"
        self.root.mkdir(parents=True)
        self.store = Store(FilesystemDriver("nas", FilesystemConfig(type="filesystem", root=root)))
        self.place = CheckedPrefix(self.store, "there")
        self.faults: list[Fault] = []

    def lay(self, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def flip(self, name: str) -> None:
        data = bytearray((self.root / name).read_bytes())
        data[len(data) // 2] ^= 1
        (self.root / name).write_bytes(bytes(data))

    def remove(self, name: str) -> None:
        (self.root / name).unlink()

    def find(
        self, verify: Callable[[CheckedPrefix], Iterator[Fault]], prefix: str = "", **options: bool
    ) -> set[tuple[str, str]]:
        """Return the faults as kind and key."""
        self.place = CheckedPrefix(self.store, "there", prefix, **options)
        self.faults = list(verify(self.place))
        return {(str(each.kind), each.key) for each in self.faults}


@pytest.fixture
def laid(tmp_path: Path) -> Iterator[Laid]:
    laid = Laid(tmp_path / "nas")
    yield laid
    laid.store.close()


__all__ = ["Laid", "NoLayout"]
