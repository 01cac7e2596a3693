"""Check that no two configured stores are one physical place, and that a store is the one that was used before.

What a configuration cannot show (two names of one server, a share that is mounted twice, a disk that is not mounted)
is found by a marker: an object with a random id that is written once into each store and read through every store.
"""

import hashlib
import io
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

from worker.storage.config import (
    CloudConfig,
    FilesystemConfig,
    StoreConfig,
)
from worker.storage.driver import Condition, Driver, WriteInfo
from worker.storage.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidKey,
    NotFound,
    OtherStore,
    OtherWriter,
    OutOfSpace,
    PermanentError,
    SameStore,
    StorageError,
    TransientError,
    Unavailable,
)
from worker.storage.integrity.verifying_reader import VerifyingReader, read_up_to
from worker.storage.keys import MARKER_BUCKET, RESERVED_PREFIX
from worker.storage.same_place import is_within, location_of, may_share, mounts_here, names_bucket_of, server_of
from worker.storage.writer_record import WriterRecord, read_writer

MARKER_KEY = "identity"
SHARED = "shared "
"""Before the recorded id of a store that had the marker of another store at its first use: the id is not its own.

After the id is the hash of its place, so that the place is known again where its disk is not mounted.
"""
RECHECK_SECONDS = 600
"""A store whose identity was checked longer ago is checked again at its next use."""
_NOTED_SECONDS = 1.0
"""So long after it was asked, the catalogue is asked again whether another process was refused."""
_UNMARKED_SECONDS = 5.0
"""So long after a read found no marker, another read does not look for it; a write does."""

Purpose = Literal["read", "record", "write"]
"""What a store is checked for.

- `read`: a store without a marker is compared with no other store.
- `record`: an object of it becomes a copy in the catalogue. A store without a marker gets one; one that takes none is
  accepted, because a store that is only read refuses writes, in any way.
- `write`: it is about to be changed. A store without a marker gets one. No other copy of the catalogue may write to it.
"""

_FULFILLED: Mapping[Purpose, tuple[Purpose, ...]] = {
    "read": ("read",), "record": ("read", "record"), "write": ("read", "record", "write")
}  # fmt: skip

_ID = re.compile(rb"zot-store ([0-9a-f]{32})\n")
_MARKER_BYTES = 1024
_PLACE_DIGITS = 16
_DEPTH_BELOW = 3
_MOST_BELOW = 1000


def place_of(config: StoreConfig) -> str:
    """Return the hash of where a store is by its configuration."""
    where = config.root if isinstance(config, FilesystemConfig) else location_of(config)
    return hashlib.sha256(f"{where}".encode()).hexdigest()[:_PLACE_DIGITS]


def marker_of(known: str) -> str:
    """Return the id of a record, whether it is the store's own or shared."""
    return known.removeprefix(SHARED).partition(" ")[0]


class KnownIds(Protocol):
    """The id of each store as it was last seen; kept outside the stores."""

    def get(self, name: str) -> str | None:
        """Return the id of the store of this name, or None if it was never seen."""
        ...

    def put(self, name: str, store_id: str) -> None:
        """Record the id of the store of this name; with `SHARED` before it if it is the id of another store."""
        ...

    def put_place(self, name: str, place: str) -> None:
        """Record where the store of this name is."""
        ...

    def left_at(self, place: str) -> str | None:
        """Return the name of a store that was at this place and is not configured any more, None if there is none."""
        ...

    def name_of(self, store_id: str) -> str | None:
        """Return the name under which the store with this id was seen, configured or not; None if it is not known."""
        ...

    def others(self, name: str) -> Mapping[str, str]:
        """Return the ids of the other configured stores that have been seen."""
        ...

    def way_out(self, name: str) -> str:
        """Return the command that accepts another store under this name, for messages."""
        ...

    @property
    def catalogue(self) -> str | None:
        """Return the id of the catalogue that has the ids; None if none has them."""
        ...

    def refusal(self, name: str, writer: WriterRecord | None) -> str | None:
        """Return why this copy of the catalogue must not write to a store that has this record; None if it may.

        That is noted for `was_refused`.
        """
        ...

    def was_refused(self, name: str) -> bool:
        """Return whether this copy of the catalogue was refused, by the last process that has read the record."""
        ...


