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


def beat_schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return Celery's schedule. A sweep that has not started `clock.SKEW` after the next one was due is dropped.

    The worker that drops it goes by its own clock, and beat has written the time by that of another machine.
    """
    recover, verify, replicate = settings.sweep.recover, settings.sweep.verify, settings.sweep.replicate
    repair, reconcile = settings.sweep.repair, settings.sweep.reconcile
    cleanup, probe = settings.sweep.cleanup, settings.sweep.probe
    sweeps: list[tuple[TaskSpec[Any, Any], bool, timedelta]] = [
        (SWEEP_RECOVER, recover.enabled, recover.every),
        (SWEEP_VERIFY, verify.enabled, verify.every),
        (SWEEP_REPLICATE, replicate.enabled, replicate.every),
        (SWEEP_REPAIR, repair.enabled, repair.every),
        (SWEEP_RECONCILE, reconcile.enabled, reconcile.every),
        (SWEEP_EVIDENCE, settings.sweep.evidence.enabled, settings.sweep.evidence.every),
        (SWEEP_PURGE, settings.sweep.purge.enabled, settings.sweep.purge.every),
        (SWEEP_LEFTOVERS, cleanup.enabled, cleanup.every),
        (SWEEP_PROBE, probe.enabled, probe.every),
        (
            SWEEP_REPORT,
            settings.sweep.report.enabled and settings.sweep.report.store is not None,
            settings.sweep.report.every,
        ),
        (SWEEP_CANARY, settings.sweep.canary.enabled, settings.sweep.canary.every),
        (SWEEP_ALARMS, bool(settings.alarms.channels), settings.alarms.every),
        (SWEEP_WEBHOOKS, bool(settings.webhooks), settings.job_webhooks.every),
        (SWEEP_BACKUP, bool(settings.sweep.backup.stores), settings.sweep.backup.every),
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
