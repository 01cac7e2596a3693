"""The wire contract between services that enqueue artifact jobs and the worker that runs them.

A job is one Celery message whose keyword arguments are the fields of a request model, as JSON; its result is a result
model, as JSON. Nothing else is needed: any Celery client can send `artifact.verify.v1` with `{"bucket": …, "key": …}`.
A new field is optional and left out of the message when it has its default, so that older workers still understand
newer clients; what cannot be said that way becomes a new version of the task, `….v2`.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

CONTRACT_VERSION = 1
PROGRESS_STATE = "PROGRESS"
"""The Celery state of a running job that has reported progress; its info is a `Progress`."""
CANCEL_KEY = "zot-artifacts:cancel:{job}"
"""The Redis key, in the result backend, by which a client asks a running job to stop."""

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What a job's id, which is that of its Celery message, may be."""
MAX_MESSAGE = 1 << 20
"""Bytes of a whole message as the broker holds it. The largest request of this contract has about half of it."""

_SIGNATURES = re.compile(r"(?i)(^|[-_])(sig|signature|token|credential|key|password|secret)$")


class JobState(StrEnum):
    """Where a job stands. The last five are terminal."""

    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The job cannot succeed; its error says why."""
    DEAD = "dead"
    """The job could have succeeded, but every attempt met a passing fault."""
    CANCELLED = "cancelled"
    REFUSED = "refused"
    """The message was not one the worker understands; nothing was done."""

    @property
    def terminal(self) -> bool:
        """Return whether the job will not change any more."""
        return self not in {JobState.QUEUED, JobState.RUNNING, JobState.RETRYING}


class Queue(StrEnum):
    """The queues, by who is waiting."""

    INTERACTIVE = "interactive"
    TRANSFER = "transfer"
    SWEEP = "sweep"


def _without_secrets(source: str) -> str:
    if "://" not in source:
        return source
    url = urlsplit(source)
    if url.username or url.password:
        msg = "a URL with a user or password in it is not accepted: messages carry no secrets"
        raise ValueError(msg)
    for name, _ in parse_qsl(url.query, keep_blank_values=True):
        if _SIGNATURES.search(name):
            msg = f"a URL with the parameter {name!r} is not accepted: messages carry no secrets"
            raise ValueError(msg)
    return source


def _no_url(path: str) -> str:
    if "://" in path:
        msg = "a file is expected, not a URL"
        raise ValueError(msg)
    return path


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        msg = "a store is named twice"
        raise ValueError(msg)
    return names


Bucket = Annotated[str, StringConstraints(min_length=1, max_length=63)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", to_lower=True)]
Source = Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_without_secrets)]
Verb = Literal["replicate", "verify", "delete"]
StoreName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
StoreNames = Annotated[tuple[StoreName, ...], Field(min_length=1, max_length=64), AfterValidator(_distinct)]
Metadata = Annotated[
    dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class Message(BaseModel):
    """A request or a result, as one JSON object."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @classmethod
    def read(cls, payload: object) -> Self:
        """Return the message that this JSON object is; raise pydantic's ValidationError if it is none."""
        return cls.model_validate(payload, strict=False)

    def payload(self) -> dict[str, object]:
        """Return the JSON object to send: without what has its default, so that older workers understand it."""
        return self.model_dump(mode="json", exclude_defaults=True)


class Request(Message):
    """What every request names: one artifact."""

    bucket: Bucket
    key: Key


class UploadRequest(Request):
    """Bring the bytes of a source under a key, to the stores that are named or that placement names."""

    source: Source
    """A file under one of the worker's configured roots, or an http(s) URL of a configured host."""
    sha256: Sha256 | None = None
    """The SHA-256 the bytes must have; anything else is refused."""
    stores: StoreNames | None = None
    metadata: Metadata = {}
    storage_classes: dict[StoreName, Annotated[str, Field(min_length=1, max_length=64)]] = {}
    """The class or tier to use in single stores, by the name it has there, in place of the configured one."""
    staged: bool = False
    """The source was laid into the worker's staging directory for this job and goes away with it."""


class ReplicateRequest(Request):
    """Bring copies of an artifact to the named stores, from any copy that is right."""

    to: StoreNames


class VerifyRequest(Request):
    """Read all bytes of the copies in the named stores, or of all copies."""

    stores: StoreNames | None = None
    version: Annotated[int, Field(ge=1)] | None = None
    """The artifact version to verify; the current one by default."""


class DeleteRequest(Request):
    """Delete the copies in the named stores, or the artifact everywhere."""

    stores: StoreNames | None = None
    allow_last: bool = False
    """Delete from the named stores even if no good copy remains elsewhere."""


