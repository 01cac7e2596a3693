"""A prefix of a store whose layout is verified, and what is found wrong in it."""

import hashlib
import json
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from worker.artifacts.disk_sort import DiskSort
from worker.artifacts.reconcile import in_order
from worker.counted import counted
from worker.storage.driver import BUFFER_SIZE, ListedObject
from worker.storage.errors import IntegrityError, InvalidKey, NotFound, PermanentError, StorageError
from worker.storage.keys import check_existing_key
from zot_artifact_client.input_rules import unique_names

if TYPE_CHECKING:
    from worker.limits.limited_store import AnyStore  # it imports Celery, which the help of `adopt` must not

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 8
_LINE = 1 << 16
_BAD_LINES = 10
"""Lines of one file that are reported before the rest of it counts as no list."""
_LINE_END = re.compile(rb"\r\n|\r|\n")
_HEX = re.compile(r"[0-9a-f]+")
_ALGORITHMS = {
    "md5": 32, "sha1": 40, "sha224": 56, "sha256": 64, "sha384": 96, "sha512": 128,
    "sha3_224": 56, "sha3_256": 64, "sha3_384": 96, "sha3_512": 128, "blake2b": 128, "blake2s": 64,
}  # fmt: skip
"""The algorithms that can be verified, with the hex digits of a digest."""


