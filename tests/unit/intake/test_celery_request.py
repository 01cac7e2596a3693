"""The end of a message in the main process of a worker."""

import errno
from typing import Any

import pytest
from celery.worker.request import Request

from worker.intake.celery_request import OneMessageRequest


def test_a_failure_that_cannot_be_handled_holds_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is delivered again: as many held ones as a worker has processes would make it deaf."""

    def fail(*_: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    rejected: list[bool] = []
    monkeypatch.setattr(Request, "on_failure", fail)
    monkeypatch.setattr(Request, "reject", lambda _self, requeue: rejected.append(requeue))
    monkeypatch.setattr(Request, "id", "one", raising=False)
    OneMessageRequest.__new__(OneMessageRequest).on_failure(None)
    assert rejected == [True]
