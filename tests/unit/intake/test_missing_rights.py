"""A worker whose user lacks a right at the broker says which, and does not reconnect without a pause."""

import logging

import pytest
from amqp import AccessRefused
from kombu import Connection
from redis.exceptions import NoPermissionError

from worker.intake import message_filter


def test_a_worker_waits_for_a_right_that_the_acl_does_not_give(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Celery reconnects at once, for ever, with a traceback each second; kombu wraps the error of Redis in its own.

    It does the same where RabbitMQ refuses the password; with Redis it waits then.
    """
    pauses: list[float] = []
    monkeypatch.setattr(message_filter, "pause", pauses.append)
    consumer = message_filter.Consumer.__new__(message_filter.Consumer)
    consumer.conninfo = Connection("redis://broker")
    refused = NoPermissionError("User worker has no permissions to run the 'brpop' command")
    wrapped = ConnectionError("refused")
    wrapped.__cause__ = refused
    no_login = AccessRefused("ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.", (0, 0))
    with caplog.at_level(logging.ERROR):
        for error in (no_login, refused, wrapped):
            consumer.on_connection_error_before_connected(error)
    assert len(pauses) == 3
    assert "refuses this: it refuses the user or password of its URL; this worker waits" in caplog.text
    told = caplog.records[-1].getMessage()
    assert "give it the rights of `default` in deploy/valkey/users.acl" in told
    assert told.endswith("User worker has no permissions to run the 'brpop' command")