class FaultKind(StrEnum):
    """What can be wrong in a layout."""

    CORRUPT = "corrupt"
    """The bytes have another digest than the layout names."""
    MISSING = "missing"
    """The layout names an object that is not there."""
    SIZE_MISMATCH = "size_mismatch"
    """The object has another size than the layout names."""
    UNREFERENCED = "unreferenced"
    """Nothing in the layout names the object."""
    INVALID = "invalid"
    """A file of the layout itself breaks its format."""
    UNSAFE = "unsafe"
    """The layout names a path outside itself; it was not read."""
    UNREADABLE = "unreadable"
    """The store did not return the bytes."""
    UNVERIFIABLE = "unverifiable"
    """The digest is of an algorithm that is not known."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: the key that it is about, and why."""

    kind: FaultKind
    key: str
    detail: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The claim of a layout about an object: digests as (algorithm, hex), its size if it is named, and its source."""

    key: str
    digests: tuple[tuple[str, str], ...]
    by: str = ""
    absent: str = ""
    """Why the object may be missing, if the layout says so."""


class InvalidLayout(PermanentError):
    """A file of a layout breaks its format, or is larger than any that is allowed."""


class UnsafePath(InvalidLayout):
    """A layout names a path that is absolute or leaves its directory."""


class NoLayout(NotFound):
    """There is no such layout below the prefix."""


@dataclass(slots=True)
class Tally:
    """The result of a sweep over a layout. `layouts`: repositories, bags, objects or lists that were found."""

    layouts: int = 0
    listed: int = 0
    objects: int = 0
    bytes: int = 0
    """Objects, and their bytes, that were read in full and compared, or would be in a dry run."""


class CheckedPrefix:
    """A prefix of a bucket, as a directory. Several threads may use it.

    `dry_run`: only the files of the layout itself are read; `on_bytes` is called with the size of each piece read.
    """

    def __init__(
        self,
        store: "AnyStore",
        bucket: str,
        prefix: str = "",
        *,
        dry_run: bool = False,
        on_bytes: Callable[[int], object] = lambda _: None,
        spool_dir: Path | None = None,
    ) -> None:
        self.store, self.bucket = store, bucket
        self.prefix = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
        self.dry_run = dry_run
        self.tally = Tally()
        self._on_bytes = on_bytes
        self._spool_dir = spool_dir
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return f"{self.store.name}: {self.bucket}/{self.prefix}"

    def listed(self, below: str | None = None) -> Iterator[ListedObject]:
        """Yield the objects below a prefix of the place, by default all, by key."""
        listed = self.store.list_objects(self.bucket, self.prefix if below is None else below)
        for each in in_order(self.store.name, listed):  # a listing that repeats itself would not end
            self._on_bytes(0)
            yield each

    def sorter(self) -> DiskSort:
        """Return a sort of rows on disk."""
        return DiskSort(self._spool_dir)

    def small(self, key: str, limit: int) -> bytes:
        """Return the bytes of a file of the layout.

        Raises:
            InvalidLayout: it is larger than `limit`.
            StorageError: it cannot be read.
        """
        data = bytearray()
        with self.store.read_object(self.bucket, key) as reader:
            while piece := reader.read(BUFFER_SIZE):
                self._on_bytes(len(piece))
                data += piece
                if len(data) > limit:
                    raise InvalidLayout(f"it is larger than {limit} bytes")
        return bytes(data)

    def lines(self, key: str) -> Iterator[bytes]:
        """Yield the lines of a file of any size without their ends, which are LF, CR or CR LF.

        Raises:
            InvalidLayout: a line is longer than any that can name an object.
            StorageError: it cannot be read.
        """
        rest = b""
        with self.store.read_object(self.bucket, key) as reader:
            while piece := reader.read(BUFFER_SIZE):
                self._on_bytes(len(piece))
                rest += piece
                held = rest.endswith(b"\r")  # its LF may be in the next piece
                *whole, rest = _LINE_END.split(rest[:-1] if held else rest)
                rest += b"\r" if held else b""
                yield from whole
                if len(rest) > _LINE:
                    raise InvalidLayout(f"it has a line of more than {_LINE} bytes")
        if rest:
            yield rest.removesuffix(b"\r")

    def compare(self, work: Iterable["Fault | tuple[Claim, int | None]"]) -> Iterator[Fault]:
        """Read objects in full, several at once, and yield what is wrong with them; faults pass through.

        An object is given by what is claimed about it and the size that the listing has.
        """
        for faults in self.ahead(lambda each: [each] if isinstance(each, Fault) else self._judge(*each), work):
            yield from faults

    def ahead(self, do: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the result of each item in their order; several are done at once, in threads."""
        threads = min(_THREADS, os.cpu_count() or 1) if self.store.capabilities.local else _THREADS
        under_way: deque[Future[R]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="layout") as pool:
            try:
                for each in items:
                    if len(under_way) >= 4 * threads:
                        yield under_way.popleft().result()
                    under_way.append(pool.submit(do, each))
                while under_way:
                    yield under_way.popleft().result()
            finally:
                for left in under_way:
                    left.cancel()

    def missing(self, key: str, detail: str) -> Fault:
        """Return the fault for an object that the listing does not have; the store is asked for it once more."""
        try:
            check_existing_key(self.bucket, key)
            self.store.stat_object(self.bucket, key)
        except NotFound:
            return Fault(FaultKind.MISSING, key, detail)
        except InvalidKey as error:
            return Fault(FaultKind.UNSAFE, key, f"{detail}: {error.message}")
        except StorageError as error:
            return Fault(FaultKind.UNREADABLE, key, f"{detail}: {error.message}")
        return Fault(FaultKind.UNREADABLE, key, f"{detail}: it is there, but the listing does not have it")

    def _judge(self, claim: Claim, size: int | None) -> list[Fault]:
        known = {name: digest for name, digest in claim.digests if name in _ALGORITHMS}
        if not known:
            names = ", ".join(sorted({name for name, _ in claim.digests}))
            return [Fault(FaultKind.UNVERIFIABLE, claim.key, f"{claim.by} names only digests by {names}")]
        with self._lock:
            self.tally.objects += 1
            self.tally.bytes += size or 0
        if self.dry_run:
            return []
        try:
            read = self._digests(claim.key, known)
        except StorageError as error:
            return [fault_of(error, claim.key)]
        wrong = [(name, digest) for name, digest in claim.digests if name in read and read[name] != digest]
        if not wrong:
            return []
        name, digest = wrong[0]
        detail = f"its {name} is {read[name]}, not {digest} as {claim.by} says"
        return [Fault(FaultKind.CORRUPT, claim.key, detail)]

    def _digests(self, key: str, algorithms: Iterable[str]) -> dict[str, str]:
        hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
        with self.store.read_object(self.bucket, key) as reader:
            while piece := reader.read(BUFFER_SIZE):
                for each in hashes.values():
                    each.update(piece)
                self._on_bytes(len(piece))
        return {name: each.hexdigest() for name, each in hashes.items()}


