"""Which errors of a Redis say that it takes no writes for now."""

import pytest
import redis

from worker.intake.full_broker import is_full

REFUSED = "MISCONF Errors writing to the AOF file: No space left on device"
IN_A_PIPELINE = "Command # 1 (ZADD unacked_index 1.0 tag) of pipeline caused error: "


@pytest.mark.parametrize("error", ["MISCONF x", "READONLY x", "NOREPLICAS x", REFUSED, IN_A_PIPELINE + REFUSED])
def test_a_broker_that_takes_no_writes_is_full(error):
    """A full disk and a failover are known by their errors, also where redis-py puts the command before them."""
    assert is_full(redis.ResponseError(error))


def test_no_memory_is_full_and_any_other_error_is_not():
    """An error whose text only quotes such a word is none of them."""
    assert is_full(redis.OutOfMemoryError("command not allowed"))
    assert not is_full(redis.ResponseError("ERR unknown command 'MISCONF x'"))
    assert not is_full(redis.ResponseError("Command # 1 (SET MISCONF 1) of pipeline caused error: WRONGTYPE x"))
