"""Resumable uploads after tus 1.0 (creation, expiration, termination), and uploads in one request."""

import base64
import binascii
import logging
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from email.utils import format_datetime
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, BinaryIO
from urllib.parse import parse_qsl
from uuid import uuid4

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from worker import clock
from worker.artifacts.parts_staged_in_store import PartRange, StagedParts, remove_parts, source_of
from worker.gateway.access import TokenVerb
from worker.gateway.jobs import IdempotencyKey
from worker.gateway.problems import ERRORS, Problem
from worker.gateway.request_authorization import (
    artifact_path,
    caller_of_request,
    check_may,
    check_owner,
    check_receivers,
    services_of,
)
from worker.gateway.services import Services
from worker.gateway.staging import StagedUpload, disk_errors, gone, request_of
from worker.gateway.unique_names import UniqueNamesRoute
from worker.jobs.first_request import first_request, is_same
from worker.storage.errors import PermanentError
from worker.storage.keys import check_bucket, check_key
from zot_artifact_client.contract import (
    PROPERTIES,
    UPLOAD,
    JobState,
    Sha256,
    StatusResult,
    UploadRequest,
)
from zot_artifact_client.errors import InvalidRequest
from zot_artifact_client.idempotency_conflicts import idempotency_mismatch
from zot_artifact_client.job_ids import check_id
from zot_artifact_client.request_faults import faults_of

logger = logging.getLogger(__name__)
router = APIRouter(tags=["uploads"], responses=ERRORS, route_class=UniqueNamesRoute)

TUS = "1.0.0"
_EXTENSIONS = "creation,expiration,termination"
_WRITE = 1 << 20
"""Bytes that are written at a time."""
_SIGNED = 16
"""Parts whose URLs are in one answer."""
_LEAST, _WINDOW = 64 * 1024, 60.0
"""Bytes that a body must have in so many seconds."""
_OCTETS = "application/offset+octet-stream"
_HEADERS = tuple(name for name in PROPERTIES if name != "cache_control")
"""The fields that are headers of a PUT. Cache-Control of a request is about the request, and caches add their own."""
_LISTS = {"stores", "notify"}
_PAIRS = {"metadata", "storage_classes", "tags"}
"""The fields that a header holds as the query of a URL."""
_MOST = 100
_DIGEST = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):\s*(?:,|$)")
Tus = Annotated[str | None, Header(alias="Tus-Resumable")]


class NewUpload(UploadRequest):
    """An upload whose bytes are sent to the gateway: its size in bytes and its SHA-256, and where it goes."""

    source: str = ""
    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class ShownUpload(BaseModel):
    """An upload of which `offset` of `size` bytes are there. With the last one, a job of the same id is sent.

    `direct`: ask `POST /v1/uploads/ID/parts` for the URLs of its parts; otherwise PATCH its bytes.
    """

    upload: str
    offset: int
    size: int
    complete: bool
    direct: bool = False


class PartToSend(BaseModel):
    """A missing part: PUT its `size` bytes from `offset` to the URL, with these headers. The URL is a secret."""

    number: int
    offset: int
    size: int
    url: str
    headers: dict[str, str]


class ShownParts(BaseModel):
    """The next parts of a direct upload that are missing. Without any, the upload is complete and its job was sent."""

    upload: str
    done: int
    size: int
    complete: bool
    expires_in: int
    parts: list[PartToSend]


@router.options("/v1/uploads", operation_id="describeUploads", status_code=HTTPStatus.NO_CONTENT)
async def describe(request: Request) -> Response:
    """Describe the version and the extensions of tus."""
    most = services_of(request).settings.gateway.max_upload
    headers = {"Tus-Version": TUS, "Tus-Extension": _EXTENSIONS, "Tus-Max-Size": str(int(most))}
    return Response(status_code=HTTPStatus.NO_CONTENT, headers=_tus(headers))


