"""The schedule of beat: which sweeps it starts, and how often."""

from datetime import timedelta
from typing import Any

from worker import clock
from worker.settings import Settings
from zot_artifact_client.contract import (
    SWEEP_ALARMS,
    SWEEP_BACKUP,
    SWEEP_CANARY,
    SWEEP_EVIDENCE,
    SWEEP_LEFTOVERS,
    SWEEP_PROBE,
    SWEEP_PURGE,
    SWEEP_RECONCILE,
    SWEEP_RECOVER,
    SWEEP_REPAIR,
    SWEEP_REPLICATE,
    SWEEP_REPORT,
    SWEEP_VERIFY,
    SWEEP_WEBHOOKS,
    TaskSpec,
)


def sweep_name(kind: str) -> str:
    """Return the name of a sweep, as its command has it; the task of the cleanup has kept an older one."""
    return "cleanup" if kind == SWEEP_LEFTOVERS.kind else kind.removeprefix("sweep.")


def beat_schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return Celery's schedule. A sweep that has not started `clock.SKEW` after the next one was due is dropped.

    The worker that drops it goes by its own clock, and beat has written the time by that of another machine.
    """
    sweep = settings.sweep
    sweeps: list[tuple[TaskSpec[Any, Any], bool, timedelta]] = [
        (SWEEP_RECOVER, sweep.recover.enabled, sweep.recover.every),
        (SWEEP_VERIFY, sweep.verify.enabled, sweep.verify.every),
        (SWEEP_REPLICATE, sweep.replicate.enabled, sweep.replicate.every),
        (SWEEP_REPAIR, sweep.repair.enabled, sweep.repair.every),
        (SWEEP_RECONCILE, sweep.reconcile.enabled, sweep.reconcile.every),
        (SWEEP_EVIDENCE, sweep.evidence.enabled, sweep.evidence.every),
        (SWEEP_PURGE, sweep.purge.enabled, sweep.purge.every),
        (SWEEP_LEFTOVERS, sweep.cleanup.enabled, sweep.cleanup.every),
        (SWEEP_PROBE, sweep.probe.enabled, sweep.probe.every),
        (SWEEP_REPORT, sweep.report.enabled and sweep.report.store is not None, sweep.report.every),
        (SWEEP_CANARY, sweep.canary.enabled, sweep.canary.every),
        (SWEEP_ALARMS, bool(settings.alarms.channels), settings.alarms.every),
        (SWEEP_WEBHOOKS, bool(settings.webhooks), settings.job_webhooks.every),
        (SWEEP_BACKUP, bool(sweep.backup.stores), sweep.backup.every),
    ]
    return {
        spec.kind: {
            "task": spec.name,
            "schedule": every,
            "options": {"queue": spec.queue.value, "expires": (every + clock.SKEW).total_seconds()},
        }
        for spec, enabled, every in sweeps
        if enabled
    }
