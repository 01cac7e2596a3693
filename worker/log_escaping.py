"""Make log records safe to read: each is one line, whatever a key, a message or a store's answer contains."""

import logging
from typing import Any

from worker.log_fields import JsonFormatter
from zot_artifact_client.text_escaping import bounded, escaped

_MOST = 8_000
"""Characters of one message that are logged."""
_MOST_OF_TRACEBACK = 16_000
_CHATTY = ("celery.worker.strategy", "celery.app.trace", "azure.core.pipeline.policies.http_logging_policy")
"""Loggers that write 500 bytes and more for each job, which our own line repeats, and for each request to Azure."""


class SafeFormatter(logging.Formatter):
    """Formats with another formatter, after it has escaped and bounded the text of the record."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted record; the record itself stays as it is for other handlers."""
        safe = logging.makeLogRecord(record.__dict__)
        safe.msg, safe.args = bounded(record.getMessage(), _MOST), None
        if record.exc_info and not record.exc_text:
            safe.exc_text = self.inner.formatException(record.exc_info)
        if safe.exc_text:
            safe.exc_text = escaped(safe.exc_text[-_MOST_OF_TRACEBACK:], keep="\t\n")
        return self.inner.format(safe)


def make_safe(logger: logging.Logger, *, as_json: bool = False, **_: Any) -> None:
    """Make every handler of a logger write safe records, as text or as lines of JSON; idempotent."""
    for handler in logger.handlers:
        given = handler.formatter
        inner = given.inner if isinstance(given, SafeFormatter) else given or logging.Formatter()
        handler.setFormatter(SafeFormatter(JsonFormatter() if as_json else inner))


def quieten_libraries(level: int) -> None:
    """Leave out lines of Celery about each job, and of Azure about each request, unless everything is to be logged."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING if level > logging.DEBUG else logging.NOTSET)
