"""The catalogue: the SQL database of artifacts, copies, jobs and the verification log; there is no SQL outside it."""

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from shlex import quote

from worker.catalogue.access_tokens import AccessToken, AccessTokens
from worker.catalogue.adoptions import ADOPTED_AFTER_DELETE, Adoption, Adoptions, OtherVersion
from worker.catalogue.alarms import Alarms
from worker.catalogue.artifact_locks import ArtifactLocks
from worker.catalogue.artifacts import Artifacts, FinishedCopy, SeenVersions
from worker.catalogue.backup_times import BackupTimes
from worker.catalogue.batch_lists import BatchLists
from worker.catalogue.batches import (
    Batch,
    BatchChanges,
    Batches,
    BatchItem,
    BatchItemKind,
    BatchOutcome,
    FailedBatchItem,
    NewBatchItem,
    PageCounts,
)
from worker.catalogue.brokers import Brokers
from worker.catalogue.budgets import Budgets, BudgetState
from worker.catalogue.canaries import CANARY_TIMES, Canaries, CanaryRound, CanaryTimes
from worker.catalogue.companions import Companions, NamedCompanion, WrongCompanion
from worker.catalogue.coverage import Coverage, CoverageQueries, FailedJobs, LastRun, WaitingJobs
from worker.catalogue.database import (
    CatalogueError,
    CatalogueLost,
    CatalogueUnavailable,
    CatalogueUnreadable,
    Database,
    FileIdentity,
    LostLease,
    NewerCatalogue,
    NoCatalogue,
    check_file,
    checkpoint_write_ahead_log,
    expected_identity,
)
from worker.catalogue.delete_approvals import ApprovalState, CannotDecide, DeleteApproval, DeleteApprovals
from worker.catalogue.deletions import Deletions, KeptTombstone, Tombstone, UndeleteRefused
from worker.catalogue.evidence_checks import (
    EVIDENCE_OUTCOMES,
    EvidenceCheck,
    EvidenceChecks,
    RecordedEvidence,
)
from worker.catalogue.export import ExportSummary, Sink, count_rows, export
from worker.catalogue.figures import EndedJob, Figures, ResolvedFinding
from worker.catalogue.findings import FindingCount, FindingRecord, Findings, NewFinding
from worker.catalogue.history import History, is_full_read
from worker.catalogue.holds import Hold, Holds, HoldTooLate, OnHold
from worker.catalogue.job_admin import JobAdmin
from worker.catalogue.job_webhooks import JobWebhooks, PendingWebhook
from worker.catalogue.ledger import Busy, EndNotDurable, Finished, Leased, Ledger, OtherRequest, last_cause
from worker.catalogue.load_export import BadExport, NotEmpty, load_export
from worker.catalogue.log_archives import BadArchive, LogArchives, check_lines
from worker.catalogue.nearest_key import nearest
from worker.catalogue.pages import Group, Page, PageCopy, PageOutcome, Pages, PlannedPage, Share
from worker.catalogue.pauses import Pause, Pauses, Scope
from worker.catalogue.rebuilding import FoundKey, FoundObject, KnownKey, Rebuilding, Rebuilt, Rules
from worker.catalogue.reconciliations import ReconcileRun, Reconciliations, RecordedCopy, SettledFinding, Sighting
from worker.catalogue.record_versions import NewVersion, Recorded, Superseded
from worker.catalogue.records import (
    BAD,
    Artifact,
    Copy,
    CopyState,
    FindingKind,
    JobRecord,
    ListedArtifact,
    LogArchive,
    LogHead,
    LogMonth,
    VerdictRow,
    count_present,
)
from worker.catalogue.repairs import Repairs
from worker.catalogue.store_identities import StoreIdentities
from worker.catalogue.store_records import StoreRecords
from worker.catalogue.sweep_claims import AHEAD, GRACE, SHORTEST_HORIZON, NeededReads, Plan, SweepClaims
from worker.catalogue.transfers import OpenTransfer, Transfers, UploadIntent
from worker.catalogue.verifications import Verifications
from worker.catalogue.writers import ALIVE, Writers
from worker.storage.errors import NotFound


