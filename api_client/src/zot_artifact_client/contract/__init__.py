"""The wire contract between services that enqueue artifact jobs and the worker that runs them.

A job is one Celery message whose keyword arguments are the fields of a request model, as JSON; its result is a result
model, as JSON. Nothing else is needed: any Celery client can send `artifact.verify.v1` with `{"bucket": …, "key": …}`.
A new field is optional and left out of the message when it has its default, so that older workers still understand
newer clients; what cannot be said that way becomes a new version of the task, `….v2`.
"""

import re  # noqa: I001 - the names that this package exports of its modules, each with `as`, in one import for each
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar
from uuid import NAMESPACE_OID, uuid5

from zot_artifact_client.contract.queries import (
    ANSWER_KEPT as ANSWER_KEPT,
    MAX_CHUNKS as MAX_CHUNKS,
    MAX_LISTED as MAX_LISTED,
    QUERY_ID as QUERY_ID,
    ArtifactInfo as ArtifactInfo,
    CopyInfo as CopyInfo,
    HoldInfo as HoldInfo,
    ListRequest as ListRequest,
    ListResult as ListResult,
    ManifestPart as ManifestPart,
    ShowRequest as ShowRequest,
    ShowResult as ShowResult,
    StatusAnswer as StatusAnswer,
    StatusRequest as StatusRequest,
    StatusResult as StatusResult,
)
from zot_artifact_client.contract.requests import (
    COMPANION_SUFFIXES as COMPANION_SUFFIXES,
    PROPERTIES as PROPERTIES,
    AdoptRequest as AdoptRequest,
    BatchRequest as BatchRequest,
    Bucket as Bucket,
    ClaimSelection as ClaimSelection,
    DeleteRequest as DeleteRequest,
    EvidenceRequest as EvidenceRequest,
    KeptBesideBytes as KeptBesideBytes,
    Key as Key,
    LinesSelection as LinesSelection,
    ListedSelection as ListedSelection,
    Message as Message,
    Metadata as Metadata,
    PageRequest as PageRequest,
    RangeSelection as RangeSelection,
    ReplicateRequest as ReplicateRequest,
    Request as Request,
    Sha256 as Sha256,
    Source as Source,
    StoreName as StoreName,
    StoreNames as StoreNames,
    SweepAlarmsRequest as SweepAlarmsRequest,
    SweepBackupRequest as SweepBackupRequest,
    SweepCanaryRequest as SweepCanaryRequest,
    SweepEvidenceRequest as SweepEvidenceRequest,
    SweepLeftoversRequest as SweepLeftoversRequest,
    SweepProbeRequest as SweepProbeRequest,
    SweepPurgeRequest as SweepPurgeRequest,
    SweepReconcileRequest as SweepReconcileRequest,
    SweepRecoverRequest as SweepRecoverRequest,
    SweepRepairRequest as SweepRepairRequest,
    SweepReplicateRequest as SweepReplicateRequest,
    SweepReportRequest as SweepReportRequest,
    SweepVerifyRequest as SweepVerifyRequest,
    SweepWebhooksRequest as SweepWebhooksRequest,
    Symlinks as Symlinks,
    UploadRequest as UploadRequest,
    Verb as Verb,
    VerifyRequest as VerifyRequest,
    with_properties as with_properties,
)
from zot_artifact_client.contract.results import (
    AdoptResult as AdoptResult,
    ArtifactResult as ArtifactResult,
    BatchFailure as BatchFailure,
    BatchResult as BatchResult,
    CopyEvidence as CopyEvidence,
    CopyVerdict as CopyVerdict,
    DeletedCopy as DeletedCopy,
    DeleteResult as DeleteResult,
    EvidenceResult as EvidenceResult,
    JobError as JobError,
    PageFailure as PageFailure,
    PageResult as PageResult,
    PlacedCopy as PlacedCopy,
    Progress as Progress,
    ReconciledStore as ReconciledStore,
    ReplicateResult as ReplicateResult,
    Result as Result,
    StoreEvidence as StoreEvidence,
    SweepAlarmsResult as SweepAlarmsResult,
    SweepBackupResult as SweepBackupResult,
    SweepCanaryResult as SweepCanaryResult,
    SweepEvidenceResult as SweepEvidenceResult,
    SweepLeftoversResult as SweepLeftoversResult,
    SweepProbeResult as SweepProbeResult,
    SweepPurgeResult as SweepPurgeResult,
    SweepReconcileResult as SweepReconcileResult,
    SweepRecoverResult as SweepRecoverResult,
    SweepRepairResult as SweepRepairResult,
    SweepReplicateResult as SweepReplicateResult,
    SweepReportResult as SweepReportResult,
    SweepVerifyResult as SweepVerifyResult,
    SweepWebhooksResult as SweepWebhooksResult,
    UploadResult as UploadResult,
    VerifyResult as VerifyResult,
)


