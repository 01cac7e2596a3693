"""Fixtures of the tests that let a store's writers die."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """Return a directory in memory, if the machine has that: hundreds of crashes are as real there."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="zot-test-") as path:
        yield Path(path)
