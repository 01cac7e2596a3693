"""The bandwidth limit of a store, for a command that reads from it without a worker."""

from worker.cli.service_checks import result_client
from worker.limits.admission import Admission
from worker.limits.shared_redis import SharedRedis
from worker.settings.model import NoBroker, Settings
from worker.storage.integrity.verifying_reader import OnBytes


def within_bandwidth(settings: Settings, store: str, tell: OnBytes) -> OnBytes:
    """Return what takes each piece from the bandwidth of a store, which it shares with the workers, and tells of it.

    While their Redis does not answer it has its share, see `store_limits.NAME.local_share`: all of it if there is none.
    """
    limits = settings.store_limits.get(store)
    if limits is None or limits.bytes_per_second is None:
        return tell
    limit = limits.bytes_per_second
    try:
        client = result_client(settings)
    except NoBroker:  # so there is no worker
        client = None
        alone = limits.model_copy(update={"local_share": limits.local_share or 1.0})
        settings = settings.model_copy(update={"store_limits": {store: alone}})
    admission = Admission(settings, lambda _: None, SharedRedis(lambda: client))

    def metered(count: int) -> None:
        if count:
            admission.take_bandwidth(store, count, limit, lambda: None)
        tell(count)

    return metered
