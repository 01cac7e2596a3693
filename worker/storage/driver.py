"""Define what a backend implements: the Driver protocols, their values and capabilities.

A driver never checks keys, never decides whether bytes are right, and never retries beyond its SDK's own bounded
request retries: `Store` does the first two for all drivers, and Celery retries. A driver translates every error of its
SDK into `worker.storage.errors`, at one place.
"""

import hashlib
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

from worker.storage.errors import StorageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

BUFFER_SIZE = 1 << 20
"""Bytes read at a time: large enough that hashing runs at full speed and without Python's global lock."""
WRITE_SIZE = 256 * 1024
"""Most bytes of one write to a file: for 1 MiB Linux may look for as much memory in one piece, which takes long."""


@dataclass(frozen=True, slots=True)
class Digest:
    """The identity of some bytes: how many, and their SHA-256 as 64 lower-case hex digits."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ObjectProperties:
    """The HTTP headers that a cloud keeps beside the bytes and gives to its readers; None for what is not set.

    `tags` are the object's tags as the query of a URL, by name. No stat has them: see `FullDriver.tags`.
    """

    content_type: str | None = None
    content_encoding: str | None = None
    content_disposition: str | None = None
    content_language: str | None = None
    cache_control: str | None = None
    tags: str | None = None


@dataclass(frozen=True, slots=True)
class WriteInfo:
    """What is known about an object before its first byte is written.

    `size` and `sha256` are None where they are unknown; a driver that states `needs_digest_first` always gets both.
    `storage_class` is the store's own name of a class or tier, in place of the configured one; only a driver that
    states `storage_classes` gets one.
    """

    size: int | None = None
    sha256: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    storage_class: str | None = None
    properties: ObjectProperties = ObjectProperties()


@dataclass(frozen=True, slots=True)
class Match:
    """Write or delete only if the object still has this version tag (`ObjectStat.version`)."""

    version: str


# None: over any object. "create_only": only if there is no object. Match: only over that version.
Condition = Literal["create_only"] | Match | None


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """What a store reports about an object without reading its bytes. None of it proves the content.

    `version` is the store's own tag, which changes with every write of the key (ETag, generation, inode and time).
    `sha256` is the digest that was stored beside the object, lower-case, or None; it is a claim, not evidence.
    `not_carried` names what else the store keeps beside the bytes, such as retention: it is no part of an artifact.
    `storage_tags` is weaker evidence under the name the store gives it, such as `{"etag": …}`.
    """

    bucket: str
    key: str
    size: int
    version: str
    modified: datetime
    sha256: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    storage_tags: Mapping[str, str] = field(default_factory=dict)
    properties: ObjectProperties = ObjectProperties()
    not_carried: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One row of a listing: what every store can say without a request per object.

    `size` is None, `version` empty and `modified` 1970 if the store gives no valid value.
    """

    key: str
    size: int | None
    version: str
    modified: datetime


