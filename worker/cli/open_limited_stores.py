"""Open stores for a command that works without a worker: within the limits that they share with the workers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from uuid import uuid4

from worker.catalogue import Catalogue, CatalogueError
from worker.cli.errors import Failure
from worker.cli.output import note
from worker.cli.session import has_catalogue
from worker.exit_status import Status
from worker.limits.admission import Admission
from worker.limits.check_pauses import PauseCheck
from worker.limits.limited_store import LimitedStore, NoJob
from worker.limits.shared_redis import SharedRedis, redis_of_results
from worker.limits.snooze import Paused
from worker.limits.store_wait import StoreWait
from worker.settings.model import NoBroker, Settings
from worker.settings.section_models import StoreLimits
from worker.storage.configured_stores import Stores


@contextmanager
def stores_within_limits(
    settings: Settings,
    stores: Stores,
    names: Sequence[str],
    *,
    catalogue: Catalogue | None = None,
    optional: Sequence[str] = (),
) -> Iterator[list[LimitedStore]]:
    """Yield these stores with their pauses, circuit breakers, concurrency slots and bandwidth.

    The workers share all of them through their Redis and the catalogue. Without a broker there is no worker, and the
    command has the limits for itself.

    Args:
        settings: those of the command.
        stores: all that are configured.
        names: the stores to yield, in this order.
        catalogue: that of the settings, if it is open already; without one, it is opened if it is there.
        optional: further stores to yield, after the others; one that is paused is left out, with a note.

    Raises:
        Failure: one of `names` is paused; nothing was read.
        UnknownStore: naming the stores there are.
    """
    wanted = [*names, *optional]
    for name in wanted:
        stores[name]  # its error knows the nearest name
    try:
        client = redis_of_results(settings.results_url)
        shared = SharedRedis(lambda: client)
    except NoBroker:
        shared = SharedRedis(None)
        known = {name: settings.store_limits.get(name, StoreLimits()) for name in wanted}
        alone = {name: of.model_copy(update={"local_share": of.local_share or 1.0}) for name, of in known.items()}
        settings = settings.model_copy(update={"store_limits": {**settings.store_limits, **alone}})
    with ExitStack() as opened:
        paused = _pauses(settings, catalogue, opened)
        admission = Admission(settings, lambda name: stores[name].list_buckets(), shared, paused=paused)
        job = NoJob(f"command-{uuid4()}")
        pauses = {name: error for name in wanted if (error := paused(name)) is not None}
        for name, error in pauses.items():
            if name not in optional:
                way_out = f"`zot-artifacts resume store {name}` ends the pause"
                raise Failure(f"{error}; {way_out}", Status.UNKNOWN, type_="Paused")
            note(f"{error}: it is left out")
        yield [
            LimitedStore(stores[name], admission, job, wait=StoreWait(name, note))
            for name in wanted
            if name not in pauses
        ]


def _pauses(settings: Settings, catalogue: Catalogue | None, opened: ExitStack) -> Callable[[str], Paused | None]:
    """Return what tells of the pause of a store; without a catalogue there is none."""
    if catalogue is None:
        if not has_catalogue(settings):
            return lambda _: None
        try:
            catalogue = Catalogue(settings.catalogue_url, create=False)
        except CatalogueError as error:
            note(f"pauses do not count, the catalogue cannot be used: {error}")
            return lambda _: None
        opened.callback(catalogue.close)
    return PauseCheck(catalogue.pauses).of_store
