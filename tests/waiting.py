"""Wait for what announces itself to nobody: a row in a ledger, a line in a log, a key in Redis."""

import time
from collections.abc import Callable
from typing import Any


def until(true: Callable[[], Any], within: float = 30.0) -> Any:
    """Return what is true as soon as it is; fail if it is not so within so many seconds."""
    deadline = time.monotonic() + within
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)
    return found