PROGRESS_STATE = "PROGRESS"
"""The Celery state of a running job that has reported progress; its info is a `Progress`."""
CANCEL_KEY = "zot-artifacts:cancel:{job}"
"""The Redis key, in the result backend, by which a client requests that a running job is cancelled."""

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""The form of a job's id, which is that of its Celery message."""
BATCH_JOB_ID = re.compile(r"(?P<batch>.+)\.[0-9]{8}")
"""The form of the id of a job that a batch has sent; only the batch may send under such an id."""
_LONGEST_STEM = 100
"""Characters of a batch's id that leave room for the number of its job."""


def batch_stem(batch: str) -> str:
    """Return what the ids of a batch's jobs begin with: its own id, or one that is made from it if that is too long."""
    return batch if len(batch) <= _LONGEST_STEM else str(uuid5(NAMESPACE_OID, batch))


def is_batch_job(job: str, parent: object) -> bool:
    """Return whether a job's id is one that this batch gives to its jobs."""
    found = BATCH_JOB_ID.fullmatch(job)
    return found is not None and isinstance(parent, str) and found["batch"] == batch_stem(parent)


MAX_MESSAGE = 1 << 20
"""Bytes of a whole message as the broker holds it. The largest request of this contract has about half of it."""


class JobState(StrEnum):
    """The state of a job. All but `unknown`, `queued`, `running` and `retrying` are terminal."""

    UNKNOWN = "unknown"
    """Nothing is known of a job with this id. No job has this state in the ledger."""
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The job cannot succeed, or a sweep does the same again; its error says why."""
    DEAD = "dead"
    """Every attempt met a transient error; the job can be redriven."""
    CANCELLED = "cancelled"
    REFUSED = "refused"
    """The message was not one the worker understands; nothing was done."""

    @property
    def terminal(self) -> bool:
        """Return whether the job has ended."""
        return self not in {JobState.UNKNOWN, JobState.QUEUED, JobState.RUNNING, JobState.RETRYING}


class Queue(StrEnum):
    """The queues, by the kind of work."""

    INTERACTIVE = "interactive"
    TRANSFER = "transfer"
    SWEEP = "sweep"


RequestT = TypeVar("RequestT", bound=Message)
ResultT = TypeVar("ResultT", bound=Message)


@dataclass(frozen=True, slots=True)
class TaskSpec(Generic[RequestT, ResultT]):
    """One task: its name in messages, its models, and its queue."""

    name: str
    kind: str
    request: type[RequestT]
    result: type[ResultT]
    queue: Queue


UPLOAD = TaskSpec("artifact.upload.v1", "upload", UploadRequest, UploadResult, Queue.TRANSFER)
REPLICATE = TaskSpec("artifact.replicate.v1", "replicate", ReplicateRequest, ReplicateResult, Queue.TRANSFER)
VERIFY = TaskSpec("artifact.verify.v1", "verify", VerifyRequest, VerifyResult, Queue.INTERACTIVE)
EVIDENCE = TaskSpec("artifact.evidence.v1", "evidence", EvidenceRequest, EvidenceResult, Queue.INTERACTIVE)
DELETE = TaskSpec("artifact.delete.v1", "delete", DeleteRequest, DeleteResult, Queue.INTERACTIVE)
ADOPT = TaskSpec("artifact.adopt.v1", "adopt", AdoptRequest, AdoptResult, Queue.TRANSFER)
PAGE = TaskSpec("artifact.page.v1", "page", PageRequest, PageResult, Queue.SWEEP)
BATCH = TaskSpec("artifact.batch.v1", "batch", BatchRequest, BatchResult, Queue.TRANSFER)
SWEEP_VERIFY = TaskSpec("sweep.verify.v1", "sweep.verify", SweepVerifyRequest, SweepVerifyResult, Queue.SWEEP)
SWEEP_REPLICATE = TaskSpec(
    "sweep.replicate.v1", "sweep.replicate", SweepReplicateRequest, SweepReplicateResult, Queue.SWEEP
)
SWEEP_REPAIR = TaskSpec("sweep.repair.v1", "sweep.repair", SweepRepairRequest, SweepRepairResult, Queue.SWEEP)
SWEEP_LEFTOVERS = TaskSpec(
    "sweep.leftovers.v1", "sweep.leftovers", SweepLeftoversRequest, SweepLeftoversResult, Queue.SWEEP
)
SWEEP_RECOVER = TaskSpec(
    "sweep.recover.v1", "sweep.recover", SweepRecoverRequest, SweepRecoverResult, Queue.INTERACTIVE
)
SWEEP_RECONCILE = TaskSpec(
    "sweep.reconcile.v1", "sweep.reconcile", SweepReconcileRequest, SweepReconcileResult, Queue.SWEEP
)
SWEEP_EVIDENCE = TaskSpec("sweep.evidence.v1", "sweep.evidence", SweepEvidenceRequest, SweepEvidenceResult, Queue.SWEEP)
SWEEP_PURGE = TaskSpec("sweep.purge.v1", "sweep.purge", SweepPurgeRequest, SweepPurgeResult, Queue.SWEEP)
SWEEP_ALARMS = TaskSpec("sweep.alarms.v1", "sweep.alarms", SweepAlarmsRequest, SweepAlarmsResult, Queue.INTERACTIVE)
SWEEP_WEBHOOKS = TaskSpec(
    "sweep.webhooks.v1", "sweep.webhooks", SweepWebhooksRequest, SweepWebhooksResult, Queue.INTERACTIVE
)
SWEEP_BACKUP = TaskSpec("sweep.backup.v1", "sweep.backup", SweepBackupRequest, SweepBackupResult, Queue.SWEEP)
SWEEP_REPORT = TaskSpec("sweep.report.v1", "sweep.report", SweepReportRequest, SweepReportResult, Queue.INTERACTIVE)
SWEEP_CANARY = TaskSpec("sweep.canary.v1", "sweep.canary", SweepCanaryRequest, SweepCanaryResult, Queue.SWEEP)
SWEEP_PROBE = TaskSpec("sweep.probe.v1", "sweep.probe", SweepProbeRequest, SweepProbeResult, Queue.SWEEP)

TASKS: dict[str, TaskSpec[Any, Any]] = {
    spec.name: spec
    for spec in (
        UPLOAD, REPLICATE, VERIFY, EVIDENCE, DELETE, ADOPT, BATCH, PAGE,
        SWEEP_VERIFY, SWEEP_REPAIR, SWEEP_REPLICATE, SWEEP_RECONCILE, SWEEP_EVIDENCE, SWEEP_PURGE, SWEEP_LEFTOVERS,
        SWEEP_PROBE, SWEEP_CANARY, SWEEP_ALARMS, SWEEP_WEBHOOKS, SWEEP_REPORT, SWEEP_RECOVER, SWEEP_BACKUP,
    )
}  # fmt: skip
"""By name."""
KINDS = {spec.kind: spec for spec in TASKS.values()}

QUERY_SHOW = TaskSpec("artifact.show.v1", "show", ShowRequest, ShowResult, Queue.INTERACTIVE)
QUERY_LIST = TaskSpec("artifact.list.v1", "list", ListRequest, ListResult, Queue.INTERACTIVE)
QUERY_STATUS = TaskSpec("artifact.status.v1", "status", StatusRequest, StatusAnswer, Queue.INTERACTIVE)

QUERIES: dict[str, TaskSpec[Any, Any]] = {spec.name: spec for spec in (QUERY_SHOW, QUERY_LIST, QUERY_STATUS)}
"""What is answered from the catalogue and is no job: see `contract.queries`."""