class AdoptRequest(Request):
    """Make an object known that a store holds and another program wrote, as it stands, from one full read of it."""

    store: StoreName
    first_read: bool = False
    """Where no digest is kept beside the object: make what is read this once the record. It proves nothing before."""


class BatchRequest(Message):
    """Do one verb to every artifact of a bucket or prefix as it is now, or to those that a file lists; a job for each.

    What a verb does not take is refused rather than ignored.
    """

    verb: Verb
    bucket: Bucket | None = None
    prefix: Annotated[str, StringConstraints(max_length=1024)] = ""
    """Text that the keys begin with; it need not end at a slash."""
    keys_from: Annotated[Source, AfterValidator(_no_url)] | None = None
    """In place of a bucket: a file below one of the worker's roots, in UTF-8, with one `bucket/key` on each line."""
    staged: bool = False
    """The file was laid into the worker's staging directory for this job and goes away with it."""
    to: StoreNames | None = None
    stores: StoreNames | None = None
    allow_last: bool = False
    everything: bool = False
    """To delete from a bucket without a prefix."""
    in_flight: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """How many of its jobs wait or run at a time at most; a setting of the worker's by default."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for wrong, rule in self._rules():
            if wrong:
                raise ValueError(rule)
        return self

    def _rules(self) -> tuple[tuple[object, str], ...]:
        return (
            ((self.bucket is None) == (self.keys_from is None), "give either bucket or keys_from"),
            (self.prefix and self.bucket is None, "prefix goes with bucket"),
            (self.staged and self.keys_from is None, "staged goes with keys_from"),
            ((self.to is None) == (self.verb == "replicate"), "to goes with replicate, and it has to have it"),
            (self.stores is not None and self.verb == "replicate", "stores goes with verify and delete"),
            (self.allow_last and (self.verb != "delete" or self.stores is None), "allow_last goes with delete, stores"),
            (self.everything and not self._sweeping, "everything goes with delete and a bucket without a prefix"),
            (self._sweeping and not self.everything, "to delete from a whole bucket, say everything"),
        )

    @property
    def _sweeping(self) -> bool:
        return self.verb == "delete" and self.bucket is not None and not self.prefix


class SweepVerifyRequest(Message):
    """Verify the copies that are due, oldest attempt first; of one store, or of all."""

    store: StoreName | None = None


class SweepReplicateRequest(Message):
    """Bring the copies that the placement rules want and that are not there; to one store, or to all."""

    store: StoreName | None = None


class SweepLeftoversRequest(Message):
    """Remove what killed writers left behind, in one store or in all."""

    store: StoreName | None = None


class SweepProbeRequest(Message):
    """Try out one store, or all."""

    store: StoreName | None = None


class SweepRecoverRequest(Message):
    """Send again the jobs of which nothing is heard."""


class Result(Message):
    """What a worker answers."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # an older client understands a newer worker


class PlacedCopy(Result):
    """What was done to have a copy in a store."""

    store: str
    outcome: Literal["stored", "already_there", "repaired"]
    source: str | None = None
    """The store it was copied from, where it came from a store."""
    quarantined: str | None = None
    """Where the bytes that were found in its place are kept, as `bucket/key` in the same store."""


class ArtifactResult(Result):
    """The artifact version that a job was about."""

    bucket: str
    key: str
    version: int
    size: int
    sha256: str


class UploadResult(ArtifactResult):
    """The version that now holds the bytes. `unchanged`: every copy was there already, nothing was written."""

    unchanged: bool
    copies: tuple[PlacedCopy, ...]


class ReplicateResult(ArtifactResult):
    """The copies that are now in the stores that were named."""

    unchanged: bool
    copies: tuple[PlacedCopy, ...]


class CopyVerdict(Result):
    """What reading one copy has shown: `verified`, `corrupt`, `missing`, `size_mismatch`, `unreadable`, `unverifiable`.

    `sha256` is the digest of the bytes that were read, or None where they were not all read.
    """

    store: str
    verdict: str
    sha256: str | None = None
    detail: str | None = None


class VerifyResult(ArtifactResult):
    """One verdict for every copy that was looked at."""

    copies: tuple[CopyVerdict, ...]

    @property
    def good(self) -> bool:
        """Return whether every copy was read in full and matched."""
        return all(copy.verdict == "verified" for copy in self.copies)


class DeletedCopy(Result):
    """What was done to have no copy in a store."""

    store: str
    outcome: Literal["deleted", "already_gone"]


class DeleteResult(Result):
    """The copies that are gone. `everywhere`: the artifact was deleted, not only some copies."""

    bucket: str
    key: str
    everywhere: bool
    unchanged: bool
    copies: tuple[DeletedCopy, ...]


