"""Sweep alarms: send an alarm about the findings that changed, and deliver those that wait."""

from datetime import timedelta

from worker import clock
from worker.alarms.delivery import deliver_pending
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from zot_artifact_client.contract import SWEEP_ALARMS, SweepAlarmsRequest, SweepAlarmsResult

_KEPT = timedelta(days=30)


def sweep_alarms(request: SweepAlarmsRequest, job: RunningJob) -> SweepAlarmsResult:  # noqa: ARG001
    """Make one alarm of all findings that changed, and deliver it and earlier ones through each channel."""
    settings, alarms, now = job.settings.alarms, job.catalogue.alarms, clock.now()
    alarms.drop(settings.channels)
    alarms.make_digest(settings.channels, quiet={*settings.quiet, "canary"}, escalate=settings.escalate, now=now)
    delivered, undelivered = deliver_pending(alarms, job.catalogue.findings, settings, now=now)
    alarms.prune(before=clock.earliest() - _KEPT)
    return SweepAlarmsResult(delivered=delivered, undelivered=undelivered)


sweep_alarms_task = artifact_task(SWEEP_ALARMS, writes=False)(sweep_alarms)
"""Its queue is `interactive`, because an alarm must not wait behind the sweeps that it may be about."""
