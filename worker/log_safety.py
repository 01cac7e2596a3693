"""Make log records harmless: a record is one line, whatever a key, a message or a store's answer contains."""

import logging
import re
from typing import Any

from zot_artifact_client.text import bounded

_MOST = 8_000
"""Characters of one message that are logged."""
_NOT_IN_A_TRACEBACK = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What a traceback does not need: control characters other than tab and line end, and direction marks."""


class SafeFormatter(logging.Formatter):
    """Another formatter, given records whose text is escaped and bounded."""

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
            safe.exc_text = _NOT_IN_A_TRACEBACK.sub(lambda found: _escaped(found[0]), safe.exc_text)
        return self._inner.format(safe)


def make_safe(logger: logging.Logger, **_: Any) -> None:
    """Let every handler of a logger write safe records; idempotent."""
    for handler in logger.handlers:
        if not isinstance(handler.formatter, SafeFormatter):
            handler.setFormatter(SafeFormatter(handler.formatter or logging.Formatter()))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
