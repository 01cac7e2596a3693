"""Enqueue artifact jobs from other services: upload, replicate, verify, delete, adopt."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zot_artifact_client.client import ArtifactClient, Artifacts
    from zot_artifact_client.contract import (
        AdoptResult,
        BatchFailure,
        BatchResult,
        DeleteResult,
        JobState,
        Progress,
        ReplicateResult,
        SweepVerifyResult,
        UploadResult,
        VerifyResult,
    )
    from zot_artifact_client.errors import (
        BrokerUnavailable,
        ClientError,
        IdempotencyMismatch,
        InvalidRequest,
        InvalidUrl,
        JobCancelled,
        JobFailed,
        JobNotDone,
        UnknownJob,
        WaitTimeout,
    )
    from zot_artifact_client.job import Job

__all__ = [
    "AdoptResult",
    "ArtifactClient",
    "Artifacts",
    "BatchFailure",
    "BatchResult",
    "BrokerUnavailable",
    "ClientError",
    "DeleteResult",
    "IdempotencyMismatch",
    "InvalidRequest",
    "InvalidUrl",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobNotDone",
    "JobState",
    "Progress",
    "ReplicateResult",
    "SweepVerifyResult",
    "UnknownJob",
    "UploadResult",
    "VerifyResult",
    "WaitTimeout",
]

_MODULES = {
    "AdoptResult": "contract",
    "ArtifactClient": "client",
    "Artifacts": "client",
    "BatchFailure": "contract",
    "BatchResult": "contract",
    "BrokerUnavailable": "errors",
    "ClientError": "errors",
    "DeleteResult": "contract",
    "IdempotencyMismatch": "errors",
    "InvalidRequest": "errors",
    "InvalidUrl": "errors",
    "Job": "job",
    "JobCancelled": "errors",
    "JobFailed": "errors",
    "JobNotDone": "errors",
    "JobState": "contract",
    "Progress": "contract",
    "ReplicateResult": "contract",
    "SweepVerifyResult": "contract",
    "UnknownJob": "errors",
    "UploadResult": "contract",
    "VerifyResult": "contract",
    "WaitTimeout": "errors",
}
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