@router.post(
    "/v1/uploads",
    operation_id="createUpload",
    status_code=HTTPStatus.CREATED,
    response_model=ShownUpload,
    openapi_extra={
        "requestBody": {
            "description": "Where the bytes go. A tus client sends it as Upload-Length and Upload-Metadata instead.",
            "content": {"application/json": {"schema": NewUpload.model_json_schema()}},
        }
    },
)
async def create(
    request: Request,
    *,
    tus: Tus = None,
    upload_length: Annotated[str | None, Header()] = None,
    upload_metadata: Annotated[str | None, Header()] = None,
    idempotency_key: IdempotencyKey = None,
    direct: Annotated[bool, Query()] = False,
) -> Response:
    """Begin an upload: bytes are sent to its Location with PATCH, and resumed at the offset that HEAD returns.

    With `direct`, and where the settings name a store for it, its parts are sent to signed URLs instead.
    """
    _check_version(tus)
    if upload_length is not None:
        fields = _fields_of(upload_length, upload_metadata or "")
    else:
        fields = await _json_of(request)
    upload = await _create(request, _new(fields), idempotency_key, direct=direct)
    return await _answer(request, upload, HTTPStatus.CREATED)


@router.head("/v1/uploads/{upload_id}", operation_id="showUpload")
async def show(request: Request, upload_id: str, tus: Tus = None) -> Response:
    """Return the offset at which an upload continues. Its job is sent if all bytes are there."""
    _check_version(tus)
    return await _answer(request, await _find(request, upload_id), HTTPStatus.OK)


@router.patch("/v1/uploads/{upload_id}", operation_id="sendBytes", status_code=HTTPStatus.NO_CONTENT, openapi_extra={
    "requestBody": {"content": {_OCTETS: {}}},
})  # fmt: skip
async def send(
    request: Request,
    upload_id: str,
    upload_offset: Annotated[str, Header(pattern="^[0-9]{1,19}$")],
    tus: Tus = None,
) -> Response:
    """Append bytes at an offset. What arrived stays, however the request ends. With the last byte the job is sent."""
    _check_version(tus)
    if request.headers.get("content-type", "").partition(";")[0].strip() != _OCTETS:
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "WrongType", f"send the bytes as Content-Type: {_OCTETS}")
    upload = await _find(request, upload_id)
    await _append(request, upload, int(upload_offset))
    return await _answer(request, upload, HTTPStatus.NO_CONTENT)


@router.post("/v1/uploads/{upload_id}/parts", operation_id="signParts", response_model=ShownParts)
async def sign_parts(request: Request, upload_id: str) -> Response:
    """Return signed URLs for the next missing parts of a direct upload. If none is missing, its job is sent."""
    services, upload = services_of(request), await _find(request, upload_id)
    if upload.store is None:
        raise Problem(HTTPStatus.CONFLICT, "NotDirect", f"upload {upload.id} is not direct: send its bytes with PATCH")
    await services.fetch(services.staging.touch, upload)
    missing = [] if upload.sent else await services.fetch(_missing, services, upload)
    if not missing:
        await services.read(_finish, services, upload)
    parts = await services.fetch(_signed, services, upload, missing[:_SIGNED])
    shown = ShownParts(
        upload=upload.id, done=upload.size - sum(part.size for part in missing), size=upload.size,
        complete=not missing, expires_in=_seconds(services), parts=parts,
    )  # fmt: skip
    return JSONResponse(shown.model_dump(), headers={"Cache-Control": "no-store"})


@router.delete("/v1/uploads/{upload_id}", operation_id="endUpload", status_code=HTTPStatus.NO_CONTENT)
async def terminate(request: Request, upload_id: str, tus: Tus = None) -> Response:
    """Give up an upload and remove its bytes. One whose job was sent is 409: cancel the job."""
    _check_version(tus)
    services, upload = services_of(request), await _find(request, upload_id)
    if upload.sent:
        raise Problem(HTTPStatus.CONFLICT, "JobSent", f"its job was sent: cancel it with DELETE /v1/jobs/{upload.id}")
    if upload.store is not None:
        parts = source_of(upload.store, upload.id, upload.size)
        await services.fetch(partial(remove_parts, parts, services.context.stores, job=upload.id))
    await services.fetch(services.staging.remove, upload)
    return Response(status_code=HTTPStatus.NO_CONTENT, headers=_tus({}))


