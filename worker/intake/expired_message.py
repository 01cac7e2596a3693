"""An expired message is dropped alone: other messages of its job are still valid."""

from datetime import UTC, datetime

from celery.worker.request import Request


class RequestThatExpires(Request):
    """A request of which only the expired message is dropped.

    Celery's own class also revokes the id, so that its worker drops every later message of the job.
    """

    def maybe_expire(self) -> bool:
        """Return whether the message has expired."""
        expires: datetime | None = self.expires
        return expires is not None and datetime.now(UTC if expires.tzinfo else None) > expires
