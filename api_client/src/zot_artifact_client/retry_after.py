"""Read the header Retry-After, of hosts, stores and gateways alike."""

from datetime import datetime
from email.utils import parsedate_to_datetime

LONGEST = 24 * 3600.0
"""Seconds: a longer wish is a mistake, and no caller could add it to a time."""


def read_retry_after(said: str | None, now: datetime) -> float | None:
    """Return after how many seconds a server wants to be asked again; it gives a number of them, or a date.

    Returns:
        0 for a date that has passed, at most LONGEST, and None where it says nothing that is understood.
    """
    said = (said or "").strip()
    if said.isascii() and said.isdigit():
        return min(float(said), LONGEST)
    try:
        return min(max(0.0, (parsedate_to_datetime(said) - now).total_seconds()), LONGEST)
    except (ValueError, TypeError, OverflowError):  # no date; or one without a time zone
        return None
