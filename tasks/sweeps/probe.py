"""Sweep probe: probe every store, so that a broken one is found before a job needs it."""

import logging
from contextlib import suppress

from worker.artifacts.verification_log.kept_head import see_head
from worker.artifacts.verification_log.signature import BadKeyFile, LogKeys
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.storage.errors import OtherWriter, StorageError
from worker.storage.probe import has_little_room, probe
from zot_artifact_client.contract import SWEEP_PROBE, SweepProbeRequest, SweepProbeResult

logger = logging.getLogger(__name__)


def sweep_probe(request: SweepProbeRequest, job: RunningJob) -> SweepProbeResult:
    """Write, read, list and delete a small object in every store, and report what is wrong with which.

    A store that ignores create-if-absent is named: there only our own lease keeps two writers apart. Stores that are
    paused are left out. Those whose circuit breaker is open are probed too, and a probe that succeeds closes it. Each
    store keeps the head of the verification log, and the log is compared with the head that it kept before.

    Raises:
        UnknownStore: naming the stores there are.
    """
    names = job.unpaused_stores(request.store)
    if head := job.catalogue.verifications.durable_head():
        logger.info("the verification log ends with row %d of %s: %s", head.id, head.at, head.hash)
    faults, little_room, keys = dict[str, str](), list[str](), LogKeys.of(job.settings.verification_log)
    for name in names:
        job.step(f"probing {name}")
        job.check()
        store = job.unlimited_stores[name]
        try:
            fault = probe(store)
            job.stores.close_breaker(name)  # it answers, even if it cannot be relied on
            changed = None if fault else see_head(store, job.catalogue, keys)
        except OtherWriter as error:
            fault, changed = error.message, None
            with suppress(StorageError, BadKeyFile):
                see_head(store, job.catalogue, keys)
        except StorageError as error:
            fault, changed = error.message, None
        except BadKeyFile as error:
            changed = str(error)
        if has_little_room(job.settings.stores.get(name)):
            little_room.append(name)
        fault = fault or changed
        if fault:
            logger.error("store %s cannot be relied on: %s", name, fault)
            faults[name] = fault
        elif not store.capabilities.conditional_writes:
            logger.warning(
                "store %s does not decide conditions itself: only our own lease keeps two writers apart", name
            )
    return SweepProbeResult(probed=tuple(names), faults=faults, little_room=tuple(little_room))


sweep_probe_task = artifact_task(SWEEP_PROBE, writes=False)(sweep_probe)
