"""Times, ages and numbers of bytes as people read them, and times as JSON has them."""

from datetime import UTC, datetime
from typing import Any

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_AGES = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def moment(value: datetime) -> str:
    """Return a time as people read it."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def age(value: datetime, now: datetime) -> str:
    """Return how long ago a time is, in its largest whole unit."""
    passed = max(0, int((now - value).total_seconds()))
    return next((f"{passed // seconds}{unit}" for unit, seconds in _AGES if passed >= seconds), "0s")


def size(count: float) -> str:
    """Return a number of bytes with a unit."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:  # noqa: PLR2004 - the size of the units
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def jsonable(value: Any) -> str:
    """Return what JSON has no type for as text: a time in UTC, as all documents have it."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return str(value)
