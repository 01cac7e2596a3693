"""Tell whether two configured stores are one physical place, and whether a store is still the one that was used before.

Configurations are compared first: roots after links and bind mounts are resolved, endpoints with their buckets. What a
configuration cannot show (two names of one server, a share that is mounted twice, a disk that is not mounted) is found
by a marker: an object with a random id that is written once into each store and read through every store.
"""

import io
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from worker.storage.config import AzureConfig, CloudConfig, FilesystemConfig, GcsConfig, S3Config, StoreConfig
from worker.storage.driver import Condition, Driver, WriteInfo
from worker.storage.errors import AccessDenied, AlreadyExists, InvalidKey, NotFound, PermanentError, Unavailable
from worker.storage.integrity.verifying_reader import VerifyingReader
from worker.storage.keys import MARKER_BUCKET

MARKER_KEY = "identity"
RECHECK_SECONDS = 600
"""A store whose identity was checked longer ago is checked again at its next use."""

_ID = re.compile(rb"zot-store ([0-9a-f]{32})\n")
_MARKER_BYTES = 1024
_DEPTH_BELOW = 3
_MOST_BELOW = 1000
_PORTS = {"http": 80, "https": 443}


class SameStore(PermanentError):
    """Two configured stores are one physical place: a copy in each would be one copy."""


class OtherStore(Unavailable):
    """The store is not the one that was used under this name before, such as a disk that is not mounted."""


class KnownIds(Protocol):
    """The id of each store as it was last seen; kept outside the stores."""

    def get(self, name: str) -> str | None:
        """Return the id of the store of this name, or None if it was never seen."""
        ...

    def put(self, name: str, store_id: str) -> None:
        """Record the id of the store of this name."""
        ...

    def others(self, name: str) -> Mapping[str, str]:
        """Return the ids of the other configured stores that have been seen."""
        ...

    def way_out(self, name: str) -> str:
        """Return the command that lets another store be used under this name, for messages."""
        ...


