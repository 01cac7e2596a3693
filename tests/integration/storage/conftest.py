"""What all tests of stores on a faulty network share."""

import pytest
from azure.storage.blob import ExponentialRetry
from botocore.retries.standard import ExponentialBackoff


@pytest.fixture(autouse=True)
def _sdks_retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short what the SDKs wait between two tries: tests here count tries and assert no time."""
    monkeypatch.setattr(ExponentialRetry, "get_backoff_time", lambda retry, settings: 0.0)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda backoff, context: 0.0)