class Identity:
    """Checks that one store is the one that was used under its name before."""

    def __init__(
        self,
        driver: Driver,
        known: KnownIds,
        *,
        configs: Mapping[str, StoreConfig] | None = None,
        driver_of: Callable[[str], Driver] | None = None,
    ) -> None:
        """Prepare the checks, without a request.

        Args:
            driver: the store.
            known: the ids that were seen before.
            configs: all stores by name. Another disk that is mounted at the root of this one is noticed at once, and
                its marker is looked for through the others.
            driver_of: returns another store by its name.
        """
        self._driver = driver
        self._known = known
        self._configs = configs or {}
        self._driver_of = driver_of
        own = self._configs.get(driver.name)
        self._root = own.root if isinstance(own, FilesystemConfig) else None
        self._place = place_of(own) if own else ""
        self._checked: dict[Purpose, tuple[object, float]] = {}
        """The mount that was checked, and until when that counts."""
        self._unmarked_until = 0.0
        self._writes_until = self._asked_until = 0.0
        """Until when this copy of the catalogue counts as the writer, and when its notes are asked about that again."""
        self._looked_below = False
        self._own_buckets: set[str] = set()
        self._first_use = threading.Lock()

    def check(self, purpose: Purpose, *, fresh: bool = False) -> None:
        """Raise unless the store is the one that was used before; the result is reused for some minutes.

        Args:
            purpose: what the store is needed for.
            fresh: for a command that asks what is wrong: read the marker even if that was done recently.

        Raises:
            OtherStore: the marker is gone, or is that of another store.
            SameStore: another configured store has the same marker; not to read, unless `fresh`.
            OtherWriter: another copy of the catalogue writes to the store; only to write.
            StorageError: the marker cannot be read or written.
        """
        self._check_place(purpose, fresh=fresh)
        if purpose == "write":
            self.check_writer(fresh=fresh)

    def _check_place(self, purpose: Purpose, *, fresh: bool) -> None:
        mount = self._mount()
        checked, until = self._checked.get(purpose) or (None, 0.0)
        if not fresh and mount == checked and time.monotonic() < until:
            return  # first: a sweep asks for each object
        compare = fresh or purpose != "read"
        if not compare and time.monotonic() < self._unmarked_until:
            return
        if not self._driver.capabilities.reserved_buckets:
            return  # the store has no bucket for a marker
        self._checked.clear()
        self._writes_until = 0.0
        known, here = self._recorded()
        marker = self._read(here)
        self._refuse_renamed(known or here or marker)
        if marker is None and here is None and purpose == "read":
            self._unmarked_until = time.monotonic() + _UNMARKED_SECONDS
            return
        if known is None:
            with self._first_use:
                here, marker = self._introduce(compare=compare, may_lack_marker=purpose == "record")
        if here is not None and marker != here:
            self._refuse_other(here, marker)
        if marker is not None:
            self._refuse_same(marker, compare=compare)
        if compare:
            self._refuse_nested(marker, below=fresh or not self._looked_below)
            self._refuse_one_server(marker)
            self._looked_below = True
        self._put_place(marker)
        seconds = _UNMARKED_SECONDS if purpose == "record" and marker is None else RECHECK_SECONDS
        self._checked |= dict.fromkeys(_FULFILLED[purpose], (mount, time.monotonic() + seconds))

    def check_writer(self, *, fresh: bool = False) -> None:
        """Raise if another copy of the catalogue writes to the store; the result is reused like that of `check`.

        Where any process of this catalogue was refused, it is not reused.

        Raises:
            OtherWriter: it does.
            StorageError: the record cannot be read.
        """
        catalogue, now = self._known.catalogue, time.monotonic()
        if catalogue is None or not self._driver.capabilities.reserved_buckets:
            return
        if not fresh and now < self._writes_until:
            if now < self._asked_until:
                return
            self._asked_until = now + _NOTED_SECONDS
            if not self._known.was_refused(self._driver.name):
                return
        self._writes_until = 0.0
        try:
            record = read_writer(self._driver, catalogue)
        except AccessDenied:  # a store that refuses this key may take all other writes
            if self._known.was_refused(self._driver.name):
                raise
        else:
            if told := self._known.refusal(self._driver.name, record):
                raise OtherWriter(f"{self._driver.name}: {told}")
        self._writes_until = now + RECHECK_SECONDS

    def _refuse_renamed(self, any_id: str | None) -> None:
        """Raise if this store has no id, and one that is not configured any more was here: its disk is not mounted."""
        if any_id is None and (left := self._known.left_at(self._place)):
            raise OtherStore(
                f"{self._driver.name}: the store {left} was here before, and its marker is gone. Mount its disk, and "
                f"name it {left} again in the settings; {self._known.way_out(self._driver.name)} if it was replaced on "
                "purpose"
            )

    def _put_place(self, marker: str | None) -> None:
        if marker is not None and self._place:  # at each check: `stores accept` removes it while workers run
            self._known.put_place(self._driver.name, self._place)

    def _mount(self) -> object:
        if self._root is not None:
            with suppress(OSError):  # a root that is gone is reported by the driver
                found = self._root.stat()
                return found.st_dev, found.st_ino
        return None

    def is_refused(self) -> bool:
        """Return whether the store refuses to return its marker, which it has returned before."""
        _, here = self._recorded()
        if here is not None and self._driver.capabilities.reserved_buckets:
            try:
                self._read(here)
            except AccessDenied:
                return True
            except StorageError:
                pass
        return False

    def check_bucket(self, bucket: str) -> None:
        """Raise if a logical bucket is the place of another configured store, whose objects would be in both.

        Raises:
            SameStore: it is, by the settings or by the marker in it.
            TransientError: the marker cannot be read now.
        """
        own = self._configs.get(self._driver.name)
        if bucket in self._own_buckets or not (isinstance(own, CloudConfig) and own.layout == "native"):
            return
        same = [
            name
            for name, config in self._configs.items()
            if isinstance(config, type(own))
            and (config.layout, config.real_bucket) == ("prefixed", bucket)
            and server_of(own) == server_of(config)
        ]
        markers = {marker: name for name, marker in self._others().items()}
        if not same and markers:  # the bucket may be that of another address, or the root of a directory store
            found = _marker_through(self._driver, bucket, f"{MARKER_BUCKET}/{MARKER_KEY}")
            same = [markers[found]] if found in markers else []
        if same:
            raise SameStore(
                f"{self._driver.name}: the bucket {bucket} is that of the store {same[0]}, so that one object would "
                "be in both: use another bucket, or that store"
            )
        self._own_buckets.add(bucket)

    def _recorded(self) -> tuple[str | None, str | None]:
        """Return the recorded id if it is the store's own, and the id that its marker must have, both None if unknown.

        A store that was refused as the place of another one has no id of its own; its place must keep that marker.
        Earlier versions did not record which of the two was first: with them it is the id of neither.
        """
        known = self._known.get(self._driver.name)
        if known is not None and known.startswith(SHARED):
            marker, _, place = known.removeprefix(SHARED).partition(" ")
            return None, marker if place and place == self._place else None
        if known in self._known.others(self._driver.name).values():
            return None, None
        return known, known

    def _others(self) -> dict[str, str]:
        """Return the ids of the other stores that have been seen, also those that are shared."""
        others = self._known.others(self._driver.name).items()
        return {name: marker_of(known) for name, known in others}

    def _read(self, wanted: str | None) -> str | None:
        try:
            with self._driver.open(MARKER_BUCKET, MARKER_KEY) as reader:
                content = read_up_to(reader, _MARKER_BYTES)
        except NotFound:
            return None
        except AccessDenied:
            if wanted is not None:
                raise
            return None  # these credentials may not use the marker's key
        found = _ID.fullmatch(content)
        if found is None:
            where = f"{self._driver.name}: {MARKER_BUCKET}/{MARKER_KEY}"
            raise OtherStore(f"{where} is no marker of a store; remove it if it is not needed")
        return found[1].decode()

    def _introduce(self, *, compare: bool, may_lack_marker: bool) -> tuple[str | None, str | None]:
        """Record the id of a store that is new here, and return the id that its marker must have, and that it has.

        A store without conditional writes keeps the last of two markers that are written at one time, while the first
        id to be recorded counts: the process that was slower writes the recorded one into the store.
        """
        known, here = self._recorded()
        found = self._read(here)
        created = found is None and here is None
        if created:
            found = self._create(secrets.token_hex(16), may_lack_marker=may_lack_marker)
        if found is None or known is not None or here not in {None, found}:
            return here, found
        if self._refuse_same(found, compare=compare):
            return None, found
        self._known.put(self._driver.name, found)
        known, _ = self._recorded()
        if created and known not in {None, found} and not self._driver.capabilities.conditional_writes:
            found = self._create(str(known), may_lack_marker=may_lack_marker)
        return known, found

    def _create(self, store_id: str, *, may_lack_marker: bool) -> str | None:
        content = f"zot-store {store_id}\n".encode()
        body = VerifyingReader(io.BytesIO(content))
        info = WriteInfo(len(content), hashlib.sha256(content).hexdigest())
        condition: Condition = "create_only" if self._driver.capabilities.conditional_writes else None
        try:
            self._driver.put(MARKER_BUCKET, MARKER_KEY, body, info, condition=condition)
        except AlreadyExists:
            pass  # another process was faster
        except StorageError as error:
            if may_lack_marker or isinstance(error, AccessDenied | InvalidKey | OutOfSpace):
                return None
            if isinstance(error, NotFound):  # which would say of any object that it is missing
                of = f"stores.{self._driver.name}.reserved_bucket"
                told = f"{self._driver.name}: the bucket of {of} does not exist; create it or correct the setting"
                raise Unavailable(told) from error
            raise
        return self._read(None)

    def _refuse_other(self, wanted: str, found: str | None) -> None:
        there = f"it has the marker {found}" if found else "its marker is gone"
        if found and (other := self._known.name_of(found)):
            there += f", which is that of the store {other}"
        raise OtherStore(
            f"{self._driver.name}: this is not the store that was used before (id {wanted}): {there}. Mount the right "
            f"disk or correct the settings; {self._known.way_out(self._driver.name)} if it was replaced on purpose"
        )

    def _refuse_same(self, found: str, *, compare: bool) -> bool:
        """Return whether another store has this marker; raise if `compare`."""
        same = sorted(
            name
            for name, known in self._known.others(self._driver.name).items()
            if known == found or (known.startswith(SHARED + found) and not self._has_lost_marker(name))
        )
        if not same:
            return False
        shared = f"{SHARED}{found} {self._place}".rstrip()
        if self._known.get(self._driver.name) not in {found, shared}:
            self._known.put(self._driver.name, shared)  # so that the other store is rejected too
        if compare:
            raise _same_store(
                same[0],
                f"stores {self._driver.name} and {same[0]} are one physical place (id {found}): a copy in each would "
                "be one copy. Remove one of them from the settings, or point it to another place; if one was made as "
                f"a copy of the other, remove {MARKER_BUCKET}/{MARKER_KEY} in the copy, and then "
                f"{self._known.way_out('NAME')} with the name of the copy",
            )
        return True

    def _has_lost_marker(self, name: str) -> bool:
        """Return whether the marker of another store was removed, as in a copy that is to be a store of its own."""
        if self._driver_of is None:
            return False
        try:
            with self._driver_of(name).open(MARKER_BUCKET, MARKER_KEY):
                return False
        except NotFound:
            return True
        except StorageError:
            return False

    def _refuse_nested(self, own: str | None, *, below: bool) -> None:
        """Find the marker of another store around or below the root, or that of this one below another root.

        No configuration shows that of one share that is mounted twice, or of a directory that a server gives out.

        Args:
            own: the id of this store.
            below: search the directories below the roots, too.
        """
        others = {marker: name for name, marker in self._others().items()}
        if self._root is not None and others:
            around = self._root.resolve().parents
            for directory in [*around, *(_directories_below(self._root) if below else ())]:
                name = others.get(_marker_in(directory) or "")
                if name is not None:
                    raise self._nested(name, directory, name)
        if own is None or not below:
            return
        for name, config in self._configs.items():
            if name == self._driver.name or not isinstance(config, FilesystemConfig):
                continue
            for directory in [*config.root.resolve().parents, *_directories_below(config.root)]:
                if _marker_in(directory) == own:
                    raise self._nested(name, directory, self._driver.name)

    def _nested(self, other: str, directory: Path, root_of: str) -> SameStore:
        return SameStore(
            f"stores {self._driver.name} and {other} are one physical place: {directory} is the root of "
            f"{root_of}, and one root is inside the other. Remove one of them from the settings, or point it to "
            f"another place; if {directory} is only a copy of {root_of}, remove {MARKER_BUCKET}/{MARKER_KEY} in it"
        )

    def _refuse_one_server(self, own: str | None) -> None:
        """Find the marker of a store through another one that names its bucket: two addresses of one server."""
        if self._driver_of is None:
            return
        markers = {**self._others(), self._driver.name: own}
        for through, of, bucket, key in _crossings(self._driver.name, self._configs):
            if not (marker := markers.get(of)):
                continue
            driver = self._driver if through == self._driver.name else self._driver_of(through)
            found = None
            with suppress(TransientError):  # it may be of the other store; this is checked again later
                found = _marker_through(driver, bucket, key)
            if found == marker:
                raise _same_store(
                    of if through == self._driver.name else through,
                    f"stores {through} and {of} are one physical place: the bucket {bucket} of {of} is there through "
                    f"{through} as well. Remove one of them from the settings, or point it to another place",
                )


