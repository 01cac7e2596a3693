"""The rules for Celery's events, which Flower shows: it formats some fields without a check, and others as HTML."""

import math
import re
from typing import Any

from worker.intake.message_rules import InvalidMessage, Reason, body_of, check_plain_json, parse_json

CHANNEL = b".celeryev/"
"""A part of the names of the Redis channels of events."""
_LONGEST = 1 << 16
"""Characters of the longest text of an event: a traceback."""
_NAME = re.compile(r"[^\s<>\"'&\\]{1,255}")
_NAMES = ("type", "hostname", "uuid", "name", "state", "root_id", "parent_id", "sw_ident", "sw_ver", "sw_sys")
_TEXTS = ("args", "kwargs", "result", "exception", "traceback", "eta", "expires", "queue", "exchange", "routing_key")
_NUMBERS = (
    "freq", "active", "processed", "pid", "clock", "utcoffset", "timestamp", "local_received", "retries", "runtime",
)  # fmt: skip


def check_events(envelope: dict[str, Any]) -> None:
    """Raise InvalidMessage unless the body of an envelope is an event or a list of events, with fields of its types."""
    try:
        payload = parse_json(body_of(envelope))
    except Exception as error:
        raise InvalidMessage(Reason.BODY, "body: it is no JSON") from error
    check_plain_json(payload, Reason.BODY)
    for event in payload if isinstance(payload, list) else [payload]:
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            raise InvalidMessage(Reason.BODY, "body: an event with a type is expected")
        wrong = next((name for name, value in event.items() if not _fits(name, value)), None)
        if wrong is not None:
            raise InvalidMessage(
                Reason.BODY, f"body: a field of the event is not of its type or too long: {wrong[:32]!r}"
            )


def _fits(name: str, value: object) -> bool:
    if value is None:
        return name != "type"
    if name in _NAMES:
        return isinstance(value, str) and _NAME.fullmatch(value) is not None
    if name in _NUMBERS:
        return _is_number(value)
    if name == "loadavg":
        return isinstance(value, list) and all(map(_is_number, value))
    if isinstance(value, str):
        return len(value) <= _LONGEST
    return name not in _TEXTS and (_is_number(value) or isinstance(value, bool))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
