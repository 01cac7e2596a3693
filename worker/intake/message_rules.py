"""The rules that a message must meet before Celery, and then the worker, reads it.

Celery trusts every sender: a header of another type ends its consumer, and the restarted consumer reads the same
message again. So every part of a message is checked before Celery sees it. Nothing here has a side effect.
"""

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from celery.app.task import Context
from celery.utils.time import maybe_iso8601
from kombu.utils.json import loads
from pydantic import ValidationError

from zot_artifact_client.contract import BATCH_JOB_ID, JOB_ID, MAX_MESSAGE, QUERIES, QUERY_ID, TASKS, is_batch_job
from zot_artifact_client.input_rules import NamedTwice, unique_names
from zot_artifact_client.request_faults import rule_of
from zot_artifact_client.text_escaping import bounded

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,254}")
_MAX_DEPTH = 16
"""Most levels of nested lists and objects; much deeper ones cannot be pickled for the pool's children."""
_MAX_RETRIES = 1_000_000
_SHORT = 255
_MAX_HEADERS = 200
"""Most headers; Celery writes about 25, and makes each one an attribute of the request."""
_MAX_PROBLEMS = 5
"""How many problems of a request are named; a message can have tens of thousands."""


class Reason(StrEnum):
    """Why a message is rejected; each reason has a counter."""

    OVERSIZE = "oversize"
    NOT_JSON = "not_json"
    ENVELOPE = "envelope"
    CONTENT = "content"
    HEADERS = "headers"
    BODY = "body"
    REQUEST = "request"
    """The arguments are no request of the task."""
    EXPIRED = "expired"
    UNKNOWN_TASK = "unknown_task"
    OUTBOX = "outbox"
    """An entry of the outbox is no message."""
    CELERY = "celery"
    """Celery itself could not read it, although it met these rules."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a message is rejected, in one line that holds no value of the message except the name of a task.

    `id` and `task` are None where they cannot be read, or are not valid.
    """

    reason: Reason
    message: str
    id: str | None = None
    task: str | None = None

    @property
    def error(self) -> str:
        """Return the name of the error for the ledger and the client."""
        return "UnknownTask" if self.reason is Reason.UNKNOWN_TASK else "InvalidMessage"


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules that depend on this worker's settings; times are in seconds."""

    tasks: frozenset[str]
    max_time_limit: float
    """Longest time limit that a message may ask for: the worker's own."""
    max_eta: float
    """Furthest eta: a later one exceeds the visibility timeout, and Redis delivers the message again meanwhile."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a message."""

    headers: Mapping[str, Any]
    properties: Mapping[str, Any]
    content_type: object
    content_encoding: object
    body: bytes


class InvalidMessage(Exception):
    """The message breaks a rule."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_message(raw: bytes, rules: Rules, now: datetime) -> Rejection | None:
    """Return why a task's message, as Redis holds it, is rejected, or None. One that is too large is not parsed."""
    envelope: Any = None
    try:
        envelope = parse_envelope(raw)
        check_envelope(envelope)
        content = (envelope.get("content-type"), envelope.get("content-encoding"))
        check_parts(Parts(envelope["headers"], envelope["properties"], *content, body_of(envelope)), rules, now)
    except InvalidMessage as unfit:
        return rejection_of(unfit, envelope)
    except Exception as error:  # noqa: BLE001 - a message at which this code fails is invalid
        return rejection_of(InvalidMessage(Reason.ENVELOPE, f"it cannot be read: {type(error).__name__}"), envelope)
    return None


def check_parsed_message(message: Any, rules: Rules, now: datetime) -> Rejection | None:
    """Return why a message that kombu has parsed is rejected, or None: for brokers other than Redis."""
    try:
        check_size(len(message.body or b""))
        check_plain_json(message.headers, Reason.HEADERS)
        content = (message.content_type, message.content_encoding)
        check_parts(Parts(message.headers, message.properties, *content, message.body), rules, now)
    except InvalidMessage as unfit:
        return rejection_of(unfit, {"headers": message.headers})
    except Exception as error:  # noqa: BLE001 - as above
        return rejection_of(InvalidMessage(Reason.ENVELOPE, f"it cannot be read: {type(error).__name__}"), None)
    return None


