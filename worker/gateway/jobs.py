"""Enqueue jobs, show them, follow their progress and cancel them."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Request
from starlette.responses import Response, StreamingResponse

from worker import clock
from worker.artifacts.queries import status_of
from worker.catalogue import CatalogueUnavailable
from worker.catalogue.nearest_key import HINT
from worker.gateway.access import Caller, TokenVerb
from worker.gateway.problems import ERRORS, Problem
from worker.gateway.request_authorization import caller_of_request, check_may, check_owner, check_receivers, services_of
from worker.gateway.services import Services
from worker.jobs.first_request import first_request
from worker.storage.keys import check_bucket, check_existing_key, check_key, check_prefix
from zot_artifact_client.contract import (
    ADOPT,
    BATCH,
    DELETE,
    REPLICATE,
    TASKS,
    UPLOAD,
    VERIFY,
    BatchRequest,
    DeleteRequest,
    JobState,
    Message,
    Progress,
    StatusResult,
    TaskSpec,
    UploadRequest,
)
from zot_artifact_client.errors import BrokerUnavailable, InvalidRequest, UnknownJob
from zot_artifact_client.job_ids import check_id
from zot_artifact_client.snapshot import unknown_job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=ERRORS)

_POLL = 0.5
"""Seconds between two reads of the state of a job that is followed."""
_ALIVE = 15.0
"""Seconds after which a stream without news sends a comment, so that no proxy closes it."""
_LONGEST = 3600.0
"""Seconds after which a stream ends; the client asks again."""
_NO_COMPANION = "it cannot be a companion of that artifact"
SENT: tuple[TaskSpec[Any, Any], ...] = (UPLOAD, REPLICATE, VERIFY, DELETE, ADOPT, BATCH)
"""The jobs that the gateway sends. Sweeps are started by beat and by operators."""
_VERBS: Mapping[str, TokenVerb] = {
    "upload": TokenVerb.IMPORT,
    "replicate": TokenVerb.REPLICATE,
    "verify": TokenVerb.VERIFY,
    "delete": TokenVerb.DELETE,
    "adopt": TokenVerb.ADOPT,
}
_WRITES_KEYS = {"upload"}

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="The same request sent again with the same key is the same job. Keys belong to the token.",
    ),
]


def add_sending(app: FastAPI) -> None:
    """Add one operation for each kind of job that can be sent: its body is the request model of the contract."""
    for spec in SENT:
        _add(app, spec)


def _add(app: FastAPI, spec: TaskSpec[Any, Any]) -> None:
    async def send(
        request: Request, response: Response, body: Any, idempotency_key: IdempotencyKey = None
    ) -> StatusResult:
        job = await submit(request, spec, body, idempotency_key)
        response.headers["Location"] = f"/v1/jobs/{job.job}"
        return job

    send.__annotations__["body"] = spec.request
    app.add_api_route(
        f"/v1/jobs/{spec.kind}",
        send,
        methods=["POST"],
        status_code=HTTPStatus.ACCEPTED,
        operation_id=f"{spec.kind}Artifacts" if spec is BATCH else f"{spec.kind}Artifact",
        summary=f"Enqueue a job: {(spec.request.__doc__ or spec.kind).strip().splitlines()[0]}",
        tags=["jobs"],
        responses=ERRORS,
    )


async def submit(
    request: Request, spec: TaskSpec[Any, Any], message: Message, idempotency_key: str | None
) -> StatusResult:
    """Check a request against the caller's token and send it.

    Raises:
        Problem: the token does not allow it.
        InvalidKey, InvalidRequest, IdempotencyMismatch: nothing was sent.
        BrokerUnavailable: it may have been sent; send it again with the same key.
    """
    services, caller = services_of(request), caller_of_request(request)
    checked = _checked(caller, spec, message)
    place = checked.payload()
    at = str(place["bucket"]), str(place.get("key", place.get("prefix", "")))
    check_receivers(services, caller, getattr(checked, "notify", ()), *at)
    if isinstance(checked, DeleteRequest | BatchRequest) and not checked.stores:
        await services.read(_check_companions, services, caller, checked)
    own = None if idempotency_key is None else f"{caller.name}:{idempotency_key}"
    return await services.read(_submit, services, spec, checked, own)


def _submit(
    services: Services, spec: TaskSpec[Any, Any], message: Message, idempotency_key: str | None
) -> StatusResult:
    now = clock.now()
    if idempotency_key is not None:
        id_ = services.id_of(spec, idempotency_key)
        first_request(services.context.catalogue.ledger, id_, spec.kind, message.payload())
    job = services.client.submit(spec, message, idempotency_key=idempotency_key)
    if idempotency_key is not None:
        with suppress(UnknownJob):  # RabbitMQ has no outbox, and a worker has not taken it yet
            return _find(services, job.id)[0]
    return StatusResult(job=job.id, kind=spec.kind, state=JobState.QUEUED, created_at=now)


def _checked(caller: Caller, spec: TaskSpec[Any, Any], message: Message) -> Message:
    """Return the request as it is sent, if the token allows it: a delete has the name of the token."""
    if isinstance(message, BatchRequest):
        if message.bucket is None or message.directory is not None:
            raise InvalidRequest(
                "batch: keys_from and directory are files of the worker's machine: give bucket, prefix"
            )
        check_prefix(check_bucket(message.bucket) and message.prefix)
        check_may(caller, _VERBS[message.verb], message.bucket, message.prefix)
        if message.verb == DELETE.kind:
            _check_purge(caller, message.bucket, message.prefix, asked=message.allow_last)
            return message.model_copy(update={"by": caller.name})
        return message
    bucket, key = _place(message.payload())
    check_may(caller, _VERBS[spec.kind], bucket, key)
    check_bucket(bucket)
    (check_key if spec.kind in _WRITES_KEYS else check_existing_key)(bucket, key)
    if isinstance(message, UploadRequest) and message.staged:
        raise InvalidRequest("upload: staged: bytes are staged by /v1/uploads")
    if isinstance(message, UploadRequest):
        check_owner(caller, TokenVerb.IMPORT, bucket, message.companion_of)
    if isinstance(message, DeleteRequest):
        _check_purge(caller, bucket, key, asked=message.now or message.allow_last)
        return message.model_copy(update={"by": caller.name})
    return message


def _check_companions(services: Services, caller: Caller, wanted: DeleteRequest | BatchRequest) -> None:
    """Return if the token is for all companions of what is deleted too: they are deleted with it."""
    companions = services.context.catalogue.companions
    if isinstance(wanted, DeleteRequest):
        keys = [each.key for each in companions.of(wanted.bucket, wanted.key)]
    elif wanted.verb == DELETE.kind and wanted.bucket is not None:
        keys = companions.named_below(wanted.bucket, wanted.prefix)
    else:
        return
    for key in keys:
        check_may(caller, TokenVerb.DELETE, wanted.bucket or "", key)


def _check_purge(caller: Caller, bucket: str, start: str, *, asked: bool) -> None:
    """Return unless a delete that cannot be undone is asked for with a token that does not allow it."""
    if asked:
        check_may(caller, TokenVerb.PURGE, bucket, start)


@router.get("/{job_id}", operation_id="showJob")
async def show_job(request: Request, job_id: str) -> StatusResult:
    """Show a job: its state, progress, result or error."""
    return await visible(request, job_id)


@router.delete("/{job_id}", operation_id="cancelJob", status_code=HTTPStatus.ACCEPTED)
async def cancel_job(request: Request, job_id: str) -> StatusResult:
    """Request that a job is cancelled; it ends a little later. A job that has ended already is 409."""
    services = services_of(request)
    job = await visible(request, job_id, to_cancel=True)
    if JobState(job.state).terminal or not await services.read(lambda: services.client.job(job_id).cancel()):
        state = f"ended as {job.state}" if JobState(job.state).terminal else "ended"
        raise Problem(HTTPStatus.CONFLICT, "JobEnded", f"job {job_id} has {state}: there is nothing to cancel")
    return job


@router.get(
    "/{job_id}/events",
    operation_id="followJob",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Server-sent events: `progress` while the job runs, then `end`. The data is a StatusResult.",
            "content": {"text/event-stream": {}},
        },
    },
)
async def follow_job(request: Request, job_id: str) -> StreamingResponse:
    """Follow a job until its end, as server-sent events."""
    first = await visible(request, job_id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(request, first), media_type="text/event-stream", headers=headers)


async def _events(request: Request, job: StatusResult) -> AsyncIterator[str]:
    services, now = services_of(request), asyncio.get_running_loop().time
    begun = said = now()
    last = None
    while True:
        if (text := job.model_dump_json(exclude_none=True)) != last or now() - said > _ALIVE:
            event = "end" if JobState(job.state).terminal else "progress"
            yield f"event: {event}\ndata: {text}\n\n" if text != last else ": alive\n\n"
            last, said = text, now()
        if JobState(job.state).terminal or now() - begun > _LONGEST:
            return
        await asyncio.sleep(_POLL)
        try:
            found, asked = await services.read(_find, services, job.job)
            job = _as_seen(found, caller_of_request(request), _place(asked)[0])
        except (UnknownJob, BrokerUnavailable, CatalogueUnavailable):
            continue  # between the outbox and the ledger, or while one of them restarts


async def visible(request: Request, job_id: str, *, to_cancel: bool = False) -> StatusResult:
    """Return a job on an artifact that the caller's token is for.

    Raises:
        UnknownJob: there is none, or the token is not for it: both look the same.
        Problem: it may be seen, but not cancelled.
    """
    services, caller = services_of(request), caller_of_request(request)
    job, asked = await services.read(_find, services, check_id(job_id))
    place = _place(asked)
    verb = TokenVerb.UPLOAD if asked.get("staged") else _VERBS.get(str(asked.get("verb", job.kind)))
    if verb is None or not caller.reaches(*place) or not (caller.may(verb) or caller.may(TokenVerb.READ)):
        raise unknown_job(job_id)
    if to_cancel:
        check_may(caller, verb, *place)
    return _as_seen(job, caller, place[0])


def _as_seen(job: StatusResult, caller: Caller, bucket: str) -> StatusResult:
    """Return a job without the keys that the token is not for: of companions, and of what an error compares with."""
    if caller.reaches(bucket, ""):
        return job
    result, error = job.result, job.error
    if result is not None and result.get("companions"):
        keyed = [(each["key"] if isinstance(each, dict) else each, each) for each in result["companions"]]
        result = result | {"companions": [each for key, each in keyed if caller.reaches(bucket, key)]}
    if error is not None:
        message = error.message.partition(HINT)[0]
        error = error.model_copy(update={"message": _NO_COMPANION if error.type == "WrongCompanion" else message})
    return job.model_copy(update={"result": result, "error": error})


def _find(services: Services, job_id: str) -> tuple[StatusResult, Mapping[str, Any]]:
    """Return a job and its request, from the ledger or, before a worker has taken it, from the outbox."""
    ledger = services.context.catalogue.ledger
    record = ledger.get(job_id)
    if record is None or record.state == JobState.REFUSED:  # a rejected message leaves its id to a valid request
        sent = services.waiting_job(job_id)
        spec = TASKS.get(sent.name) if sent else None
        if sent and spec:
            queued = StatusResult(job=job_id, kind=spec.kind, state=JobState.QUEUED, created_at=sent.sent_at)
            return queued, sent.payload
        record = ledger.get(job_id)  # a worker may have taken it in between
    if record is None:
        raise unknown_job(job_id)
    job = status_of(record)
    if job.state == JobState.RUNNING and (progress := _progress(services, job_id)):
        job = job.model_copy(update={"progress": progress})
    return job, record.request


def _progress(services: Services, job_id: str) -> Progress | None:
    try:
        return services.client.job(job_id).progress
    except BrokerUnavailable:
        return None


def _place(asked: Mapping[str, Any]) -> tuple[str, str]:
    """Return the bucket and the key, or the prefix, that a request is about."""
    return str(asked.get("bucket") or ""), str(asked.get("key") or asked.get("prefix") or "")
