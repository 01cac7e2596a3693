"""The command `sweep`."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from worker import clock
from worker.catalogue import JobRecord, Scope
from worker.cli.arguments import NoWait, OneStore, Timeout, no_stream
from worker.cli.errors import UsageError, suggestion
from worker.cli.job_outcome import Outcome, print_outcome
from worker.cli.output import AsJson, complain, note, print_json, print_table, say
from worker.cli.send_and_wait import Sender, WaitOptions, continuing, request_of, sender
from worker.cli.session import Session, opened
from worker.cli.sweep_plans import PLANS, whole_pass
from worker.counted import counted
from worker.exit_status import Status
from worker.schedule import sweep_name
from zot_artifact_client.contract import (
    KINDS,
    PAGE,
    SWEEP_ALARMS,
    SWEEP_BACKUP,
    SWEEP_EVIDENCE,
    SWEEP_LEFTOVERS,
    SWEEP_PURGE,
    SWEEP_RECONCILE,
    SWEEP_RECOVER,
    SWEEP_REPAIR,
    SWEEP_REPLICATE,
    SWEEP_REPORT,
    SWEEP_VERIFY,
    SWEEP_WEBHOOKS,
    JobState,
    Progress,
    TaskSpec,
)
from zot_artifact_client.job_ids import choose_id

_POLL = 0.5
_PATIENCE = 60.0
"""Seconds for which a job that no worker has taken is waited for, when all others have ended."""
_EXAMPLES = 20
_SWEEPS = {sweep_name(kind): spec for kind, spec in KINDS.items() if kind.startswith("sweep.")}
_LEAVES_OUT = {
    SWEEP_VERIFY, SWEEP_REPAIR, SWEEP_REPLICATE, SWEEP_RECONCILE, SWEEP_EVIDENCE, SWEEP_LEFTOVERS, SWEEP_BACKUP,
}  # fmt: skip
_WITH_PREFIX = {"repair", "replicate", "reconcile", "evidence"}
_GOOD = {"verified", "superseded", "stored", "repaired", "already_there", "succeeded"}

_LAYOUTS = ("oci", "bagit", "ocfl", "sha256sums")

Name = Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join([*_SWEEPS, *_LAYOUTS])}.")]
Where = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="STORE BUCKET[/PREFIX]", help=f"What to verify; for {', '.join(_LAYOUTS)}.", show_default=False
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option(
        "--prefix", metavar="BUCKET[/PREFIX]", help=f"Only these artifacts; for {', '.join(sorted(_WITH_PREFIX))}."
    ),
]
Inventory = Annotated[
    str | None,
    typer.Option(
        metavar="MANIFEST",
        help="For reconcile and evidence: an inventory report in place of the listing. "
        "STORE:BUCKET/KEY of its manifest, or a file.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and send nothing.")]


def sweep(
    name: Name,
    where: Where = None,
    *,
    store: OneStore = None,
    prefix: Prefix = None,
    inventory: Inventory = None,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Run a periodic task now, and wait until it and the jobs that it sent have ended.

    Ctrl-C ends the command and not the sweep.
    `zot-artifacts pause store NAME` pauses its jobs in a store.
    The exit status is 1 if something was found bad or failed.

    NAME is one of:

        verify      read the copies whose verification is due
        repair      replace bad copies with the bytes of good ones
        replicate   add the copies that placement wants, or that a job began and did not finish
        reconcile   compare the listing of each store with the catalogue
        evidence    compare what stores say about copies with the record
        purge       remove the bytes of deleted artifacts after their grace period
        cleanup     remove what killed writers left
        probe       write, read and delete a small object in every store
        canary      damage an object of its own, to measure how soon that is found
        alarms      send alarms about the findings that changed
        webhooks    tell webhooks which jobs have ended
        report      write the report into the store of `sweep.report`
        recover     send the jobs of killed workers again
        backup      write the catalogue to the stores of `sweep.backup.stores`

    `oci`, `bagit`, `ocfl` and `sha256sums` verify objects against the digests that their layout names.
    They run in this process, only read, and need neither a worker nor a catalogue.

    Examples:

        zot-artifacts sweep verify --store dr --dry-run
        zot-artifacts sweep repair
        zot-artifacts sweep reconcile --prefix releases/2026/
        zot-artifacts sweep reconcile --store s3 --inventory reports:inventory/src/daily/2026-11-25T01-00Z/manifest.json
        zot-artifacts sweep oci nas registry/
        zot-artifacts sweep bagit archive bags/2026 --json
    """
    if name in _LAYOUTS:
        from worker.cli.sweep_layouts import place_of, sweep_layout

        at, path = place_of(name, where or [], store, prefix)
        sweep_layout(name, at, path, dry_run=dry_run, as_json=as_json)
    if where:
        raise UsageError(f"the sweep {name} takes --store and --prefix")
    spec = _spec(name, store, prefix)
    with opened() as session:
        session.check_store(store)
        if dry_run and inventory is None:
            _dry_run(session, name, store, prefix, as_json=as_json)
        bucket, _, below = (prefix or "").partition("/")
        fields: dict[str, object] = {"store": store, "bucket": bucket or None, "prefix": below or None}
        if inventory is not None:
            fields["inventory"] = _inventory(name, inventory, store, dry_run=dry_run)
        request = request_of(spec, **fields)
        job_id = choose_id(spec)
        with sender(session, f"sweep {name}: waiting for a worker", WaitOptions(timeout=timeout)) as way:
            job = way.send(spec, job_id, request)
            if no_wait or spec is SWEEP_RECOVER:
                if not no_wait:
                    note("`sweep recover` is not in the ledger: the log of its worker says what it did")
                _sent(name, job_id, as_json=as_json)
            deadline = None if timeout is None else time.monotonic() + timeout
            outcome = way.wait(job)
            jobs = _Jobs.none()
            with continuing(f"sweep {name}", f"`zot-artifacts jobs --parent {job_id}` lists its jobs"):
                left_out = _left_out(session, spec, store) if spec in _LEAVES_OUT else {}
                if outcome.state == JobState.SUCCEEDED:
                    jobs = _await_jobs(way, session, outcome, deadline)
    _note_left_out(left_out, "was left out")
    _print(outcome, jobs, as_json=as_json)


