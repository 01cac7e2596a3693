"""Answer errors as RFC 9457 problem documents, each of which names the thing and the way out."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from worker.artifacts.verified_download import CopyUnreadable, NoGoodCopy
from worker.catalogue import CatalogueError, CatalogueUnavailable, OnHold
from worker.settings.model import NoBroker
from worker.storage.configured_stores import UnknownStore
from worker.storage.errors import InvalidKey, NotFound, StorageError, TransientError
from zot_artifact_client.errors import (
    BrokerUnavailable,
    ClientError,
    IdempotencyMismatch,
    InvalidRequest,
    UnknownJob,
)
from zot_artifact_client.request_faults import faults_of
from zot_artifact_client.text_escaping import bounded

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_RETRY_AFTER = "5"
"""Seconds after which a client may try again, where nothing better is known."""
_STATUSES: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (InvalidKey, HTTPStatus.BAD_REQUEST),
    (UnknownStore, HTTPStatus.BAD_REQUEST),
    (InvalidRequest, HTTPStatus.BAD_REQUEST),
    (IdempotencyMismatch, HTTPStatus.UNPROCESSABLE_ENTITY),
    (UnknownJob, HTTPStatus.NOT_FOUND),
    (BrokerUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (ClientError, HTTPStatus.BAD_REQUEST),
    (NoBroker, HTTPStatus.SERVICE_UNAVAILABLE),
    (CatalogueUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (OnHold, HTTPStatus.CONFLICT),
    (CatalogueError, HTTPStatus.INTERNAL_SERVER_ERROR),
    (NotFound, HTTPStatus.NOT_FOUND),
    (CopyUnreadable, HTTPStatus.SERVICE_UNAVAILABLE),
    (NoGoodCopy, HTTPStatus.BAD_GATEWAY),
    (TransientError, HTTPStatus.SERVICE_UNAVAILABLE),
    (StorageError, HTTPStatus.BAD_GATEWAY),
)
"""The status of each error; the first match counts."""


class ProblemDocument(BaseModel):
    """An error. `type` is the name of its class, for programs, and `detail` the line for people."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str


class Problem(HTTPException):
    """An error of a request; `type_` is its name for programs."""

    def __init__(
        self, status: HTTPStatus, type_: str, detail: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.type = type_


def problem_of(error: Exception) -> Problem | None:
    """Return the problem for an expected error, or None for a bug."""
    if type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        error = error.__cause__  # once an answer has begun, the framework raises its own error because of this one
    if isinstance(error, Problem):
        return error
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            retry = {"Retry-After": _RETRY_AFTER} if status is HTTPStatus.SERVICE_UNAVAILABLE else {}
            return Problem(status, type(error).__name__, " ".join(str(error).splitlines()), headers=retry)
    return None


def response_of(problem: HTTPException) -> JSONResponse:
    """Return the answer for a problem."""
    status = HTTPStatus(problem.status_code)
    name = problem.type if isinstance(problem, Problem) else "".join(status.phrase.title().split())
    document = {
        "type": f"urn:zot-artifacts:{name}",
        "title": status.phrase,
        "status": int(status),
        "detail": bounded(problem.detail),
    }
    return JSONResponse(document, status, dict(problem.headers or {}), media_type=MEDIA_TYPE)


async def answer_problem(_: Request, error: Exception) -> JSONResponse:
    """Answer a Problem, or another HTTPException of the framework."""
    assert isinstance(error, HTTPException)
    return response_of(error)


async def answer_invalid(_: Request, error: Exception) -> JSONResponse:
    """Answer a request whose body or parameters are not valid; the answer holds no value of the request."""
    assert isinstance(error, RequestValidationError)
    within = ({**each, "loc": each["loc"][1:]} for each in error.errors())  # the first is `body`, `query` or `header`
    return response_of(Problem(HTTPStatus.BAD_REQUEST, "InvalidRequest", faults_of(within, whole="body")))


async def answer_error(_: Request, error: Exception) -> JSONResponse:
    """Answer an error of the catalogue, a store or the broker, or a bug."""
    return response_of(problem_of(error) or unexpected(error))


def unexpected(error: Exception) -> Problem:
    """Return the problem for a bug; the cause is logged, and not told to the client."""
    logger.error("a request failed", exc_info=error)
    detail = "an error that is not expected; its cause is in the log of the gateway"
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "InternalError", detail)


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ProblemDocument, "description": "The request is refused; `detail` names the way out."},
    "5XX": {"model": ProblemDocument, "description": "The request failed; 503 may be tried again."},
}
"""The answers of every operation that are errors, for the OpenAPI document."""
