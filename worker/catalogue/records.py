"""The rows of the catalogue as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple, Self

from sqlalchemy import Row

from worker import clock
from worker.storage import Digest, Verdict
from zot_artifact_client.contract import BATCH, PAGE, VERIFY, JobState, Queue, is_batch_job
from zot_artifact_client.idempotency_conflicts import digest_of


class CopyState(StrEnum):
    """The state of one copy, from its last write, verdict or delete."""

    WRITING = "writing"
    """A job began to write it and has not completed it."""
    STORED = "stored"
    """Complete, its bytes hashed on the way in; not read back yet."""
    VERIFIED = "verified"
    CORRUPT = "corrupt"
    MISSING = "missing"
    SIZE_MISMATCH = "size_mismatch"
    SUPERSEDED = "superseded"
    """Another version was written over it."""
    DELETED = "deleted"

    @property
    def good(self) -> bool:
        """Return whether its last verdict, or its write, says that its bytes are right."""
        return self in {CopyState.STORED, CopyState.VERIFIED}

    @property
    def present(self) -> bool:
        """Return whether its store should have bytes of it."""
        return self not in {CopyState.WRITING, CopyState.SUPERSEDED, CopyState.DELETED}


def count_present(states: Mapping[str, int]) -> int:
    """Return how many copies should have bytes in their store, of so many in each state."""
    return sum(count for state, count in states.items() if CopyState(state).present)


OPEN_STATES = [state for state in JobState if not state.terminal]
"""The states of jobs that have not ended."""
ENDED_STATES = [state for state in JobState if state.terminal]
"""The states of jobs that have ended."""
NEW_JOB = {"state": JobState.QUEUED, "attempts": 0, "fence": 0, "crashes": 0}
"""The values of the row of a job that no worker has leased yet."""
WAITING_STATES = (JobState.QUEUED, JobState.RETRYING)
"""The states of jobs that no worker has leased."""
GOOD = tuple(state for state in CopyState if state.good)
"""The states of copies that are complete, and right as far as is known."""
GONE = (CopyState.SUPERSEDED, CopyState.DELETED)
"""The states of copies that their store should have no more."""
BAD = (CopyState.CORRUPT, CopyState.MISSING, CopyState.SIZE_MISMATCH)
"""The states that two independent reads have confirmed."""

BEGUN_FOR_PLACEMENT = {"begun_for": "placement"}
"""The evidence of a copy that no upload or replication named: it is given up where placement wants it no more."""


class FindingKind(StrEnum):
    """The kinds of findings, the worst first."""

    LOST = "lost"
    """An artifact: no copy of its current version is good."""
    LOG_CHANGED = "log_changed"
    """The verification log does not fit the head that a store keeps."""
    BACKUP = "backup"
    """A store without a recent backup of the catalogue that can be restored, although it is to have one."""
    STORE_UNTRUSTED = "store_untrusted"
    """A store of which too many copies were found bad: its repairs stopped."""
    LISTING_SUSPECT = "listing_suspect"
    """A store whose listing lacks too many recorded objects, or some that the store has, or is in no order."""
    CORRUPT = "corrupt"
    MISSING = "missing"
    SIZE_MISMATCH = "size_mismatch"
    SUSPECT = "suspect"
    """A copy that one read found bad, and that no second read has judged yet."""
    UNREADABLE = "unreadable"
    METADATA = "metadata"
    """A copy with right bytes whose store keeps no SHA-256 beside them any more, or another one."""
    UNDER_REPLICATED = "under_replicated"
    """An artifact that lacks a copy in a store where placement wants one, or where a job did not finish one."""
    OVERDUE = "overdue"
    """A store with copies that were not read within its period."""
    TOO_SLOW = "too_slow"
    """A store whose copies will not all be read within its period at the rate or the budget that it has."""
    CONFLICT = "conflict"
    """An object whose digest is not that of the current version: another version, or other content."""
    ORPHAN = "orphan"
    """An object that the catalogue does not know."""
    STORE_NOT_CONFIGURED = "store_not_configured"
    """A store that has copies in the catalogue and is not in the settings."""
    CANARY_MISSED = "canary_missed"
    """A canary that was damaged on purpose and not found, or not repaired, in time."""
    DELETE_WAITING = "delete_waiting"
    """A delete of many artifacts that waits until a second person approves it; its key is the job."""
    WEBHOOK_UNDELIVERED = "webhook_undelivered"
    """Ends of jobs that a webhook did not accept; its key is the receiver."""
    ALARM_UNDELIVERED = "alarm_undelivered"
    """Alarms that a channel could not deliver."""
    CANARY = "canary"
    """A canary that was damaged on purpose, until it is repaired: never a loss of data."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One version of the bytes under a bucket and key."""

    id: int
    bucket: str
    key: str
    version: int
    digest: Digest
    metadata: Mapping[str, str]
    created_at: datetime
    committed_at: datetime | None = None
    tombstoned_at: datetime | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    """The headers that clouds keep beside the bytes, by the names of `ObjectProperties`."""
    stores_named: bool = False
    """All its uploads named their stores, so that the setting `placement` adds no other."""

    @property
    def path(self) -> str:
        """Return `bucket/key`, as users name it."""
        return f"{self.bucket}/{self.key}"

    @property
    def facts(self) -> dict[str, Any]:
        """Return what every result tells of a version: the fields of the contract's `ArtifactResult`."""
        digest = self.digest
        where = {"bucket": self.bucket, "key": self.key, "version": self.version}
        return where | {"size": digest.size, "sha256": digest.sha256}


