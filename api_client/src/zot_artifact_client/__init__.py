"""Enqueue artifact jobs from other services: upload, replicate, verify, delete, adopt."""

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
    InvalidRequest,
    JobCancelled,
    JobFailed,
    JobNotDone,
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
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobNotDone",
    "JobState",
    "Progress",
    "ReplicateResult",
    "SweepVerifyResult",
    "UploadResult",
    "VerifyResult",
    "WaitTimeout",
]
