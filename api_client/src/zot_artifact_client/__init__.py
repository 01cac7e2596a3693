"""Enqueue artifact jobs from other services: upload, replicate, verify, delete, adopt."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zot_artifact_client.async_client import (  # noqa: I001 - one import for each module
        AsyncArtifactClient as AsyncArtifactClient,
        AsyncArtifacts as AsyncArtifacts,
    )
    from zot_artifact_client.async_job import AsyncJob as AsyncJob, AsyncJobs as AsyncJobs
    from zot_artifact_client.chunk_cache import CacheStat as CacheStat, ChunkCache as ChunkCache
    from zot_artifact_client.client import ArtifactClient as ArtifactClient, Artifacts as Artifacts
    from zot_artifact_client.contract import (
        AdoptResult as AdoptResult,
        ArtifactInfo as ArtifactInfo,
        BatchFailure as BatchFailure,
        BatchResult as BatchResult,
        CopyInfo as CopyInfo,
        DeleteResult as DeleteResult,
        JobState as JobState,
        ListResult as ListResult,
        Progress as Progress,
        ReplicateResult as ReplicateResult,
        ShowResult as ShowResult,
        SweepVerifyResult as SweepVerifyResult,
        UploadResult as UploadResult,
        VerifyResult as VerifyResult,
    )
    from zot_artifact_client.errors import (
        ArtifactChanged as ArtifactChanged,
        ArtifactNotFound as ArtifactNotFound,
        BrokerUnavailable as BrokerUnavailable,
        ClientError as ClientError,
        DamagedBytes as DamagedBytes,
        GatewayUnavailable as GatewayUnavailable,
        IdempotencyMismatch as IdempotencyMismatch,
        InvalidRequest as InvalidRequest,
        InvalidUrl as InvalidUrl,
        JobCancelled as JobCancelled,
        JobFailed as JobFailed,
        JobNotDone as JobNotDone,
        NoGoodCopy as NoGoodCopy,
        NotAllowed as NotAllowed,
        UnknownJob as UnknownJob,
        WaitTimeout as WaitTimeout,
    )
    from zot_artifact_client.job import Job as Job, Jobs as Jobs, as_completed as as_completed
    from zot_artifact_client.snapshot import JobStatus as JobStatus

_NAMES = {
    "async_client": "AsyncArtifactClient AsyncArtifacts",
    "async_job": "AsyncJob AsyncJobs",
    "chunk_cache": "CacheStat ChunkCache",
    "client": "ArtifactClient Artifacts",
    "contract": """
        AdoptResult ArtifactInfo BatchFailure BatchResult CopyInfo DeleteResult JobState ListResult Progress
        ReplicateResult ShowResult SweepVerifyResult UploadResult VerifyResult
    """,
    "errors": """
        ArtifactChanged ArtifactNotFound BrokerUnavailable ClientError DamagedBytes GatewayUnavailable
        IdempotencyMismatch InvalidRequest InvalidUrl JobCancelled JobFailed JobNotDone NoGoodCopy
        NotAllowed UnknownJob WaitTimeout
    """,
    "job": "Job Jobs as_completed",
    "snapshot": "JobStatus",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
"""The module of each name. It is imported when the name is first used: Celery takes half a second to import."""
__all__ = sorted(_MODULES)  # noqa: PLE0605  # pyright: ignore[reportUnsupportedDunderAll] - checkers read the imports


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
