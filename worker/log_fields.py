"""What a log line says beside its message: the job that the process works on, and lines as JSON."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from zot_artifact_client.text_escaping import bounded

_NAMES = ("job", "kind", "artifact", "store", "attempt", "seconds")
_MOST = 1100
"""Characters of one field: a bucket and a key."""
_current: dict[str, object] = {}


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
                line[name] = value if isinstance(value, int | float) else bounded(value, _MOST)
        if record.exc_text or record.exc_info:
            line["traceback"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
        return json.dumps(line, ensure_ascii=False)
