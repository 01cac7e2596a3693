"""What is open, as the document that `status --json` prints."""

import os
import shutil
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from worker import clock
from worker.artifacts.read_budget import Forecast, forecast_for, pace_of
from worker.artifacts.verification_log.kept_head import (
    CheckedLog,
    WrittenLog,
    check_kept_head,
    check_noted_head,
)
from worker.artifacts.verification_log.signature import BadKeyFile, LogKeys
from worker.catalogue import (
    BAD,
    CANARY_TIMES,
    GRACE,
    CatalogueError,
    CopyState,
    Coverage,
    FailedJobs,
    FindingCount,
    FindingKind,
    FindingRecord,
    LastRun,
    Pause,
    Scope,
    WaitingJobs,
    count_present,
)
from worker.counted import counted
from worker.exit_status import Status
from worker.limits.snooze import LONGEST_PAUSE
from worker.readable import moment, size
from worker.report.check import Check
from worker.report.service_checks import (
    broker_checks,
    catalogue_of_workers,
    catalogue_writes,
    open_breakers,
    owner_of_broker,
    way_out_of_breaker,
)
from worker.report.sources import Sources
from worker.report.unconfigured_stores import unconfigured, way_out_of_unconfigured
from worker.schedule import beat_schedule, sweep_name
from worker.storage.config import FilesystemConfig
from worker.storage.durations_and_sizes import duration_text
from worker.storage.errors import REFUSALS, OtherStore, OutOfSpace, SameStore, StorageError
from worker.storage.probe import LEAST_FREE
from zot_artifact_client.contract import KINDS, SWEEP_PROBE, JobState

NAMED = 5
"""Findings of one kind in one store, and buckets of a store, that are named."""
WAITS = "waits for repair"
_RECENT = timedelta(days=1)
"""The reads of this time give the rate of the forecast; the jobs that failed in it are shown."""
_MOST_LOST = 1000
_MOST_DUE = 1_000_000
"""Due copies that are counted at most."""
_COUNTED_AT_ONCE = 10_000
"""Copies of all stores up to which their bytes are counted here; `sweep.verify` counts those of a larger catalogue."""
_OF_OPERATORS = {each.__name__ for each in REFUSALS}
_FOR_JOBS = ("traceback", "previous")
"""Parts of a job's error that `jobs JOB --traceback` shows, and no report."""
_PROBES = 200
"""The last probes in which is looked for the first one that failed."""
_RANK = list(FindingKind)
_REPAIRED = {FindingKind(state) for state in BAD} | {FindingKind.METADATA}


@dataclass(frozen=True, slots=True)
class Open:
    """The open findings of one kind in one store, the first few by name.

    `acknowledged` and `acted`: how many of them an operator knows of, and about how many something was begun.
    """

    kind: FindingKind
    store: str | None
    count: int
    acknowledged: int = 0
    acted: int = 0
    since: datetime | None = None
    examples: tuple[dict[str, Any], ...] = ()
    detail: str | None = None


