"""Sweep webhooks: deliver the ends of jobs to the receivers that their requests name."""

from worker.alarms.job_webhooks import deliver_webhooks
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from zot_artifact_client.contract import SWEEP_WEBHOOKS, SweepWebhooksRequest, SweepWebhooksResult


def sweep_webhooks(request: SweepWebhooksRequest, job: RunningJob) -> SweepWebhooksResult:  # noqa: ARG001
    """Deliver what is due to each receiver of the settings."""
    settings = job.settings
    delivered, undelivered = deliver_webhooks(job.catalogue.job_webhooks, settings.webhooks, settings.job_webhooks)
    return SweepWebhooksResult(delivered=delivered, undelivered=undelivered)


sweep_webhooks_task = artifact_task(SWEEP_WEBHOOKS, writes=False)(sweep_webhooks)
"""Its queue is `interactive`, because services wait for what it sends."""
