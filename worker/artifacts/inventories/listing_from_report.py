"""List a store from an inventory report, by the bytes of the keys, as its driver would."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime

from worker import clock
from worker.artifacts.disk_sort import DiskSort
from worker.artifacts.inventories.files import ReportFiles
from worker.artifacts.inventories.manifest import BadInventory, Report, check_checksum, parse_manifest
from worker.artifacts.inventories.rows import InventoryRow, read_rows
from worker.counted import counted
from worker.jobs.running_job import RunningJob
from worker.limits.limited_store import LimitedStores
from worker.settings import Settings
from worker.storage.config import AzureConfig, GcsConfig, S3Config, StoreConfig
from worker.storage.driver import ListedObject
from worker.storage.keys import RESERVED_BUCKET, RESERVED_SEGMENT
from zot_artifact_client.contract import SweepEvidenceRequest, SweepReconcileRequest

_HEARTBEAT = 1000


class InventoryListing:
    """The objects of a report under their logical names, sorted on disk. It is listed once, bucket after bucket.

    `at`: the time whose state the report has. `bucket`: the only logical bucket that it has, None if it may have all.
    `computed`: it has the checksums of some objects, which S3 computed at rest, and lists no bucket.
    """

    def __init__(self, name: str, report: Report, bucket: str | None, rows: DiskSort) -> None:
        self.name, self.at, self.bucket, self.computed = name, report.at, bucket, report.computed
        self._rows = iter(rows)
        self._next = next(self._rows, None)

    def list_objects(self, bucket: str, prefix: str = "", *, after: str = "") -> Iterator[ListedObject]:
        """Yield the objects of a bucket, which comes after those that were listed before; see `Store.list_objects`."""
        for found, _ in self.with_checksums(bucket, prefix):
            if not after or found.key > after:
                yield found

    def with_checksums(self, bucket: str, prefix: str = "") -> Iterator[tuple[ListedObject, Mapping[str, str]]]:
        """Yield the same with the checksums that the report has, by the names of `ObjectStat.storage_tags`."""
        while self._next is not None and self._next[0] < bucket:
            self._next = next(self._rows, None)
        while self._next is not None and self._next[0] == bucket:
            row = self._next
            _, key, size, version, modified, checksums = row
            self._next = next(self._rows, None)
            if self._next == row:
                continue  # reports may name an object twice
            if key.startswith(prefix):
                size = None if size < 0 else size
                yield ListedObject(key, size, version, datetime.fromtimestamp(modified, UTC)), dict(checksums)


def requested_inventory(
    request: SweepEvidenceRequest | SweepReconcileRequest, store: str, job: RunningJob
) -> AbstractContextManager[InventoryListing | None]:
    """Open the report that a sweep reads in place of the listing of a store; None where none is named.

    Raise as `open_inventory`.
    """
    if request.inventory is None:
        return nullcontext()
    return open_inventory(
        request.inventory, store, request.bucket, request.prefix, stores=job.stores, settings=job.settings,
        heartbeat=job.heartbeat, lists=isinstance(request, SweepReconcileRequest),
    )  # fmt: skip


@contextmanager
def open_inventory(
    place: str,
    store: str,
    bucket: str | None,
    prefix: str,
    *,
    stores: LimitedStores,
    settings: Settings,
    heartbeat: Callable[[], object] = lambda: None,
    lists: bool = False,
) -> Iterator[InventoryListing]:
    """Read a whole inventory report and yield it as the listing of a store.

    All of it is read and checked before a row is yielded: the manifest against its checksum, each file against size and
    MD5, the number of rows where the manifest has it. Memory does not grow with the report.

    Args:
        place: the manifest: STORE:BUCKET/KEY of a configured store, an absolute path below a root, or a URL.
        store: the configured store that the report lists.
        bucket: the logical bucket that it is needed for; None for all of the store.
        prefix: the prefix of the keys that it is needed for.
        stores: the configured stores.
        settings: for the roots and hosts of files, and where temporary files go.
        heartbeat: called often; may raise.
        lists: a report is needed that has all objects, and not only the checksums of some.

    Raises:
        BadInventory: it is incomplete, damaged, of the future, of another bucket or account, or does not have all that
            is needed.
        StorageError, Snooze: it cannot be read.
    """
    files = ReportFiles(place, stores, settings, heartbeat)
    data, checksum = files.manifest()
    report = parse_manifest(place, data)
    if lists and report.computed:
        raise BadInventory(f"{place}: a report of S3 Batch Operations lists no bucket: it is for `sweep evidence`")
    if checksum is not None:
        check_checksum(place, data, checksum)
    elif report.provider != "gcs" and not report.computed:
        raise BadInventory(f"{place}: the file with its checksum is not beside it: the report is not complete")
    if report.at > clock.now() + clock.SKEW:
        raise BadInventory(f"{place}: it is of {report.at:%Y-%m-%d %H:%M} UTC, which is in the future")
    names = _Names(place, store, settings.stores[store], report)
    names.check_scope(bucket, prefix)
    with DiskSort(settings.spool_dir if settings.spool_dir.is_dir() else None) as rows:
        count = 0
        for each in report.files:
            with files.fetched(each) as file:
                for row in read_rows(each.name, file, report):
                    count += 1
                    if count % _HEARTBEAT == 0:
                        heartbeat()
                    if row is not None and (found := names.logical(row)) is not None:
                        size = -1 if row.size is None else row.size
                        rows.add((*found, size, row.version, row.modified.timestamp(), sorted(row.checksums.items())))
        if report.rows is not None and count != report.rows:
            raise BadInventory(f"{place}: its files have {counted(count, 'row')}, the manifest says {report.rows}")
        listing = InventoryListing(store, report, names.only, rows)
        yield listing


class _Names:
    """The names of the objects of a report in a store; a report of another bucket or kind is refused."""

    def __init__(self, place: str, store: str, config: StoreConfig, report: Report) -> None:
        if not isinstance(config, S3Config | GcsConfig | AzureConfig) or config.type != report.provider:
            raise BadInventory(f"{place}: it is an inventory of {report.provider}, the store {store} is {config.type}")
        self._place, self._report = place, report
        self._prefixed = config.layout == "prefixed"
        self._real = config.real_bucket if self._prefixed else report.bucket
        self.only = None if self._prefixed else report.bucket
        self._computed = report.computed
        if self._prefixed and report.bucket not in {None, self._real}:
            raise BadInventory(f"{place}: it lists the bucket {report.bucket}, the store {store} is in {self._real}")
        account = config.account_url if isinstance(config, AzureConfig) else None
        if account is not None and report.account and f"//{report.account}".lower() not in account.lower():
            raise BadInventory(f"{place}: it lists the account {report.account}, the store {store} is in {account}")

    def check_scope(self, bucket: str | None, prefix: str) -> None:
        """Raise BadInventory unless the report has all objects of a logical bucket and prefix."""
        if self.only is not None and bucket not in {None, self.only}:
            raise BadInventory(f"{self._place}: it lists the bucket {self.only}, not {bucket}")
        if not self._report.within:
            return
        parts = [self._real] if self._prefixed else []
        wanted = "/".join([*filter(None, parts), *([f"{bucket}/{prefix}"] if bucket else [""])])
        if not any(wanted.startswith(each) for each in self._report.within):
            has = ", ".join(self._report.within)[:200]
            raise BadInventory(f"{self._place}: it has only what begins with {has}: give that as --prefix")

    def logical(self, row: InventoryRow) -> tuple[str, str] | None:
        """Return the logical bucket and key of a row, None if it is none of an artifact.

        Raises:
            BadInventory: it is of another bucket than the report.
        """
        if self._report.provider == "azure":
            if self._prefixed and row.bucket != self._real:
                return None  # a report has all containers of an account
        elif self._computed:
            if self._prefixed and row.bucket != self._real:
                return None  # a job may have objects of several buckets
        elif row.bucket != self._real:
            raise BadInventory(f"{self._place}: it has a row of the bucket {row.bucket}, not {self._real}")
        bucket, key = row.bucket, row.key
        if self._prefixed:
            bucket, _, key = row.key.partition("/")
        if not key or bucket.startswith(RESERVED_BUCKET) or key.startswith(RESERVED_SEGMENT):
            return None
        return bucket, key