def document_of(sources: Sources) -> dict[str, Any]:
    """Return what is open as one document; it asks the catalogue, the broker and the workers."""
    now, catalogue = clock.now(), sources.catalogue
    with ThreadPoolExecutor(max_workers=3) as pool:  # workers have seconds to answer
        asked = pool.submit(lambda: list(broker_checks(sources.settings)))
        breakers = pool.submit(open_breakers, sources.settings)
        failing = pool.submit(catalogue.coverage.failed_jobs, since=now - _RECENT)  # the longest of the queries
        pauses = catalogue.pauses.all()
        disks, wrong = _disks(sources)  # first: it may find that a store was renamed in the settings
        counts = catalogue.artifacts.count_by_state()
        few = sum(count for states in counts.values() for count in states.values()) <= _COUNTED_AT_ONCE
        stores = [_store(sources, name, counts.get(name, {}), pauses, now, few=few) for name in sources.settings.stores]
        repairs, dead = catalogue.coverage.jobs()
        failed = failing.result()
        findings = sorted(_findings(sources, stores, now), key=lambda each: (_RANK.index(each.kind), each.store or ""))
        sweeps = [kind for kind in KINDS if kind.startswith("sweep.")]
        runs = catalogue.coverage.last_runs(sweeps, now=now)
        broken = breakers.result()
        waiting = catalogue.coverage.waiting_jobs()
        told_by_breaker = {name for name, fault in wrong.items() if name in broken and fault in str(broken[name])}
        refused = _left_to_another_copy(sources, findings)
        for row in stores:
            row["waiting"] = _waiting_jobs(waiting.get(row["store"]), row, broken, now)
        checks = [
            *asked.result(),
            *(Check(f"store {name}", "bad", str(each), way_out_of_breaker(name)) for name, each in broken.items()),
            *_probed(sources, runs.get(SWEEP_PROBE.kind), {*broken, *wrong, *refused}),
            *_refusing({name: each for name, each in waiting.items() if name not in refused}),
            *_refused(failed),
            *_failing(sources, runs),
            _disk("data directory", sources.settings.home),  # where queues, downloads and streams wait
            *(each for name, each in disks.items() if name not in told_by_breaker),
            *_log(sources),
            *(list(catalogue_writes(sources.settings, catalogue)) or catalogue_of_workers(sources.settings)),
            *owner_of_broker(sources.settings, catalogue),
        ]
    return {
        "status": _status(findings, dead, checks),
        "at": now,
        "stores": stores,
        "findings": [asdict(each) for each in findings],
        "repairs": repairs,
        "dead_letters": dead,
        "failed_jobs": [asdict(each) for each in failed],
        "paused": [asdict(each) for each in pauses],
        "sweeps": [_run(kind, run) for kind, run in runs.items()],
        "checks": [asdict(check) for check in checks],
        "canaries": [asdict(each) for each in catalogue.canaries.times(since=now - CANARY_TIMES)],
        "alarms": [asdict(each) for each in catalogue.alarms.channels().values()],
        "webhooks": [asdict(each) for each in catalogue.job_webhooks.receivers().values()],
    }


def _store(
    sources: Sources, name: str, states: Mapping[str, int], pauses: list[Pause], now: datetime, *, few: bool
) -> dict[str, Any]:
    """Return the row of a store. `few`: the catalogue has few copies, so that the bytes are counted at once."""
    verify, claims = sources.settings.sweep.verify, sources.catalogue.sweep_claims
    period, first_read = verify.period_of(name), verify.first_read_of(name)
    coverage = sources.catalogue.coverage.of(name, period=period, recent=_RECENT, now=now)
    present = count_present(states)
    pause = next((each for each in pauses if (each.scope, each.name) == (Scope.STORE, name)), None)
    absent = sum(states.get(state, 0) for state in (CopyState.MISSING, CopyState.SIZE_MISMATCH))
    left = max(present - coverage.archived - coverage.read - absent, 0)  # absent ones wait for repair, not for a read
    budgets, limits = sources.catalogue.budgets, sources.settings
    usage = budgets.count(name, now=now) if few else budgets.counted(name)
    mean = usage.bytes // max(usage.copies, 1) if usage else 0
    pass_ = forecast_for(limits, name, present, present * mean, waiting=coverage.never)
    due = claims.overdue(name, period=period * (1 - GRACE), now=now)
    pace = pace_of(sources.catalogue, name, due, period=period, now=now)
    overdue = claims.overdue(name, period=period, now=now)
    first_late = claims.first_reads_late(name, first_read=first_read, now=now)
    return {
        "store": name,
        "copies": present,
        "bytes": usage.bytes if usage else None,
        "buckets": {of: {"copies": count, "bytes": size_} for of, (count, size_) in usage.buckets.items()}
        if usage
        else {},
        "bytes_counted_at": usage.at if usage else None,
        "states": dict(states),
        "period_seconds": period.total_seconds(),
        "read_within_period": coverage.read,
        "oldest_read_at": coverage.oldest_read_at,
        "never_read": coverage.never,
        "first_read_seconds": first_read.total_seconds(),
        "first_reads_late": first_late,
        "unreadable": coverage.unreadable,
        "archived": coverage.archived,
        "overdue": overdue,
        "forecast_seconds": _all_read_in(left, coverage, pass_, late=bool(overdue or first_late)),
        "first_reads_seconds": pass_.first_reads.total_seconds(),
        "pass": _pass(pass_ if usage else None),
        "due": claims.count_due(name, period=period, first_read=first_read, now=now, limit=_MOST_DUE),
        "too_slow": pace.warning,
        "paused": None if pause is None else {"since": pause.since, "reason": pause.reason},
        "budget": _budget(sources, name, now),
    }