def rejection_of(unfit: InvalidMessage, envelope: object) -> Rejection:
    """Return the rejection, with the job's id and the task's name if they can be read and are valid."""
    headers = envelope.get("headers") if isinstance(envelope, dict) else None
    named = headers if isinstance(headers, dict) else {}
    if "task" not in named and isinstance(envelope, dict):
        named = _first_protocol(envelope)
    id_, task = named.get("id"), named.get("task")
    return Rejection(
        unfit.reason,
        str(unfit),
        id_ if isinstance(id_, str) and JOB_ID.fullmatch(id_) else None,
        task if isinstance(task, str) and _NAME.fullmatch(task) else None,
    )


def parse_envelope(raw: bytes) -> dict[str, Any]:
    """Return a message of Redis as a JSON object. Raise InvalidMessage if it is too large, or no such object."""
    check_size(len(raw))
    try:
        envelope = parse_json(raw)
    except NamedTwice as error:
        raise InvalidMessage(Reason.ENVELOPE, str(error)) from None
    except (ValueError, RecursionError, TypeError, AttributeError, ArithmeticError):
        raise InvalidMessage(Reason.NOT_JSON, "it is no JSON") from None
    if not isinstance(envelope, dict):
        raise InvalidMessage(Reason.ENVELOPE, f"it is no JSON object but {_kind(envelope)}")
    return envelope


def parse_json(data: bytes) -> Any:
    """Return JSON as Celery reads it, with values of Python's own. Raise NamedTwice for two fields of one name."""
    return loads(data, _loads=_loads_unique)


def _loads_unique(text: str, object_hook: Callable[[dict[str, Any]], Any]) -> Any:
    return json.loads(text, object_pairs_hook=lambda pairs: object_hook(unique_names(pairs)))


def check_envelope(envelope: Mapping[str, Any]) -> None:
    """Raise InvalidMessage if kombu's Redis transport cannot read the envelope."""
    check_plain_json(envelope, Reason.ENVELOPE)
    for part in ("headers", "properties"):
        if not isinstance(envelope.get(part), dict):
            raise InvalidMessage(Reason.ENVELOPE, f"{part}: an object is expected, not {_kind(envelope.get(part))}")
    if envelope["headers"].get("compression"):  # kombu would unpack it at once, however large it becomes
        raise InvalidMessage(Reason.CONTENT, "it is compressed")
    body_of(envelope)


def check_size(size: int) -> None:
    """Raise InvalidMessage if a message is larger than any that the contract allows."""
    if size > MAX_MESSAGE:
        raise InvalidMessage(Reason.OVERSIZE, f"it has {size} bytes, at most {MAX_MESSAGE} are accepted")


def body_of(envelope: Mapping[str, Any]) -> bytes:
    """Return the bytes of the body. Raise InvalidMessage if it has none."""
    body, encoding = envelope.get("body"), envelope["properties"].get("body_encoding")
    if not isinstance(body, str):
        raise InvalidMessage(Reason.BODY, f"body: text is expected, not {_kind(body)}")
    if encoding is None:
        return body.encode()
    if encoding != "base64":
        raise InvalidMessage(Reason.CONTENT, "properties.body_encoding: only base64 is known")
    try:
        return base64.b64decode(body.encode())
    except ValueError:
        raise InvalidMessage(Reason.BODY, "body: it is no base64") from None