class Catalogue:
    """The catalogue in one database. One instance serves one process."""

    def __init__(self, url: str, *, create: bool = True, on_wait: Callable[[], object] | None = None) -> None:
        """Open the catalogue at this SQLAlchemy URL and bring its tables up to date.

        `create`: make one where there is none. `on_wait`: called from a thread when a transaction has waited for two
        seconds until it may write.

        Raises:
            CatalogueUnavailable: it cannot be reached.
            NoCatalogue: there is none, and it is not to be made.
            CatalogueError: it cannot be used.
        """
        self._database = Database(url, create=create, on_wait=on_wait)
        self.identity = self._database.identity

    def fenced(self, job: str, fence: int) -> "Catalogue":
        """Return the same catalogue for one leaseholder of a job: without the lease, writing raises LostLease."""
        held = Catalogue.__new__(Catalogue)
        held.identity = self.identity
        held._database = self._database.fenced(job, fence)  # noqa: SLF001 - the catalogue is one package
        return held

    @property
    def file(self) -> FileIdentity | None:
        """Return the file of the catalogue as it was opened; None if it has none, as one in a server."""
        return self._database.file

    def artifact(self, bucket: str, key: str) -> Artifact:
        """Return the current version under this key.

        Raises:
            NotFound: there is none; the message has the way to undo its delete, or the nearest key there is.
        """
        found = self.artifacts.current(bucket, key)
        if found is not None:
            return found
        if (gone := self.deletions.get(bucket, key)) is not None:
            way_out = f"`zot-artifacts undelete {quote(f'{bucket}/{key}')}` brings it back"
            raise NotFound(f"{bucket}/{key} was deleted at {gone.deleted_at:%Y-%m-%d %H:%M} UTC; {way_out}")
        raise NotFound(f"{bucket}/{key} is not in the catalogue{nearest(self.artifacts, bucket, key)}")

    def export(self, sink: Sink) -> ExportSummary:
        """Write one state of the whole catalogue as JSON lines; memory does not grow with it.

        Raises:
            CatalogueError: the catalogue cannot be read to its end; what was written cannot be loaded.
        """
        return export(self._database, sink)

    def count_rows(self) -> dict[str, int]:
        """Return the number of rows of each table."""
        return count_rows(self._database)

    # Each is made when it is first used: no job needs them all.
    access_tokens = cached_property(lambda self: AccessTokens(self._database))
    adoptions = cached_property(lambda self: Adoptions(self._database))
    alarms = cached_property(lambda self: Alarms(self._database))
    artifact_locks = cached_property(lambda self: ArtifactLocks(self._database))
    artifacts = cached_property(lambda self: Artifacts(self._database))
    backup_times = cached_property(lambda self: BackupTimes(self._database))
    batch_lists = cached_property(lambda self: BatchLists(self._database))
    batches = cached_property(lambda self: Batches(self._database))
    brokers = cached_property(lambda self: Brokers(self._database))
    budgets = cached_property(lambda self: Budgets(self._database))
    canaries = cached_property(lambda self: Canaries(self._database))
    companions = cached_property(lambda self: Companions(self._database))
    coverage = cached_property(lambda self: CoverageQueries(self._database))
    delete_approvals = cached_property(lambda self: DeleteApprovals(self._database))
    deletions = cached_property(lambda self: Deletions(self._database))
    evidence_checks = cached_property(lambda self: EvidenceChecks(self._database))
    figures = cached_property(lambda self: Figures(self._database))
    findings = cached_property(lambda self: Findings(self._database))
    history = cached_property(lambda self: History(self._database))
    holds = cached_property(lambda self: Holds(self._database))
    job_admin = cached_property(lambda self: JobAdmin(self._database))
    job_webhooks = cached_property(lambda self: JobWebhooks(self._database))
    ledger = cached_property(lambda self: Ledger(self._database))
    log_archives = cached_property(lambda self: LogArchives(self._database))
    pages = cached_property(lambda self: Pages(self._database))
    pauses = cached_property(lambda self: Pauses(self._database))
    rebuilding = cached_property(lambda self: Rebuilding(self._database))
    reconciliations = cached_property(lambda self: Reconciliations(self._database))
    repairs = cached_property(lambda self: Repairs(self._database))
    store_records = cached_property(lambda self: StoreRecords(self._database))
    sweep_claims = cached_property(lambda self: SweepClaims(self._database))
    transfers = cached_property(lambda self: Transfers(self._database))
    verifications = cached_property(lambda self: Verifications(self._database))
    writers = cached_property(lambda self: Writers(self._database))

    def store_identities(self, names: Iterable[str]) -> StoreIdentities:
        """Return the recorded ids of these stores."""
        return StoreIdentities(self._database, names)

    def close(self) -> None:
        """Close the connections."""
        self._database.close()