class ListedArtifact(NamedTuple):
    """A version of an artifact, with as much of it as planning needs."""

    id: int
    bucket: str
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Copy:
    """One artifact version in one store."""

    id: int
    artifact_id: int
    store: str
    state: CopyState
    tag: str | None = None
    attempts: int = 0
    last_verdict: str | None = None
    last_attempt_at: datetime | None = None
    last_verified_at: datetime | None = None
    next_due_at: datetime | None = None
    read_at: datetime | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def was_left(self) -> bool:
        """Return whether it is not complete, and is to be completed whatever the placement says."""
        return self.state is CopyState.WRITING and self.evidence != BEGUN_FOR_PLACEMENT


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One row of the ledger."""

    id: str
    kind: str
    request: Mapping[str, Any]
    state: str
    attempts: int
    fence: int
    created_at: datetime
    lease_owner: str | None = None
    lease_until: datetime | None = None
    progress: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    parent: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    queue: str | None = None
    due_at: datetime | None = None
    crashes: int = 0
    snoozed_since: datetime | None = None

    @property
    def request_sha256(self) -> str | None:
        """Return the digest of the request, as clients compute it; None of a rejected message, which has no values."""
        return None if self.state == JobState.REFUSED else digest_of(self.kind, self.request)

    @property
    def shown_state(self) -> str:
        """Return the state for people and clients: between its steps a batch is `queued` in the ledger, and runs.

        A job whose lease has expired is `running` there, and waits for a worker.
        """
        if self.waits_since is not None:
            return JobState.QUEUED.value
        between_steps = self.kind == BATCH.kind and self.state == JobState.QUEUED and self.started_at is not None
        return JobState.RUNNING.value if between_steps else str(self.state)

    @property
    def waits_since(self) -> datetime | None:
        """Return when the lease of a job expired that no worker has taken again; None of every other job.

        Its worker died, or cannot record how the attempt ended.
        """
        expired = self.state == JobState.RUNNING and self.lease_until is not None and self.lease_until <= clock.now()
        return self.lease_until if expired else None

    @property
    def is_sweep(self) -> bool:
        """Return whether it is one run of a sweep."""
        return self.kind.startswith("sweep.")

    @property
    def exhausted_state(self) -> JobState:
        """Return the state in which the job ends when its attempts are used up: `dead`, so that it can be redriven.

        A sweep has failed then, and so has what it sent for one object: the next run of the sweep does its work. A
        page is `dead` until `sweep.recover` has sent a job for each object that it has left undone. So is a
        verification, such as one that exceeds the time limit: it has left no verdict, and no finding tells of the copy.
        """
        of_sweep = self.queue == Queue.SWEEP and self.parent is not None and not is_batch_job(self.id, self.parent)
        is_done_again = self.is_sweep or (of_sweep and self.kind not in {PAGE.kind, VERIFY.kind})
        return JobState.FAILED if is_done_again else JobState.DEAD


class VerdictRow(NamedTuple):
    """One verdict on a copy, as plain values. After `copy`, its id, come the values of the log.

    `tag`: the store's version tag of the bytes read. `retry_at`: when an unreadable or archived copy is read again.
    `stored_sha256`: as in `Verification`; it is not in the log.
    """

    copy: int
    job: str
    store: str
    bucket: str
    key: str
    version: int
    verdict: str
    expected_sha256: str
    found_sha256: str | None = None
    found_size: int | None = None
    detail: str | None = None
    tag: str | None = None
    retry_at: datetime | None = None
    stored_sha256: str | None = None
    same_tag: bool = False
    """Whether the copy is known to have this tag already."""

    @property
    def has_wrong_metadata(self) -> bool:
        """Return whether the bytes are right, and the digest beside them is missing or different."""
        stored = self.stored_sha256
        return stored is not None and stored != self.expected_sha256 and self.verdict == Verdict.VERIFIED

    @classmethod
    def of(cls, job: str, artifact: Artifact, copy: Copy, verdict: str, *found: Any, **more: Any) -> Self:
        """Return the verdict of a job on a copy of an artifact; `found` and `more` are the values after the verdict."""
        about = (copy.id, job, copy.store, artifact.bucket, artifact.key, artifact.version)
        expected = artifact.digest.sha256
        return cls(*about, verdict, expected, *found, **more)


@dataclass(frozen=True, slots=True)
class LogHead:
    """The last row of the verification log at some moment: its id, its hash and its time."""

    id: int
    hash: str
    at: datetime


@dataclass(frozen=True, slots=True)
class LogMonth:
    """A month of the verification log.

    `first` and `last` are the ids of its first and last row, and `rows` is their number. `previous` is the hash of the
    row before the first, `hash` and `ended_at` are those of the last row.
    """

    month: str
    first: int
    last: int
    rows: int
    previous: str
    hash: str
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class LogArchive(LogMonth):
    """A month of the verification log that stores keep as an object with this digest."""

    digest: Digest


def artifact_of(row: Row[Any]) -> Artifact:
    """Return a row as an Artifact."""
    return Artifact(
        row.id, row.bucket, row.key, row.version, Digest(row.size, row.sha256), row.metadata,
        row.created_at, row.committed_at, row.tombstoned_at, row.properties or {}, bool(row.stores_named),
    )  # fmt: skip


def copy_of(row: Row[Any]) -> Copy:
    """Return a row as a Copy."""
    return Copy(
        row.id, row.artifact_id, row.store, CopyState(row.state), row.tag, row.attempts, row.last_verdict,
        row.last_attempt_at, row.last_verified_at, row.next_due_at, row.read_at, row.evidence,
    )  # fmt: skip
