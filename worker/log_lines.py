"""What a line of the log is: the job that the process works on, as text or JSON, and safe to read.

A record is one line, whatever a key, a message or a store's answer contains.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from zot_artifact_client.text_escaping import bounded, escaped

_NAMES = ("job", "kind", "artifact", "store", "attempt", "seconds")
_MOST_OF_FIELD = 1100
"""Characters of one field: a bucket and a key."""
_current: dict[str, object] = {}
_MOST = 8_000
"""Characters of one message that are logged."""
_MOST_OF_TRACEBACK = 16_000
_CHATTY = ("celery.worker.strategy", "celery.app.trace", "azure.core.pipeline.policies.http_logging_policy")
"""Loggers that write 500 bytes and more for each job, which our own line repeats, and for each request to Azure."""


@contextmanager
def during(**fields: object) -> Iterator[None]:
    """Add fields to every line that this process logs in the block, from whatever thread: it does one job at a time."""
    before = dict(_current)
    _current.update(fields)
    try:
        yield
    finally:
        _current.clear()
        _current.update(before)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON. Fields of the record win over those of the running job."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: `time`, `level`, `logger`, `process`, `message`, then the fields that are known."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        fields = _current | {name: record.__dict__[name] for name in _NAMES if name in record.__dict__}
        for name, value in fields.items():
            if value is not None:
                line[name] = value if isinstance(value, int | float) else bounded(value, _MOST_OF_FIELD)
        if record.exc_text or record.exc_info:
            line["traceback"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
        return json.dumps(line, ensure_ascii=False)


class SafeFormatter(logging.Formatter):
    """Formats with another formatter, after it has escaped and bounded the text of the record."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted record; the record itself stays as it is for other handlers."""
        safe = logging.LogRecord.__new__(logging.LogRecord)  # the constructor asks for the thread and process again
        safe.__dict__.update(record.__dict__)
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
