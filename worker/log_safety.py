"""Make log records safe to read: each is one line, whatever a key, a message or a store's answer contains."""

import logging
from typing import Any

from zot_artifact_client.text import bounded, escaped

_MOST = 8_000
"""Characters of one message that are logged."""


class SafeFormatter(logging.Formatter):
    """Formats with another formatter, after it has escaped and bounded the text of the record."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted record; the record itself stays as it is for other handlers."""
        safe = logging.makeLogRecord(record.__dict__)
        safe.msg, safe.args = bounded(record.getMessage(), _MOST), None
        if record.exc_info and not record.exc_text:
            safe.exc_text = self._inner.formatException(record.exc_info)
        if safe.exc_text:
            safe.exc_text = escaped(safe.exc_text, keep="\t\n")
        return self._inner.format(safe)


def make_safe(logger: logging.Logger, **_: Any) -> None:
    """Make every handler of a logger write safe records; idempotent."""
    for handler in logger.handlers:
        if not isinstance(handler.formatter, SafeFormatter):
            handler.setFormatter(SafeFormatter(handler.formatter or logging.Formatter()))
