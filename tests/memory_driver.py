"""Keep objects in the memory of this process: a driver for tests."""

import itertools
import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Self

from worker.storage.cloud.conditional_write import check_copied
from worker.storage.driver import (
    BUFFER_SIZE,
    Body,
    Capabilities,
    Condition,
    ListedObject,
    Match,
    ObjectStat,
    StaleUpload,
    VersionReader,
    WriteInfo,
)
from worker.storage.errors import AlreadyExists, NotFound, PreconditionFailed
from worker.storage.exception_boundary import exception_boundary

_CAPABILITIES = Capabilities(
    needs_digest_first=False,
    conditional_writes=True,
    implicit_buckets=True,
    prefix_keys=True,
    user_metadata=True,
    max_object_size=None,
    copies=True,
)


@dataclass(frozen=True, slots=True)
class _StoredObject:
    stat: ObjectStat
    data: bytes


class MemoryReader:
    """The bytes of an object, or of a range of it."""

    def __init__(self, held: _StoredObject, offset: int, length: int | None) -> None:
        self.stat = held.stat
        end = len(held.data) if length is None else offset + length
        self._rest = memoryview(held.data)[offset:end]

    def read(self, size: int, /) -> bytes:
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)

    def readinto(self, buffer: memoryview, /) -> int:
        piece, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """Do nothing: no resource is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@exception_boundary
class MemoryDriver:
    """A store that lives as long as its process. Several threads may use it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._buckets: dict[str, dict[str, _StoredObject]] = {}
        self._versions = itertools.count(1)

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return _CAPABILITIES

    def put(self, bucket: str, key: str, body: Body, info: WriteInfo, *, condition: Condition = None) -> ObjectStat:
        data = b"".join(iter(lambda: body.read(BUFFER_SIZE), b""))
        with self._lock:
            self._check_condition(bucket, key, condition)
            stat = ObjectStat(
                bucket,
                key,
                len(data),
                self._version(),
                datetime.now(UTC),
                body.digest.sha256,
                dict(info.metadata),
                properties=info.properties,
            )
            self._buckets.setdefault(bucket, {})[key] = _StoredObject(stat, data)
        return stat

    def open(
        self, bucket: str, key: str, *, offset: int = 0, length: int | None = None, uncached: bool = False
    ) -> VersionReader:
        del uncached  # there is no cache
        return MemoryReader(self._held(bucket, key), offset, length)

    def stat(self, bucket: str, key: str) -> ObjectStat:
        return self._held(bucket, key).stat

    def find_version(self, bucket: str, key: str) -> str | None:
        try:
            return self.stat(bucket, key).version
        except NotFound:
            return None

    def delete(self, bucket: str, key: str, *, condition: Match | None = None) -> bool:
        with self._lock:
            if key not in self._buckets.get(bucket, {}):
                return False
            self._check_condition(bucket, key, condition)
            del self._buckets[bucket][key]
        return True

    def copy(
        self,
        bucket: str,
        key: str,
        to_bucket: str,
        to_key: str,
        *,
        version: str | None = None,
        condition: Condition = None,
        storage_class: str | None = None,
    ) -> ObjectStat:
        del storage_class  # there is one
        held = self._held(bucket, key)
        check_copied(f"{self.name}: {bucket}/{key}", held.stat, version)
        with self._lock:
            self._check_condition(to_bucket, to_key, condition)
            stat = replace(held.stat, bucket=to_bucket, key=to_key, version=self._version(), modified=datetime.now(UTC))
            self._buckets.setdefault(to_bucket, {})[to_key] = _StoredObject(stat, held.data)
        return stat

    def iter_objects(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[ListedObject]:
        with self._lock:
            held = {key.encode(): held.stat for key, held in self._buckets.get(bucket, {}).items()}
        keys = sorted(held)
        for key in keys[bisect_right(keys, after.encode()) :]:
            if key.startswith(prefix.encode()):
                stat = held[key]
                yield ListedObject(stat.key, stat.size, stat.version, stat.modified)

    def create_bucket(self, bucket: str) -> bool:
        with self._lock:
            made = bucket not in self._buckets
            self._buckets.setdefault(bucket, {})
        return made

    def list_buckets(self) -> list[str]:
        with self._lock:
            return list(self._buckets)

    def bucket_exists(self, bucket: str) -> bool:
        return bucket in self._buckets

    def iter_stale_uploads(self) -> Iterator[StaleUpload]:
        return iter(())

    def remove_stale_upload(self, stale: StaleUpload) -> bool:
        del stale  # an unfinished write is not in the store
        return False

    def check(self) -> None:
        """Do nothing, because memory can always be reached."""

    def advice(self) -> list[str]:
        return []

    def close(self) -> None:
        """Do nothing: a closed store keeps its objects."""

    # Internals

    def _held(self, bucket: str, key: str) -> _StoredObject:
        with self._lock:
            try:
                return self._buckets[bucket][key]
            except KeyError:
                raise NotFound(f"{self._name}: {bucket}/{key} does not exist") from None

    def _version(self) -> str:
        return str(next(self._versions))

    def _check_condition(self, bucket: str, key: str, condition: Condition) -> None:
        held = self._buckets.get(bucket, {}).get(key)
        if condition == "create_only" and held:
            raise AlreadyExists(f"{self._name}: {bucket}/{key} exists already, and was only to be created")
        if isinstance(condition, Match) and (held is None or held.stat.version != condition.version):
            there = f"has the version {held.stat.version}" if held else "does not exist"
            raise PreconditionFailed(f"{self._name}: {bucket}/{key} {there}, {condition.version} was expected")
