"""Sweep replicate: send pages for the copies that the placement rules want and that do not exist."""

from collections import Counter
from datetime import datetime
from fnmatch import fnmatchcase
from functools import partial

from celery import current_app

from worker import clock
from worker.catalogue import Artifact
from worker.context import JobContext
from worker.jobs.outbox import Outbox
from worker.jobs.running_job import RunningJob
from worker.jobs.send_sweep_pages import Claimed, Messages, plan, resume
from worker.jobs.task import artifact_task
from worker.settings import Settings
from worker.settings.section_models import PlacementRule
from zot_artifact_client.contract import (
    SWEEP_REPLICATE,
    ClaimSelection,
    PageRequest,
    SweepReplicateRequest,
    SweepReplicateResult,
)


def sweep_replicate(request: SweepReplicateRequest, context: JobContext, job: RunningJob) -> SweepReplicateResult:
    """Claim the copies that a rule wants and that do not exist, up to a limit for each store, and send their pages.

    Stores that are paused are left out.

    Raises:
        UnknownStore: naming the stores there are.
    """
    return sweep(request, context, job, Outbox(current_app))


def sweep(
    request: SweepReplicateRequest, context: JobContext, job: RunningJob, messages: Messages
) -> SweepReplicateResult:
    """Do as `sweep_replicate`, with these messages."""
    stores = set(context.unpaused_stores(request.store))
    if planned := context.catalogue.pages.planned_by(job.id):  # at an attempt whose worker died
        resume(job.id, planned, messages)
        return SweepReplicateResult(claimed={})
    settings = context.settings
    buckets = context.catalogue.artifacts.buckets() if request.bucket is None else [request.bucket]
    count: Counter[str] = Counter()
    requests, claimed = [], list[Claimed]()
    late: list[list[tuple[str, str, str]]] = []
    for rule in settings.placement_rules:
        prefix = _narrower(rule.prefix, request.prefix)
        if prefix is None:
            continue
        for bucket in (bucket for bucket in buckets if fnmatchcase(bucket, rule.bucket)):
            for store in (store for store in rule.stores if store in stores):
                while True:
                    job.check()
                    room = min(settings.page.objects, settings.sweep.replicate.batch - count[store])
                    found, until = (
                        _claim(context, rule, f"{bucket}/{prefix}", store, room) if room > 0 else ([], clock.now())
                    )
                    if not found:
                        break
                    requests.append(PageRequest(verb="replicate", claim=ClaimSelection(store=store), to=(store,)))
                    claimed.append(Claimed([artifact.id for artifact in found], until))
                    count[store] += len(found)
                    since = _late_since(context)
                    late.append([(store, of.bucket, of.key) for of in found if (of.committed_at or until) <= since])
                    if len(found) < room:
                        break
    pages = plan(context.catalogue, job.id, requests, messages, claimed)
    for page, places in zip(pages, late, strict=True):
        context.catalogue.findings.act(dict.fromkeys(places, page), "replicate", now=clock.now())
    return SweepReplicateResult(claimed=dict(count))


def _claim(
    context: JobContext, rule: PlacementRule, path: str, store: str, limit: int
) -> tuple[list[Artifact], datetime]:
    bucket, _, prefix = path.partition("/")
    now = clock.now()
    until = now + context.settings.sweep.replicate.claim
    absent = context.catalogue.sweep_claims.absent(
        store, bucket, prefix, wanted=partial(_is_placed_by, rule, context.settings), now=now, until=until,
        limit=limit, late_since=_late_since(context),
    )  # fmt: skip
    return absent, until


def _narrower(one: str, other: str) -> str | None:
    """Return the prefix of the keys that begin with both, None if no key does."""
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    return longer if longer.startswith(shorter) else None


def _late_since(context: JobContext) -> datetime:
    """Return the moment before which an artifact was committed whose absent copy is a finding."""
    return clock.now() - context.settings.sweep.replicate.late


def _is_placed_by(rule: PlacementRule, settings: Settings, bucket: str, key: str) -> bool:
    return settings.rule_for(bucket, key) is rule


sweep_replicate_task = artifact_task(SWEEP_REPLICATE, writes=False)(sweep_replicate)
