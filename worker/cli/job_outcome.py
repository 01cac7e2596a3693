"""Show the outcome of a job: its state, the lines of its result, and the exit status of the command."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from shlex import quote
from types import MappingProxyType
from typing import Any

import typer

from worker.catalogue import JobRecord
from worker.cli.output import complain, flat, out, print_json, say, table
from worker.counted import counted
from worker.exit_status import Status
from worker.readable import moment, size
from zot_artifact_client.contract import BATCH, EVIDENCE, VERIFY, JobState
from zot_artifact_client.errors import JobNotDone

GOOD_VERDICT = "verified"
_UNVERIFIABLE = "Unverifiable"
"""The error of an object that no recorded digest can be compared with; the outcome of one that a batch adopts."""
_NO_ANSWER = {"unreadable", "unverifiable", "archived", _UNVERIFIABLE}
_ALREADY_GONE = "{path} is gone already, nothing was deleted"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The state, result and error of a job; its fields are the JSON document that every job command prints."""

    job: str
    kind: str
    state: str = JobState.QUEUED
    attempts: int = 0
    error: dict[str, str] | None = None
    result: dict[str, Any] | None = None

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
        of_results = {
            VERIFY.kind: _status_of_verdicts, BATCH.kind: _status_of_batch, EVIDENCE.kind: _status_of_evidence,
        }  # fmt: skip
        return of_results[self.kind](self.result or {}) if self.kind in of_results else Status.GOOD


def outcome_of(record: JobRecord) -> Outcome:
    """Return the state or end of a job, from its row in the ledger."""
    error = {name: str(record.error[name]) for name in ("type", "message")} if record.error else None
    result = dict(record.result) if record.result is not None else None
    return Outcome(record.id, record.kind, record.shown_state, record.attempts, error, result)


def outcome_from_client(job_id: str, kind: str, told: JobNotDone) -> Outcome:
    """Return the end of a job that no worker has taken, from the result backend."""
    error = {"type": getattr(told, "type", "Cancelled"), "message": getattr(told, "message", str(told))}
    return Outcome(job_id, kind, getattr(told, "state", JobState.CANCELLED), 0, error)


def finish(outcome: Outcome, *, waited: bool, as_json: bool, more: Mapping[str, object] = MappingProxyType({})) -> None:
    """Print the outcome and end the command with its exit status; the JSON document has `more` too."""
    if as_json:
        print_json({**asdict(outcome), **more})
    if waited and not (as_json and outcome.result is not None):
        print_outcome(outcome)
    elif not waited and not as_json:
        say(outcome.job)
    raise typer.Exit(outcome.status if waited else Status.GOOD)


def print_outcome(outcome: Outcome) -> None:
    """Print the result on stdout, or the reason for having none in one line on stderr."""
    if outcome.result is not None:
        _PRINT.get(outcome.kind, _print_fields)(outcome.result)
        print_unnamed_failures(outcome.job, outcome.result)
    elif outcome.ended:
        told = f"{outcome.kind} {outcome.state}: {(outcome.error or {}).get('message', 'no cause was recorded')}"
        retry = f"; once that is repaired, `zot-artifacts jobs retry {outcome.job}` sends the job again"
        complain(f"{told}{retry if outcome.state == JobState.DEAD else ''}")
    else:
        why = "it waits" if outcome.state == JobState.QUEUED else "its last attempt failed"  # queued: it was snoozed
        cause = f", {why}: {outcome.error['message']}" if outcome.error else ""
        shown = f"`zot-artifacts jobs {outcome.job}` shows it"
        complain(f"job {outcome.job} is still {outcome.state}{cause}; it continues, {shown}")


def _print_copies(result: Mapping[str, Any]) -> None:
    there = ", ".join(copy["store"] for copy in result["copies"])
    if result["unchanged"]:
        say(_version(result))
        say(f"unchanged: the same bytes are there already, in {there}")
    else:
        say(f"{_version(result)} stored in {there}")
    for copy in result["copies"]:
        if copy.get("quarantined"):
            say(f"{copy['store']}: the bad bytes that were there are in quarantine at {copy['quarantined']}")
        if copy.get("not_kept"):
            say(f"{copy['store']}: does not keep {', '.join(copy['not_kept'])} beside the bytes, the catalogue does")


def _with_companions(print_one: Callable[[Mapping[str, Any]], None]) -> Callable[[Mapping[str, Any]], None]:
    """Return what prints the result for an artifact, and then for each of its companions."""

    def print_all(result: Mapping[str, Any]) -> None:
        for each in (result, *result.get("companions", ())):
            print_one(each)

    return print_all


