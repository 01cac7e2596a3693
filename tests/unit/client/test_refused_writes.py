"""Which errors of a Redis say that it takes no writes for now."""

import pytest
import redis

from zot_artifact_client.connection import is_write_refused

REFUSED = "MISCONF Errors writing to the AOF file: No space left on device"
IN_A_PIPELINE = "Command # 1 (ZADD unacked_index 1.0 tag) of pipeline caused error: "


@pytest.mark.parametrize("error", ["MISCONF x", "READONLY x", "NOREPLICAS x", REFUSED, IN_A_PIPELINE + REFUSED])
def test_a_full_disk_and_a_failover_are_refused_writes(error):
    """A full disk and a failover are known by their errors, also where redis-py puts the command before them."""
    assert is_write_refused(redis.ResponseError(error))


def test_no_memory_is_a_refused_write_and_any_other_error_is_not():
    """An error whose text only quotes such a word is none of them."""
    assert is_write_refused(redis.OutOfMemoryError("command not allowed"))
    assert not is_write_refused(redis.ResponseError("ERR unknown command 'MISCONF x'"))
    assert not is_write_refused(
        redis.ResponseError("Command # 1 (SET MISCONF 1) of pipeline caused error: WRONGTYPE x")
    )
