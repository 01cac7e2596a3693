"""The ids of jobs: those that callers choose, and those that are made from idempotency keys."""

from collections.abc import Iterable, Iterator
from typing import Any
from uuid import UUID, uuid4, uuid5

from zot_artifact_client.contract import BATCH_JOB_ID, JOB_ID, QUERY_ID, TASKS, Message, TaskSpec
from zot_artifact_client.errors import InvalidRequest

IDEMPOTENCY_NAMESPACE = UUID("5f0a1d0e-6c1b-5d4e-9a52-0d6a9c1f7b3e")
"""The namespace of ids that are made from idempotency keys; another one would give another job for the same key."""
_BY_REQUEST: dict[type[Message], TaskSpec[Any, Any]] = {spec.request: spec for spec in TASKS.values()}


class NewId(str):
    """An id that this program has just made, so that it belongs to no other request."""

    __slots__ = ()


def choose_id(
    spec: TaskSpec[Any, Any],
    *,
    idempotency_key: str | None = None,
    job_id: str | None = None,
    service: str | None = None,
) -> str:
    """Return the id to send a job under: the caller's, or one of kind, service and key, or a new one.

    Raises:
        InvalidRequest: the caller gave both, or an id or a key that is none.
    """
    if job_id is not None:
        if idempotency_key is not None:
            msg = f"{spec.kind}: give job_id or idempotency_key, not both"
            raise InvalidRequest(msg)
        return check_own_id(job_id)
    if idempotency_key is None:
        return NewId(uuid4())
    scope = spec.kind if service is None else f"{spec.kind}@{service}"
    return str(uuid5(IDEMPOTENCY_NAMESPACE, f"{scope}:{_check_key(spec, idempotency_key)}"))


def scoped_key(spec: TaskSpec[Any, Any], idempotency_key: str, service: str | None) -> str:
    """Return the key that the gateway gets for that of a service. Raise InvalidRequest."""
    key = _check_key(spec, idempotency_key)
    return key if service is None else f"{service}:{key}"


def _check_key(spec: TaskSpec[Any, Any], idempotency_key: str) -> str:
    """Return an idempotency key. Raise InvalidRequest if it is no text, empty, or no Unicode."""
    if not isinstance(idempotency_key, str):
        raise InvalidRequest(f"{spec.kind}: idempotency_key is {type(idempotency_key).__name__}, str is expected")
    if not idempotency_key:
        raise InvalidRequest(f"{spec.kind}: idempotency_key is empty")
    try:
        idempotency_key.encode()
    except UnicodeEncodeError:
        msg = f"{spec.kind}: idempotency_key is not valid Unicode (lone surrogate)"
        raise InvalidRequest(msg) from None
    return idempotency_key


def choose_ids(
    requests: Iterable[Message], idempotency_key: str | None, *, service: str | None = None
) -> Iterator[tuple[str, TaskSpec[Any, Any], Message]]:
    """Return each request with its kind and the id to send it under. Raise InvalidRequest."""
    for number, request in enumerate(requests):
        spec = _BY_REQUEST.get(type(request))
        if spec is None:
            msg = f"requests[{number}]: a {type(request).__name__} is no request"
            raise InvalidRequest(msg)
        key = numbered_key(spec, idempotency_key, number)
        yield choose_id(spec, idempotency_key=key, service=service), spec, request


def numbered_key(spec: TaskSpec[Any, Any], idempotency_key: str | None, number: int) -> str | None:
    """Return the idempotency key of one request of a list. Raise InvalidRequest."""
    return None if idempotency_key is None else f"{_check_key(spec, idempotency_key)}/{number}"


def check_id(job_id: object) -> str:
    """Return a job's id as text, also that of a UUID column. Raise InvalidRequest if it is none."""
    if isinstance(job_id, UUID):
        return str(job_id)
    if not isinstance(job_id, str) or not JOB_ID.fullmatch(job_id):
        msg = "job_id: a letter or digit, then letters, digits, '.', '_' and '-', 128 characters at most"
        raise InvalidRequest(msg)
    return job_id


def check_own_id(job_id: str) -> str:
    """Return an id that a caller may choose. Raise InvalidRequest if it is none, or has the form of a batch's job."""
    job_id = check_id(job_id)
    if BATCH_JOB_ID.fullmatch(job_id):
        msg = "job_id: an id that ends in '.' and 8 digits is that of a batch's own job"
        raise InvalidRequest(msg)
    if QUERY_ID.fullmatch(job_id):
        msg = "job_id: 'query-' and 32 hexadecimal digits are the id of a query"
        raise InvalidRequest(msg)
    return job_id
