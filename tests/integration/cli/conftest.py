"""A broker of a test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import Valkey


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Valkey]:
    """Return a broker of this test's own: nothing else serves its queues."""
    (tmp_path / "valkey").mkdir()
    with Valkey(tmp_path / "valkey") as server:
        yield server
