"""The base class of the cloud drivers: layouts, reserved buckets, markers and the ends of listings."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from fnmatch import fnmatchcase

from worker.storage.cloud.error_mapping import Origin, missing_bucket
from worker.storage.cloud.metadata import MetadataFormat
from worker.storage.cloud.plain_requests import SMALL, RealObject
from worker.storage.cloud.small_reads import AHEAD, PlainReads, PlainReadsAhead
from worker.storage.config import CloudConfig
from worker.storage.driver import Capabilities, WholeObject
from worker.storage.errors import NotFound, PermanentError, StorageError
from worker.storage.keys import RESERVED_BUCKET, RESERVED_PREFIX, RESERVED_SEGMENT

MARKER = f"{RESERVED_SEGMENT}bucket"
"""The key of the empty object that marks an empty logical bucket."""


class CloudDriver(ABC):
    """The base of the drivers of object stores.

    In the layout `prefixed` one real bucket holds everything under `bucket/key`. In `native` logical buckets are real,
    except the reserved ones: their names are fixed, and another account may own real buckets with these names. They are
    kept under RESERVED_PREFIX in the bucket of the setting `reserved_bucket`.
    """

    def __init__(self, name: str, config: CloudConfig, endpoint: str) -> None:
        self._name = name
        self._layout = config
        self._prefixed = config.layout == "prefixed"
        self._origin = Origin(name, endpoint, config.real_bucket if self._prefixed else None, config.word)

    @property
    def name(self) -> str:
        return self._name

    def _shared_capabilities(self, metadata: MetadataFormat, *, official: bool, without_sdk: bool) -> Capabilities:
        """Return what all clouds have.

        `official`: this is the provider's own service, which checks uploads. `without_sdk`: small objects are read so.
        """
        read_back = self._layout.read_back
        return Capabilities(
            needs_digest_first=True,
            conditional_writes=True,
            implicit_buckets=self._prefixed,
            prefix_keys=True,
            user_metadata=True,
            metadata=metadata,
            max_object_size=None,
            copies=True,
            whole_reads=SMALL if without_sdk else 0,
            reads_ahead=AHEAD if without_sdk else 1,
            checks_uploads=(official or None) if read_back is None else not read_back,
            reserved_buckets=self._prefixed or self._layout.reserved_bucket is not None,
            signs_puts=True,
            holds=True,
        )

    def advice(self) -> list[str]:
        """Return which settings quarantine and probes lack; see `Driver.advice`."""
        if self._prefixed or self._layout.reserved_bucket:
            return []
        return [
            (
                f"{self._name}: no {self._origin.word} is configured for quarantine and probes, so nothing can be "
                f"repaired there; name one of yours with stores.{self._name}.reserved_bucket"
            )
        ]

    # Where things are

    def _real(self, bucket: str) -> tuple[str, str]:
        """Return the real bucket, and the prefix of every key in it.

        Raises:
            PermanentError: no real bucket is configured for reserved ones.
        """
        if self._prefixed:
            return str(self._layout.real_bucket), f"{bucket}/"
        if not bucket.startswith(RESERVED_BUCKET):
            return bucket, ""
        if self._layout.reserved_bucket is None:
            raise PermanentError(
                f"{self._name}: no {self._origin.word} is configured for {bucket!r}; name one of yours with "
                f"stores.{self._name}.reserved_bucket"
            )
        return self._layout.reserved_bucket, f"{RESERVED_PREFIX}{bucket}/"

    def _real_object(self, bucket: str, key: str) -> RealObject:
        real, start = self._real(bucket)
        return RealObject(real, start + key, f"{bucket}/{key}")

    def _real_buckets(self) -> list[str]:
        """Return the real buckets that the settings name: only they are searched for stale uploads."""
        if self._prefixed:
            return [str(self._layout.real_bucket)]
        named = [*self._layout.buckets, *filter(None, [self._layout.reserved_bucket])]
        if any(char in pattern for pattern in named for char in "*?["):
            listed = self._list_real_buckets()
            return [real for real in listed if any(fnmatchcase(real, pattern) for pattern in named)]
        return list(dict.fromkeys(named))

    def _logical(self, real: str, name: str) -> tuple[str, str]:
        """Return the logical bucket and the key of a real object."""
        if not self._prefixed and not name.startswith(RESERVED_PREFIX):
            return real, name
        bucket, _, key = name.removeprefix("" if self._prefixed else RESERVED_PREFIX).partition("/")
        return bucket, key

    def _is_reserved(self, real: str, name: str) -> bool:
        """Return whether a real object is in a reserved bucket, which has only objects of the worker."""
        if not self._prefixed and not name.startswith(RESERVED_PREFIX):
            return False
        return self._logical(real, name)[0].startswith(RESERVED_BUCKET)

    # Small objects

    _plain_reads: PlainReads

    def read_whole(self, bucket: str, key: str, size: int) -> WholeObject | None:
        """Return an object of exactly `size` bytes; see `FullDriver`."""
        return self._plain_reads.read(self._real_object(bucket, key), size)

    def small_reads(self) -> PlainReadsAhead:
        """Return a reader of many small objects."""
        return self._plain_reads.ahead(self._real_object)

    # Buckets

    def create_bucket(self, bucket: str) -> bool:
        if self._is_real(bucket):
            return self._create_real_bucket(bucket)
        existed = self.bucket_exists(bucket)
        self._write_marker(bucket)  # also if the bucket has objects, so that it outlives the last of them
        return not existed

    def bucket_exists(self, bucket: str) -> bool:
        if self._is_real(bucket):
            return self._real_bucket_exists(bucket)
        real, start = self._real(bucket)
        names = self._first_names(real, start)
        if names is None and self._prefixed:
            raise missing_bucket(self._origin, real)
        return bool(names)

    def list_buckets(self) -> list[str]:
        if self._prefixed:
            return [name.rstrip("/") for name in self._first_segments(str(self._layout.real_bucket))]
        return self._real_buckets()

    def check(self) -> None:
        """Ask for the first page of a listing, which needs no further permission."""
        if self._prefixed:
            if self._first_names(str(self._layout.real_bucket), "") is None:
                raise missing_bucket(self._origin, str(self._layout.real_bucket))
        else:
            self._list_real_buckets()

    def _is_real(self, bucket: str) -> bool:
        return not self._prefixed and not bucket.startswith(RESERVED_BUCKET)

    def _missing(self, bucket: str, key: str) -> StorageError:
        """Return the error for a missing object or bucket, which most answers do not tell apart."""
        real, _ = self._real(bucket)
        if not self._real_bucket_exists(real):
            return missing_bucket(self._origin, real)
        return NotFound(f"{self._name}: {bucket}/{key} does not exist")

    @abstractmethod
    def _list_real_buckets(self) -> list[str]: ...
    @abstractmethod
    def _real_bucket_exists(self, real: str) -> bool: ...
    @abstractmethod
    def _create_real_bucket(self, real: str) -> bool: ...
    @abstractmethod
    def _first_names(self, real: str, prefix: str) -> set[str] | None:
        """Return the first two real names that start with `prefix`, or None where there is no such real bucket."""

    @abstractmethod
    def _first_segments(self, real: str) -> Iterator[str]:
        """Yield the first segments of the names in a real bucket, each once, with its slash."""

    @abstractmethod
    def _write_marker(self, bucket: str) -> None: ...