class WholeObject(NamedTuple):
    """The bytes of a whole small object, as a buffer, and the version tag that they are of.

    `sha256` is the digest that is stored beside the object, lower-case, and empty if there is none.
    """

    data: "Buffer"
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class StaleUpload:
    """A write that was begun and not finished: a temporary file or an open multipart upload.

    `token` is for the driver's own use. `since` is when it was begun. `ours` is False where the store does not tell who
    began it: only the catalogue may show that the worker did.
    """

    description: str
    since: datetime
    token: tuple[str, ...]
    ours: bool = True


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart upload as the store has it: its number (from 1), its size in bytes and the store's tag.

    The tag changes when other bytes are uploaded under the same number.
    """

    number: int
    size: int
    tag: str


@dataclass(frozen=True, slots=True)
class PartLimits:
    """The sizes of parts that a store accepts, in bytes. The last part may be smaller than `min_size`.

    `exclusive`: another write of the key that completes meanwhile ends the multipart upload; continuing it raises
    NotFound, and a new upload must begin. `above`: objects up to this size are sent in one request, which needs no
    more memory than a part. `compared_with`: with "sha256" the store refuses a part whose bytes have another SHA-256
    than `upload_part` is given; with "md5" a part is compared with its MD5, which `upload_part` takes where it is
    known; with None the driver has another checksum.
    """

    min_size: int
    max_size: int
    max_parts: int
    exclusive: bool = False
    above: int = 0
    compared_with: Literal["sha256", "md5"] | None = None


class MetadataRules(Protocol):
    """The metadata that a store can keep beside the bytes."""

    def check(self, metadata: Mapping[str, str], where: str) -> None:
        """Raise InvalidMetadata if the store cannot keep all of it; `where` begins the message."""
        ...

    def kept(self, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """Return what the store can keep of it, leaving out as few values as possible."""
        ...


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Facts about a store, in place of optional methods.

    Attributes:
        needs_digest_first: size and SHA-256 must be known before the first byte is sent.
        conditional_writes: `create_only` and `Match` of writes are decided by the store itself, atomically.
        implicit_buckets: writing an object makes its bucket; a bucket without objects may still have to be created.
        prefix_keys: `a` and `a/b` can both be objects.
        user_metadata: metadata and `ObjectProperties` given at the write come back from `stat`.
        metadata: what metadata the store can keep; None where it keeps none, or all.
        max_object_size: bytes of the largest object, or None where only the disk sets a limit.
        copies: `copy` copies every object inside the store.
        parts: how large and how many the parts of a resumable write are, or None where there is none.
        storage_classes: the names of the classes or tiers that a write can be given, or None where there are none. A
            store may still refuse a name that fits, where only the store knows them all.
        whole_reads: bytes of the largest object that `FullDriver.read_whole` reads; 0 where it reads none.
        patches: bytes of the smallest range that `FullDriver.patch` replaces; 0 where it replaces none.
        reads_ahead: objects that one thread has asked for at a time where it reads many (`FullDriver.small_reads`).
        impossible_keys: keys that no object of the store can have, because it reads them as another key, or refuses
            them.
        realm: a text made of provider, endpoint and credentials, without a secret. Stores whose realms are equal can
            copy from each other server-side (`FullDriver.copy_from`). None where that is impossible or not safe: where
            the store does not decide `create_only` itself, or where a copy would share its blocks with the original and
            be damaged with it, like a hard link or a reflink on one filesystem.
        checks_uploads: the store compares the bytes that arrive with a checksum of the bytes sent, and refuses damaged
            ones; None where only `FullDriver.refuses_damage` can find out.
        reserved_buckets: the store has buckets for quarantine and probes.
        signs_puts: see `FullDriver.sign_put`.
        holds: a bucket of the store may offer holds on objects (`FullDriver.offers_hold`); the bucket is asked.
        holds_refuse_writes: what is held cannot be replaced either; elsewhere a write makes a version that is not held.
        tags: the characters of the names and values of object tags, or None where the store has no tags.
        groups: bytes of the largest object that is written faster as one of a group (`FullDriver.put_many`); 0 where
            the driver writes no groups.
        writes_ahead: objects of a group that the driver has sent at a time.
        local: a read is mostly work of this machine's processor, so that more threads are no faster; elsewhere several
            ranges at once are read faster than one whole object.
        marks_uploads: the store tells of each unfinished upload whether the worker began it.
    """

    needs_digest_first: bool
    conditional_writes: bool
    implicit_buckets: bool
    prefix_keys: bool
    user_metadata: bool
    max_object_size: int | None
    copies: bool
    parts: PartLimits | None = None
    patches: int = 0
    whole_reads: int = 0
    reads_ahead: int = 1
    storage_classes: re.Pattern[str] | None = None
    metadata: MetadataRules | None = None
    impossible_keys: re.Pattern[str] | None = None
    realm: Hashable | None = None
    checks_uploads: bool | None = True
    reserved_buckets: bool = True
    signs_puts: bool = False
    holds: bool = False
    holds_refuse_writes: bool = False
    tags: re.Pattern[str] | None = None
    groups: int = 0
    writes_ahead: int = 1
    local: bool = False
    marks_uploads: bool = True


class Body(Protocol):
    """The bytes to write, as a driver reads them. The driver must read it to the end.

    `read` returns at most `size` bytes, and `b""` only at the end. It raises at the end when the bytes are not those
    that were announced: a driver commits nothing before it has seen the `b""`.
    """

    def read(self, size: int, /) -> bytes: ...

    @property
    def digest(self) -> Digest:
        """Return the digest of the bytes; call it only after the end was read."""
        ...


class ComparedBody(Body, Protocol):
    """A body whose end raises where the bytes have another digest than announced."""

    def compare_only_size(self) -> None:
        """Leave the digest to the caller, who compares every chunk with the manifest that was recorded with it.

        Call it before the first read.
        """
        ...


