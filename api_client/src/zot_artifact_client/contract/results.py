"""What the worker answers: one model a kind of job, each one JSON object."""

from typing import Literal

from pydantic import ConfigDict, Field

from zot_artifact_client.contract.requests import Message


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
    not_kept: tuple[str, ...] = ()
    """What the store cannot keep beside the bytes, such as `content_type`. The catalogue has it."""


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
    """One verdict for every copy that was examined."""

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
    """The copies that are gone. `everywhere`: the artifact was deleted, not only some copies.

    `not_configured`: stores that have a copy and are not configured. Nothing was deleted there.
    """

    bucket: str
    key: str
    everywhere: bool
    unchanged: bool
    copies: tuple[DeletedCopy, ...]
    not_configured: tuple[str, ...] = ()


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


class PageFailure(Result):
    """One object of a page that did not come out as it should: the verdict on it, or the error."""

    bucket: str
    key: str
    outcome: str
    message: str = ""


class PageResult(Result):
    """What became of all objects of a page.

    `bytes` are those of the objects. `outcomes` counts the objects by what came of them. `failures` names those that
    failed. `left` are the objects, as `bucket/key`, that left the page as jobs of their own.
    """

    verb: str
    objects: int
    bytes: int
    outcomes: dict[str, int]
    failed: int = 0
    failures: tuple[PageFailure, ...] = ()
    left: tuple[str, ...] = ()


class SweepVerifyResult(Result):
    """How many due copies were found, by store, and how many pages were sent to verify them."""

    claimed: dict[str, int]
    pages: dict[str, int] = Field(default_factory=dict)


class SweepReplicateResult(Result):
    """How many absent copies were claimed, by store; each is brought by a job of its own."""

    claimed: dict[str, int]


class SweepRepairResult(Result):
    """How many bad copies were claimed, by store; each is repaired by a job of its own.

    `untrusted`: the stores of which too many copies are bad. `lost`: artifacts without a good copy, 1,000 at most.
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


class SweepProbeResult(Result):
    """The stores that were probed, and what is wrong with those that cannot be relied on."""

    probed: tuple[str, ...]
    faults: dict[str, str]


class SweepRecoverResult(Result):
    """How many jobs were sent again: messages that Redis lost, and jobs whose workers were not heard of any more.

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
    """Why a job did not succeed: the name of the error, and its one line."""

    type: str
    message: str
