"""A message that has expired ends for itself: it says nothing about the job with its id."""

from datetime import UTC, datetime

from celery.worker.request import Request


class RequestThatExpires(Request):
    """Celery's own class revokes the id too, and its worker then drops every later message of the job."""

    def maybe_expire(self) -> bool:
        """Return whether the message has expired."""
        expires: datetime | None = self.expires
        return expires is not None and datetime.now(UTC if expires.tzinfo else None) > expires