def _print_verdicts(result: Mapping[str, Any]) -> None:
    say(_version(result))
    rows = [(copy["store"], copy["verdict"], copy["sha256"]) for copy in result["copies"]]
    out().print(table(("store", "verdict", "sha256"), rows))
    if not rows:
        complain(f"{result['bucket']}/{result['key']} has no copy in any store: upload it again")
    for copy in result["copies"]:
        if copy["verdict"] != GOOD_VERDICT or copy.get("detail"):
            complain(f"{copy['store']}: {result['bucket']}/{result['key']} is {copy['verdict']}: {copy.get('detail')}")


def _print_evidence(result: Mapping[str, Any]) -> None:
    say(_version(result))
    rows = [(copy["store"], copy["outcome"], copy.get("compared")) for copy in result["copies"]]
    out().print(table(("store", "evidence", "compared"), rows))
    say("no byte was read: this is what the stores say, and verifies nothing")
    if not rows:
        complain(f"{result['bucket']}/{result['key']} has no good copy in a configured store")
    for copy in result["copies"]:
        if copy.get("detail"):
            complain(f"{copy['store']}: {result['bucket']}/{result['key']}: {copy['detail']}")
        if copy.get("job"):
            say(f"{copy['store']}: the copy is read in full: `zot-artifacts jobs {copy['job']}`")


def _print_compared(result: Mapping[str, Any]) -> None:
    for each in result["stores"]:
        counts = each["outcomes"] | ({"too young to compare": young} if (young := each.get("too_young")) else {})
        told = ", ".join(f"{word}: {count}" for word, count in sorted(counts.items())) or "no copies"
        say(f"{each['store']}: {told}; read in full because of that: {each['sent']}")


def _print_deleted(result: Mapping[str, Any]) -> None:
    path = f"{result['bucket']}/{result['key']}"
    for key in result.get("companions", ()):
        say(f"{result['bucket']}/{key}, its companion, is deleted with it")
    for store in result.get("not_configured", ()):
        complain(
            f"{store}: a copy of {path} stays: the store is not configured; `zot-artifacts status` says whether it was "
            "renamed, and the way out"
        )
    if result.get("purge_after"):
        was = "was deleted before" if result["unchanged"] else "is deleted"
        say(f"{path} {was}; its bytes go after {moment(datetime.fromisoformat(result['purge_after']))}")
        say(f"until then `zot-artifacts undelete {quote(path)}` brings it back")
        return
    if result["unchanged"]:
        say(_ALREADY_GONE.format(path=path))
        return
    gone = ", ".join(copy["store"] for copy in result["copies"] if copy["outcome"] == "deleted")
    say(f"{path} deleted from {gone}")


def _print_adopted(result: Mapping[str, Any]) -> None:
    how = "known already" if result["unchanged"] else "adopted"
    say(f"{_version(result)} {how} in {result['store']}, evidence: {result['evidence']}")
    if result.get("after_delete"):
        say(f"{result['bucket']}/{result['key']} had been deleted: this is a new version")
    if result.get("not_recorded"):
        say(f"{result['store']}: also keeps {', '.join(result['not_recorded'])}, which no replica gets")


def _print_batch(result: Mapping[str, Any]) -> None:
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(result["outcomes"].items())) or "nothing"
    say(f"{result['verb']}: {counted(result['objects'], 'object')}, {size(result['bytes'])}: {counts}")
    for store, names in result.get("not_kept", {}).items():
        say(f"{store}: does not keep {', '.join(names)} beside the bytes, the catalogue does")
    for each in result["failures"]:
        complain(f"{each['bucket']}/{each['key']}: {each['outcome']}: {each['message']}")


def _print_reconciled(result: Mapping[str, Any]) -> None:
    for each in result["stores"]:
        known = ", ".join(f"{count} {state}" for state, count in each.get("known", {}).items())
        none = "no new difference" if known else "no difference"
        if each["listed"] != each["recorded"] and not known:
            none = "no difference yet; what was written in the last minutes counts in a later run"
        seen = ", ".join(f"{count} {kind}" for kind, count in each["seen"].items()) or none
        say(f"{each['store']}: {each['listed']} listed, {each['recorded']} recorded: {seen}")
        if known:
            complain(f"{each['store']}: found bad before: {known}; `zot-artifacts findings --store {each['store']}`")
        if each["findings"]:
            found = ", ".join(f"{count} {kind}" for kind, count in each["findings"].items())
            complain(f"{each['store']}: seen by two runs: {found}; `zot-artifacts findings --store {each['store']}`")
        if each["stopped"]:
            complain(f"{each['store']}: {each['stopped']}")


