"""The catalogue: the SQL database of artifacts, copies, jobs and the verification log; there is no SQL outside it."""

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

from worker.catalogue.adoptions import Adoption, Adoptions, OtherVersion
from worker.catalogue.alarm_digests import Alarms, ChannelState, PendingDigest
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
from worker.catalogue.budgets import Budgets, BudgetState
from worker.catalogue.canaries import CANARY_TIMES, Canaries, CanaryRound, CanaryTimes
from worker.catalogue.checks_without_reading import (
    EVIDENCE_OUTCOMES,
    EvidenceCheck,
    EvidenceChecks,
    EvidenceSummary,
    RecordedEvidence,
)
from worker.catalogue.companion_artifacts import Companions, NamedCompanion, WrongCompanion
from worker.catalogue.coverage import Coverage, CoverageQueries, FailedJobs, LastRun, OverdueCopy, WaitingJobs
from worker.catalogue.database import (
    CatalogueError,
    CatalogueUnavailable,
    Database,
    LostLease,
    NewerCatalogue,
    NoCatalogue,
    check_file,
    checkpoint_write_ahead_log,
    expected_identity,
)
from worker.catalogue.delete_approvals import ApprovalState, CannotDecide, DeleteApproval, DeleteApprovals
from worker.catalogue.deletions import Deletions, KeptTombstone, Tombstone, UndeleteRefused
from worker.catalogue.export import ExportSummary, Sink, count_rows, export
from worker.catalogue.findings import COPY_KINDS, FindingCount, FindingRecord, Findings, NewFinding
from worker.catalogue.history import Event, History, is_full_read
from worker.catalogue.holds import Hold, Holds, HoldTooLate, OnHold
from worker.catalogue.job_admin import JobAdmin
from worker.catalogue.job_webhooks import JobWebhooks, PendingWebhook, ReceiverState
from worker.catalogue.ledger import EndNotDurable, Finished, Held, Leased, Ledger, OtherRequest, last_cause
from worker.catalogue.load_export import BadExport, NotEmpty, load_export
from worker.catalogue.log_archives import BadArchive, LogArchives, check_lines
from worker.catalogue.metrics_queries import EndedJob, Figures, ResolvedFinding
from worker.catalogue.multipart_uploads import OpenTransfer, Transfers, UploadIntent
from worker.catalogue.pages import Group, Page, PageCopy, PageOutcome, Pages, PlannedPage, Share
from worker.catalogue.pauses import Pause, Pauses, Scope
from worker.catalogue.rebuilding import FoundKey, FoundObject, KnownKey, Rebuilding, Rebuilt, Rules
from worker.catalogue.reconciliation import ReconcileRun, Reconciliations, RecordedCopy, SettledFinding, Sighting
from worker.catalogue.record_versions import NewVersion, Recorded, Superseded
from worker.catalogue.recorded_stores import ForgottenStore, StoreRecords
from worker.catalogue.records import (
    BAD,
    Artifact,
    Copy,
    CopyState,
    Finding,
    FindingKind,
    JobRecord,
    ListedArtifact,
    LogArchive,
    LogHead,
    LogMonth,
    Outcome,
    VerdictRow,
)
from worker.catalogue.repairable_copies import Repairs, UntrustedStore
from worker.catalogue.store_identities import StoreIdentities
from worker.catalogue.sweep_claims import AHEAD, GRACE, SHORTEST_HORIZON, NeededReads, SweepClaims
from worker.catalogue.tokens import AccessToken, AccessTokens
from worker.catalogue.verification_log import Verifications
from worker.storage.identity import KnownIdFiles

