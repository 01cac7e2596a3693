"""Enqueue artifact jobs from other services: upload, replicate, verify, delete, adopt."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zot_artifact_client.async_client import AsyncArtifactClient, AsyncArtifacts
    from zot_artifact_client.async_job import AsyncJob, AsyncJobs
    from zot_artifact_client.chunk_cache import CacheStat, ChunkCache
    from zot_artifact_client.client import ArtifactClient, Artifacts
    from zot_artifact_client.contract import (
        AdoptResult,
        ArtifactInfo,
        BatchFailure,
        BatchResult,
        CopyInfo,
        DeleteResult,
        JobState,
        ListResult,
        Progress,
        ReplicateResult,
        ShowResult,
        SweepVerifyResult,
        UploadResult,
        VerifyResult,
    )
    from zot_artifact_client.errors import (
        ArtifactChanged,
        ArtifactNotFound,
        BrokerUnavailable,
        ClientError,
        DamagedBytes,
        GatewayUnavailable,
        IdempotencyMismatch,
        InvalidRequest,
        InvalidUrl,
        JobCancelled,
        JobFailed,
        JobNotDone,
        NoGoodCopy,
        NotAllowed,
        UnknownJob,
        WaitTimeout,
    )
    from zot_artifact_client.job import Job, Jobs, as_completed
    from zot_artifact_client.snapshot import JobStatus

__all__ = [
    "AdoptResult",
    "ArtifactChanged",
    "ArtifactClient",
    "ArtifactInfo",
    "ArtifactNotFound",
    "Artifacts",
    "AsyncArtifactClient",
    "AsyncArtifacts",
    "AsyncJob",
    "AsyncJobs",
    "BatchFailure",
    "BatchResult",
    "BrokerUnavailable",
    "CacheStat",
    "ChunkCache",
    "ClientError",
    "CopyInfo",
    "DamagedBytes",
    "DeleteResult",
    "GatewayUnavailable",
    "IdempotencyMismatch",
    "InvalidRequest",
    "InvalidUrl",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobNotDone",
    "JobState",
    "JobStatus",
    "Jobs",
    "ListResult",
    "NoGoodCopy",
    "NotAllowed",
    "Progress",
    "ReplicateResult",
    "ShowResult",
    "SweepVerifyResult",
    "UnknownJob",
    "UploadResult",
    "VerifyResult",
    "WaitTimeout",
    "as_completed",
]

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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
