"""Claim due copies as a page of the verify sweep does."""

from datetime import datetime, timedelta
from uuid import uuid4

from worker.catalogue import Catalogue


def claimed_keys(
    catalogue: Catalogue, store: str, *, period: timedelta, first_read: timedelta | None = None, now: datetime,
    until: datetime, limit: int,
) -> list[str]:  # fmt: skip
    """Claim due copies of a store for a new page, and return their keys in the order of the page."""
    pages = catalogue.pages
    page = pages.claim_due(str(uuid4()), store, period=period, first_read=first_read, now=now, until=until, limit=limit)
    return [copy.key for copy in pages.claimed_copies(page)]
