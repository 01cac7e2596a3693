"""Celery's request of a message: an expired message is dropped alone, and none is held for ever."""

import logging
from datetime import UTC, datetime
from typing import Any

from celery.worker.request import Request

from zot_artifact_client.text_escaping import bounded

logger = logging.getLogger(__name__)


class OneMessageRequest(Request):
    """A request whose end is that of its message, and not of the job.

    Celery's own class also revokes the id of an expired message, so that its worker drops every later one of the job.
    """

    def maybe_expire(self) -> bool:
        """Return whether the message has expired."""
        expires: datetime | None = self.expires
        return expires is not None and datetime.now(UTC if expires.tzinfo else None) > expires

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:  # noqa: FBT001, FBT002 - Celery's
        """Handle a failure, and deliver the message again if that fails, such as without a free file descriptor.

        Celery would only log it: the message would be held until the worker ends, and as many as its processes make it
        take no other one. The ledger knows whether the job has ended.
        """
        try:
            return super().on_failure(exc_info, send_failed_event, return_ok)
        except Exception as error:  # noqa: BLE001 - whatever it was
            logger.warning("job %s: its failure cannot be handled, it is delivered again: %s", self.id, bounded(error))
            return self.reject(requeue=True)