def _print_probed(result: Mapping[str, Any]) -> None:
    say(f"probed: {', '.join(result['probed']) or 'no store'}")
    for store, fault in result.get("faults", {}).items():
        complain(f"{store}: {fault.removeprefix(f'{store}: ')}")


def _print_repairs(result: Mapping[str, Any]) -> None:
    claimed, untrusted, lost = result["claimed"], result.get("untrusted", ()), result.get("lost", 0)
    for store, count in claimed.items():
        say(f"{store}: copies that are being repaired: {count}")
    for store in untrusted:
        complain(f"{store}: its repairs are stopped: `zot-artifacts stores trust {store}` continues them")
    if lost:
        complain(f"artifacts without a good copy to repair from: {lost}: `zot-artifacts findings --kind lost`")
    if not (claimed or untrusted or lost):
        say("there is nothing to repair")


def _print_due(result: Mapping[str, Any]) -> None:
    pages = result.get("pages", {})
    for store, count in result["claimed"].items():
        say(f"{store}: copies due: {count}, pages sent: {pages.get(store, 0)}")


def _print_absent(result: Mapping[str, Any]) -> None:
    for store, count in result["claimed"].items():
        say(f"{store}: missing copies that are being written: {count}")
    if not result["claimed"]:
        say("no copy that placement wants, or that a job has begun, is missing for longer than sweep.replicate.late")


def _print_cleaned(result: Mapping[str, Any]) -> None:
    for store, count in result["removed"].items():
        kept = size(result.get("quarantined", {}).get(store, 0))
        say(f"{store}: stale uploads and files removed: {count}; in quarantine: {kept}")
    for store, count in result.get("foreign", {}).items():
        say(f"{store}: unfinished uploads of other programs, which stay: {count}")
    say(f"staged sources removed: {result.get('staged', 0)}")


def _print_fields(result: Mapping[str, Any]) -> None:
    told = {name: value for name, value in result.items() if value not in (None, [], {})}
    for name, value in told.items():
        say(f"{name}: {flat(value)}")
    if not told:
        say("there is nothing to do")


def print_unnamed_failures(job: str, result: Mapping[str, Any]) -> None:
    """Name the command that lists the failures which a result leaves out."""
    left = result.get("failed", 0) - len(result.get("failures", ()))
    if left > 0:
        complain(f"and {left} more: `zot-artifacts jobs --parent {job} --failed` lists all")


def _version(result: Mapping[str, Any]) -> str:
    path = f"{result['bucket']}/{result['key']}"
    return f"{path} version {result['version']} {size(result['size'])} sha256 {result['sha256']}"


def _status_of_verdicts(result: dict[str, Any]) -> Status:
    verdicts = {copy["verdict"] for each in (result, *result.get("companions", ())) for copy in each.get("copies", [])}
    if not verdicts or verdicts - _NO_ANSWER - {GOOD_VERDICT}:
        return Status.BAD
    return Status.UNKNOWN if verdicts & _NO_ANSWER else Status.GOOD


def _status_of_evidence(result: dict[str, Any]) -> Status:
    outcomes = {copy["outcome"] for copy in result.get("copies", [])}
    if not outcomes or outcomes & {"differs", "absent"}:
        return Status.BAD
    return Status.GOOD if outcomes == {"agrees"} else Status.UNKNOWN


def _status_of_batch(result: dict[str, Any]) -> Status:
    no_answer = sum(count for outcome, count in result["outcomes"].items() if outcome in _NO_ANSWER)
    if result["failed"] > no_answer:
        return Status.BAD
    return Status.UNKNOWN if no_answer else Status.GOOD


_PRINT: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "upload": _print_copies,
    "replicate": _with_companions(_print_copies),
    "verify": _with_companions(_print_verdicts),
    "evidence": _print_evidence,
    "sweep.evidence": _print_compared,
    "delete": _print_deleted,
    "adopt": _print_adopted,
    "batch": _print_batch,
    "sweep.probe": _print_probed,
    "sweep.verify": _print_due,
    "sweep.replicate": _print_absent,
    "sweep.leftovers": _print_cleaned,
    "sweep.reconcile": _print_reconciled,
    "sweep.repair": _print_repairs,
}
