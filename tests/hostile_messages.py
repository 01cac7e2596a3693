"""Messages in Redis: a good one as small as clients write it, and what other senders might put there."""

import base64
import json
from typing import Any
from uuid import uuid4

from zot_artifact_client.contract import MAX_MESSAGE, VERIFY

JOB = "6f1e0000-hostile"
"""The id of the hostile messages whose id can be read."""


def envelope(
    job: str, fields: dict[str, Any], *, task: str = VERIFY.name, queue: str = "interactive"
) -> dict[str, Any]:
    """Return the message of a client that writes only what it must: headers `lang`, `task` and `id`."""
    return {
        "body": encoded([[], fields, {}]),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"lang": "js", "task": task, "id": job},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": str(uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


def encoded(body: object) -> str:
    return base64.b64encode(json.dumps(body).encode()).decode()


def _good() -> dict[str, Any]:
    return envelope(JOB, {"bucket": "releases", "key": "app.tgz"})


def _with(part: str, **changes: object) -> bytes:
    message = _good()
    message[part].update(changes)
    return json.dumps(message).encode()


def _but(**changes: object) -> bytes:
    return json.dumps(_good() | {name.replace("_", "-"): value for name, value in changes.items()}).encode()


def _without(part: str, name: str | None = None) -> bytes:
    message = _good()
    del (message if name is None else message[part])[part if name is None else name]
    return json.dumps(message).encode()


def _body(body: object, **headers: object) -> bytes:
    message = _good()
    message["headers"].update(headers)
    return json.dumps(message | {"body": encoded(body)}).encode()


def _twice(part: str, more: str) -> bytes:
    """Return a message with one more field, whose name is there already."""
    if part == "body":
        body = base64.b64decode(_good()["body"]).decode().replace('{"bucket"', "{" + more + ', "bucket"')
        return _but(body=base64.b64encode(body.encode()).decode())
    text = json.dumps(_good())
    return text.replace(f'"{part}": {{', f'"{part}": {{{more}, ', 1).encode()


_DEEP = b"[" * 200 + b"]" * 200
SECRET = "hunter2"

