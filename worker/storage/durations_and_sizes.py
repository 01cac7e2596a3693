"""Parse durations and sizes with their units, for settings, and print durations."""

import itertools
import re
from datetime import timedelta
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, ByteSize

_PARTS = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|w)")
_SIZE = re.compile(r"[0-9]+(\.[0-9]+)? *(?:[KMGTP]i?)?B")
_LARGEST = (1 << 63) - 1
"""Bytes of the largest size: what databases, Redis and file systems count with."""
_LONGEST = timedelta(days=36_500)
"""The longest duration. Sums of a few stay within what Python, Redis and PostgreSQL can hold."""
_SHORTEST_INTERVAL = timedelta(seconds=1)
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SHOWN = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def parse_duration(value: object) -> timedelta:
    """Read a duration such as `30s`, `15m`, `1h30m` or `30d`.

    Raises:
        ValueError: it has no unit, or one that is not known.
    """
    if isinstance(value, timedelta):
        return value
    text = str(value).replace(" ", "")
    if text == "0":
        return timedelta()
    if not text or _PARTS.sub("", text):
        msg = f"{repr(value)[:40]} is not a duration: write a number with a unit, such as 30s, 15m, 1h30m or 30d"
        raise ValueError(msg)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PARTS.findall(text))
    if seconds > _LONGEST.total_seconds():
        msg = f"{text[:40]!r} is too long: a duration is at most {_LONGEST.days}d"
        raise ValueError(msg)
    return timedelta(seconds=seconds)


def duration_text(time: timedelta | float) -> str:
    """Return a duration, or its seconds, for people: in the largest unit of which it has two, and the next smaller one.

    What is left after these two units is cut off: `30 d`, `36 h`, `2 h 30 min`, `90 s`, `0.1 s`.
    """
    seconds = time.total_seconds() if isinstance(time, timedelta) else time
    for (unit, length), (smaller, part) in itertools.pairwise(_SHOWN):
        if seconds >= 2 * length:
            whole, rest = divmod(int(seconds), length)
            return f"{whole:,} {unit}" + (f" {rest // part} {smaller}" if rest >= part else "")
    return f"{round(seconds, 1 if seconds >= 1 else 3):g} s"


def _check_size(value: object) -> object:
    if (isinstance(value, int) and not isinstance(value, bool) and value >= 0) or (
        isinstance(value, str) and _SIZE.fullmatch(value)
    ):
        return value
    msg = f"{repr(value)[:40]} is not a size: write a number with a unit, such as 64KiB, 8MiB or 5GiB"
    raise ValueError(msg)


def _check_countable(value: ByteSize) -> ByteSize:
    if value > _LARGEST:
        msg = "it is too large: a size is at most 8191PiB"
        raise ValueError(msg)
    return value


def _check_positive(value: timedelta) -> timedelta:
    if value <= timedelta():
        msg = "it must be longer than 0s"
        raise ValueError(msg)
    return value


def _check_interval(value: timedelta) -> timedelta:
    if value < _SHORTEST_INTERVAL:
        msg = f"it must be at least {_SHORTEST_INTERVAL.seconds}s"
        raise ValueError(msg)
    return value


DurationOrZero = Annotated[timedelta, BeforeValidator(parse_duration)]
Duration = Annotated[DurationOrZero, AfterValidator(_check_positive)]
Interval = Annotated[DurationOrZero, AfterValidator(_check_interval)]
"""How often a periodic task runs."""
Size = Annotated[ByteSize, BeforeValidator(_check_size), AfterValidator(_check_countable)]
