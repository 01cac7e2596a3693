"""The results of jobs: one model per kind of job, each sent as one JSON object."""

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, Field, ValidationError

from zot_artifact_client.contract.requests import Message


class Result(Message):
    """The result of a job."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # an older client understands a newer worker


class PlacedCopy(Result):
    """How a store got its copy."""

    store: str
    outcome: Literal["stored", "already_there", "repaired"]
    source: str | None = None
    """The store that the bytes were copied from, unless they came from the source of an upload."""
    quarantined: str | None = None
    """Where the bytes that it replaced are in quarantine, as `bucket/key` in the same store."""
    not_kept: tuple[str, ...] = ()
    """The properties that the store cannot keep, such as `content_type` or `tags`; the catalogue has them."""


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
    """The copies that are now in the stores that were named, also those of each companion."""

    unchanged: bool
    copies: tuple[PlacedCopy, ...]
    companions: tuple["ReplicateResult", ...] = ()


class CopyVerdict(Result):
    """What reading one copy has shown: `verified`, `corrupt`, `missing`, `size_mismatch`, `unreadable`, `unverifiable`.

    `sha256` is the digest of the bytes that were read, or None where they were not all read. `detail` says what is
    wrong with the copy, also where its bytes are right and the digest that the store keeps beside them is not.
    """

    store: str
    verdict: str
    sha256: str | None = None
    detail: str | None = None


class VerifyResult(ArtifactResult):
    """One verdict for every copy that was examined, also for those of each companion."""

    copies: tuple[CopyVerdict, ...]
    companions: tuple["VerifyResult", ...] = ()

    @property
    def good(self) -> bool:
        """Return whether there is a copy, and every one was read in full and matched."""
        return all(
            each.copies and all(copy.verdict == "verified" for copy in each.copies) for each in (self, *self.companions)
        )


class CopyEvidence(Result):
    """What a store says about one copy: `agrees`, `differs`, `absent` or `unknown`. No byte was read.

    `compared`: the names of what was compared. `job`: the job that reads the copy in full because of it.
    """

    store: str
    outcome: str
    compared: str = ""
    detail: str | None = None
    job: str | None = None


class EvidenceResult(ArtifactResult):
    """One comparison for every good copy that was asked for. It verifies nothing."""

    copies: tuple[CopyEvidence, ...]


class DeletedCopy(Result):
    """How the copy in one store was deleted."""

    store: str
    outcome: Literal["deleted", "already_gone"]


class DeleteResult(Result):
    """The copies that were deleted. `everywhere`: the artifact was deleted, not only some copies.

    `not_configured`: stores that have a copy and are not configured. Nothing was deleted there. `purge_after`: no byte
    has gone yet, and until then the delete can be undone. `companions`: the keys of those that were deleted with it.
    """

    bucket: str
    key: str
    everywhere: bool
    unchanged: bool
    copies: tuple[DeletedCopy, ...]
    not_configured: tuple[str, ...] = ()
    purge_after: datetime | None = None
    companions: tuple[str, ...] = ()


class AdoptResult(ArtifactResult):
    """The version that the object in the store is now a copy of. `unchanged`: it was known already, and not read.

    `evidence` names what its bytes were compared with: `sha256 kept by the store`, `sha256 of the request`,
    `sha256 in the catalogue`, or, for no digest at all, `first read`. `not_recorded` names what the store keeps beside
    the bytes and no artifact has, such as `Expires`: it stays with the object, and no replica gets it. `after_delete`:
    the artifact was deleted, and has a new version now.
    """

    store: str
    evidence: str
    unchanged: bool = False
    not_recorded: tuple[str, ...] = ()
    after_delete: bool = False


class BatchFailure(Result):
    """One object of a batch that failed: its verdict, or how its job ended."""

    job: str
    bucket: str
    key: str
    outcome: str
    message: str = ""


class BatchResult(Result):
    """The outcomes of all objects of a batch.

    `bytes` is the size of the artifacts, each counted once. `outcomes` counts the objects by outcome: the worst
    verdict, what was done, or the state of a job that did not succeed. `failures` are the first of the `failed`
    objects; the ledger has all of them. `not_kept` names by store what it does not keep beside the bytes of some.
    """

    verb: str
    objects: int
    bytes: int
    outcomes: dict[str, int]
    failed: int
    failures: tuple[BatchFailure, ...] = ()
    not_kept: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Return whether no object failed."""
        return self.failed == 0


class PageFailure(Result):
    """One object of a page that failed: its verdict, or the error."""

    bucket: str
    key: str
    outcome: str
    message: str = ""