@dataclass(frozen=True, slots=True)
class HashedBytes:
    """Bytes in memory with their own digest, so that they are hashed once for all stores that they go to."""

    data: bytes
    digest: Digest

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Hash bytes."""
        return cls(data, Digest(len(data), hashlib.sha256(data).hexdigest()))


@dataclass(frozen=True, slots=True)
class SmallPut:
    """An object of a group that is written at once; see `FullDriver.put_many`."""

    bucket: str
    key: str
    body: HashedBytes
    condition: Condition = None


class HashedBody:
    """Hashed bytes as the body of one write."""

    def __init__(self, content: HashedBytes, on_bytes: Callable[[int], None] | None = None) -> None:
        self.digest = content.digest
        self._data = content.data
        self._on_bytes = on_bytes
        self._at = 0

    def compare_only_size(self) -> None:
        """Do nothing: the bytes are hashed already."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, `b""` at the end."""
        data = self._data[self._at : self._at + size]
        self._at += len(data)
        if data and self._on_bytes:
            self._on_bytes(len(data))
        return data


class ObjectReader(Protocol):
    """The bytes of one version of one object, as a context manager.

    `read` returns at most `size` bytes and `b""` only at the end; it raises StorageErrors only. `stat` describes the
    version that is being read, even if the key is overwritten meanwhile.
    """

    @property
    def stat(self) -> ObjectStat: ...
    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class VersionReader(ObjectReader, Protocol):
    """The reader that a driver opens: it also receives bytes straight into the caller's memory."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Receive at most `len(buffer)` bytes into it and return how many, 0 only at the end; raises as `read`."""
        ...


class Driver(Protocol):
    """One backend. Buckets and keys it is given have passed `worker.storage.keys`.

    Every method raises NotFound for an absent object or bucket unless it says otherwise, and TransientError,
    AccessDenied or PermanentError for what its store answers. One driver is used by one process, and may be used by
    several of its threads.
    """

    @property
    def name(self) -> str:
        """Return the configured name of the store, for messages."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    def put(self, bucket: str, key: str, body: Body, info: WriteInfo, *, condition: Condition = None) -> ObjectStat:
        """Write an object atomically and durably, and return its stat.

        If `body` raises, or the process dies at any point, nothing becomes visible under the key, the previous content
        stays, and the driver cleans up if it can. The caller guarantees that `info` has size and digest where the store
        needs them first, and that where it has parts the object is no larger than the smallest of them.

        Raises:
            AlreadyExists: `condition` is "create_only" and an object is there.
            PreconditionFailed: `condition` is a Match and another version, or nothing, is there.
            OutOfSpace: the store is full.
            NotFound: the bucket does not exist and the store does not make buckets implicitly.
        """
        ...

    def open(
        self, bucket: str, key: str, *, offset: int = 0, length: int | None = None, uncached: bool = False
    ) -> VersionReader:
        """Open an object for reading from `offset`, at most `length` bytes; a range past the end is empty.

        `uncached` asks that the bytes come from the medium and not from a cache of this machine, where there is one.
        """
        ...

    def stat(self, bucket: str, key: str) -> ObjectStat: ...

    def find_version(self, bucket: str, key: str) -> str | None:
        """Return the version of the object, None if there is no object; an absent bucket is no error.

        It is empty if the store gives none. It is also returned of an object whose bytes or metadata cannot be read, if
        the store returns it.
        """
        ...

    def delete(self, bucket: str, key: str, *, condition: Match | None = None) -> bool:
        """Delete an object; return whether anything was there. An absent object or bucket is no error.

        A request whose answer was lost is sent again, and then there is no object any more. This returns True, as
        the first request, or another program, has deleted the object.

        Raises:
            PreconditionFailed: `condition` names another version than the one that is there.
        """
        ...

    def copy(self, bucket: str, key: str, to_bucket: str, to_key: str) -> ObjectStat:
        """Copy an object inside the store, without its bytes passing through this process, over the destination.

        The caller guarantees that `capabilities.copies` is true. The copy may share its blocks with the original: it
        protects against overwrites and deletes, not against corruption.
        """
        ...

    def iter_objects(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[ListedObject]:
        """Yield the objects whose key starts with `prefix` and comes after `after`, by the UTF-8 bytes of their keys.

        Pages are fetched as they are needed. An absent bucket is empty.
        """
        ...

    def create_bucket(self, bucket: str) -> bool:
        """Make a bucket; return False if it was there already."""
        ...

    def bucket_exists(self, bucket: str) -> bool: ...

    def list_buckets(self) -> list[str]:
        """Return the buckets, also reserved ones; of real buckets only those that the settings name."""
        ...

    def iter_stale_uploads(self) -> Iterator[StaleUpload]:
        """Yield the unfinished uploads of all buckets, those that are still being written included."""
        ...

    def remove_stale_upload(self, stale: StaleUpload) -> bool:
        """Remove a stale upload; return False if it has ended meanwhile or its writer is known to be alive.

        After a lost answer it counts as removed, as for `delete`.
        """
        ...

    def check(self) -> None:
        """Raise a StorageError if the store cannot be reached with these credentials."""
        ...

    def advice(self) -> list[str]:
        """Return recommendations for the configuration of the store, one sentence each."""
        ...

    def close(self) -> None: ...


class PartFile(Protocol):
    """A part that is read from a file, as a library sends it: it starts at 0 and may be read more than once."""

    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...
    def close(self) -> None: ...
    def __len__(self) -> int: ...
    @property
    def sha256(self) -> str:
        """Return the SHA-256 of its bytes as 64 lower-case hex digits."""
        ...


PartData = bytes | bytearray | PartFile
"""The bytes of a part: in memory, or in a file where a part is larger than what a transfer may hold."""
SmallRead = tuple[str, str, Digest]
"""An object to read as a whole: its bucket, its key and its recorded digest, whose size it must have."""


@dataclass(frozen=True, slots=True)
class SignedPut:
    """A request that writes one object without credentials, until it expires. The URL is a secret."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)