def _waiting_jobs(
    waiting: WaitingJobs | None, row: Mapping[str, Any], broken: Container[str], now: datetime
) -> dict[str, Any] | None:
    """Return how many jobs wait for the store of a row, until when, and what ends that; None if no job does.

    `until` is None where it is not known: during a pause, and where no worker has tried them in time.
    """
    if waiting is None:
        return None
    store = row["store"]
    if row["paused"]:
        way_out = f"`zot-artifacts resume store {store}` ends the pause"
    elif store in broken:
        way_out = way_out_of_breaker(store)
    else:
        way_out = f"`zot-artifacts jobs --state queued --state retrying --store {store}` lists them"
    until = waiting.until if waiting.until > now and not row["paused"] else None
    return {"jobs": waiting.count, "until": until, "way_out": way_out}


def _pass(ahead: Forecast | None) -> dict[str, Any]:
    """Return what one pass over a store takes and costs; nothing is known before a sweep has counted its bytes."""
    if ahead is None:
        return dict.fromkeys(("cost", "cap_per_month", "seconds", "summary", "warning"))
    return {
        "cost": ahead.cost,
        "cap_per_month": ahead.cap,
        "seconds": ahead.takes and ahead.takes.total_seconds(),
        "summary": ahead.summary,
        "warning": ahead.warning,
    }


def _all_read_in(left: int, coverage: Coverage, ahead: Forecast, *, late: bool) -> float | None:
    """Return the seconds until all copies have been read: by the plan for first reads, if `late` by the recent rate.

    While no read is late, the planner reads only what is due: its rate says nothing about what it can read.
    """
    planned = ahead.first_reads.total_seconds()
    if late and coverage.recent:
        return max(left * _RECENT.total_seconds() / coverage.recent, planned)
    return planned if left <= coverage.never else None


def _budget(sources: Sources, name: str, now: datetime) -> dict[str, Any] | None:
    """Return what the verify sweep has used of the budget of a store, None without one."""
    budget = sources.settings.budgets.get(name)
    if budget is None:
        return None
    state = sources.catalogue.budgets.get(name, now=now)
    return {
        "hours": budget.hours, "reads_now": budget.is_open(now), "reads_at": budget.opens_at(now),
        "bytes_today": state.day_bytes, "requests_today": state.day_requests,
        "cost_this_month": state.month_cost, "cost_per_month": budget.cost_per_month,
    }  # fmt: skip