class PageResult(Result):
    """The outcomes of all objects of a page.

    `bytes` is the size of the objects. `outcomes` counts the objects by outcome. `failures` names those that failed.
    `left` names the objects, as `bucket/key`, that left the page as jobs of their own. `not_kept` names by store what
    it does not keep beside the bytes of some of them.
    """

    verb: str
    objects: int
    bytes: int
    outcomes: dict[str, int]
    failed: int = 0
    failures: tuple[PageFailure, ...] = ()
    left: tuple[str, ...] = ()
    not_kept: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class SweepVerifyResult(Result):
    """How many due copies were found, by store, and how many pages were sent to verify them."""

    claimed: dict[str, int]
    pages: dict[str, int] = Field(default_factory=dict)


class SweepReplicateResult(Result):
    """How many absent copies were claimed, by store; the pages that were sent write them."""

    claimed: dict[str, int]


class SweepRepairResult(Result):
    """How many bad copies were claimed, by store; a page repairs many of them.

    `untrusted`: the stores of which too many copies are bad. `lost`: the artifacts that have no good copy
    at the end of the sweep, those of earlier runs too; 1,000 at most.
    """

    claimed: dict[str, int]
    untrusted: tuple[str, ...] = ()
    lost: int = 0


class SweepLeftoversResult(Result):
    """How many stale uploads and files were removed, by store, and how many staged sources."""

    removed: dict[str, int]
    staged: int = 0
    foreign: dict[str, int] = Field(default_factory=dict)
    """How many unfinished uploads of other programs are open and were left, by store; only stores that have some."""
    quarantined: dict[str, int] = Field(default_factory=dict)
    """How many bytes the quarantine of each store holds."""


class SweepProbeResult(Result):
    """The stores that were probed, and what is wrong with those that cannot be relied on."""

    probed: tuple[str, ...]
    faults: dict[str, str]
    little_room: tuple[str, ...] = ()
    """The stores in directories whose disks are nearly full."""


class ReconciledStore(Result):
    """The listing of one store, compared with the catalogue.

    `seen`: the keys that differ, by kind. `findings`: those of them that an earlier run saw too, by kind. `sent`: the
    jobs that verify or adopt them; one adopts many. `stopped`: why the run was stopped; then it counts for nothing.
    `known`: the keys that differ as a verdict has recorded already, by state.
    """

    store: str
    listed: int
    recorded: int
    seen: dict[str, int]
    findings: dict[str, int]
    sent: int = 0
    stopped: str | None = None
    known: dict[str, int] = Field(default_factory=dict)


class SweepReconcileResult(Result):
    """The stores that were compared with the catalogue."""

    stores: tuple[ReconciledStore, ...]


class StoreEvidence(Result):
    """The copies of one store whose evidence was compared: how many, by outcome.

    `sent`: jobs that read in full what differs or is absent. `too_young`: copies that were not compared, because they
    or their objects were written during the run or shortly before it.
    """

    store: str
    outcomes: dict[str, int]
    sent: int = 0
    too_young: int = 0


class SweepEvidenceResult(Result):
    """The stores whose copies were compared with what they say about them."""

    stores: tuple[StoreEvidence, ...]


class SweepPurgeResult(Result):
    """How many deletes were purged, and how many copies went, by store."""

    purged: int
    copies: dict[str, int]


class SweepAlarmsResult(Result):
    """How many digests were delivered, by channel, and why others were not."""

    delivered: dict[str, int]
    undelivered: dict[str, str] = Field(default_factory=dict)


class SweepWebhooksResult(Result):
    """How many ends of jobs were delivered, by receiver, and why others were not."""

    delivered: dict[str, int]
    undelivered: dict[str, str] = Field(default_factory=dict)


class SweepReportResult(Result):
    """Where the report was written; `None` where the settings name no store. `status` is that of the report."""

    store: str | None = None
    bucket: str | None = None
    keys: tuple[str, ...] = ()
    status: int = 0


class SweepCanaryResult(Result):
    """What the canary of each store does: `damaged`, `found`, `repaired`, `missed`, or why there is none."""

    canaries: dict[str, str]


class SweepBackupResult(Result):
    """The keys of the backups by store, and what is wrong with the backups of a store.

    `rehearsed`: the stores of which a backup was restored for trial. `removed`: how many old backups were removed.
    """

    written: dict[str, str]
    faults: dict[str, str]
    rehearsed: tuple[str, ...] = ()
    removed: int = 0


class SweepRecoverResult(Result):
    """How many jobs were sent again: messages that Redis lost, and jobs whose workers sent no heartbeat any more.

    `cancelled`: how many waiting jobs were ended because they had been cancelled.
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
    """Why a job did not succeed: the name of the error, and its message."""

    type: str
    message: str

    @classmethod
    def recorded(cls, error: object) -> "JobError":
        """Return the error in a row of the ledger; for one that is missing or has another form, one that says so."""
        try:
            return cls.model_validate(error)
        except ValidationError:
            return cls(type="JobFailed", message="no cause was recorded")
