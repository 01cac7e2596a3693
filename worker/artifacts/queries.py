"""Answer the queries of clients: one artifact, a page of a bucket, one job."""

from worker.catalogue import Artifact, Copy, JobRecord
from worker.context import Context
from worker.storage.integrity.manifest import Manifest
from zot_artifact_client.contract import (
    MAX_CHUNKS,
    ArtifactInfo,
    CopyInfo,
    HoldInfo,
    JobError,
    JobState,
    ListRequest,
    ListResult,
    ManifestPart,
    Progress,
    ShowRequest,
    ShowResult,
    StatusAnswer,
    StatusRequest,
    StatusResult,
)

_LARGEST_PAGE = 512 * 1024
"""Characters of one answer to a list query; the result backend takes 1 MiB."""


def show(request: ShowRequest, context: Context) -> ShowResult:
    """Return the current version of an artifact, its hold and the copies that should be there.

    Raises:
        NotFound: the artifact is not in the catalogue; names the nearest key.
    """
    return describe(context.catalogue.artifact(request.bucket, request.key), context, chunks_from=request.chunks_from)


def describe(artifact: Artifact, context: Context, *, chunks_from: int | None = None) -> ShowResult:
    """Return a version, its hold and the copies that should be there; with `chunks_from` also its manifest."""
    artifacts = context.catalogue.artifacts
    hold = context.catalogue.holds.get(artifact.bucket, artifact.key)
    companions = context.catalogue.companions
    manifest = artifacts.manifest(artifact) if chunks_from is not None else None
    return ShowResult(
        **_info(artifact).model_dump(),
        metadata=dict(artifact.metadata),
        properties=dict(artifact.properties),
        hold=None if hold is None else HoldInfo(held_at=hold.held_at, by=hold.by, reason=hold.reason),
        copies=tuple(
            _copy(copy, configured=copy.store in context.settings.stores)
            for copy in artifacts.copies(artifact).values()
            if copy.state.present
        ),
        companions=tuple(each.key for each in companions.of(artifact.bucket, artifact.key)),
        companion_of=companions.owner(artifact.bucket, artifact.key),
        manifest=None if manifest is None else _part(manifest, chunks_from or 0),
    )


def list_artifacts(request: ListRequest, context: Context) -> ListResult:
    """Return a page of a bucket's artifacts by key; none is no error."""
    found = context.catalogue.artifacts.page(
        request.bucket, request.prefix, (request.bucket, request.after), request.limit + 1
    )
    taken: list[ArtifactInfo] = []
    size = 0
    for artifact in found[: request.limit]:
        info = _info(artifact)
        size += len(info.model_dump_json(ensure_ascii=True))
        if taken and size > _LARGEST_PAGE:
            break
        taken.append(info)
    return ListResult(artifacts=tuple(taken), next=taken[-1].key if len(taken) < len(found) else None)


def status(request: StatusRequest, context: Context) -> StatusAnswer:
    """Return the state of a job from the ledger."""
    job = context.catalogue.ledger.get(request.job)
    if job is None:
        return StatusAnswer(job=request.job, state=JobState.UNKNOWN)
    return StatusAnswer(**dict(status_of(job)), request_sha256=job.request_sha256)


def status_of(job: JobRecord) -> StatusResult:
    """Return the answer for a row of the ledger."""
    return StatusResult(
        job=job.id,
        state=job.shown_state,
        kind=job.kind,
        attempts=job.attempts,
        created_at=job.created_at,
        finished_at=job.finished_at,
        progress=Progress.read(job.progress) if job.progress else None,
        result=dict(job.result) if job.result is not None else None,
        error=_error(job),
    )


def _info(artifact: Artifact) -> ArtifactInfo:
    return ArtifactInfo(
        **artifact.facts,
        created_at=artifact.created_at,
    )


def _copy(copy: Copy, *, configured: bool) -> CopyInfo:
    return CopyInfo(
        store=copy.store,
        state=copy.state.value,
        configured=configured,
        last_verified_at=copy.last_verified_at,
        last_attempt_at=copy.last_attempt_at,
    )


def _part(manifest: Manifest, first: int) -> ManifestPart:
    numbers = range(first, min(first + MAX_CHUNKS, len(manifest)))
    return ManifestPart(
        chunk_size=manifest.chunk_size,
        total=len(manifest),
        first=first,
        sha256=tuple(manifest.chunk(number).sha256 for number in numbers),
    )


def _error(job: JobRecord) -> JobError | None:
    """Return why the job did not succeed; the ledger's own record also has a traceback."""
    if job.error is None or JobState(job.state) not in {
        JobState.FAILED,
        JobState.DEAD,
        JobState.CANCELLED,
        JobState.REFUSED,
    }:
        return None
    return JobError.read({name: str(job.error.get(name, "")) for name in ("type", "message")})