def _findings(sources: Sources, stores: list[dict[str, Any]], now: datetime) -> Iterator[Open]:
    """Yield what the catalogue has open; what is overdue or not configured is counted now, not at the last sweep."""
    known = {(each.kind, each.store): each for each in sources.catalogue.findings.counts()}
    for row in stores:
        before = known.pop((FindingKind.OVERDUE, row["store"]), None)
        if row["overdue"]:
            period = timedelta(seconds=row["period_seconds"])
            late = sources.catalogue.coverage.overdue(row["store"], period=period, now=now, limit=NAMED)
            yield _counted(FindingKind.OVERDUE, row["store"], row["overdue"], before, tuple(map(asdict, late)))
    for name, states in unconfigured(sources).items():
        before = known.pop((FindingKind.STORE_NOT_CONFIGURED, name), None)
        found = _counted(FindingKind.STORE_NOT_CONFIGURED, name, sum(states.values()), before)
        yield replace(found, detail=f"{counted(found.count, 'copy')}; {way_out_of_unconfigured(sources, name)}")
    untrusted = sources.catalogue.repairs.untrusted()
    lost = {
        (each.bucket, each.key) for each in sources.catalogue.findings.page(kind=FindingKind.LOST, limit=_MOST_LOST)
    }
    for (kind, store), each in known.items():
        if kind in {FindingKind.OVERDUE, FindingKind.STORE_NOT_CONFIGURED}:
            continue  # it is no longer so, which the next sweep records
        if kind is FindingKind.CANARY:
            continue  # it was damaged on purpose: `canaries` has it
        some = sources.catalogue.findings.page(kind=kind, store=store or "", limit=NAMED)
        detail = None
        if kind is FindingKind.STORE_UNTRUSTED and store in untrusted:
            detail = f"{untrusted[store]}; its repairs stopped: `zot-artifacts stores trust {store}`"
        elif some and some[0].bucket is None:
            detail = str(some[0].evidence.get("detail") or some[0].subject).removeprefix(f"{store}: ")
        doing = _doing(sources, kind, store, stopped=store in untrusted)
        yield Open(
            kind, store, each.count, each.acknowledged, each.acted, each.since,
            () if detail else tuple(_example(sources, found, doing, lost) for found in some), detail,
        )  # fmt: skip


def _counted(
    kind: FindingKind, store: str, count: int, before: FindingCount | None, some: tuple[dict[str, Any], ...] = ()
) -> Open:
    acknowledged = count if before and before.acknowledged else 0
    return Open(kind, store, count, acknowledged, since=before.since if before else None, examples=some)


def _example(
    sources: Sources, found: FindingRecord, doing: str, lost: Container[tuple[str | None, str | None]]
) -> dict[str, Any]:
    job = sources.catalogue.ledger.get(found.job) if found.job else None
    if found.kind in _REPAIRED and (found.bucket, found.key) in lost:
        doing = "no good copy"  # to repair from
    elif found.kind in _REPAIRED and _is_deleted(sources, found):
        doing = "ends with the purge"  # a deleted artifact is not repaired
    verified = found.action == "verify" and job is not None and job.state == JobState.SUCCEEDED
    if found.action and not verified:  # what a read that has ended left open waits for the next step
        doing = f"{found.action} {job.state if job else 'sent'}"
    return {
        "id": found.id, "bucket": found.bucket, "key": found.key, "version": found.version, "store": found.store,
        "since": found.opened_at, "action": found.action, "job": found.job, "job_state": job.state if job else None,
        "doing": f"acknowledged by {found.acknowledged_by}" if found.acknowledged_at else doing,
    }  # fmt: skip


def _is_deleted(sources: Sources, found: FindingRecord) -> bool:
    of = sources.catalogue.artifacts.version(found.bucket or "", found.key or "", found.version or 0)
    return of is not None and of.tombstoned_at is not None


def _doing(sources: Sources, kind: FindingKind, store: str | None, *, stopped: bool) -> str:
    """Return what is done about the findings of one kind in one store before a job is sent."""
    repair = sources.settings.sweep.repair
    if kind in _REPAIRED and stopped:
        return "repairs stopped"
    if kind in _REPAIRED and (store in repair.off or not repair.enabled):
        return "repairs are off"
    if kind in _REPAIRED:
        return WAITS
    return {FindingKind.UNREADABLE: "is read again", FindingKind.SUSPECT: "is read again"}.get(kind, "nothing")


def _run(kind: str, run: LastRun) -> dict[str, Any]:
    seconds = (run.finished_at - run.started_at).total_seconds() if run.finished_at and run.started_at else None
    facts = asdict(run)
    ended = facts.pop("ended")
    if run.error:
        facts["error"] = {name: each for name, each in run.error.items() if name not in _FOR_JOBS}
    return {"sweep": kind, "seconds": seconds, **facts, "failing_since": ended and ended["failing_since"]}


