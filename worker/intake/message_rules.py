"""Whether a message is one that Celery, and then the worker, can take without harm.

Celery trusts whoever writes to the broker: a header of another type ends its consumer, and it comes to the same message
again after its restart. So every message is looked at as a whole before Celery sees it. Nothing here has an effect.
"""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from celery.app.task import Context
from celery.utils.time import maybe_iso8601
from kombu.utils.json import loads

from zot_artifact_client.contract import JOB_ID, MAX_MESSAGE, TASKS

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,254}")
_DEEPEST = 16
"""Lists and objects within each other; what goes much deeper cannot be pickled for the pool's children."""
_MOST_RETRIES = 1_000_000
_SHORT = 255


class Reason(StrEnum):
    """Why a message is set aside; what the counters are by."""

    OVERSIZE = "oversize"
    NOT_JSON = "not_json"
    ENVELOPE = "envelope"
    CONTENT = "content"
    HEADERS = "headers"
    BODY = "body"
    UNKNOWN_TASK = "unknown_task"
    CELERY = "celery"
    """Celery itself could not read it, although we thought it could."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a message is refused: one line for people that holds no value out of it, but for the name of a task.

    `id` and `task` are None where they cannot be read, or are not such as may be shown.
    """

    reason: Reason
    message: str
    id: str | None = None
    task: str | None = None

    @property
    def error(self) -> str:
        """Return the name of the error in the ledger, and for whoever waits for the job."""
        return "UnknownTask" if self.reason is Reason.UNKNOWN_TASK else "InvalidMessage"


@dataclass(frozen=True, slots=True)
class Rules:
    """What depends on this worker: the tasks that it does, and times in seconds."""

    tasks: frozenset[str]
    longest: float
    """A message may ask for no longer time limit than the worker's own."""
    ahead: float
    """A message may not be put off for longer: Redis would hand it out again and again meanwhile."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A message, taken apart."""

    headers: Mapping[str, Any]
    properties: Mapping[str, Any]
    content_type: object
    content_encoding: object
    body: bytes


class Unfit(Exception):
    """The message cannot be taken."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def inspect(raw: bytes, rules: Rules, now: datetime) -> Refusal | None:
    """Return why a task's message, as it lies in Redis, must be refused, or None. What is too large is not parsed."""
    envelope: Any = None
    try:
        envelope = decoded(raw)
        check_envelope(envelope)
        content = (envelope.get("content-type"), envelope.get("content-encoding"))
        read(Parts(envelope["headers"], envelope["properties"], *content, body_of(envelope)), rules, now)
    except Unfit as unfit:
        return refusal(unfit, envelope)
    except Exception as error:  # noqa: BLE001 - whatever a stranger makes us trip over is no message
        return refusal(Unfit(Reason.ENVELOPE, f"it cannot be read: {type(error).__name__}"), envelope)
    return None


def inspect_parsed(message: Any, rules: Rules, now: datetime) -> Refusal | None:
    """Return why a message that kombu has made an object of must be refused, or None: for brokers other than Redis."""
    try:
        check_size(len(message.body or b""))
        plain(message.headers, Reason.HEADERS)
        content = (message.content_type, message.content_encoding)
        read(Parts(message.headers, message.properties, *content, message.body), rules, now)
    except Unfit as unfit:
        return refusal(unfit, {"headers": message.headers})
    except Exception as error:  # noqa: BLE001 - as above
        return refusal(Unfit(Reason.ENVELOPE, f"it cannot be read: {type(error).__name__}"), None)
    return None


def refusal(unfit: Unfit, envelope: object) -> Refusal:
    """Return the refusal, with the job's id and the task's name if they can be read and may be shown."""
    headers = envelope.get("headers") if isinstance(envelope, dict) else None
    named = headers if isinstance(headers, dict) else {}
    if "task" not in named and isinstance(envelope, dict):
        named = _first_protocol(envelope)
    id_, task = named.get("id"), named.get("task")
    return Refusal(
        unfit.reason,
        str(unfit),
        id_ if isinstance(id_, str) and JOB_ID.fullmatch(id_) else None,
        task if isinstance(task, str) and _NAME.fullmatch(task) else None,
    )


def decoded(raw: bytes) -> dict[str, Any]:
    """Return the JSON object that a message in Redis is. Raise Unfit if it is none, or too large to be looked at."""
    check_size(len(raw))
    try:
        envelope = loads(raw.decode())
    except (ValueError, RecursionError, TypeError, AttributeError, ArithmeticError):
        raise Unfit(Reason.NOT_JSON, "it is no JSON") from None
    if not isinstance(envelope, dict):
        raise Unfit(Reason.ENVELOPE, f"it is no JSON object but {_kind(envelope)}")
    return envelope


