"""Sweep report: write the report as a page and as JSON into a store."""

import io
import json
import re
from datetime import timedelta

from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.limits.limited_store import LimitedStore
from worker.readable import jsonable
from worker.report.page import page_of
from worker.report.report import SINCE, report_of
from worker.report.sources import Sources
from worker.storage.driver import ObjectProperties
from worker.storage.errors import PermanentError
from worker.storage.keys import REPORT_BUCKET
from zot_artifact_client.contract import SWEEP_REPORT, SweepReportRequest, SweepReportResult

_NAME = re.compile(r"report-[0-9]{8}T[0-9]{6}Z\.(?:html|json)")
_LATEST = "latest"


class NoReportStore(PermanentError):
    """The settings name no store for the report."""


class ReportBucketTaken(PermanentError):
    """The bucket for the report has artifacts under the names of the report."""


def sweep_report(request: SweepReportRequest, job: RunningJob) -> SweepReportResult:  # noqa: ARG001
    """Write the report under its time and as `latest`; remove the oldest ones beyond `sweep.report.keep`.

    Raises:
        NoReportStore: `sweep.report.store` is not set, or has no place for the report.
        ReportBucketTaken: an artifact has one of its names; it is not overwritten.
        StorageError, Snooze: the store did not take it, or takes no job now.
    """
    settings = job.settings.sweep.report
    if settings.store is None:
        raise NoReportStore("no store is named for the report: set sweep.report.store")
    store = job.stores[settings.store]
    bucket = settings.bucket or REPORT_BUCKET
    if settings.bucket is None and not store.capabilities.reserved_buckets:
        raise NoReportStore(f"{store.name} has no reserved bucket: set sweep.report.bucket")
    sources = Sources(job.settings, job.catalogue, job.unlimited_stores)
    document = report_of(sources, timedelta(seconds=SINCE), job.stores)
    job.check()
    forms = {
        "html": (page_of(document).encode(), "text/html; charset=utf-8"),
        "json": (json.dumps(document, default=jsonable).encode(), "application/json"),
    }
    for name in (f"{_LATEST}.{form}" for form in forms):
        if job.catalogue.artifacts.copies_by_store(bucket, name):
            raise ReportBucketTaken(
                f"{bucket}/{name} is an artifact, and the report would overwrite it: set sweep.report.bucket to another"
            )
    store.create_bucket(bucket)
    keys = []
    for form, (body, kind) in forms.items():
        for stem in (f"report-{document['at']:%Y%m%dT%H%M%SZ}", _LATEST):
            keys.append(f"{stem}.{form}")
            store.write_object(bucket, keys[-1], io.BytesIO(body), properties=ObjectProperties(content_type=kind))
    _remove_old(store, bucket, settings.keep)
    return SweepReportResult(store=store.name, bucket=bucket, keys=tuple(keys), status=int(document["status"]))


def _remove_old(store: LimitedStore, bucket: str, keep: int) -> None:
    """Delete the oldest reports; no other object of the bucket is touched."""
    names = [each.key for each in store.list_objects(bucket, "report-") if _NAME.fullmatch(each.key)]
    for key in sorted(names)[: max(0, len(names) - 2 * keep)]:
        store.delete_object(bucket, key)


sweep_report_task = artifact_task(SWEEP_REPORT, writes=False)(sweep_report)
"""Its queue is `interactive`: the report tells of sweeps that fill their own queue."""