class AdoptResult(ArtifactResult):
    """The version that the object in the store is now a copy of. `unchanged`: it was known already, and not read.

    `evidence` says what its bytes were held against: `sha256 kept by the store`, `sha256 in the catalogue`, or nothing
    but their own `first read`.
    """

    store: str
    evidence: str
    unchanged: bool = False


class BatchFailure(Result):
    """One object of a batch that did not come out as it should: the verdict on it, or how its job ended."""

    job: str
    bucket: str
    key: str
    outcome: str
    message: str = ""


class BatchResult(Result):
    """What became of all objects of a batch.

    `bytes` are those of the artifacts, each counted once. `outcomes` counts the objects by what came of them: by the
    worst verdict, by what was done, or by how a job ended that did not succeed. `failures` are the first of `failed`;
    the ledger has them all.
    """

    verb: str
    objects: int
    bytes: int
    outcomes: dict[str, int]
    failed: int
    failures: tuple[BatchFailure, ...] = ()

    @property
    def good(self) -> bool:
        """Return whether every object came out as it should."""
        return self.failed == 0


class SweepVerifyResult(Result):
    """How many due copies were claimed, by store; each is verified by a job of its own."""

    claimed: dict[str, int]


class SweepReplicateResult(Result):
    """How many absent copies were claimed, by store; each is brought by a job of its own."""

    claimed: dict[str, int]


class SweepLeftoversResult(Result):
    """How many left-overs were removed, by store, and how many staged sources."""

    removed: dict[str, int]
    staged: int = 0


class SweepProbeResult(Result):
    """The stores that were tried out, and what is wrong with those that cannot be relied on."""

    probed: tuple[str, ...]
    faults: dict[str, str]


class SweepRecoverResult(Result):
    """How many jobs were sent again: messages that Redis lost, and jobs whose workers were not heard of any more.

    `cancelled`: how many were ended while they waited, because somebody had cancelled them.
    """

    messages: int
    jobs: int
    cancelled: int = 0


class Progress(Result):
    """How far a running job is, in bytes, and a batch in objects as well. What is not known is None."""

    bytes_done: int = 0
    bytes_total: int | None = None
    step: str = ""
    objects_done: int | None = None
    objects_total: int | None = None


class JobError(Result):
    """Why a job did not succeed: the name of the error, and its one line."""

    type: str
    message: str


RequestT = TypeVar("RequestT", bound=Message)
ResultT = TypeVar("ResultT", bound=Message)


@dataclass(frozen=True, slots=True)
class TaskSpec(Generic[RequestT, ResultT]):
    """One task as it stands in messages: its name, its models, and the queue it waits in."""

    name: str
    kind: str
    request: type[RequestT]
    result: type[ResultT]
    queue: Queue


UPLOAD = TaskSpec("artifact.upload.v1", "upload", UploadRequest, UploadResult, Queue.TRANSFER)
REPLICATE = TaskSpec("artifact.replicate.v1", "replicate", ReplicateRequest, ReplicateResult, Queue.TRANSFER)
VERIFY = TaskSpec("artifact.verify.v1", "verify", VerifyRequest, VerifyResult, Queue.INTERACTIVE)
DELETE = TaskSpec("artifact.delete.v1", "delete", DeleteRequest, DeleteResult, Queue.INTERACTIVE)
ADOPT = TaskSpec("artifact.adopt.v1", "adopt", AdoptRequest, AdoptResult, Queue.TRANSFER)
BATCH = TaskSpec("artifact.batch.v1", "batch", BatchRequest, BatchResult, Queue.TRANSFER)
SWEEP_VERIFY = TaskSpec("sweep.verify.v1", "sweep.verify", SweepVerifyRequest, SweepVerifyResult, Queue.SWEEP)
SWEEP_REPLICATE = TaskSpec(
    "sweep.replicate.v1", "sweep.replicate", SweepReplicateRequest, SweepReplicateResult, Queue.SWEEP
)
SWEEP_LEFTOVERS = TaskSpec(
    "sweep.leftovers.v1", "sweep.leftovers", SweepLeftoversRequest, SweepLeftoversResult, Queue.SWEEP
)
SWEEP_RECOVER = TaskSpec(
    "sweep.recover.v1", "sweep.recover", SweepRecoverRequest, SweepRecoverResult, Queue.INTERACTIVE
)
SWEEP_PROBE = TaskSpec("sweep.probe.v1", "sweep.probe", SweepProbeRequest, SweepProbeResult, Queue.SWEEP)

TASKS: dict[str, TaskSpec[Any, Any]] = {
    spec.name: spec
    for spec in (
        UPLOAD, REPLICATE, VERIFY, DELETE, ADOPT, BATCH,
        SWEEP_VERIFY, SWEEP_REPLICATE, SWEEP_LEFTOVERS, SWEEP_PROBE, SWEEP_RECOVER,
    )
}  # fmt: skip
