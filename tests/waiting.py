"""Wait for events; poll for those without a notification: a row in a ledger, a line in a log, a key in Redis."""

import time
from collections.abc import Callable
from typing import Any

WITHIN = 240.0
"""Seconds that a test waits for an event that it expects: it ends a wait in vain, and asserts no speed."""


def until(true: Callable[[], Any], within: float = WITHIN) -> Any:
    """Return what is true as soon as it is; fail if it is not so within so many seconds."""
    start = time.monotonic()
    while not (found := true()):
        waited = time.monotonic() - start
        assert waited < within, "it did not come about in time"
        time.sleep(min(0.02 + waited / 50, 0.1))  # a long wait is not to cost what it waits for its processor
    return found
