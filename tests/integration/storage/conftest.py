"""Fixtures for the tests of stores on a faulty network."""

import pytest


@pytest.fixture(autouse=True)
def _sdks_retry_at_once(sdks_retry_at_once: None) -> None:
    """Cut short what the SDKs wait between two tries."""