@router.put(
    "/v1/objects/{bucket}/{key:key}",
    operation_id="uploadObject",
    status_code=HTTPStatus.ACCEPTED,
    openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}}},
)
async def upload_object(  # noqa: PLR0917 - the framework passes parameters by name
    request: Request,
    bucket: str,  # noqa: ARG001 - for the OpenAPI document; `artifact_path` reads it
    key: str,  # noqa: ARG001
    repr_digest: Annotated[str, Header(description="`sha-256=:BASE64:`, as in RFC 9530.")],
    upload_metadata: Annotated[str | None, Header(description="Other fields, as a tus client sends them.")] = None,
    idempotency_key: IdempotencyKey = None,
) -> StatusResult:
    """Upload an artifact in one request. The answer is the job, which ends once the stores have it.

    Content-Type, -Encoding, -Disposition and -Language are kept beside the bytes. Upload-Metadata has the other fields.
    """
    found, length = _DIGEST.search(repr_digest), request.headers.get("content-length", "")
    if found is None or not length.isdigit():
        raise InvalidRequest("upload: Content-Length and Repr-Digest: sha-256=:BASE64: are needed")
    at = artifact_path(request, "/v1/objects/")
    sha256 = base64.b64decode(found[1]).hex()
    fields = {name: value for name in _HEADERS if (value := request.headers.get(name.replace("_", "-")))}
    if fields.get("content_type") == "application/x-www-form-urlencoded":  # which curl says of any body
        del fields["content_type"]
    fields |= _fields_of(length[:20], upload_metadata or "")
    fields |= {"bucket": at[0], "key": at[1], "sha256": sha256}
    upload = await _create(request, _new(fields), idempotency_key)
    services = services_of(request)
    if not upload.sent:
        there = await services.fetch(services.staging.offset, upload)
        try:
            await _append(request, upload, there or 0, again=True)
            if await services.fetch(services.staging.offset, upload) != upload.size:  # the client went away
                raise Problem(HTTPStatus.BAD_REQUEST, "Incomplete", f"the body ended before its {upload.size} bytes")
        except Exception:
            if idempotency_key is None:  # no later request can name it
                await services.fetch(services.staging.remove, upload)
            raise
    return await services.read(_finish, services, upload)


# What these operations share


def _check_version(tus: str | None) -> None:
    if tus is not None and tus != TUS:
        detail = f"only tus {TUS} is supported: send Tus-Resumable: {TUS}"
        raise Problem(HTTPStatus.PRECONDITION_FAILED, "WrongVersion", detail, headers={"Tus-Version": TUS})


def _fields_of(length: str, metadata: str) -> dict[str, Any]:
    """Return the fields of an upload from the headers of tus: names, each with its value in base64.

    Raises:
        InvalidRequest: a value is no base64 of UTF-8, or `size` is not the length that the request announces.
    """
    fields: dict[str, Any] = {}
    for pair in filter(None, (each.strip() for each in metadata.split(","))):
        name, _, value = pair.partition(" ")
        try:
            fields[name] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise InvalidRequest(f"upload: Upload-Metadata: the value of {name[:64]!r} is no base64 of UTF-8") from None
    if fields.setdefault("size", length) != length:
        raise InvalidRequest(
            f"upload: Upload-Metadata: size is {fields['size'][:20]!r}, the length is {length}: leave it out"
        )
    fields.pop("filename", None)  # what clients in browsers add by themselves
    if (kind := fields.pop("filetype", None)) and "content_type" not in fields:
        fields["content_type"] = kind
    for name in _LISTS & fields.keys():
        fields[name] = tuple(fields[name].split(","))
    for name in _PAIRS & fields.keys():
        fields[name] = _pairs_of(name, fields[name])
    return fields


def _pairs_of(name: str, value: str) -> dict[str, str]:
    """Return names and values from the query of a URL, as `team=core&stage=ga`."""
    try:
        pairs = parse_qsl(value, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=_MOST)
    except ValueError:
        raise InvalidRequest(f"upload: Upload-Metadata: {name}: name=value pairs are expected, joined by &") from None
    if len(dict(pairs)) < len(pairs):
        raise InvalidRequest(f"upload: Upload-Metadata: {name}: a name is given twice")
    return dict(pairs)


async def _json_of(request: Request) -> dict[str, Any]:
    try:
        found = await request.json()
    except (ValueError, RecursionError, ClientDisconnect):  # a client that has gone hears nothing, and is no bug
        found = None
    if not isinstance(found, dict):
        raise InvalidRequest("upload: a JSON object is expected, or Upload-Length and Upload-Metadata")
    return found


def _new(fields: Mapping[str, Any]) -> NewUpload:
    try:
        return NewUpload.read(dict(fields))
    except ValidationError as error:
        raise InvalidRequest(f"upload: {faults_of(error.errors(), whole='body')}") from None