HOSTILE: dict[str, tuple[bytes, str]] = {
    "no json": (b"hunter2 {", "not_json"),
    "no text": (b"\xff\xfe\x00", "not_json"),
    "empty": (b" ", "not_json"),
    "too deep to be parsed": (b"[" * 100_000, "not_json"),
    "a number too long to be read": (b'{"a": ' + b"9" * 5000 + b"}", "not_json"),
    "a value of Python's that is none": (b'{"__type__": "uuid", "__value__": {"hex": "hunter2"}}', "not_json"),
    "a list": (b"[]", "envelope"),
    "null": (b"null", "envelope"),
    "no properties": (_without("properties"), "envelope"),
    "no headers": (_without("headers"), "envelope"),
    "headers are a list": (_but(headers=[SECRET]), "envelope"),
    "properties are text": (_but(properties=SECRET), "envelope"),
    "an unknown body encoding": (_with("properties", body_encoding="rot13"), "content"),
    "a priority that is text": (_with("properties", priority=SECRET), "envelope"),
    "a correlation id that is a list": (_with("properties", correlation_id=[SECRET]), "envelope"),
    "a header that is there twice": (_twice("headers", '"task": "hunter2"'), "envelope"),
    "a property that is there twice": (_twice("properties", '"delivery_tag": "hunter2"'), "envelope"),
    "a part that is there twice": (json.dumps(_good()).replace("{", '{"body": "hunter2", ', 1).encode(), "envelope"),
    "a field of the request that is there twice": (_twice("body", '"key": "hunter2"'), "body"),
    "values of Python's own, twice": (
        _twice("body", '"a": {"__type__": "uuid", "__value__": {"hex": "0"}}, "key": {}, "key": {}'),
        "body",
    ),
    "a value of Python's own": (
        _twice("body", '"a": {"__type__": "datetime", "__value__": "2026-01-01T00:00:00+00:00"}'),
        "body",
    ),
    "too deep": (b'{"a": ' + _DEEP + b"}", "envelope"),
    "half a surrogate pair": (_with("headers", baggage="\ud800"), "envelope"),
    "no content type": (_without("content-type"), "content"),
    "pickle": (_but(content_type="application/x-python-serialize"), "content"),
    "an unknown character set": (_but(content_encoding="utf-7"), "content"),
    "compressed": (_with("headers", compression="gzip"), "content"),
    "no body": (_without("body"), "body"),
    "a body that is a number": (_but(body=7), "body"),
    "a body that is no base64": (_but(body="hunter"), "body"),
    "a body that is no json": (_but(body=base64.b64encode(b"hunter2").decode()), "body"),
    "an empty list": (_body([]), "body"),
    "two elements": (_body([[], {}]), "body"),
    "keyword arguments that are a list": (_body([[], [SECRET], {}]), "body"),
    "arguments that are text": (_body([SECRET, {}, {}]), "body"),
    "options that are a list": (_body([[], {}, [SECRET]]), "body"),
    "options that overwrite the request": (_body([[], {}, {"id": SECRET}]), "body"),
    "a callback": (_body([[], {}, {"callbacks": [{"task": "celery.backend_cleanup", "args": []}]}]), "body"),
    "a chain": (_body([[], {}, {"chain": [{"task": SECRET}]}]), "body"),
    "too deep a body": (_body([[], {"a": json.loads(_DEEP)}, {}]), "body"),
    "no id": (_without("headers", "id"), "headers"),
    "an id that is a list": (_with("headers", id=[SECRET]), "headers"),
    "an id that is a path": (_with("headers", id="../../hunter2"), "headers"),
    "a task that is a number": (_with("headers", task=7), "headers"),
    "a time limit that is text": (_with("headers", timelimit=SECRET), "headers"),
    "one time limit": (_with("headers", timelimit=[5]), "headers"),
    "time limits that are text": (_with("headers", timelimit=[SECRET, None]), "headers"),
    "a time limit without end": (_with("headers", timelimit=[1e308, None]), "headers"),
    "an eta that is no time": (_with("headers", eta=SECRET), "headers"),
    "an empty eta": (_with("headers", eta=""), "headers"),
    "an eta in the year 9998": (_with("headers", eta="9998-12-31T23:59:59+00:00"), "headers"),
    "an expiry that is a number": (_with("headers", expires=5), "headers"),
    "retries that are text": (_with("headers", retries=SECRET), "headers"),
    "retries beyond counting": (_with("headers", retries=10**12), "headers"),
    "stamps": (_with("headers", stamped_headers=["link"], stamps={"link": SECRET}), "headers"),
    "a shadow with a line break": (_with("headers", shadow="a\nERROR hunter2"), "headers"),
    "a root that is an object": (_with("headers", root_id={"a": SECRET}), "headers"),
    "a header that hides a method": (_with("headers", get=SECRET), "headers"),
    "a header that is Celery's own": (_with("headers", _children=SECRET), "headers"),
    "thousands of headers": (_with("headers", **{f"x{n}": SECRET for n in range(10_000)}), "headers"),
    "no task": (_without("headers", "task"), "headers"),
    "an unknown task": (_with("headers", task="artifact.verify.v9"), "unknown_task"),
    "a task of Celery's": (_with("headers", task="celery.chord_unlock"), "unknown_task"),
    "version 1 with a bad time limit": (
        _but(headers={}, body=encoded({"task": VERIFY.name, "id": JOB, "kwargs": {}, "timelimit": SECRET})),
        "headers",
    ),
    "version 1 with a callback": (
        _but(headers={}, body=encoded({"task": VERIFY.name, "id": JOB, "callbacks": [{"task": SECRET}]})),
        "headers",
    ),
    "too large": (_body([[], {"key": "x" * MAX_MESSAGE}, {}]), "oversize"),
}
"""By what is wrong with them: the bytes, and the reason for which they are rejected."""
