"""How soon a canary that is damaged on purpose is found and repaired, with default settings."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta

from benchmarks.harness.result_rows import NotMeasured, Row, Samples, Target
from benchmarks.harness.testbed import Testbed
from worker import clock
from worker.catalogue import CanaryTimes, Catalogue
from worker.embedded.up_subprocess import running
from worker.settings import Settings

_POLL = 1.0
_WITHIN = 1200.0
"""Seconds: two runs of each sweep, which run every five minutes, and twice that."""
TARGET = Target(600, unit=" s")


def measure(testbed: Testbed) -> Iterator[Row]:
    """Start `zot-artifacts up`, damage a canary in each of its two stores, and wait until both are repaired."""
    home = testbed.directory / "canary"
    with running(home):
        environment = {**os.environ, "ZOT_HOME": str(home)}
        command = [sys.executable, "-m", "worker.cli", "sweep", "canary"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        times = _await_repair(Settings(home=home))
    detect = [each.detect_longest for each in times if each.detect_longest is not None]
    repair = [each.repair_longest for each in times if each.repair_longest is not None]
    yield Row("canary: from its damage until it is found, default settings", Samples(detect, " s"), target=TARGET)
    yield Row("canary: from the finding until it is repaired", Samples(repair, " s"), target=TARGET)


def _await_repair(settings: Settings) -> list[CanaryTimes]:
    catalogue, deadline = Catalogue(settings.catalogue_url), time.monotonic() + _WITHIN
    try:
        while time.monotonic() < deadline:
            times = catalogue.canaries.times(since=clock.now() - timedelta(days=1))
            if times and all(each.repair_seconds is not None for each in times):
                return times
            time.sleep(_POLL)
    finally:
        catalogue.close()
    raise NotMeasured(f"after {_WITHIN:.0f} s not every canary was repaired")