def check_parts(parts: Parts, rules: Rules, now: datetime) -> None:
    """Check every part of a message that Celery reads as a request, in either version of its protocol.

    Raises:
        InvalidMessage: naming the first part that is wrong, never with its value.
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
        raise InvalidMessage(Reason.HEADERS, "headers.task: it is missing")
    _check_headers(fields, rules, now)
    _check_identity(fields, rules)
    args, kwargs = payload[:2] if isinstance(payload, list) else (fields["args"], fields["kwargs"])
    _check_request(fields["task"], args, kwargs)


def check_plain_json(value: object, reason: Reason) -> None:
    """Raise InvalidMessage unless a value is plain JSON, not too deep, and its text can be encoded."""
    texts: list[str] = []
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        inside: list[object] = []
        for each in level:
            if isinstance(each, str):
                texts.append(each)
            elif isinstance(each, dict):
                inside += each
                inside += each.values()
            elif isinstance(each, list):
                inside += each
            elif each is not None and not isinstance(each, int | float):
                raise InvalidMessage(reason, "it holds values of Python's own, not only JSON's")
        level = inside
    if level:
        raise InvalidMessage(reason, f"more than {_MAX_DEPTH} levels of lists or objects")
    _check_text("".join(texts), reason)


def _check_text(value: str, reason: Reason) -> None:
    try:
        bad = "\0" in value or not (value.isascii() or value.encode())
    except UnicodeEncodeError:
        bad = True
    if bad:
        raise InvalidMessage(reason, "it holds text with NUL, or with half of a surrogate pair")


def _first_protocol(envelope: dict[str, Any]) -> dict[str, Any]:
    try:
        payload = loads(body_of(envelope))
    except Exception:  # noqa: BLE001 - the message is rejected already, this only reads its id
        return {}
    return payload if isinstance(payload, dict) else {}


def _check_content(type_: object, encoding: object) -> None:
    if type_ != "application/json":
        raise InvalidMessage(Reason.CONTENT, "content-type: only application/json is accepted")
    if encoding is not None and str(encoding).lower() not in {"utf-8", "utf8"}:
        raise InvalidMessage(Reason.CONTENT, "content-encoding: only utf-8 is accepted")


def _check_properties(properties: Mapping[str, Any]) -> None:
    for name in ("correlation_id", "reply_to"):
        if not _is_text_or_none(properties.get(name)):
            raise InvalidMessage(Reason.ENVELOPE, f"properties.{name}: short text is expected")
    priority = properties.get("priority")
    if priority is not None and not _is_count(priority, 255):
        raise InvalidMessage(Reason.ENVELOPE, "properties.priority: a small number is expected")


def _payload(body: bytes) -> object:
    try:
        payload = parse_json(body)
    except NamedTwice as error:
        raise InvalidMessage(Reason.BODY, f"body: {error}") from None
    except (ValueError, RecursionError, TypeError, AttributeError, ArithmeticError):
        raise InvalidMessage(Reason.BODY, "body: it is no JSON") from None
    check_plain_json(payload, Reason.BODY)
    return payload


def _check_body(payload: object) -> None:
    if not isinstance(payload, list) or len(payload) != len(("args", "kwargs", "embed")):
        raise InvalidMessage(Reason.BODY, "body: a list of arguments, keyword arguments and options is expected")
    args, kwargs, embed = payload
    if not isinstance(embed, dict | None):
        raise InvalidMessage(Reason.BODY, f"body[2]: an object is expected, not {_kind(embed)}")
    for name, value in {"args": args, "kwargs": kwargs, **(embed or {})}.items():
        if name not in _EMBEDDED:
            raise InvalidMessage(Reason.BODY, "body[2]: it has options that Celery does not know")
        _check(name, value, Reason.BODY)


def _check_headers(fields: Mapping[str, Any], rules: Rules, now: datetime) -> None:
    if len(fields) > _MAX_HEADERS:
        raise InvalidMessage(Reason.HEADERS, f"headers: there are {len(fields)}, at most {_MAX_HEADERS} are accepted")
    for name, value in fields.items():
        if name in _FIELDS:
            _check(name, value, Reason.HEADERS)
        elif hasattr(Context, name) or name.startswith("_"):  # Celery makes every header an attribute of the request
            raise InvalidMessage(Reason.HEADERS, "a header has a name that Celery keeps for itself")
    eta = _parse_time(fields.get("eta"))
    if eta and eta - now > timedelta(seconds=rules.max_eta):
        raise InvalidMessage(
            Reason.HEADERS, f"headers.eta: more than {rules.max_eta:.0f} s ahead; send it when it is due"
        )
    expires = _parse_time(fields.get("expires"))
    if expires and expires < now and not str(fields.get("task")).startswith("sweep."):  # a retry is sent again anyway
        # Celery would store REVOKED, also if another job has this id.
        raise InvalidMessage(Reason.EXPIRED, "headers.expires: it has expired")
    if any(limit and limit > rules.max_time_limit for limit in fields.get("timelimit") or ()):
        raise InvalidMessage(
            Reason.HEADERS, f"headers.timelimit: at most {rules.max_time_limit:.0f} s, the worker's own limit"
        )


def _check_identity(fields: Mapping[str, Any], rules: Rules) -> None:
    for name in ("task", "id"):
        if fields.get(name) is None:
            raise InvalidMessage(Reason.HEADERS, f"headers.{name}: it is missing")
    if BATCH_JOB_ID.fullmatch(fields["id"]) and not is_batch_job(fields["id"], fields.get("parent_id")):
        raise InvalidMessage(Reason.HEADERS, "headers.id: only a batch sends under an id that ends in 8 digits")
    if QUERY_ID.fullmatch(fields["id"]) and fields["task"] in TASKS:
        raise InvalidMessage(Reason.HEADERS, "headers.id: only a query has an id of this form")
    if fields["task"] in QUERIES and not QUERY_ID.fullmatch(fields["id"]):  # its answer would be the end of a job
        raise InvalidMessage(Reason.HEADERS, "headers.id: that of a query is 'query-' and 32 hexadecimal digits")
    if fields["task"] not in rules.tasks:
        known = ", ".join(sorted(rules.tasks & {*TASKS, *QUERIES}))
        raise InvalidMessage(Reason.UNKNOWN_TASK, f"no task is named {fields['task'][:100]!r}; this worker has {known}")


def _check_request(task: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Check the arguments here: Celery keeps those of every message that it takes, in its events and results."""
    spec = TASKS.get(task) or QUERIES.get(task)
    if spec is None:
        return
    refused = f"{spec.name} does not accept this message"
    if args:
        raise InvalidMessage(Reason.REQUEST, f"{refused}: arguments are named, this message has positional ones")
    try:
        spec.request.model_validate(kwargs)
    except ValidationError as error:
        raise InvalidMessage(Reason.REQUEST, bounded(f"{refused}: {problems_of(error)}", 1000)) from None


