"""Figures of the catalogue: jobs, findings and sweeps often, the coverage of all copies seldom."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import TypeVar

from prometheus_client import Metric

from worker import clock
from worker.catalogue import (
    CANARY_TIMES,
    EVIDENCE_OUTCOMES,
    Catalogue,
    CopyState,
    EndedJob,
    ResolvedFinding,
    count_present,
)
from worker.metrics.family_builders import Histogram, Sample, counter, gauge, histogram
from worker.schedule import beat_schedule, sweep_name
from worker.settings import Settings
from zot_artifact_client.contract import KINDS, SWEEP_LEFTOVERS, JobState, SweepLeftoversResult

EndedT = TypeVar("EndedT", EndedJob, ResolvedFinding)

_OTHER = "other"
"""The label of a kind that this version does not know: a label never takes what a message said."""
_ACTIONS = ("none", "repair", "replicate", "verify", "adopt")
_OPEN = (JobState.QUEUED, JobState.RUNNING, JobState.RETRYING)
_ENDED = tuple(state for state in JobState if state.terminal)
_LAG = timedelta(seconds=10)
"""What ended less long ago is counted the next time: its transaction may not have ended, or another clock be behind."""
_AT_ONCE = 5000
_LATE = timedelta(minutes=5)
_RECENT = timedelta(days=1)
_JOB_SECONDS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 21_600.0)
_OPEN_SECONDS = (60.0, 300.0, 1800.0, 3600.0, 6 * 3600.0, 86_400.0, 7 * 86_400.0)


class LedgerFigures:
    """Jobs, findings, sweeps and pauses; every question is answered from an index.

    What ended is counted from when the exporter was started, by rows that ended since the last time.
    """

    def __init__(self, settings: Settings, catalogue: Callable[[], Catalogue]) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._jobs_until = self._findings_until = clock.now() - _LAG
        self._ended: Counter[tuple[str, str]] = Counter()
        self._seconds = defaultdict[str, Histogram](lambda: Histogram(_JOB_SECONDS))
        self._resolved: Counter[tuple[str, str]] = Counter()
        self._open_for = defaultdict[str, Histogram](lambda: Histogram(_OPEN_SECONDS))

    def collect(self) -> Iterator[Metric]:
        """Yield the figures."""
        catalogue, now = self._catalogue(), clock.now()
        self._count(catalogue, now - _LAG)
        yield from self._jobs(catalogue, now)
        yield from self._findings(catalogue)
        yield from self._sweeps(catalogue)
        yield from self._budgets(catalogue, now)
        yield from self._canaries(catalogue, now)
        paused = catalogue.figures.pauses()
        scopes: list[Sample] = [((scope,), paused.get(scope, 0)) for scope in ("store", "queue", "job")]
        yield gauge("pauses", "Stores, queues and jobs that are paused.", scopes, ["scope"])

    def _count(self, catalogue: Catalogue, until: datetime) -> None:
        for job in _since(catalogue.figures.ended_jobs, self._jobs_until, until):
            kind = job.kind if job.kind in KINDS else _OTHER
            self._ended[kind, job.state] += 1
            if job.seconds is not None:
                self._seconds[kind].observe(job.seconds)
            self._jobs_until = job.ended_at
        for found in _since(catalogue.figures.resolved_findings, self._findings_until, until):
            self._resolved[found.kind, found.action if found.action in _ACTIONS else _OTHER] += 1
            self._open_for[found.kind].observe(found.seconds)
            self._findings_until = found.resolved_at
        self._jobs_until, self._findings_until = max(self._jobs_until, until), max(self._findings_until, until)

    def _jobs(self, catalogue: Catalogue, now: datetime) -> Iterator[Metric]:
        open_: Counter[tuple[str, str]] = Counter()
        for (kind, state), count in catalogue.figures.open_jobs().items():
            open_[kind if kind in KINDS else _OTHER, state] += count
        waiting: list[Sample] = [((kind, state), open_[kind, state]) for kind in KINDS for state in _OPEN]
        yield gauge("jobs", "Open jobs in the ledger.", waiting, ["kind", "state"])
        ended: list[Sample] = [((kind, state), self._ended[kind, state]) for kind in KINDS for state in _ENDED]
        yield counter("jobs_ended", "Jobs that ended, since the exporter was started.", ended, ["kind", "outcome"])
        about = "Seconds from the first start of a job to its end, since the exporter was started."
        yield histogram("job_seconds", about, [((kind,), each) for kind, each in self._seconds.items()], ["kind"])
        dead = [((), float(catalogue.figures.dead_letters()))]
        yield gauge("dead_letters", "Dead letters: jobs whose attempts are used up.", dead)
        late = [((), float(catalogue.figures.late_jobs(now - _LATE)))]
        yield gauge("late_jobs", "Open jobs without a heartbeat for 5 minutes after they were due.", late)

    def _findings(self, catalogue: Catalogue) -> Iterator[Metric]:
        counts: list[Sample] = []
        since: list[Sample] = []
        for each in catalogue.findings.counts():
            labels = (each.kind.value, each.store or "")
            counts.append(((*labels, "yes"), each.acknowledged))
            counts.append(((*labels, "no"), each.count - each.acknowledged))
            since.append((labels, each.since.timestamp()))
        about = "Open findings; an acknowledged one is known to an operator."
        yield gauge("findings", about, counts, ["kind", "store", "acknowledged"])
        about = "When the oldest open finding of a kind was opened, in seconds since 1970."
        yield gauge("findings_since_timestamp_seconds", about, since, ["kind", "store"])
        resolved: list[Sample] = sorted(self._resolved.items())
        about = "Findings that were resolved, by what was begun about them, since the exporter was started."
        yield counter("findings_resolved", about, resolved, ["kind", "action"])
        about = "Seconds for which resolved findings were open: the time to repair, since the exporter was started."
        found = [((kind,), each) for kind, each in self._open_for.items()]
        yield histogram("finding_open_seconds", about, found, ["kind"])

    def _sweeps(self, catalogue: Catalogue) -> Iterator[Metric]:
        schedule = beat_schedule(self._settings)
        every: list[Sample] = [((_sweep(kind),), entry["schedule"].total_seconds()) for kind, entry in schedule.items()]
        yield gauge("sweep_interval_seconds", "How often beat starts a sweep.", every, ["sweep"])
        runs = catalogue.coverage.last_runs([kind for kind in KINDS if kind.startswith("sweep.")], now=clock.now())
        began: list[Sample] = [
            ((_sweep(kind),), run.started_at.timestamp()) for kind, run in runs.items() if run.started_at
        ]
        about = "When the last run of a sweep began, in seconds since 1970."
        yield gauge("sweep_last_start_timestamp_seconds", about, began, ["sweep"])
        succeeded: list[Sample] = [
            ((_sweep(kind),), float(run.ended.failing_since is None))
            for kind, run in runs.items()
            if run.ended and kind in schedule
        ]
        about = "Whether the last ended run of a scheduled sweep succeeded."
        yield gauge("sweep_last_success", about, succeeded, ["sweep"])
        cleanup = runs[SWEEP_LEFTOVERS.kind].ended if SWEEP_LEFTOVERS.kind in runs else None
        kept = SweepLeftoversResult.model_validate(cleanup.result) if cleanup and cleanup.result else None
        quarantine = kept.quarantined if kept else {}
        held: list[Sample] = [((store,), size) for store, size in quarantine.items() if store in self._settings.stores]
        about = "Bytes in the quarantine of a store, as the last cleanup listed them."
        yield gauge("quarantine_bytes", about, held, ["store"])

    def _budgets(self, catalogue: Catalogue, now: datetime) -> Iterator[Metric]:
        read, requests, cost, most = ([] for _ in range(4))
        for store, budget in self._settings.budgets.items():
            state = catalogue.budgets.get(store, now=now)
            read.append(((store,), float(state.day_bytes)))
            requests.append(((store,), float(state.day_requests)))
            cost.append(((store,), state.month_cost))
            if budget.cost_per_month is not None:
                most.append(((store,), budget.cost_per_month))
        of = ["store"]
        yield gauge("budget_bytes_today", "Bytes of its budget that the verify sweep has used today (UTC).", read, of)
        about = "Requests of its budget that the verify sweep has used today (UTC)."
        yield gauge("budget_requests_today", about, requests, of)
        about = "What the verify sweep has cost this month (UTC), in the currency of the prices."
        yield gauge("budget_cost_this_month", about, cost, of)
        yield gauge("budget_cost_per_month", "What the verify sweep may cost in a month.", most, of)

    def _canaries(self, catalogue: Catalogue, now: datetime) -> Iterator[Metric]:
        found, repaired = [], []
        for each in catalogue.canaries.times(since=now - CANARY_TIMES):
            if each.store in self._settings.stores and each.detect_longest is not None:
                found.append(((each.store,), each.detect_longest))
            if each.store in self._settings.stores and each.repair_longest is not None:
                repaired.append(((each.store,), each.repair_longest))
        about = "The longest time in 30 days from the damage of a canary until it was found."
        yield gauge("canary_detect_seconds", about, found, ["store"])
        about = "The longest time in 30 days from the finding of a canary until it was repaired."
        yield gauge("canary_repair_seconds", about, repaired, ["store"])


class CoverageFigures:
    """How many copies there are, and how far they have been read. It counts all copies: seconds for 10,000,000."""

    def __init__(self, settings: Settings, catalogue: Callable[[], Catalogue]) -> None:
        self._settings = settings
        self._catalogue = catalogue

    def collect(self) -> Iterator[Metric]:
        """Yield the figures."""
        catalogue, now = self._catalogue(), clock.now()
        states = catalogue.artifacts.count_by_state()
        copies: list[Sample] = [
            ((store, state), states.get(store, {}).get(state, 0))
            for store in self._settings.stores
            for state in CopyState
        ]
        yield gauge("copies", "Copies of a store by state.", copies, ["store", "state"])
        stray = sum(sum(of.values()) for store, of in states.items() if store not in self._settings.stores)
        yield gauge("copies_not_configured", "Copies in stores that are not in the settings.", [((), float(stray))])
        read, share, oldest, overdue, never, unreadable, archived, recent = ([] for _ in range(8))
        for store in self._settings.stores:
            period = self._settings.sweep.verify.period_of(store)
            found = catalogue.coverage.of(store, period=period, recent=_RECENT, now=now)
            present = count_present(states.get(store, {}))
            read.append(((store,), found.read))
            present -= found.archived
            share.append(((store,), found.read / present if present else 1.0))
            recent.append(((store,), found.recent))
            never.append(((store,), found.never))
            unreadable.append(((store,), found.unreadable))
            archived.append(((store,), found.archived))
            late = catalogue.sweep_claims.overdue(store, period=period, now=now)
            overdue.append(((store,), late))
            if found.oldest_read_at is not None:
                oldest.append(((store,), found.oldest_read_at.timestamp()))
        of = ["store"]
        yield gauge("copies_read_in_period", "Copies that were fully read within the period of their store.", read, of)
        yield gauge("read_share", "The share of the copies of a store that was read within its period.", share, of)
        yield gauge("copies_read_in_day", "Copies that were fully read within the last day.", recent, of)
        yield gauge("copies_never_read", "Copies that were not read since they were written.", never, of)
        yield gauge("copies_unreadable", "Copies whose last read had no answer.", unreadable, of)
        yield gauge("copies_archived", "Copies in an archive class that are not readable now.", archived, of)
        yield gauge("copies_overdue", "Copies that were not read within the period of their store.", overdue, of)
        yield gauge("oldest_read_timestamp_seconds", "The oldest last read, in seconds since 1970.", oldest, of)
        checked = catalogue.evidence_checks.by_store()
        evidence: list[Sample] = [
            ((store, outcome), checked[store].outcomes.get(outcome, 0) if store in checked else 0)
            for store in self._settings.stores
            for outcome in EVIDENCE_OUTCOMES
        ]
        about = "Copies by the outcome of their last check without a read."
        yield gauge("copies_checked_without_reading", about, evidence, ["store", "outcome"])


def _since(ask: Callable[..., list[EndedT]], after: datetime, until: datetime) -> Iterator[EndedT]:
    """Yield everything that ended in a time, page by page."""
    while True:
        page = ask(after, until, limit=_AT_ONCE)
        if len(page) < _AT_ONCE:
            yield from page
            return
        last = _end(page[-1])
        whole = [each for each in page if _end(each) < last] or page  # the next page has all rows of its last moment
        yield from whole
        after = _end(whole[-1])


def _end(ended: EndedJob | ResolvedFinding) -> datetime:
    return ended.ended_at if isinstance(ended, EndedJob) else ended.resolved_at


def _sweep(kind: str) -> str:
    """Return the label of a sweep, such as `sweep.cleanup`."""
    return f"sweep.{sweep_name(kind)}"
