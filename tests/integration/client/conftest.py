"""A broker without a worker, for tests that do by themselves what a worker would do."""

import pytest

from tests.servers import Valkey


@pytest.fixture
def unserved(valkey: Valkey) -> str:
    """Return the URL of an empty broker without a worker."""
    valkey.empty()
    return valkey.url
