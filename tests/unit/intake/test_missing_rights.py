"""A worker whose user lacks a right at the broker says which, and does not reconnect without a pause."""

import logging

import pytest
from kombu import Connection
from redis.exceptions import NoPermissionError

from worker.intake import message_filter


def test_a_worker_waits_for_a_right_that_the_acl_does_not_give(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Celery reconnects at once, for ever, with a traceback each second; kombu wraps the error of Redis in its own."""
    pauses: list[float] = []
    monkeypatch.setattr(message_filter, "pause", pauses.append)
    consumer = message_filter.Consumer.__new__(message_filter.Consumer)
    consumer.conninfo = Connection("redis://broker")
    refused = NoPermissionError("User worker has no permissions to run the 'brpop' command")
    wrapped = ConnectionError("refused")
    wrapped.__cause__ = refused
    with caplog.at_level(logging.ERROR):
        for error in (refused, wrapped):
            consumer.on_connection_error_before_connected(error)
    assert len(pauses) == 2
    told = caplog.records[-1].getMessage()
    assert "give it the rights of `default` in deploy/valkey/users.acl" in told
    assert told.endswith("User worker has no permissions to run the 'brpop' command")
