"""A WSGI service that stores releases, for any server that forks its workers, such as gunicorn or uWSGI.

The client is made in the module, before the fork: each process makes connections of its own at its first job. A view
of Django or Flask uses such a client in the same way.
"""

import json
import os
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from zot_artifact_client import (
    ArtifactClient,
    ArtifactNotFound,
    BrokerUnavailable,
    IdempotencyMismatch,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    WaitTimeout,
)

artifacts = ArtifactClient(os.environ["ZOT_BROKER"], service="releases")

_STATUSES: dict[type[Exception], HTTPStatus] = {
    ArtifactNotFound: HTTPStatus.NOT_FOUND,
    BrokerUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    IdempotencyMismatch: HTTPStatus.CONFLICT,
    InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    JobCancelled: HTTPStatus.CONFLICT,
    JobFailed: HTTPStatus.CONFLICT,
    WaitTimeout: HTTPStatus.GATEWAY_TIMEOUT,
}


def app(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    """Answer `POST /NAME?source=PATH&build=ID`, which uploads and waits, and `GET /NAME`, which shows."""
    name = environ["PATH_INFO"].lstrip("/")
    try:
        answer = _publish(name, environ["QUERY_STRING"]) if environ["REQUEST_METHOD"] == "POST" else _show(name)
        status = HTTPStatus.OK
    except tuple(_STATUSES) as error:
        answer, status = {"error": str(error)}, _STATUSES[type(error)]
    body = json.dumps({**answer, "process": os.getpid()}).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]


def _publish(name: str, query: str) -> dict[str, Any]:
    fields = {key: values[0] for key, values in parse_qs(query).items()}
    if not {"source", "build"} <= fields.keys():
        raise InvalidRequest("source and build are needed")
    key = f"build-{fields['build']}"
    result = artifacts.upload(fields["source"], "releases", name, idempotency_key=key).wait(timeout=300)
    return {"version": result.version, "sha256": result.sha256}


def _show(name: str) -> dict[str, Any]:
    shown = artifacts.show("releases", name)
    return {"version": shown.version, "copies": {copy.store: copy.state for copy in shown.copies}}
