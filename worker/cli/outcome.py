"""How a job stands or ended, in the words that scripts rely on."""

from dataclasses import dataclass
from typing import Any

from worker.catalogue import JobRecord
from worker.cli.errors import Status
from zot_artifact_client import JobNotDone, JobState
from zot_artifact_client.contract import BATCH, VERIFY

GOOD_VERDICT = "verified"
_UNTOLD = {"unreadable", "unverifiable"}
_UNVERIFIABLE = "Unverifiable"
"""The error of an object that there is nothing to hold against."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A job as the ledger has it."""

    job: str
    kind: str
    state: str = JobState.QUEUED
    attempts: int = 0
    error: dict[str, str] | None = None
    result: dict[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """Return it as the JSON document that every job command prints."""
        return {
            "job": self.job,
            "kind": self.kind,
            "state": self.state,
            "attempts": self.attempts,
            "error": self.error,
            "result": self.result,
        }

    @property
    def ended(self) -> bool:
        """Return whether the job will not change any more."""
        return JobState(self.state).terminal

    @property
    def status(self) -> Status:
        """Return the exit status of a command that waited for it."""
        if not self.ended:
            return Status.UNKNOWN
        if self.state != JobState.SUCCEEDED:
            return Status.UNKNOWN if (self.error or {}).get("type") == _UNVERIFIABLE else Status.BAD
        of_results = {VERIFY.kind: _status_of_verdicts, BATCH.kind: _status_of_batch}
        return of_results[self.kind](self.result or {}) if self.kind in of_results else Status.GOOD


def outcome_of(record: JobRecord) -> Outcome:
    """Return how a job stands, from its row in the ledger."""
    error = {name: str(record.error[name]) for name in ("type", "message")} if record.error else None
    result = dict(record.result) if record.result is not None else None
    return Outcome(record.id, record.kind, record.state, record.attempts, error, result)


def outcome_told(job_id: str, kind: str, told: JobNotDone) -> Outcome:
    """Return how a job ended that no worker took, from what the result backend tells."""
    error = {"type": getattr(told, "type", "Cancelled"), "message": getattr(told, "message", str(told))}
    return Outcome(job_id, kind, getattr(told, "state", JobState.CANCELLED), 0, error)


def _status_of_verdicts(result: dict[str, Any]) -> Status:
    verdicts = {copy["verdict"] for copy in result.get("copies", [])}
    if not verdicts or verdicts - _UNTOLD - {GOOD_VERDICT}:
        return Status.BAD
    return Status.UNKNOWN if verdicts & _UNTOLD else Status.GOOD


def _status_of_batch(result: dict[str, Any]) -> Status:
    untold = sum(count for outcome, count in result["outcomes"].items() if outcome in _UNTOLD)
    if result["failed"] > untold:
        return Status.BAD
    return Status.UNKNOWN if untold else Status.GOOD