async def _create(
    request: Request, new: NewUpload, idempotency_key: str | None, *, direct: bool = False
) -> StagedUpload:
    """Make an upload if the token allows it."""
    services, caller = services_of(request), caller_of_request(request)
    check_may(caller, TokenVerb.UPLOAD, new.bucket, new.key)
    check_key(check_bucket(new.bucket), new.key)
    check_receivers(services, caller, new.notify, new.bucket, new.key)
    check_owner(caller, TokenVerb.UPLOAD, new.bucket, new.companion_of)
    if new.source or new.staged:
        raise InvalidRequest("upload: source, staged: the bytes are sent here")
    for name in new.stores or ():
        services.context.stores[name]  # its error knows the nearest name
    most = int(services.settings.gateway.max_upload)
    if new.size > most:
        detail = f"{new.bucket}/{new.key} has {new.size} bytes, gateway.max_upload allows {most}"
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "TooLarge", detail)
    id_ = str(uuid4())
    if idempotency_key is not None:
        own = f"{caller.name}:upload:{idempotency_key}"
        id_ = services.id_of(UPLOAD, own)
    fields = {name: value for name, value in new.payload().items() if name != "size"}
    store = await services.fetch(_store_for, services, id_, new) if direct else None
    upload = StagedUpload(id_, caller.name, new.size, fields, store=store)
    if idempotency_key is not None:
        sent = await services.read(_sent_before, services, upload)
        if sent is not None:
            return sent
    return await services.fetch(services.staging.create, upload)


async def _find(request: Request, upload_id: str) -> StagedUpload:
    """Return an upload of the caller's token. Raise a Problem: there is none, or the token does not allow it now."""
    services, caller = services_of(request), caller_of_request(request)
    upload = await services.fetch(services.staging.find, check_id(upload_id))
    if upload is None or upload.token != caller.name:
        raise gone(upload_id)
    check_may(caller, TokenVerb.UPLOAD, upload.request["bucket"], upload.request["key"])
    return await services.read(_sent_before, services, upload) or upload


def _sent_before(services: Services, upload: StagedUpload) -> StagedUpload | None:
    """Return an upload as one whose job was sent, if it was: a killed gateway may have sent it without recording that.

    Such a job may have read and removed the bytes already, or wait with bytes whose upload has expired since. Raise
    IdempotencyMismatch: it is the job of another request.
    """
    kept = services.staging.find(upload.id)
    if kept is not None and kept.sent:
        return None  # it says so itself
    wanted = kept or upload
    asked = request_of(wanted, services.staging.source(wanted)).payload()
    if first_request(services.context.catalogue.ledger, upload.id, UPLOAD.kind, asked) is None:
        waiting = services.waiting_job(upload.id) if kept is None and services.staging.has_bytes(upload) else None
        if waiting is None:
            return None
        if not is_same(waiting.payload, asked):
            raise idempotency_mismatch([upload.id])
    services.staging.mark_sent(wanted)
    return replace(wanted, sent=True)


async def _append(request: Request, upload: StagedUpload, offset: int, *, again: bool = False) -> None:
    """Append the body of a request. With `again` the body begins with the bytes that are there, which are skipped.

    Raises:
        Problem: the offset is not the one that is there, the body has too many bytes or is too slow. What came before
            that stays.
    """
    services = services_of(request)
    if upload.sent:
        raise Problem(HTTPStatus.CONFLICT, "JobSent", f"upload {upload.id} is complete, its job was sent")
    if upload.store is not None:
        raise Problem(
            HTTPStatus.CONFLICT, "Direct", f"upload {upload.id} is direct: POST /v1/uploads/{upload.id}/parts"
        )
    with ExitStack() as held:
        file = await services.fetch(held.enter_context, services.staging.appending(upload))
        there = await services.fetch(file.seek, 0, os.SEEK_END)
        if there != offset:
            detail = f"upload {upload.id} has {there} bytes, these begin at {offset}: send what follows"
            raise Problem(HTTPStatus.CONFLICT, "WrongOffset", detail, headers={"Upload-Offset": str(there)})
        body = _Body(upload, file, services, there, skip=there if again else 0)
        try:
            await body.take(request)
        finally:
            await services.fetch(body.flush)
            await services.fetch(held.close)


