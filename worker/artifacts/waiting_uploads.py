"""Find the uploads that wait only for stores that take no job now: their sources are not read again for those."""

from collections.abc import Collection, Iterable, Mapping

from worker.jobs.running_job import RunningJob
from worker.limits.limited_store import LimitedStores
from worker.limits.snooze import Snooze


def closed_stores(names: Iterable[str], stores: LimitedStores) -> dict[str, Snooze]:
    """Return those of these stores that take no job now, each with its Snooze."""
    closed: dict[str, Snooze] = {}
    for name in names:
        try:
            stores.admitting([name])
        except Snooze as error:
            closed[name] = error
    return closed


def lacking(
    wanted: Mapping[tuple[str, str], Collection[str]], closed: Collection[str], job: RunningJob
) -> set[tuple[str, str]]:
    """Return those of the paths, bucket and key, of which a store that takes jobs has no copy by this job yet.

    `wanted`: the stores of each path.
    """
    artifacts = job.catalogue.artifacts
    begun = artifacts.uploaded_by(job.id, list(wanted))
    copies = artifacts.copies_of_all([artifact.id for artifact in begun.values()])

    def is_there(path: tuple[str, str], store: str) -> bool:
        copy = copies.get(begun[path].id, {}).get(store) if path in begun else None
        return copy is not None and copy.state.good

    return {
        path for path, stores in wanted.items() if not all(name in closed or is_there(path, name) for name in stores)
    }