def check_envelope(envelope: Mapping[str, Any]) -> None:
    """Raise Unfit if kombu's Redis transport cannot make a message of it."""
    plain(envelope, Reason.ENVELOPE)
    for part in ("headers", "properties"):
        if not isinstance(envelope.get(part), dict):
            raise Unfit(Reason.ENVELOPE, f"{part}: an object is expected, not {_kind(envelope.get(part))}")
    if envelope["headers"].get("compression"):  # kombu would unpack it at once, however large it becomes
        raise Unfit(Reason.CONTENT, "it is compressed")
    body_of(envelope)


def check_size(size: int) -> None:
    """Raise Unfit if a message is larger than any that the contract allows."""
    if size > MAX_MESSAGE:
        raise Unfit(Reason.OVERSIZE, f"it has {size} bytes, at most {MAX_MESSAGE} are accepted")


def body_of(envelope: Mapping[str, Any]) -> bytes:
    """Return the bytes of the body. Raise Unfit if there are none."""
    body, encoding = envelope.get("body"), envelope["properties"].get("body_encoding")
    if not isinstance(body, str):
        raise Unfit(Reason.BODY, f"body: text is expected, not {_kind(body)}")
    if encoding is None:
        return body.encode()
    if encoding != "base64":
        raise Unfit(Reason.CONTENT, "properties.body_encoding: only base64 is known")
    try:
        return base64.b64decode(body.encode())
    except ValueError:
        raise Unfit(Reason.BODY, "body: it is no base64") from None


def read(parts: Parts, rules: Rules, now: datetime) -> None:
    """Look at every part of a message that Celery makes a request of, in either version of its protocol.

    Raises:
        Unfit: naming the first part that is wrong, never with its value.
    """
    _check_content(parts.content_type, parts.content_encoding)
    _check_properties(parts.properties)
    payload = _payload(parts.body)
    if "task" in parts.headers:
        _check_body(payload)
        fields = dict(parts.headers)
    elif isinstance(payload, dict):  # version 1: everything is in the body
        fields = {"args": [], "kwargs": {}} | payload
        _check_headers(parts.headers, rules, now)
    else:
        raise Unfit(Reason.HEADERS, "headers.task: it is missing")
    _check_headers(fields, rules, now)
    _check_identity(fields, rules)


def plain(value: object, reason: Reason, depth: int = 0) -> None:
    """Raise Unfit unless a value is plain JSON, not too deep, and all its text can be written down."""
    if depth > _DEEPEST:
        raise Unfit(reason, f"more than {_DEEPEST} lists or objects lie within each other")
    if isinstance(value, dict):
        for name, item in value.items():
            plain(name, reason, depth + 1)
            plain(item, reason, depth + 1)
    elif isinstance(value, list):
        for item in value:
            plain(item, reason, depth + 1)
    elif isinstance(value, str):
        _check_text(value, reason)
    elif value is not None and not isinstance(value, int | float):
        raise Unfit(reason, "it holds values of Python's own, not only JSON's")


def _check_text(value: str, reason: Reason) -> None:
    try:
        bad = "\0" in value or not (value.isascii() or value.encode())
    except UnicodeEncodeError:
        bad = True
    if bad:
        raise Unfit(reason, "it holds text with NUL, or with half of a surrogate pair")


def _first_protocol(envelope: dict[str, Any]) -> dict[str, Any]:
    try:
        payload = loads(body_of(envelope))
    except Exception:  # noqa: BLE001 - it is being refused already, this only looks for its id
        return {}
    return payload if isinstance(payload, dict) else {}


def _check_content(type_: object, encoding: object) -> None:
    if type_ != "application/json":
        raise Unfit(Reason.CONTENT, "content-type: only application/json is accepted")
    if encoding is not None and str(encoding).lower() not in {"utf-8", "utf8"}:
        raise Unfit(Reason.CONTENT, "content-encoding: only utf-8 is accepted")


def _check_properties(properties: Mapping[str, Any]) -> None:
    for name in ("correlation_id", "reply_to"):
        if not _is_text_or_none(properties.get(name)):
            raise Unfit(Reason.ENVELOPE, f"properties.{name}: short text is expected")
    priority = properties.get("priority")
    if priority is not None and not _is_count(priority, 255):
        raise Unfit(Reason.ENVELOPE, "properties.priority: a small number is expected")


def _payload(body: bytes) -> object:
    try:
        payload = loads(body)
    except (ValueError, RecursionError, TypeError, AttributeError, ArithmeticError):
        raise Unfit(Reason.BODY, "body: it is no JSON") from None
    plain(payload, Reason.BODY)
    return payload


def _check_body(payload: object) -> None:
    if not isinstance(payload, list) or len(payload) != len(("args", "kwargs", "embed")):
        raise Unfit(Reason.BODY, "body: a list of arguments, keyword arguments and options is expected")
    args, kwargs, embed = payload
    if not isinstance(embed, dict | None):
        raise Unfit(Reason.BODY, f"body[2]: an object is expected, not {_kind(embed)}")
    for name, value in {"args": args, "kwargs": kwargs, **(embed or {})}.items():
        if name not in _EMBEDDED:
            raise Unfit(Reason.BODY, "body[2]: it has options that Celery does not know")
        _check(name, value, Reason.BODY)