def _left_out(session: Session, spec: TaskSpec[Any, Any], store: str | None) -> dict[str, bool]:
    """Return the stores that a sweep leaves out, in the order of the settings, and whether they are paused.

    The others are left to another copy of the catalogue.
    """
    paused = {each.name for each in session.catalogue.pauses.all() if each.scope == Scope.STORE}
    settings, writers = session.settings, session.catalogue.writers
    names = [store] if store else settings.sweep.backup.stores if spec is SWEEP_BACKUP else settings.stores
    return {each: each in paused for each in names if each in paused or writers.was_refused(each)}


def _note_left_out(stores: Mapping[str, bool], what: str) -> None:
    for name, paused in stores.items():
        if paused:
            note(f"{name} is paused and {what}; `zot-artifacts resume store {name}` ends the pause")
        else:
            note(
                f"{name} {what}, because another copy of the catalogue writes to it: `zot-artifacts status` names that "
                "copy and the way out"
            )


def _spec(name: str, store: str | None, prefix: str | None) -> TaskSpec[Any, Any]:
    spec = _SWEEPS.get(name)
    if spec is None:
        names = [*_SWEEPS, *_LAYOUTS]
        raise UsageError(f"there is no sweep {name!r}{suggestion(name, names) or '.'} There are: {', '.join(names)}")
    if prefix is not None and name == "verify":
        raise UsageError(f"to verify below a prefix now: `zot-artifacts verify {quote(prefix)} --all`")
    if prefix is not None and name not in _WITH_PREFIX:
        raise UsageError(f"the sweep {name} takes no --prefix")
    if store is not None and spec in (SWEEP_RECOVER, SWEEP_PURGE, SWEEP_ALARMS, SWEEP_WEBHOOKS, SWEEP_REPORT):
        raise UsageError(f"the sweep {name} takes no --store")
    return spec


def _inventory(name: str, inventory: str, store: str | None, *, dry_run: bool) -> str:
    """Return the manifest of a report as the worker opens it; raise Failure if the options do not fit."""
    wrong = (
        "--inventory is for the sweeps reconcile and evidence" if name not in {"reconcile", "evidence"}
        else "--inventory needs the --store that it lists" if store is None
        else "--inventory has no --dry-run: a difference counts only when two runs have seen it" if dry_run
        else None
    )  # fmt: skip
    if wrong is not None:
        raise UsageError(wrong)
    no_stream(inventory)  # the worker reads it, on another machine perhaps
    return str(Path(inventory).absolute()) if Path(inventory).is_file() else inventory


def _dry_run(session: Session, name: str, store: str | None, prefix: str | None, *, as_json: bool) -> None:
    if name == "purge":
        due = session.catalogue.deletions.count_due(now=clock.now())
        if as_json:
            print_json({"sweep": name, "dry_run": True, "due": due})
        else:
            say(f"{counted(due, 'deleted artifact')} would be purged")
        raise typer.Exit(Status.GOOD)
    if name not in PLANS:
        raise UsageError(f"the sweep {name} has no dry run")
    left_out = _left_out(session, _SWEEPS[name], store)
    paused = [each for each, is_paused in left_out.items() if is_paused]
    names = [each for each in ([store] if store else session.settings.stores) if each not in left_out]
    rows = [{"store": each, **PLANS[name](session, each, prefix)} for each in names]
    passes = [found for each in names if name == "verify" and (found := whole_pass(session, each)) is not None]
    if as_json:
        more = {"passes": passes} if name == "verify" else {}
        print_json({"sweep": name, "dry_run": True, "stores": rows, "paused": paused, **more})
    else:
        columns = list(rows[0]) if rows else ["store"]
        print_table(columns, [list(row.values()) for row in rows], empty="every store is left out")
        _note_left_out(left_out, "would be left out")
        for each in passes:
            say(each["warning"] or each["summary"])
    raise typer.Exit(Status.GOOD)


