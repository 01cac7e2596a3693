"""The totals of all workers, as the exporter shows them."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

from prometheus_client import Metric
from redis import Redis

from worker.metric_counters import LEASE_RECOVERIES, METERS, SEPARATOR, STORE_ERRORS, Meter
from worker.metrics.family_builders import Histogram, counter, histogram
from worker.metrics.totals_sender import TOTALS
from worker.storage.errors import REFUSALS
from zot_artifact_client.contract import KINDS

_SUM = "sum"


def totals(client: "Redis", stores: Collection[str]) -> Iterator[Metric]:
    """Yield the totals of every meter. A store that left the settings is left out: its name is not used again."""
    kept: Any = client.hgetall(TOTALS)
    found: defaultdict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for field, value in kept.items():
        name, *rest = field.decode(errors="replace").split(SEPARATOR)
        meter = METERS.get(name)
        if meter is None or len(rest) != len(meter.labels) + bool(meter.buckets):
            continue  # of another version of this program
        store = rest[meter.labels.index("store")] if "store" in meter.labels else None
        if store is None or store in stores:
            with suppress(ValueError):
                found[name][tuple(rest)] = float(value)
    for name, labels in _watched(stores):
        found[name].setdefault(labels, 0)
    for name, meter in METERS.items():
        if meter.buckets:
            yield histogram(name, meter.about, _histograms(meter, found[name]).items(), meter.labels)
        else:
            yield counter(name, meter.about, sorted(found[name].items()), meter.labels)


def _watched(stores: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the counters that deploy/prometheus/rules.yaml has an alarm on.

    They begin at zero: Prometheus sees no increase to a first value.
    """
    yield from ((LEASE_RECOVERIES.name, (kind,)) for kind in KINDS)
    yield from ((STORE_ERRORS.name, (store, error.__name__)) for store in stores for error in REFUSALS)


def _histograms(meter: Meter, values: Mapping[tuple[str, ...], float]) -> dict[tuple[str, ...], Histogram]:
    made: dict[tuple[str, ...], Histogram] = {}
    for (*labels, part), value in sorted(values.items()):
        each = made.setdefault(tuple(labels), Histogram(meter.buckets))
        if part == _SUM:
            each.sum = value
        elif part.isdigit() and int(part) < len(each.counts):
            each.counts[int(part)] = value
    return made