def fault_of(error: StorageError, key: str, what: str = "") -> Fault:
    """Return the fault that an error of one object is."""
    kinds = ((InvalidLayout, FaultKind.INVALID), (NotFound, FaultKind.MISSING), (IntegrityError, FaultKind.CORRUPT),
             (InvalidKey, FaultKind.UNSAFE))  # fmt: skip
    kind = next((kind for type_, kind in kinds if isinstance(error, type_)), FaultKind.UNREADABLE)
    return Fault(kind, key, f"{what}{': ' if what else ''}{error.message}")


def parse_object(data: bytes) -> Mapping[str, Any]:
    """Return the JSON object in the bytes of a file.

    Raises:
        InvalidLayout: they are no JSON object.
    """
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise InvalidLayout(f"it is not valid JSON: {str(error)[:100]}") from None
    if not isinstance(document, dict):
        raise InvalidLayout("it is no JSON object")
    return document


def is_digest(algorithm: str, digest: str) -> bool:
    """Return whether a text is a lower-case hex digest of an algorithm; of an unknown one, any hex of 16 bytes up."""
    length = _ALGORITHMS.get(algorithm)
    return bool(_HEX.fullmatch(digest)) and (len(digest) == length if length else len(digest) >= 32)  # noqa: PLR2004


def joined(base: str, path: str) -> str:
    """Return the key of a path below `base`, which is empty or ends with a slash.

    Raises:
        UnsafePath: the path is absolute, leaves `base`, or is no path at all.
    """
    parts = path.removeprefix("./").split("/")
    if not path or path.startswith("/") or not {"", ".", ".."}.isdisjoint(parts) or "\0" in path:
        raise UnsafePath(f"the path {path!r} is absolute or leaves its directory")
    return base + "/".join(parts)


def each_line(place: CheckedPrefix, key: str, do: Callable[[bytes], None], *, of: str) -> Iterator[Fault]:
    """Do something with each line of a list that is not empty, and yield what is wrong in it.

    `do` raises InvalidLayout, or ValueError for a line that no such list can have; `of` names the list in the fault.

    Raises:
        InvalidLayout: a line is longer than any that can name an object.
        StorageError: the list cannot be read.
    """
    bad = 0
    for number, line in enumerate(place.lines(key), 1):
        if not line.strip():
            continue
        try:
            do(line)
        except InvalidLayout as error:
            kind = FaultKind.UNSAFE if isinstance(error, UnsafePath) else FaultKind.INVALID
            yield Fault(kind, key, f"line {number}: {error.message}")
        except ValueError:
            yield Fault(FaultKind.INVALID, key, f"line {number} is no line of {of}")
        else:
            continue
        bad += 1
        if bad >= _BAD_LINES:
            yield Fault(
                FaultKind.INVALID, key, f"the rest of it was not read: {counted(bad, 'line')} of it cannot be used"
            )
            return


def merged(
    place: CheckedPrefix,
    listing: Iterable[ListedObject],
    claims: Iterable["Claim | Fault"],
    *,
    others: Callable[[ListedObject], Iterable["Fault | tuple[Claim, int | None]"]],
) -> Iterator[Fault]:
    """Compare a listing with claims, both in the order of keys, one claim for a key.

    An object with a claim is read; a claim without an object is `missing`; `others` returns the faults of an object
    without a claim. Faults among the claims pass through.
    """

    def work() -> Iterator[Fault | tuple[Claim, int | None]]:
        wanted = iter(claims)
        claim = next(wanted, None)
        for found in listing:
            while isinstance(claim, Fault) or (claim is not None and claim.key < found.key):
                yield claim if isinstance(claim, Fault) else _missing(place, claim)
                claim = next(wanted, None)
            if claim is not None and claim.key == found.key:
                yield claim, found.size
                claim = next(wanted, None)
            else:
                yield from others(found)
        while claim is not None:
            yield claim if isinstance(claim, Fault) else _missing(place, claim)
            claim = next(wanted, None)

    yield from place.compare(work())


def _missing(place: CheckedPrefix, claim: Claim) -> Fault:
    return place.missing(claim.key, claim.absent or f"named by {claim.by}")