class KnownIdFiles:
    """The ids as files of one directory, `identity-NAME`."""

    def __init__(self, directory: Path, names: Iterable[str]) -> None:
        self._directory = directory
        self._names = tuple(names)

    def get(self, name: str) -> str | None:
        try:
            return self._file(name).read_text().strip() or None
        except FileNotFoundError:
            return None

    def put(self, name: str, store_id: str) -> None:
        temporary = self._directory / f".identity-{name}.{secrets.token_hex(4)}"
        temporary.write_text(f"{store_id}\n")
        temporary.replace(self._file(name))

    def others(self, name: str) -> Mapping[str, str]:
        return {other: found for other in self._names if other != name and (found := self.get(other))}

    def way_out(self, name: str) -> str:
        return f"`rm {self._file(name)}`"

    def forget(self, name: str) -> None:
        """Remove the record of a store, if there is one."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._directory / f"identity-{name}"


class Identity:
    """Checks that one store is the one that was used under its name before."""

    def __init__(self, driver: Driver, known: KnownIds, *, root: Path | None = None) -> None:
        """Prepare the checks; nothing is read.

        Args:
            driver: the store.
            known: the ids that were seen before.
            root: the directory of the store, if it has one: another disk that is mounted there is noticed at once.
        """
        self._driver = driver
        self._known = known
        self._root = root
        self._checked: tuple[object, float] | None = None
        self._looked_below = False

    def check(self, *, write: bool, fresh: bool = False) -> None:
        """Return if the store is the one that was used before; the result is reused for some minutes.

        Args:
            write: the store is about to be changed. A store without a marker gets one.
            fresh: read the marker even if that was done recently.

        Raises:
            OtherStore: the marker is gone, or is that of another store.
            SameStore: `write`, and another configured store has the same marker.
            StorageError: the marker cannot be read or written.
        """
        if not self._driver.capabilities.reserved_buckets:
            return  # there is no place for a marker
        mount = self._mount()
        if not fresh and self._checked and self._checked[0] == mount and time.monotonic() < self._checked[1]:
            return
        self._checked = None
        known = self._own_known()
        found = self._read(known)
        if found is None and known is None:
            if not write:
                return
            found = self._create()
        if known is not None and found != known:
            self._refuse_other(known, found)
        if found is not None:
            self._refuse_same(found, write=write)
        if found is not None and known is None:
            self._known.put(self._driver.name, found)
            known = self._own_known()
            if known not in {None, found}:  # another machine was faster, and its disk is another one
                self._refuse_other(known, found)
        if self._root is not None and write:
            self._refuse_nested(self._root, below=fresh or not self._looked_below)
            self._looked_below = True
        self._checked = (mount, time.monotonic() + RECHECK_SECONDS)

    def _own_known(self) -> str | None:
        """Return the recorded id; an id that another store has too was recorded when the two were refused."""
        known = self._known.get(self._driver.name)
        return None if known in self._known.others(self._driver.name).values() else known

    def _mount(self) -> object:
        if self._root is None:
            return None
        with suppress(OSError):  # a root that is gone is reported by the driver
            found = self._root.stat()
            return found.st_dev, found.st_ino
        return None

    def _read(self, known: str | None) -> str | None:
        try:
            with self._driver.open(MARKER_BUCKET, MARKER_KEY) as reader:
                content = reader.read(_MARKER_BYTES)
        except NotFound:
            return None
        except AccessDenied:
            if known is not None:
                raise
            return None  # these credentials may use other keys only: no marker can be kept
        found = _ID.fullmatch(content)
        if found is None:
            where = f"{self._driver.name}: {MARKER_BUCKET}/{MARKER_KEY}"
            raise OtherStore(f"{where} is no marker of a store; remove it if it is not needed")
        return found[1].decode()

    def _create(self) -> str | None:
        store_id = secrets.token_hex(16)
        content = f"zot-store {store_id}\n".encode()
        body = VerifyingReader(io.BytesIO(content))
        info = WriteInfo(len(content), _sha256(content))
        condition: Condition = "create_only" if self._driver.capabilities.conditional_writes else None
        try:
            self._driver.put(MARKER_BUCKET, MARKER_KEY, body, info, condition=condition)
        except AlreadyExists:
            pass  # another process was faster
        except (AccessDenied, InvalidKey):
            return None
        return self._read(None)

    def _refuse_other(self, known: str | None, found: str | None) -> None:
        there = f"it has the marker {found}" if found else "its marker is gone"
        raise OtherStore(
            f"{self._driver.name}: this is not the store that was used before (id {known}): {there}. Mount the right "
            f"disk or correct the settings; {self._known.way_out(self._driver.name)} if it was replaced on purpose"
        )

    def _refuse_same(self, found: str, *, write: bool) -> None:
        same = sorted(name for name, other in self._known.others(self._driver.name).items() if other == found)
        if not same:
            return
        self._known.put(self._driver.name, found)  # so that the other store is refused as well
        if write:
            raise SameStore(
                f"stores {self._driver.name} and {same[0]} are one physical place (id {found}): a copy in each would "
                "be one copy. Remove one of them from the settings, or point it to another place"
            )

    def _refuse_nested(self, root: Path, *, below: bool) -> None:
        """Find the marker of another configured store around the root, or below it: one share that is mounted twice."""
        others = {marker: name for name, marker in self._known.others(self._driver.name).items()}
        if not others:
            return
        for directory in [*root.resolve().parents, *(_directories_below(root) if below else ())]:
            name = others.get(_marker_in(directory) or "")
            if name is not None:
                raise SameStore(
                    f"stores {self._driver.name} and {name} are one physical place: {directory} is the root of "
                    f"{name}, and one root is inside the other. Remove one of them from the settings, or point it to "
                    f"another place; if {directory} is only a copy of {name}, remove {MARKER_BUCKET}/{MARKER_KEY} in it"
                )


def _marker_in(directory: Path) -> str | None:
    """Return the id of the store whose root a directory is, or None."""
    try:
        fd = os.open(directory / MARKER_BUCKET / MARKER_KEY, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = _ID.fullmatch(os.read(fd, _MARKER_BYTES))
    except OSError:
        return None
    finally:
        os.close(fd)
    return found[1].decode() if found else None


def _directories_below(root: Path) -> Iterator[Path]:
    """Yield the directories below a root, those near it first, down to `_DEPTH_BELOW` and at most `_MOST_BELOW`."""
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


def _sha256(content: bytes) -> str:
    body = VerifyingReader(io.BytesIO(content))
    while body.read(_MARKER_BYTES):
        pass
    return body.digest.sha256


# What configurations show


def overlapping(configs: Mapping[str, StoreConfig]) -> Iterator[tuple[str, str, str]]:
    """Yield each pair of stores that are one physical place by their configuration, with the reason."""
    mounts = _mounts()
    for (one, first), (two, second) in combinations(configs.items(), 2):
        if reason := _overlap(first, second, mounts):
            yield one, two, reason


def physical_path(path: Path, mounts: "list[_Mount] | None" = None) -> tuple[str, str]:
    """Return the device of a path and the path within that device, with links and bind mounts resolved."""
    real = os.path.realpath(path)
    best: _Mount | None = None
    for mount in _mounts() if mounts is None else mounts:
        if _within(real, mount[0]) and (best is None or len(mount[0]) >= len(best[0])):
            best = mount
    if best is None:
        return "", real
    point, device, root = best
    return device, os.path.normpath(os.path.join(root, os.path.relpath(real, point)))  # noqa: PTH118 - no Path collapses dots


def contains(outer: Path, inner: Path) -> bool:
    """Return whether a directory is, or contains, another one, with links and bind mounts resolved."""
    mounts = _mounts()
    device, path = physical_path(outer, mounts)
    other_device, other = physical_path(inner, mounts)
    resolved = _within(os.path.realpath(inner), os.path.realpath(outer))  # also where another disk is mounted between
    return resolved or (device == other_device and _within(other, path))


_Mount = tuple[str, str, str]


def _overlap(first: StoreConfig, second: StoreConfig, mounts: list[_Mount]) -> str | None:
    if isinstance(first, FilesystemConfig) and isinstance(second, FilesystemConfig):
        device, one = physical_path(first.root, mounts)
        other_device, two = physical_path(second.root, mounts)
        if device != other_device or not (_within(one, two) or _within(two, one)):
            return None
        return "both roots are one directory" if one == two else "one root is inside the other"
    location, other = _location(first), _location(second)
    if location is not None and location == other:
        return "both are one bucket of one endpoint"
    for outer, inner in ((first, second), (second, first)):
        if isinstance(outer, CloudConfig) and isinstance(inner, CloudConfig) and _lists(outer, inner):
            return "one is a bucket that `buckets` of the other names"
    return None


def _lists(native: CloudConfig, prefixed: CloudConfig) -> bool:
    """Return whether the bucket of a store is one of those that a store with a bucket for each logical one names."""
    if (native.layout, prefixed.layout) != ("native", "prefixed") or _server(native) != _server(prefixed):
        return False
    return any(fnmatchcase(prefixed.real_bucket or "", pattern) for pattern in native.buckets)


def _server(config: CloudConfig) -> tuple[str | None, ...] | None:
    location = _location(config)  # type: ignore[arg-type]  # the classes of clouds are all known to it
    return None if location is None else location[:2]


def _location(config: StoreConfig) -> tuple[str | None, ...] | None:
    match config:
        case S3Config():
            return "s3", _endpoint(config.endpoint), config.layout, config.bucket
        case GcsConfig():
            return "gcs", _endpoint(config.endpoint), config.layout, config.bucket
        case AzureConfig():
            return "azure", _account(config), config.layout, config.container
        case _:
            return None


def _account(config: AzureConfig) -> str | None:
    if config.connection_string is None:
        return _endpoint(config.account_url)
    fields = dict(
        field.split("=", 1) for field in config.connection_string.get_secret_value().split(";") if "=" in field
    )
    suffix = fields.get("EndpointSuffix", "core.windows.net")
    default = f"{fields.get('DefaultEndpointsProtocol', 'https')}://{fields.get('AccountName')}.blob.{suffix}"
    return _endpoint(fields.get("BlobEndpoint", default))


def _endpoint(url: str | None) -> str | None:
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return url
    return f"{(parts.hostname or '').lower()}:{port}{parts.path.rstrip('/')}"


def _mounts() -> list[_Mount]:
    """Return each mount of this machine: its directory, its device, and the directory of the device that is mounted."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []  # not Linux: only links are resolved
    found = []
    for line in lines:
        fields = line.split(" ")
        found.append((_unescaped(fields[4]), fields[2], _unescaped(fields[3])))
    return found


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
