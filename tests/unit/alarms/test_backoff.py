"""The delay before an alarm or a webhook is sent again."""

from datetime import timedelta

import pytest

from worker.alarms.attempts import backoff


@pytest.mark.parametrize(("attempts", "longest"), [(0, 5), (1, 10), (4, 80), (9, 2560), (10, 3600), (500, 3600)])
def test_the_backoff_doubles_up_to_an_hour(attempts: int, longest: int) -> None:
    """Each delay is between half and all of a backoff that doubles with every attempt and is at most an hour."""
    delays = [backoff(attempts, 5.0) for _ in range(20)]
    assert all(timedelta(seconds=longest / 2) <= delay <= timedelta(seconds=longest) for delay in delays)
    assert len(set(delays)) > 1
