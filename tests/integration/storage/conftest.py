"""Fixtures for the tests of stores on a faulty network."""

import pytest

from tests.conformance import targets


@pytest.fixture(autouse=True)
def _sdks_retry_at_once(sdks_retry_at_once: None) -> None:
    """Cut short what the SDKs wait between two tries."""


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send small parts, which the emulators take: a tenth of the processor time of these tests was to move bytes."""
    monkeypatch.setattr(targets, "PART", targets.SMALL_PART)
    monkeypatch.setattr("worker.storage.s3.driver.MIN_PART", targets.SMALL_PART)
