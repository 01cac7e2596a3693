"""Sweep webhooks: deliver the ends of jobs to the receivers that their requests name."""

from datetime import timedelta

from worker import clock
from worker.alarms.job_webhooks import deliver_webhooks
from worker.context import JobContext
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from zot_artifact_client.contract import SWEEP_WEBHOOKS, SweepWebhooksRequest, SweepWebhooksResult

_KEPT = timedelta(days=30)


def sweep_webhooks(request: SweepWebhooksRequest, context: JobContext, job: RunningJob) -> SweepWebhooksResult:  # noqa: ARG001
    """Deliver what is due to each receiver of the settings."""
    settings, webhooks = context.settings, context.catalogue.job_webhooks
    delivered, undelivered = deliver_webhooks(webhooks, settings.webhooks, settings.job_webhooks)
    webhooks.prune(before=clock.now() - _KEPT)
    return SweepWebhooksResult(delivered=delivered, undelivered=undelivered)


sweep_webhooks_task = artifact_task(SWEEP_WEBHOOKS, writes=False)(sweep_webhooks)
"""Its queue is `interactive`, because services wait for what it sends."""
