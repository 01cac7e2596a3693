"""Two directories as stores, for tests of what the worker keeps in stores or reads from them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.storage import Stores
from worker.storage.config import FilesystemConfig


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    names = ("primary", "dr")
    for name in names:
        (tmp_path / name).mkdir()
    opened = Stores({name: FilesystemConfig(root=tmp_path / name) for name in names}, spool_dir=tmp_path)
    yield opened
    opened.close()