class _Body:
    """The bytes of one request on their way into the file."""

    def __init__(self, upload: StagedUpload, file: BinaryIO, services: Services, there: int, *, skip: int) -> None:
        self._upload = upload
        self._file = file
        self._services = services
        self._left = upload.size - there
        self._skip = skip
        self._waiting = bytearray()

    async def take(self, request: Request) -> None:
        """Take the body to its end, or until the client goes away."""
        begun, seen = clock.now(), 0
        try:
            async for piece in request.stream():
                seen += len(piece)
                new = piece[self._skip :]
                self._skip = max(0, self._skip - len(piece))
                if len(new) > self._left:
                    detail = f"more than the {self._upload.size} bytes that were announced"
                    raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "TooLarge", detail)
                self._left -= len(new)
                self._waiting += new
                if len(self._waiting) >= _WRITE:
                    await self._services.fetch(self.flush)
                if (clock.now() - begun).total_seconds() > _WINDOW:
                    if seen < _LEAST:
                        detail = f"fewer than {_LEAST} bytes in {_WINDOW:.0f} s: continue at the offset that is there"
                        raise Problem(HTTPStatus.REQUEST_TIMEOUT, "TooSlow", detail)
                    begun, seen = clock.now(), 0
        except ClientDisconnect:
            return

    def flush(self) -> None:
        """Write what waits."""
        left = memoryview(bytes(self._waiting))
        self._waiting.clear()
        with disk_errors():
            while left:
                left = left[self._file.write(left) :]


async def _answer(request: Request, upload: StagedUpload, status: HTTPStatus) -> Response:
    """Answer with the offset of an upload; send its job if all bytes are there."""
    services = services_of(request)
    there: int | None
    if upload.store is not None and not upload.sent:
        there = upload.size - sum(part.size for part in await services.fetch(_missing, services, upload))
    else:
        there = await services.fetch(services.staging.offset, upload)
        if there is None or there == upload.size:
            await services.read(_finish, services, upload)
            there = upload.size
    expires = await services.fetch(services.staging.expires_at, upload.id)
    headers = {
        "Location": f"/v1/uploads/{upload.id}",
        "Upload-Offset": str(there),
        "Upload-Length": str(upload.size),
        "Upload-Expires": format_datetime(expires, usegmt=True),
        "Cache-Control": "no-store",
    }
    if there == upload.size and (upload.store is None or upload.sent):
        headers["Zot-Job"] = upload.id
    if status is HTTPStatus.CREATED:
        shown = ShownUpload(
            upload=upload.id, offset=there, size=upload.size, complete="Zot-Job" in headers,
            direct=upload.store is not None,
        )  # fmt: skip
        return JSONResponse(shown.model_dump(), status, _tus(headers))
    return Response(status_code=status, headers=_tus(headers))


def _finish(services: Services, upload: StagedUpload) -> StatusResult:
    """Send the job of a complete upload. The same id again is the same job, so that a killed gateway may send twice.

    Raises:
        Problem: its bytes are gone, and there is no job.
        BrokerUnavailable: the bytes stay; ask for the offset again later.
    """
    queued = StatusResult(job=upload.id, kind=UPLOAD.kind, state=JobState.QUEUED)
    if upload.sent:
        return queued
    source = services.staging.source(upload)
    if upload.store is not None or source.exists():
        services.client.submit(UPLOAD, request_of(upload, source), job_id=upload.id)
    elif services.context.catalogue.ledger.get(upload.id) is None:
        raise gone(upload.id)
    services.staging.mark_sent(upload)
    return queued


def _store_for(services: Services, id_: str, new: NewUpload) -> str | None:
    """Return the store to which a client can send parts; None: its bytes go through the gateway."""
    name = services.settings.gateway.staging_store
    if name is None:
        return None
    parts = StagedParts(id_, new.size)
    try:
        parts.sign(services.context.stores[name], parts.all()[0], _seconds(services))
    except PermanentError as error:
        logger.warning("gateway.staging_store: bytes go through the gateway: %s", error)
        return None
    return name


def _missing(services: Services, upload: StagedUpload) -> list[PartRange]:
    return StagedParts(upload.id, upload.size).missing(services.context.stores[str(upload.store)])


def _signed(services: Services, upload: StagedUpload, missing: list[PartRange]) -> list[PartToSend]:
    store, parts, found = services.context.stores[str(upload.store)], StagedParts(upload.id, upload.size), []
    for part in missing:
        put = parts.sign(store, part, _seconds(services))
        found.append(
            PartToSend(number=part.number, offset=part.offset, size=part.size, url=put.url, headers=dict(put.headers))
        )
    return found


def _seconds(services: Services) -> int:
    return int(services.settings.gateway.signed_for.total_seconds())


def _tus(headers: Mapping[str, str]) -> dict[str, str]:
    return {"Tus-Resumable": TUS, **headers}
