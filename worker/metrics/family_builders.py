"""Make the families of Prometheus, each with the prefix of this program."""

from collections.abc import Iterable, Sequence

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

PREFIX = "zot_artifacts_"
Sample = tuple[tuple[str, ...], float]
"""The labels of a value, and the value."""


def gauge(name: str, about: str, samples: Iterable[Sample], labels: Sequence[str] = ()) -> Metric:
    """Return values that go up and down."""
    return _filled(GaugeMetricFamily(PREFIX + name, about, labels=labels), samples)


def counter(name: str, about: str, samples: Iterable[Sample], labels: Sequence[str] = ()) -> Metric:
    """Return values that only grow, until what counts them is started again."""
    return _filled(CounterMetricFamily(PREFIX + name, about, labels=labels), samples)


class Histogram:
    """Counts of values by their bucket, and their sum."""

    def __init__(self, buckets: Sequence[float]) -> None:
        self.buckets = buckets
        self.counts = [0.0] * (len(buckets) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[next((n for n, edge in enumerate(self.buckets) if value <= edge), len(self.buckets))] += 1
        self.sum += value


def histogram(
    name: str, about: str, found: Iterable[tuple[tuple[str, ...], Histogram]], labels: Sequence[str]
) -> Metric:
    """Return histograms by their labels."""
    family = HistogramMetricFamily(PREFIX + name, about, labels=labels)
    for values, each in found:
        below, cumulated = 0.0, []
        for edge, count in zip((*each.buckets, float("inf")), each.counts, strict=True):
            below += count
            cumulated.append(("+Inf" if edge == float("inf") else f"{edge:g}", below))
        family.add_metric(values, cumulated, each.sum)
    return family


def _filled(family: GaugeMetricFamily | CounterMetricFamily, samples: Iterable[Sample]) -> Metric:
    for labels, value in samples:
        family.add_metric(labels, value)
    return family
