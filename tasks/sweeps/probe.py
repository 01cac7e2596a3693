"""Probe: try out every store, so that a broken one is known before it is needed."""

import logging

from worker.context import Context
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.storage.errors import StorageError
from worker.storage.probe import probe
from zot_artifact_client.contract import SWEEP_PROBE, SweepProbeRequest, SweepProbeResult

logger = logging.getLogger(__name__)


def sweep_probe(request: SweepProbeRequest, context: Context, job: RunningJob) -> SweepProbeResult:
    """Write, read, list and delete a small object in every store, and say what is wrong with which.

    A store that ignores create-if-absent is told by name: there only our own lease keeps two writers apart.

    Stores that are paused are left out.

    Raises:
        UnknownStore: naming the stores there are.
    """
    names = context.swept(request.store)
    faults = {}
    for name in names:
        job.step(f"probing {name}")
        job.check()
        fault = _fault(context, name)
        if fault:
            logger.error("store %s cannot be relied on: %s", name, fault)
            faults[name] = fault
        elif not context.stores[name].capabilities.conditional_writes:
            logger.warning(
                "store %s does not decide conditions itself: only our own lease keeps two writers apart", name
            )
    return SweepProbeResult(probed=tuple(names), faults=faults)


def _fault(context: Context, name: str) -> str | None:
    try:
        return probe(context.stores[name])
    except StorageError as error:
        return error.message


sweep_probe_task = artifact_task(SWEEP_PROBE, writes=False)(sweep_probe)