def _probed(sources: Sources, run: LastRun | None, told: Collection[str]) -> Iterator[Check]:
    """Yield the stores that failed their last probe: one that refuses requests opens no circuit breaker.

    `told`: the stores whose cause another check tells.
    """
    ended, sweep = run.ended if run else None, sources.settings.sweep.probe
    faults = (ended.result or {}).get("faults") if ended else None
    way_out = "repair it, then run `zot-artifacts sweep probe`"
    if sweep.enabled:
        way_out += f"; the next probe, after {duration_text(sweep.every.total_seconds())} at most, ends this, too"
    for name, fault in sorted((faults or {}).items()):
        if name in sources.settings.stores and name not in told:
            since, good_at = _last_probes(sources, name)
            if good_at is None:
                begun = f" since {moment(since)}" if since else ""
                detail = f"its probes fail{begun}: {fault.removeprefix(f'{name}: ')}"
                yield Check(f"store {name}", "bad", detail, way_out)


def _last_probes(sources: Sources, store: str, *, told: str = "faults") -> tuple[datetime | None, datetime | None]:
    """Return since when the probes of a store fail, or when the last one was sent if that succeeded.

    `told`: the part of their results that names a store whose probe has failed.
    """
    since = None
    for job in sources.catalogue.job_admin.find([JobState.SUCCEEDED], kind=SWEEP_PROBE.kind, limit=_PROBES):
        result = job.result or {}
        if store in result.get(told, ()):
            since = job.created_at
        elif store in result.get("probed", ()):
            return since, None if since else job.created_at
    return since, None


def _refusing(waiting: Mapping[str, WaitingJobs]) -> Iterator[Check]:
    """Yield the stores that refuse all that a page asks: it may be all there is, or one bucket or directory."""
    for store, each in waiting.items():
        if each.refusal:
            since = f"; jobs wait for it since {moment(each.since)}" if each.since else ""
            yield Check(
                f"store {store}",
                "bad",
                f"{each.refusal.removeprefix(f'{store}: ')}{since}",
                f"repair it, and the jobs that wait go on within {duration_text(LONGEST_PAUSE.total_seconds())}",
            )


def _refused(failed: Iterable[FailedJobs]) -> Iterator[Check]:
    """Yield the stores that failed jobs for a reason that an operator can end, and no service that sent a job.

    A disk of a worker may be full, too; a source that denies access is a matter of the service that names it.
    """
    for each in failed:
        if each.error in (_OF_OPERATORS if each.store else {OutOfSpace.__name__}):
            where, do = (f"store {each.store}", "repair it") if each.store else ("disks of the workers", "make room")
            yield Check(
                where,
                "bad",
                f"{counted(each.count, 'job')} failed with {each.error} in the last day, first at {moment(each.since)}",
                f"{do}, then run `zot-artifacts jobs retry --all --state failed --error {each.error}`; "
                "an upload whose source is gone has to be sent anew, or completed as that prints, which ends this",
            )


def _failing(sources: Sources, runs: Mapping[str, LastRun]) -> Iterator[Check]:
    """Yield the sweeps whose last run failed: what they look for is not known since then.

    The command for a sweep that beat does not start tells by itself how the run ended.
    """
    schedule = beat_schedule(sources.settings)
    for kind, run in runs.items():
        ended = run.ended
        if kind in schedule and ended and ended.failing_since:
            name, every = sweep_name(kind), duration_text(schedule[kind]["schedule"].total_seconds())
            yield Check(
                f"sweep {name}",
                "bad",
                f"its runs fail since {moment(ended.failing_since)}: {(ended.error or {}).get('message', '')}",
                f"`zot-artifacts jobs {ended.job}` has the cause; repair that, then run `zot-artifacts sweep {name}`; "
                f"its next run, after {every} at most, ends this, too",
            )