def problems_of(error: ValidationError) -> str:
    """Return the first problems of a request and the number of the others, without a value of the request."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    told = [f"{bounded('.'.join(map(str, p['loc'])) or 'message', 64)}: {rule_of(p)}" for p in problems[:_MAX_PROBLEMS]]
    more = len(problems) - len(told)
    return "; ".join([*told, f"and {more} more"] if more else told)


def _check(name: str, value: object, reason: Reason) -> None:
    fits, expected = _FIELDS[name]
    if not fits(value):
        place = "body" if reason is Reason.BODY else "headers"
        raise InvalidMessage(reason, f"{place}.{name}: {expected}")


def _parse_time(value: object) -> datetime | None:
    """Return the time in a header as Celery reads it. Raise ValueError or OverflowError if it has none."""
    if not isinstance(value, str):
        return None
    moment: datetime | None = maybe_iso8601(value)
    if moment is None:
        raise ValueError("empty")
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _is_time(value: object) -> bool:
    try:
        return value is None or _parse_time(value) is not None
    except (ValueError, OverflowError, TypeError):
        return False


def _is_limit(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value > 0)


def _are_limits(value: object) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) == len(("hard", "soft")) and all(map(_is_limit, value))
    )


def _is_count(value: object, most: int = _MAX_RETRIES) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_text_or_none(value: object) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= _SHORT and value.isprintable())


def _kind(value: object) -> str:
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "nothing"}
    return kinds.get(type(value), "a number")


_Predicate = Callable[[object], bool]
_TEXT: tuple[_Predicate, str] = (_is_text_or_none, "short printable text is expected")
_LONG_TEXT: tuple[_Predicate, str] = (lambda value: isinstance(value, str | None), "text is expected")
_TIME: tuple[_Predicate, str] = (_is_time, "a time as in ISO 8601 is expected")
_FLAG: tuple[_Predicate, str] = (lambda value: isinstance(value, bool | None), "true or false is expected")
_COUNT: tuple[_Predicate, str] = (_is_count, f"a number from 0 to {_MAX_RETRIES} is expected")
_NUMBER: tuple[_Predicate, str] = (lambda value: value is None or _is_count(value), _COUNT[1])
_NOTHING: tuple[_Predicate, str] = (
    lambda value: value in (None, [], {}),
    "callbacks, chains and chords are not accepted: wait for the result instead",
)
_FIELDS: dict[str, tuple[_Predicate, str]] = {
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
"""The headers that Celery reads by name, and the check of each value."""
_EMBEDDED = {"args", "kwargs", "callbacks", "errbacks", "chain", "chord"}
