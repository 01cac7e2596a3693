"""What each sweep would do in one store now: counted from the catalogue, or from a listing, without a change."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from worker import clock
from worker.artifacts.read_budget import forecast_for, forecast_of
from worker.artifacts.reconcile import buckets_to_compare, compare
from worker.cli.session import Session
from worker.counted import counted
from worker.readable import age, size
from worker.settings.budgets import Prices

_MOST = 1_000_000_000
_NAMED = 5
_RECENT = timedelta(hours=1)


def _verify(session: Session, store: str, _prefix: str | None) -> dict[str, Any]:
    sweep, now = session.settings.sweep.verify, clock.now()
    claims, period = session.catalogue.sweep_claims, sweep.period_of(store)
    first_read = sweep.first_read_of(store)
    due = claims.count_due(store, period=period, first_read=first_read, now=now, limit=_MOST)
    mean = claims.mean_size(store, period=period, first_read=first_read, now=now) if due else 0
    ahead = forecast_for(session.settings, store, due, due * mean)
    rate = session.catalogue.pages.read_rate(store, since=now - _RECENT)
    takes = ahead.takes or (timedelta(seconds=due / rate) if rate else None)
    return {
        "due": due, "about": size(due * mean), "requests": due,
        "takes": None if takes is None else age(now, now + takes),
        "costs": f"{ahead.cost:,.2f}" if ahead.cost else None,
    }  # fmt: skip


def whole_pass(session: Session, store: str) -> dict[str, Any] | None:
    """Return what one pass over all copies of a store takes and costs, None where nothing limits or prices it."""
    ahead = forecast_of(session.settings, session.catalogue, store, now=clock.now())
    if ahead is None:
        return None
    days = ahead.takes / timedelta(days=1) if ahead.takes else None
    return {
        "store": store, "copies": ahead.copies, "bytes": ahead.bytes, "requests": ahead.copies, "cost": ahead.cost,
        "cap_per_month": ahead.cap, "days": days, "period_days": ahead.period / timedelta(days=1),
        "summary": ahead.summary, "warning": ahead.warning,
    }  # fmt: skip


def _repair(session: Session, store: str, prefix: str | None) -> dict[str, Any]:
    repairs, sources = session.catalogue.repairs, list(session.settings.stores)
    count = repairs.count_repairable(store, sources=sources, within=_split(prefix))
    stopped = repairs.untrusted().get(store)
    off = store in session.settings.sweep.repair.off
    metadata = repairs.count_wrong_metadata(store, within=_split(prefix))
    return {
        "repairable": count,
        "wrong_metadata": metadata,
        "stopped": stopped or ("switched off" if off else None),
    }


def _replicate(session: Session, store: str, prefix: str | None) -> dict[str, Any]:
    settings, bucket, below = session.settings, *_split(prefix)
    found = session.catalogue.sweep_claims.measure_absent(store, bucket, below, wanted=settings.wanted_in(store))
    sources = sorted((name, count, size_) for name, (count, size_) in found.items() if name is not None)
    cost = sum(settings.prices.get(name, Prices()).cost(size_, count) for name, count, size_ in sources)
    read_from = ", ".join(f"{name} {size(size_)} in {counted(count, 'copy')}" for name, count, size_ in sources)
    return {
        "absent": sum(count for count, _ in found.values()),
        "size": size(sum(size_ for _, size_ in found.values())),
        "read from": read_from or None,
        "costs": f"{cost:,.2f}" if cost else None,
        "without a good copy": found.get(None, (0, 0))[0],
    }


def _cleanup(session: Session, store: str, _prefix: str | None) -> dict[str, Any]:
    before = clock.earliest() - session.settings.sweep.cleanup.age
    stale = [each for each in session.stores[store].iter_stale_uploads() if each.since <= before]
    return {"stale": len(stale), "ours": sum(each.ours for each in stale)}


def _reconcile(session: Session, store: str, prefix: str | None) -> dict[str, Any]:
    bucket, below = _split(prefix)
    buckets = [bucket] if bucket else buckets_to_compare(session.stores[store], session.catalogue)
    listed = recorded = 0
    found: dict[str, int] = {}
    some: list[str] = []
    for each in buckets:
        for key in compare(session.stores[store], session.catalogue, each, below, "", run=clock.now()):
            listed, recorded = listed + key.listed, recorded + key.recorded
            if key.sighting is not None:
                found[key.sighting.kind] = found.get(key.sighting.kind, 0) + 1
                some += [f"{key.sighting.kind} {each}/{key.key}"] if len(some) < _NAMED else []
    told = ", ".join(f"{count} {kind}" for kind, count in found.items())
    return {
        "listed": listed,
        "recorded": recorded,
        "differ": told or ("nothing" if listed == recorded else "nothing yet"),
        "such as": ", ".join(some) or None,
    }


def _evidence(session: Session, store: str, prefix: str | None) -> dict[str, Any]:
    bucket, below = _split(prefix)
    buckets = [bucket] if bucket else sorted(session.catalogue.artifacts.buckets())
    copies = sum(1 for each in buckets for _ in session.catalogue.evidence_checks.recorded(store, each, below))
    settings = session.settings.sweep.evidence
    return {"copies": copies, "asked by": settings.source, "stopped": "switched off" if store in settings.off else None}


def _split(prefix: str | None) -> tuple[str | None, str]:
    bucket, _, below = (prefix or "").partition("/")
    return bucket or None, below


PLANS: dict[str, Callable[[Session, str, str | None], dict[str, Any]]] = {
    "verify": _verify,
    "repair": _repair,
    "replicate": _replicate,
    "cleanup": _cleanup,
    "reconcile": _reconcile,
    "evidence": _evidence,
}
"""By the name of the sweep, what counts its work in one store; the last argument is BUCKET/PREFIX."""