__all__ = [
    "AHEAD",
    "BAD",
    "CANARY_TIMES",
    "COPY_KINDS",
    "EVIDENCE_OUTCOMES",
    "GRACE",
    "SHORTEST_HORIZON",
    "AccessToken",
    "Adoption",
    "Alarms",
    "ApprovalState",
    "Artifact",
    "BadArchive",
    "BadExport",
    "Batch",
    "BatchChanges",
    "BatchItem",
    "BatchItemKind",
    "BatchOutcome",
    "BudgetState",
    "CanaryRound",
    "CanaryTimes",
    "CannotDecide",
    "Catalogue",
    "CatalogueError",
    "CatalogueUnavailable",
    "ChannelState",
    "Copy",
    "CopyState",
    "Coverage",
    "DeleteApproval",
    "EndNotDurable",
    "EndedJob",
    "Event",
    "EvidenceCheck",
    "EvidenceSummary",
    "ExportSummary",
    "FailedBatchItem",
    "FailedJobs",
    "Finding",
    "FindingCount",
    "FindingKind",
    "FindingRecord",
    "Findings",
    "Finished",
    "FinishedCopy",
    "ForgottenStore",
    "FoundKey",
    "FoundObject",
    "Group",
    "Held",
    "Hold",
    "HoldTooLate",
    "JobRecord",
    "JobWebhooks",
    "KeptTombstone",
    "KnownKey",
    "LastRun",
    "Leased",
    "Ledger",
    "ListedArtifact",
    "LogArchive",
    "LogArchives",
    "LogHead",
    "LogMonth",
    "LostLease",
    "NamedCompanion",
    "NeededReads",
    "NewBatchItem",
    "NewFinding",
    "NewVersion",
    "NewerCatalogue",
    "NoCatalogue",
    "NotEmpty",
    "OnHold",
    "OpenTransfer",
    "OtherRequest",
    "OtherVersion",
    "Outcome",
    "OverdueCopy",
    "Page",
    "PageCopy",
    "PageCounts",
    "PageOutcome",
    "Pause",
    "Pauses",
    "PendingDigest",
    "PendingWebhook",
    "PlannedPage",
    "Rebuilt",
    "ReceiverState",
    "ReconcileRun",
    "Recorded",
    "RecordedCopy",
    "RecordedEvidence",
    "ResolvedFinding",
    "Rules",
    "Scope",
    "SeenVersions",
    "SettledFinding",
    "Share",
    "Sighting",
    "StoreIdentities",
    "Superseded",
    "Tombstone",
    "UndeleteRefused",
    "UntrustedStore",
    "UploadIntent",
    "VerdictRow",
    "WaitingJobs",
    "WrongCompanion",
    "check_file",
    "check_lines",
    "checkpoint_write_ahead_log",
    "expected_identity",
    "is_full_read",
    "last_cause",
    "load_export",
]


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

    @cached_property
    def access_tokens(self) -> AccessTokens:
        return AccessTokens(self._database)

    @cached_property
    def artifacts(self) -> Artifacts:
        return Artifacts(self._database)

    @cached_property
    def alarms(self) -> Alarms:
        return Alarms(self._database)

    @cached_property
    def job_webhooks(self) -> JobWebhooks:
        return JobWebhooks(self._database)

    @cached_property
    def budgets(self) -> Budgets:
        return Budgets(self._database)

    @cached_property
    def canaries(self) -> Canaries:
        return Canaries(self._database)

    @cached_property
    def artifact_locks(self) -> ArtifactLocks:
        return ArtifactLocks(self._database)

    @cached_property
    def sweep_claims(self) -> SweepClaims:
        return SweepClaims(self._database)

    @cached_property
    def backup_times(self) -> BackupTimes:
        return BackupTimes(self._database)

    @cached_property
    def batches(self) -> Batches:
        return Batches(self._database)

    @cached_property
    def job_admin(self) -> JobAdmin:
        return JobAdmin(self._database)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self._database)

    @cached_property
    def companions(self) -> Companions:
        return Companions(self._database)

    @cached_property
    def coverage(self) -> CoverageQueries:
        return CoverageQueries(self._database)

    @cached_property
    def delete_approvals(self) -> DeleteApprovals:
        return DeleteApprovals(self._database)

    @cached_property
    def deletions(self) -> Deletions:
        return Deletions(self._database)

    @cached_property
    def evidence_checks(self) -> EvidenceChecks:
        return EvidenceChecks(self._database)

    @cached_property
    def history(self) -> History:
        return History(self._database)

    @cached_property
    def holds(self) -> Holds:
        return Holds(self._database)

    @cached_property
    def figures(self) -> Figures:
        return Figures(self._database)

    @cached_property
    def findings(self) -> Findings:
        return Findings(self._database)

    @cached_property
    def log_archives(self) -> LogArchives:
        return LogArchives(self._database)

    @cached_property
    def pages(self) -> Pages:
        return Pages(self._database)

    @cached_property
    def pauses(self) -> Pauses:
        return Pauses(self._database)

    @cached_property
    def rebuilding(self) -> Rebuilding:
        return Rebuilding(self._database)

    @cached_property
    def reconciliations(self) -> Reconciliations:
        return Reconciliations(self._database)

    @cached_property
    def repairs(self) -> Repairs:
        return Repairs(self._database)

    def store_identities(self, names: Iterable[str], run: Path) -> StoreIdentities:
        """Return the recorded ids of these stores; `run` is the directory where earlier versions kept them in files."""
        known = tuple(names)
        return StoreIdentities(self._database, known, KnownIdFiles(run, known))

    @cached_property
    def store_records(self) -> StoreRecords:
        return StoreRecords(self._database)

    @cached_property
    def transfers(self) -> Transfers:
        return Transfers(self._database)

    @cached_property
    def adoptions(self) -> Adoptions:
        return Adoptions(self._database)

    @cached_property
    def batch_lists(self) -> BatchLists:
        return BatchLists(self._database)

    @cached_property
    def verifications(self) -> Verifications:
        return Verifications(self._database)

    def close(self) -> None:
        """Close the connections."""
        self._database.close()