def _same_store(other: str, message: str) -> SameStore:
    error = SameStore(message)
    error.other = other
    return error


def _marker_through(driver: Driver, bucket: str, key: str) -> str | None:
    """Return the id of the store whose marker an object is; None where there is none, as on most other servers.

    Raise TransientError: it cannot be read now.
    """
    try:
        with driver.open(bucket, key) as reader:
            found = _ID.fullmatch(read_up_to(reader, _MARKER_BYTES))
    except PermanentError:
        return None
    return found[1].decode() if found else None


def _marker_in(directory: Path) -> str | None:
    """Return the id of the store whose root a directory is, or None."""
    try:
        fd = os.open(directory / MARKER_BUCKET / MARKER_KEY, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor
            found = _ID.fullmatch(file.read(_MARKER_BYTES))
    except OSError:
        return None
    return found[1].decode() if found else None


def _directories_below(root: Path) -> Iterator[Path]:
    """Yield what is mounted below a root, then directories near it, to `_DEPTH_BELOW` and at most `_MOST_BELOW`."""
    real = os.path.realpath(root)
    yield from (Path(each.point) for each in mounts_here() if each.point != real and is_within(each.point, real))
    level, count = [root], 0
    for _ in range(_DEPTH_BELOW):
        below = []
        for directory in level:
            try:
                with os.scandir(directory) as entries:
                    below += [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
            except OSError:
                continue  # the driver reports it
            if count + len(below) > _MOST_BELOW:
                break
        yield from below[: _MOST_BELOW - count]
        count += len(below)
        level = below[: max(0, _MOST_BELOW - count)]


def _crossings(name: str, configs: Mapping[str, StoreConfig]) -> Iterator[tuple[str, str, str, str]]:
    """Yield where the marker of one store would be found through another one, if both were on one server.

    Yields:
        the store to look through, the one whose marker it is, the real bucket and the key; one of both is `name`.
    """
    for through, seeing in configs.items():
        for of, seen in configs.items():
            if through == of or name not in {through, of}:
                continue
            if not (isinstance(seeing, CloudConfig) and isinstance(seen, CloudConfig) and may_share(seeing, seen)):
                continue
            if names_bucket_of(seeing, seen):
                yield through, of, str(seen.real_bucket), f"{MARKER_BUCKET}/{MARKER_KEY}"
            if (seeing.layout, seen.layout) == ("native", "native") and seen.reserved_bucket:
                yield through, of, seen.reserved_bucket, f"{RESERVED_PREFIX}{MARKER_BUCKET}/{MARKER_KEY}"
