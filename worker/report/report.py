"""The report: what is open, and what was read, found and done, as one document."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, Any

from worker.artifacts.quarantined_bytes import quarantined
from worker.artifacts.verification_log.kept_head import signed_head
from worker.artifacts.verification_log.signature import LogKeys
from worker.catalogue import Catalogue
from worker.limits.snooze import Snooze
from worker.report.preservation_level import preservation_level
from worker.report.sources import Sources
from worker.report.status import document_of
from worker.storage.errors import StorageError
from zot_artifact_client.contract import JobState

if TYPE_CHECKING:
    from worker.limits.limited_store import AnyStore  # it imports the clients of the broker

BARS = 12
"""Bars of the plot of ages; the period has `WITHIN` of them."""
WITHIN = 10
SINCE = 30 * 86400
"""Seconds for which findings are counted by default."""
_NAMED = 20


def report_of(sources: Sources, since: timedelta, stores: Mapping[str, "AnyStore"]) -> dict[str, Any]:
    """Return the report as one document; findings are counted as far back as `since`.

    `stores`: those whose quarantines are listed; within their limits, or without.
    """
    catalogue = sources.catalogue
    document = document_of(sources)
    now: datetime = document["at"]
    evidence = catalogue.evidence_checks.by_store()
    for row in document["stores"]:
        period = timedelta(seconds=row["period_seconds"])
        edges = [now + timedelta(days=1), *(now - period * bar / WITHIN for bar in range(1, BARS))]
        row["ages"] = {
            "bar_seconds": period.total_seconds() / WITHIN,
            "read": catalogue.coverage.ages(row["store"], edges, read=True),
            "not_read_yet": catalogue.coverage.ages(row["store"], edges, read=False),
        }
        row["bad_verdicts"] = catalogue.coverage.bad_verdicts(row["store"], since=now - since)
        row["quarantine"] = _quarantine(stores, row["store"], catalogue)
        row["evidence"] = asdict(evidence[row["store"]]) if row["store"] in evidence else None
    dead = catalogue.job_admin.find([JobState.DEAD], limit=_NAMED)
    detected = catalogue.coverage.seconds_to_detect(since=now - since)
    document |= {
        "since": now - since,
        "detected": {
            "findings": len(detected), "median_seconds": median(detected) if detected else None,
            "longest_seconds": max(detected, default=None),
        },
        "handled": {kind: asdict(each) for kind, each in catalogue.findings.history(since=now - since).items()},
        "resolved": [asdict(each) for each in catalogue.findings.last_resolved(_NAMED)],
        "dead": [
            {"job": job.id, "kind": job.kind, "at": job.finished_at, "message": (job.error or {}).get("message")}
            for job in dead
        ],
        "log_head": signed_head(catalogue, LogKeys.of(sources.settings.verification_log)),
        "catalogue": catalogue.identity,
    }  # fmt: skip
    return document | {"preservation": preservation_level(sources.settings, document)}


def _quarantine(stores: Mapping[str, "AnyStore"], name: str, catalogue: Catalogue) -> dict[str, Any]:
    try:
        store = stores[name]
        if not store.capabilities.reserved_buckets:
            return {"objects": 0, "bytes": 0, "error": None}
        sizes = [each.size or 0 for each in quarantined(store, catalogue)]
    except (StorageError, Snooze) as error:
        return {"objects": None, "bytes": None, "error": str(error)}
    return {"objects": len(sizes), "bytes": sum(sizes), "error": None}