class SmallReads(Protocol):
    """Reads many small objects one after the other, with less work for each than `Driver.open`; for one thread."""

    def read(self, wanted: Iterable[SmallRead]) -> Iterator[tuple[SmallRead, WholeObject | None]]:
        """Yield each object with what is read of it, in their order; it may open some before it reads the first.

        It is None if the object is missing, large, of another size or of an odd name; `Driver.open` raises the reason.
        """
        ...

    def close(self) -> None: ...


class FullDriver(Driver, Protocol):
    """A backend with all methods that are optional: each is there where `capabilities` has what its section names."""

    # `parts`: several threads send a multipart upload and resume it. A token names one to every process for as long as
    # the store keeps it, and holds no secret. Nothing is visible under the key before `complete_upload`. Other writes
    # of the same key do not disturb the upload, unless its `PartLimits` are `exclusive`.

    def begin_upload(self, bucket: str, key: str, info: WriteInfo) -> str:
        """Begin a multipart upload and return its token. `info` has size and digest."""
        ...

    def upload_part(
        self,
        bucket: str,
        key: str,
        token: str,
        number: int,
        data: PartData,
        *,
        sha256: str | None = None,
        md5: bytes | None = None,
    ) -> Part:
        """Send one part; numbers start at 1, come in any order and from several threads, and may be sent again.

        A part that is a file is never read into memory as a whole. `sha256` and `md5` are those of the part, where they
        are known.

        Raises:
            NotFound: the upload is not open any more.
        """
        ...

    def list_parts(self, bucket: str, key: str, token: str) -> list[Part]:
        """Return the parts that the store has, by number.

        Raises:
            NotFound: the upload is not open any more: completed, aborted, or forgotten by the store.
        """
        ...

    def complete_upload(
        self, bucket: str, key: str, token: str, parts: list[Part], info: WriteInfo, *, condition: Condition = None
    ) -> ObjectStat:
        """Make an object of exactly these parts, in their order, with the metadata of `info`: atomically, like `put`.

        After a lost answer, the object under the key decides, as for `put`.
        """
        ...

    def abort_upload(self, bucket: str, key: str, token: str) -> None:
        """Abort a multipart upload and remove its parts; an upload that is not open any more is no error."""
        ...

    # not `marks_uploads`: the worker records that it is about to begin an upload

    def is_unused_upload(self, stale: StaleUpload, bucket: str, key: str) -> bool:
        """Return whether a stale upload is of this object and has no part yet."""
        ...

    # `groups`

    def put_many(self, puts: Iterable[SmallPut]) -> list[ObjectStat | StorageError]:
        """Write small objects, and return the stat or the error of each, in their order.

        Each object is atomic by itself, as for `put`, and durable when this returns. The caller guarantees that no two
        have the same key. A driver may take fewer of them: the others have no result, and need a `put` each. What
        `puts` raises passes, after the answer to each object that was sent.
        """
        ...

    # not `conditional_writes`: some of these backends ask for many keys at once whether they are free

    def expect_writes(self, paths: Iterable[tuple[str, str]]) -> None:
        """Expect that these buckets and keys are written soon, each once, under the condition `create_only`."""
        ...

    # `whole_reads`, and many small objects where the driver has the method

    def read_whole(self, bucket: str, key: str, size: int) -> WholeObject | None:
        """Return an object of exactly `size` bytes, at most `capabilities.whole_reads`.

        Returns None where only `open` can tell: the object has another size, the answer is not understood, or the line
        is slow.
        """
        ...

    def small_reads(self) -> SmallReads: ...

    # `checks_uploads` may be None: a trial finds out

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
        """Do as `Driver.copy`, over what `condition` allows, whatever the size of the object; see `Driver.put`.

        Raises:
            Unavailable: a `version` was given, and the object is another one; nothing was copied.
        """
        ...

    def refuses_damage(self, bucket: str, key: str) -> bool:
        """Return whether the store refuses an object, and a part, that arrive with a wrong checksum.

        No object stays under the key.
        """
        ...

    # `patches`

    def patch(
        self,
        found: ObjectStat,
        bucket: str,
        key: str,
        info: WriteInfo,
        replaced: Sequence[range],
        *,
        read: Callable[[range], bytes | bytearray],
        unit: int,
        between: Callable[[], object],
    ) -> ObjectStat:
        """Make an object of exactly the version in `found`, with other bytes in some ranges, over what is there.

        The bytes outside the ranges do not pass through this process, so the caller verifies the whole object.

        Args:
            found: the object that has most of the bytes.
            bucket: the logical bucket of the new object.
            key: the key in it.
            info: what is kept beside the bytes; it has the size, which is that of `found`, and the digest.
            replaced: the ranges of bytes to send, in their order. Each is one `unit`, or the rest of the object.
            read: returns the bytes of such a range.
            unit: at least `capabilities.patches`; each range starts at a multiple of it.
            between: called between requests; what it raises ends the write.

        Raises:
            PreconditionFailed: another version, or nothing, is there.
        """
        ...

    # `tags`: `ObjectProperties.tags` are written with the object, without them where the store refuses them

    def tags(self, bucket: str, key: str) -> dict[str, str]:
        """Return the tags of an object that users have set."""
        ...

    # `signs_puts`

    def sign_put(self, bucket: str, key: str, size: int, seconds: int) -> SignedPut:
        """Return the request that writes `size` bytes under a key. It is valid for so many seconds.

        Raises:
            PermanentError: the store's credentials cannot sign, or its settings forbid it.
        """
        ...

    # `holds`: the store itself can refuse to delete an object

    def offers_hold(self, bucket: str) -> bool:
        """Return whether the bucket says that it offers holds on its objects."""
        ...

    def set_hold(self, bucket: str, key: str, *, held: bool) -> None:
        """Place the hold on the bytes that are under the key now, or end it on all that were ever held under the key.

        Raises:
            HoldNotOffered: the store ignores what it was asked.
        """
        ...

    def delete_held(self, bucket: str, key: str) -> bool:
        """Try to delete the bytes under the key for good; return False if the store refuses it."""
        ...

    # `realm`: the store copies server-side from any store of that realm

    def location(self, bucket: str, key: str) -> Any:
        """Return the location by which `copy_from` of another driver of this realm finds an object."""
        ...

    def copy_from(
        self,
        original: Any,
        found: ObjectStat,
        info: WriteInfo,
        *,
        between: Callable[[], object],
        begun: Callable[[str], object],
    ) -> ObjectStat:
        """Make an object of exactly the version in `found`, under its bucket and key, if there is no object.

        Everything beside the bytes is from `info`, as for `put`; class and encryption are this store's. The caller
        guarantees that `original` and `found` are of a driver of the same realm, and that `info` has the digest and
        the size, which is not 0. `between` is called between requests; what it raises ends the copy. `begun` is told
        the token of a multipart upload, where the copy is made by one.

        The bytes were not hashed on the way, so a corrupt source gives a corrupt copy. The stat has the size that the
        store gives. Until the whole copy is there, nothing is visible. After a lost answer, the object under the key
        decides, as for `put`.

        Raises:
            AlreadyExists: an object is under the key.
            StorageError: also if the source has another version by now, which the caller checks.
        """
        ...