def _log(sources: Sources) -> Iterator[Check]:
    """Check the log against the row up to which this machine knows it, and the heads of stores on its disks.

    The stores in clouds are asked by `sweep.verify`, which opens a finding.
    """
    catalogue, keys = sources.catalogue, LogKeys.of(sources.settings.verification_log)
    checked = CheckedLog(sources.settings.run_dir, catalogue).get()
    try:
        written = WrittenLog(sources.settings.run_dir, catalogue).get()
        faults = [check_noted_head(catalogue, noted) for noted in (checked, written)]
        for name, config in sources.settings.stores.items():
            if isinstance(config, FilesystemConfig):
                with suppress(StorageError):  # the check of its disk tells
                    faults.append(check_kept_head(sources.stores[name], catalogue, keys))
    except BadKeyFile as error:
        faults = [str(error)]
    if told := "; ".join(dict.fromkeys(fault for fault in faults if fault)):
        way_out = None if told == catalogue.backup_times.unaccepted() else "compare it with a backup"
        yield Check("verification log", "bad", told, way_out)


def _left_to_another_copy(sources: Sources, findings: Iterable[Open]) -> set[str]:
    """Return the stores to which another copy of the catalogue writes, and whose finding tells that."""
    told = {each.store for each in findings if each.kind is FindingKind.LOG_CHANGED}
    return {name for name in sources.settings.stores if name in told and sources.catalogue.writers.was_refused(name)}


def _disks(sources: Sources) -> tuple[dict[str, Check], dict[str, str]]:
    """Return the checks of the disks of stores, and what is wrong with those stores that cannot be used."""
    checks, wrong = {}, {}
    for name, config in sources.settings.stores.items():
        if isinstance(config, FilesystemConfig):
            fault = _refusal(sources, name)
            check = fault or _disk(f"disk {name}", config.root)
            if fault:
                wrong[name] = fault.detail
            if fault or check.outcome == "unknown":
                since, good_at = _last_probes(sources, name)
                if good_at:
                    check = replace(check, detail=f"its probe of {moment(good_at)} succeeded, now: {check.detail}")
                elif since and fault:  # one that is only mounted read-only here may fail its probes for another cause
                    told = f"its probes fail since {moment(since)}: {check.detail}"
                    check = replace(check, outcome="bad", detail=told)
            elif check.outcome == "bad" and (since := _last_probes(sources, name, told="little_room")[0]):
                check = replace(check, detail=f"{check.detail} since {moment(since)}")
            checks[name] = check
    return checks, wrong


def _refusal(sources: Sources, store: str) -> Check | None:
    """Return that a store does not answer, or is another one than before, such as without its disk; else None."""
    with suppress(CatalogueError):  # it takes no record of the store
        try:
            sources.stores[store].check_identity("read")
        except StorageError as error:  # it names its way out
            outcome = "bad" if isinstance(error, OtherStore | SameStore) else "unknown"
            return Check(f"disk {store}", outcome, error.message.removeprefix(f"{store}: "))
    return None


def _disk(name: str, directory: Path) -> Check:
    """Return whether the disk of a directory has room, and can be written."""
    try:
        free = shutil.disk_usage(directory).free
        read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
    except OSError as error:
        return Check(name, "unknown", f"{directory}: {error.strerror}", "bring the disk back")
    if read_only:
        told = "this machine has mounted it read-only, as systems do after errors of the disk"
        return Check(name, "unknown", told, f"make {directory} writable")
    if free >= LEAST_FREE:
        return Check(name, "good", f"{size(free)} free")
    return Check(name, "bad", f"{size(free)} free, less than {size(LEAST_FREE)}", f"make room in {directory}")


def _status(findings: list[Open], dead: int, checks: list[Check]) -> Status:
    outcomes = {check.outcome for check in checks}
    if any(each.count > each.acknowledged for each in findings) or dead or "bad" in outcomes:
        return Status.BAD
    return Status.UNKNOWN if "unknown" in outcomes else Status.GOOD
