"""What the errors of a broker mean: it takes no writes for now, wants a password, or TLS."""

import socket
import threading

import pytest
import redis

from zot_artifact_client.connection import broker_fault, is_write_refused, unavailable

REFUSED = "MISCONF Errors writing to the AOF file: No space left on device"
IN_A_PIPELINE = "Command # 1 (ZADD unacked_index 1.0 tag) of pipeline caused error: "
IN_A_SCRIPT = (
    "Error running script (call to f_6b1bf486c81ceb7edf3c093f4c48582e38c0e791): @user_script:2: @user_script: 2: -"
)
"""As Redis 6 puts it before the error of a command."""


@pytest.mark.parametrize(
    "error", ["MISCONF x", "READONLY x", "NOREPLICAS x", REFUSED, IN_A_PIPELINE + REFUSED, IN_A_SCRIPT + "OOM x"]
)
def test_a_full_disk_and_a_failover_are_refused_writes(error):
    """A full disk and a failover are known by their errors, also behind the command or the place in a script."""
    assert is_write_refused(redis.ResponseError(error))


def test_no_memory_is_a_refused_write_and_any_other_error_is_not():
    """An error whose text only quotes the word for such an error is another error."""
    assert is_write_refused(redis.OutOfMemoryError("command not allowed"))
    assert is_write_refused(redis.exceptions.ReadOnlyError("You can't write against a read only replica."))
    assert not is_write_refused(redis.ResponseError("ERR unknown command 'MISCONF x'"))
    assert not is_write_refused(
        redis.ResponseError("Command # 1 (SET MISCONF 1) of pipeline caused error: WRONGTYPE x")
    )


@pytest.mark.parametrize(
    "error, told",
    [
        (
            redis.BusyLoadingError("Redis is loading the dataset in memory"),
            "does not serve this now: it reads its data",
        ),
        (redis.exceptions.MasterDownError("Link with MASTER is down"), "does not serve this now: it is a replica"),
        (redis.exceptions.ReadOnlyError("You can't write"), "takes no writes now: it is a replica"),
        (redis.ResponseError("ERR unknown command"), "does not serve this now: ERR unknown command"),
        (
            redis.ResponseError(
                'Command # 3 (LPUSH sweep {"body": "x"}) of pipeline caused error: ERR unknown command'
            ),
            "does not serve this now: ERR unknown command",
        ),
        (redis.AuthenticationError("x"), "refuses this: it requires a password"),
        (redis.exceptions.NoPermissionError("x"), "refuses this: its ACL"),
        (redis.ConnectionError("Error 111 connecting"), "cannot be reached: Error 111"),
    ],
)
def test_a_broker_that_answers_an_error_is_not_said_to_be_away(error, told):
    """Only a broker to which there is no connection cannot be reached."""
    message = str(unavailable(error, "broker", "redis://127.0.0.1:1/0"))
    assert message.startswith(f"broker redis://127.0.0.1:1/0 {told}")


def test_a_broker_that_closes_connections_expects_tls_only_if_it_speaks_it():
    """A plain broker that restarts closes connections too, and is not said to expect TLS."""
    closed = redis.ConnectionError("Connection closed by server.")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def close_one() -> None:
            server.accept()[0].close()

        threading.Thread(target=close_one, daemon=True).start()
        assert broker_fault(closed, f"redis://127.0.0.1:{server.getsockname()[1]}/0") is None


def test_a_missing_and_a_wrong_password_are_told_apart():
    """Redis answers a client without a password in words about its protocol."""
    refused = redis.AuthenticationError("HELLO must be called with the client already authenticated")
    assert broker_fault(refused, "redis://broker:6379/0") == "it requires a password, and its URL has none"
    for url in ("redis://:no@broker:6379/0", "redis+socket:///run/valkey.sock?password=no"):
        assert broker_fault(refused, url) == "it refuses the user or password of its URL"
