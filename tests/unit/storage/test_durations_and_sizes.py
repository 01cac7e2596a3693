"""Durations in settings and messages."""

from datetime import timedelta

import pytest

from worker.storage.durations_and_sizes import duration_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.05, "0.05 s"),
        (0.1, "0.1 s"),
        (1.25, "1.2 s"),
        (60, "60 s"),
        (150, "2 min 30 s"),
        (5400, "90 min"),
        (9000, "2 h 30 min"),
        (86_400, "24 h"),
        (7 * 86_400, "7 d"),
        (30.5 * 86_400 + 59, "30 d 12 h"),
        (36_500 * 86_400, "36,500 d"),
    ],
)
def test_a_duration_is_told_in_units_of_its_own_length(seconds: float, text: str) -> None:
    """A short one is not a fraction of a day, and a long one is not a large number of seconds."""
    assert duration_text(seconds) == text
    assert duration_text(timedelta(seconds=seconds)) == text