def _sent(name: str, job_id: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"job": job_id, "sweep": name})
    else:
        say(job_id)
    raise typer.Exit(Status.GOOD)


@dataclass(frozen=True, slots=True)
class _Jobs:
    """The jobs that a sweep sent: how many have not ended, and the outcomes of the objects of the others."""

    open: int
    outcomes: Mapping[str, int]
    failed: list[str]

    @classmethod
    def none(cls) -> "_Jobs":
        return cls(0, {}, [])

    @classmethod
    def of(cls, records: list[JobRecord], sent: int) -> "_Jobs":
        """Return the outcomes of the jobs that the ledger has; `sent` is how many the sweep itself has sent."""
        outcomes, failed, waiting = Counter[str](), list[str](), 0
        expected = sent
        for each in records:
            result = each.result or {}
            expected += len(result.get("left", ()))  # a page sends a job for each of these
            if not JobState(each.state).terminal:
                waiting += 1
            elif each.state != JobState.SUCCEEDED:
                outcomes[each.state] += 1
                failed.append(f"job {each.id} is {each.state}: {(each.error or {}).get('message')}")
            elif each.kind == PAGE.kind:
                outcomes.update(result.get("outcomes", {}))
                failed += [f"{e['bucket']}/{e['key']}: {e['outcome']}: {e['message']}" for e in result["failures"]]
            else:
                words = [str(copy.get("verdict") or copy.get("outcome")) for copy in result.get("copies", ())]
                outcomes.update(words or ["succeeded"])
        return cls(waiting + max(expected - len(records), 0), dict(outcomes), failed)


def _await_jobs(way: Sender, session: Session, outcome: Outcome, deadline: float | None) -> _Jobs:
    """Wait until the jobs that the sweep sent have ended, those of its pages too.

    The ledger has a job when a worker has taken it; how many were sent is in the result of the sweep.
    """
    sent, ended, since = _sent_by(outcome), -1, time.monotonic()
    while True:
        records = session.catalogue.job_admin.descendants(outcome.job)
        jobs = _Jobs.of(records, sent)
        done = sum(JobState(each.state).terminal for each in records)
        way.shown.update(Progress(step="jobs", bytes_done=0, objects_done=done, objects_total=done + jobs.open))
        if done != ended:
            ended, since = done, time.monotonic()
        lost = done == len(records) and time.monotonic() - since > _PATIENCE  # such as one that another sweep sent
        if not jobs.open or lost or (deadline is not None and time.monotonic() >= deadline):
            return jobs
        time.sleep(_POLL)


def _sent_by(outcome: Outcome) -> int:
    """Return how many jobs a sweep has sent that the ledger may not have yet.

    The pages of a repair or a replication do not count: they are in the ledger before they are sent.
    """
    result = outcome.result or {}
    if outcome.kind in {SWEEP_RECONCILE.kind, SWEEP_EVIDENCE.kind}:
        return sum(each["sent"] for each in result["stores"])
    return sum(result.get("pages", {}).values())


def _print(outcome: Outcome, jobs: _Jobs, *, as_json: bool) -> None:
    document = asdict(outcome) | {"open_jobs": jobs.open, "outcomes": jobs.outcomes, "failures": jobs.failed}
    if as_json:
        print_json(document)
    else:
        print_outcome(outcome)
        if jobs.outcomes:
            say(", ".join(f"{count} {word}" for word, count in sorted(jobs.outcomes.items())))
        for line in jobs.failed[:_EXAMPLES]:
            complain(line)
        if len(jobs.failed) > _EXAMPLES:
            complain(
                f"and {len(jobs.failed) - _EXAMPLES} more: `zot-artifacts findings` and `zot-artifacts jobs --failed`"
            )
        if jobs.open:
            open_ = f"{counted(jobs.open, 'job')} still open, or sent before by another run"
            note(f"{open_}: `zot-artifacts jobs --parent {outcome.job}`")
    if outcome.status is not Status.GOOD or jobs.open:
        raise typer.Exit(outcome.status if outcome.status is not Status.GOOD else Status.UNKNOWN)
    bad = jobs.failed or set(jobs.outcomes) - _GOOD or _is_bad(outcome.result or {})
    raise typer.Exit(Status.BAD if bad else Status.GOOD)


def _is_unread(store: Mapping[str, Any]) -> bool:
    """Return whether the evidence of more copies differs than are read in full because of it."""
    outcomes = store.get("outcomes", {})
    return bool(outcomes.get("differs", 0) + outcomes.get("absent", 0) > store.get("sent", 0))


def _is_bad(result: Mapping[str, Any]) -> bool:
    """Return whether a sweep itself found something that is not right."""
    stores = result.get("stores") or ()
    late = "missed" in (result.get("canaries") or {}).values()
    found = any(each.get(name) for each in stores for name in ("findings", "stopped", "known"))
    return bool(
        result.get("faults")
        or result.get("lost")
        or result.get("untrusted")
        or late
        or result.get("undelivered")
        or found
        or any(map(_is_unread, stores))
    )