def _check_headers(fields: Mapping[str, Any], rules: Rules, now: datetime) -> None:
    for name, value in fields.items():
        if name in _FIELDS:
            _check(name, value, Reason.HEADERS)
        elif hasattr(Context, name) or name.startswith("_"):  # Celery makes every header an attribute of the request
            raise Unfit(Reason.HEADERS, "a header has a name that Celery keeps for itself")
    eta = _moment(fields.get("eta"))
    if eta and eta - now > timedelta(seconds=rules.ahead):
        raise Unfit(Reason.HEADERS, f"headers.eta: more than {rules.ahead:.0f} s ahead; send it when it is due")
    if any(limit and limit > rules.longest for limit in fields.get("timelimit") or ()):
        raise Unfit(Reason.HEADERS, f"headers.timelimit: at most {rules.longest:.0f} s, the worker's own limit")


def _check_identity(fields: Mapping[str, Any], rules: Rules) -> None:
    for name in ("task", "id"):
        if fields.get(name) is None:
            raise Unfit(Reason.HEADERS, f"headers.{name}: it is missing")
    if fields["task"] not in rules.tasks:
        known = ", ".join(sorted(rules.tasks & TASKS.keys()))
        raise Unfit(Reason.UNKNOWN_TASK, f"no task is named {fields['task'][:100]!r}; this worker has {known}")


def _check(name: str, value: object, reason: Reason) -> None:
    fits, expected = _FIELDS[name]
    if not fits(value):
        place = "body" if reason is Reason.BODY else "headers"
        raise Unfit(reason, f"{place}.{name}: {expected}")


def _moment(value: object) -> datetime | None:
    """Return the time that a header names, as Celery reads it. Raise ValueError or OverflowError if it names none."""
    if not isinstance(value, str):
        return None
    moment: datetime | None = maybe_iso8601(value)
    if moment is None:
        raise ValueError("empty")
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _is_moment(value: object) -> bool:
    try:
        return value is None or _moment(value) is not None
    except (ValueError, OverflowError, TypeError):
        return False


def _is_limit(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value > 0)


def _are_limits(value: object) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) == len(("hard", "soft")) and all(map(_is_limit, value))
    )


def _is_count(value: object, most: int = _MOST_RETRIES) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_text_or_none(value: object) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= _SHORT and value.isprintable())


def _kind(value: object) -> str:
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "nothing"}
    return kinds.get(type(value), "a number")


Fits = Callable[[object], bool]
_TEXT: tuple[Fits, str] = (_is_text_or_none, "short printable text is expected")
_LONG_TEXT: tuple[Fits, str] = (lambda value: isinstance(value, str | None), "text is expected")
_TIME: tuple[Fits, str] = (_is_moment, "a time as in ISO 8601 is expected")
_FLAG: tuple[Fits, str] = (lambda value: isinstance(value, bool | None), "true or false is expected")
_COUNT: tuple[Fits, str] = (_is_count, f"a number from 0 to {_MOST_RETRIES} is expected")
_NUMBER: tuple[Fits, str] = (lambda value: value is None or _is_count(value), _COUNT[1])
_NOTHING: tuple[Fits, str] = (
    lambda value: value in (None, [], {}),
    "this worker sends no further messages for a sender: wait for the result instead",
)
_FIELDS: dict[str, tuple[Fits, str]] = {
    "id": (
        lambda value: isinstance(value, str) and JOB_ID.fullmatch(value) is not None,
        "a letter or digit, then letters, digits, '.', '_' and '-', 128 characters at most",
    ),
    "task": (_is_name, "the name of a task is expected"),
    "shadow": (lambda value: value is None or _is_name(value), "a name is expected"),
    "args": (lambda value: isinstance(value, list), "a list is expected"),
    "kwargs": (lambda value: isinstance(value, dict), "an object is expected"),
    **dict.fromkeys(("root_id", "parent_id", "group", "taskset", "lang", "meth", "origin"), _TEXT),
    **dict.fromkeys(("argsrepr", "kwargsrepr"), _LONG_TEXT),
    **dict.fromkeys(("eta", "expires"), _TIME),
    **dict.fromkeys(("ignore_result", "utc", "redelivered"), _FLAG),
    **dict.fromkeys(("group_index", "replaced_task_nesting"), _NUMBER),
    **dict.fromkeys(("callbacks", "errbacks", "chain", "chord", "stamped_headers", "stamps", "compression"), _NOTHING),
    "retries": _COUNT,
    "timelimit": (_are_limits, "two numbers of seconds above 0, or null, are expected"),
}  # fmt: skip
"""What Celery reads of a message by name, and what it can bear there."""
_EMBEDDED = {"args", "kwargs", "callbacks", "errbacks", "chain", "chord"}
