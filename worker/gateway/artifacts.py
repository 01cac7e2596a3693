"""List artifacts and show one: what the catalogue has, without a job."""

from functools import partial
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request

from worker.artifacts import queries
from worker.catalogue import Artifact
from worker.context import Context
from worker.gateway.access import Caller, TokenVerb
from worker.gateway.problems import ERRORS, Problem
from worker.gateway.request_authorization import artifact_path, caller_of_request, check_may, not_found, services_of
from worker.storage.keys import check_bucket, check_prefix
from zot_artifact_client.contract import MAX_LISTED, ListRequest, ListResult, ShowResult

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"], responses=ERRORS)


@router.get("", operation_id="listArtifacts")
async def list_artifacts(
    request: Request,
    bucket: Annotated[str, Query(description="The bucket.")],
    prefix: Annotated[str, Query(max_length=1024, description="Only keys that begin with this text.")] = "",
    after: Annotated[str, Query(max_length=1024, description="Only keys that come after this one.")] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 100,
) -> ListResult:
    """List the artifacts of a bucket, by the UTF-8 order of their keys.

    `next` is the value of `after` for the following ones.
    """
    services, caller = services_of(request), caller_of_request(request)
    check_prefix(check_bucket(bucket) and prefix)
    check_prefix(after)
    check_may(caller, TokenVerb.READ, bucket, prefix)
    asked = ListRequest(bucket=bucket, prefix=prefix, after=after, limit=limit)
    return await services.read(queries.list_artifacts, asked, services.context)


@router.get("/{bucket}/{key:key}", operation_id="showArtifact")
async def show_artifact(
    request: Request,
    bucket: str,  # noqa: ARG001 - for the OpenAPI document; `artifact_path` reads it
    key: str,  # noqa: ARG001
    chunks_from: Annotated[
        int | None, Query(ge=0, description="With the SHA-256 of up to 4096 chunks of 16 MiB, from this one on.")
    ] = None,
) -> ShowResult:
    """Show one artifact: its digest, the state of each copy, and the digests of its chunks if asked for."""
    services, caller = services_of(request), caller_of_request(request)
    artifact = await readable(request, "/v1/artifacts/")
    describe = partial(queries.describe, chunks_from=chunks_from)
    shown = await services.read(describe, artifact, services.context)
    others = tuple(each for each in shown.companions if caller.reaches(shown.bucket, each))
    of = shown.companion_of if caller.reaches(shown.bucket, shown.companion_of or "") else None
    return shown.model_copy(update={"companions": others, "companion_of": of})


async def readable(request: Request, below: str) -> Artifact:
    """Return the artifact that a request names.

    Raises:
        Problem: the token does not allow to read, is not for it, or it does not exist.
    """
    services, caller = services_of(request), caller_of_request(request)
    if not caller.may(TokenVerb.READ):
        raise Problem(HTTPStatus.FORBIDDEN, "NotAllowed", f"token {caller.name} does not allow {TokenVerb.READ.value}")
    at = artifact_path(request, below)
    found = await services.read(_find, services.context, caller, at)
    if found is None:
        raise not_found(*at)
    return found


def _find(context: Context, caller: Caller, at: tuple[str, str]) -> Artifact | None:
    return context.catalogue.artifacts.current(*at) if caller.reaches(*at) else None
