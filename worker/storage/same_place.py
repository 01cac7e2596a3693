"""Which configured stores are one physical place, as far as their configurations and the mounts of this machine show.

Roots are compared with links and bind mounts resolved, and endpoints with their buckets.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from worker.storage.config import (
    AzureConfig,
    CloudConfig,
    FilesystemConfig,
    GcsConfig,
    S3Config,
    StoreConfig,
    connection_fields,
)
from zot_artifact_client.http_urls import InvalidEndpoint, parse_endpoint

_MOUNT_POINT = 4  # field of a line of mountinfo
_AMAZON = re.compile(r"(?!.*\bus-(?:gov|iso))(?:[a-z0-9-]+\.)*s3[a-z0-9-]*\.(?:[a-z0-9-]+\.)*amazonaws\.com")
_GOOGLE = re.compile(r"(?:[a-z0-9-]+\.)+googleapis\.com")
"""Hosts of one name space of buckets: a bucket is the same one at each of them."""


def overlapping(configs: Mapping[str, StoreConfig]) -> Iterator[tuple[str, str, str]]:
    """Yield each pair of stores that are one physical place by their configuration, with the reason."""
    mounts = mounts_here()
    for (one, first), (two, second) in combinations(configs.items(), 2):
        if reason := _overlap(first, second, mounts):
            yield one, two, reason


def indistinguishable(configs: Mapping[str, StoreConfig]) -> Iterator[tuple[str, str]]:
    """Yield each pair of stores that may be one place, and that neither configuration nor marker can tell apart.

    These are stores with real buckets at two addresses, without a reserved bucket for a marker.
    """
    for (one, first), (two, second) in combinations(configs.items(), 2):
        if type(first) is type(second) and _is_unmarked(first) and _is_unmarked(second):
            yield one, two


def _is_unmarked(config: StoreConfig) -> bool:
    return isinstance(config, CloudConfig) and config.layout == "native" and not config.reserved_bucket


def _physical_path(path: Path, mounts: "list[Mount]") -> tuple[str, str]:
    """Return the device of a path and the path within that device, with links and bind mounts resolved."""
    mount, within = _mounted_at(os.path.realpath(path), mounts)
    return mount.device if mount else "", within


def _mounted_at(real: str, mounts: "list[Mount]") -> "tuple[Mount | None, str]":
    """Return the mount that a path without links is on, and the path within its device."""
    best: Mount | None = None
    for mount in mounts:
        if is_within(real, mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    if best is None:
        return None, real
    return best, os.path.normpath(os.path.join(best.top, os.path.relpath(real, best.point)))  # noqa: PTH118 - Path does not collapse dots


class Mount(NamedTuple):
    """A mount of this machine.

    Attributes:
        point: the directory where it is.
        device: what is mounted.
        top: the directory of the device that is mounted.
        layers: the directories whose files an overlay shows.
    """

    point: str
    device: str
    top: str
    layers: tuple[str, ...] = ()

    def shown(self, path: str, mounts: "list[Mount]") -> Iterator[tuple[str, str]]:
        """Yield a directory of the device, and those of other devices that an overlay shows there."""
        yield self.device, path
        for layer in self.layers:
            if Path(layer).is_dir():  # a container shows the layers of its root, and does not have them
                yield _physical_path(Path(layer + path), mounts)


def contains(outer: Path, inner: Path, mounts: list[Mount]) -> bool:
    """Return whether a directory is, or contains, another one, with links and bind mounts resolved.

    What is mounted inside a directory is contained in it, wherever else it is.
    """
    real = os.path.realpath(outer)
    if is_within(os.path.realpath(inner), real) or _is_or_is_above(outer, inner):
        return True
    device, path = _physical_path(inner, mounts)
    return any(device == where and is_within(path, top) for where, top in _extents(outer, mounts))


def _extents(root: Path, mounts: list[Mount]) -> Iterator[tuple[str, str]]:
    """Yield each directory of a device that a root shows: its own, and those that are mounted inside it."""
    real = os.path.realpath(root)
    mount, path = _mounted_at(real, mounts)
    yield from mount.shown(path, mounts) if mount else [("", path)]
    for mount in mounts:
        if mount.point != real and is_within(mount.point, real):
            yield from mount.shown(mount.top, mounts)


def _is_or_is_above(outer: Path, inner: Path) -> bool:
    """Return whether a directory is another one, or one around it, also where the disk tells no upper case apart."""
    with suppress(OSError):  # a root that is gone is reported by the driver
        found = outer.stat()
        real = Path(os.path.realpath(inner))
        for directory in (real, *real.parents):
            with suppress(OSError):
                if os.path.samestat(directory.stat(), found):
                    return True
    return False


def _overlap(first: StoreConfig, second: StoreConfig, mounts: list[Mount]) -> str | None:
    if isinstance(first, FilesystemConfig) and isinstance(second, FilesystemConfig):
        return _roots_overlap(first.root, second.root, mounts)
    location, other = location_of(first), location_of(second)
    if location is not None and location == other:
        return "both are one bucket of one endpoint"
    for outer, inner in ((first, second), (second, first)):
        if isinstance(outer, CloudConfig) and isinstance(inner, CloudConfig) and _lists(outer, inner):
            return "one is a bucket that `buckets` of the other names"
    return None


def _roots_overlap(one: Path, two: Path, mounts: list[Mount]) -> str | None:
    inside, around = contains(one, two, mounts), contains(two, one, mounts)
    if inside and around:
        return "both roots are one directory"
    if inside or around:
        return "one root is inside the other"
    # Two roots inside which one directory is mounted, or one of which shows a part of the other.
    shown = set(_extents(one, mounts))
    for device, top in _extents(two, mounts):
        if any(device == where and (is_within(top, path) or is_within(path, top)) for where, path in shown):
            return "a directory is mounted inside one root that the other shows as well"
    return None


def _lists(native: CloudConfig, prefixed: CloudConfig) -> bool:
    """Return whether the bucket of a store with the layout `prefixed` is in `buckets` of one with `native`."""
    return names_bucket_of(native, prefixed) and server_of(native) == server_of(prefixed)


def names_bucket_of(native: CloudConfig, prefixed: CloudConfig) -> bool:
    """Return whether `buckets` of a store with the layout `native` names the bucket of one with `prefixed`."""
    if not may_share(native, prefixed) or (native.layout, prefixed.layout) != ("native", "prefixed"):
        return False
    return any(fnmatchcase(prefixed.real_bucket or "", pattern) for pattern in native.buckets)


def may_share(first: CloudConfig, second: CloudConfig) -> bool:
    """Return whether two stores can have a bucket in common: Cloud Storage shows its buckets to clients of S3 too."""
    return isinstance(first, AzureConfig) == isinstance(second, AzureConfig)


def server_of(config: CloudConfig) -> tuple[str | None, ...] | None:
    """Return the kind and the endpoint of a store."""
    location = location_of(config)  # type: ignore[arg-type]  # the classes of clouds are all known to it
    return None if location is None else location[:2]


def location_of(config: StoreConfig) -> tuple[str | None, ...] | None:
    """Return the kind, the endpoint, the layout and the bucket of a store in a cloud, and None for a directory."""
    match config:
        case S3Config() if config.endpoint is None or _endpoint(config.endpoint, _GOOGLE) is not None:
            return "s3", _endpoint(config.endpoint, _AMAZON), config.layout, config.bucket
        case S3Config() | GcsConfig():
            return "gcs", _endpoint(config.endpoint, _GOOGLE), config.layout, config.bucket
        case AzureConfig():
            return "azure", _account(config), config.layout, config.container
        case _:
            return None


def _account(config: AzureConfig) -> str | None:
    if config.connection_string is None:
        return _endpoint(config.account_url)
    fields = connection_fields(config.connection_string)
    suffix = fields.get("ENDPOINTSUFFIX", "core.windows.net")
    default = f"{fields.get('DEFAULTENDPOINTSPROTOCOL', 'https')}://{fields.get('ACCOUNTNAME')}.blob.{suffix}"
    return _endpoint(fields.get("BLOBENDPOINT", default))


def _endpoint(url: str | None, own: re.Pattern[str] | None = None) -> str | None:
    """Return what is the same for two spellings of one endpoint; None for any of the provider's own, `own`."""
    if url is None:
        return None
    try:
        found = parse_endpoint(url, example="", credentials="")
    except InvalidEndpoint:
        return url
    return None if own and own.fullmatch(found.host) else found.place


def mounts_here() -> list[Mount]:
    """Return each mount of this machine."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").split("\n")
    except OSError:
        return []  # not Linux: only links are resolved
    found = []
    for line in lines:
        fields = line.split(" ")
        if len(fields) > _MOUNT_POINT:
            layers = tuple(_layers(fields[-1])) if " - overlay " in line else ()
            found.append(Mount(_unescaped(fields[_MOUNT_POINT]), fields[2], _unescaped(fields[3]), layers))
    return found


def _layers(options: str) -> Iterator[str]:
    """Yield the directories that the options of an overlay name."""
    for option in options.split(","):
        name, _, value = option.partition("=")
        if name in {"lowerdir", "upperdir", "lowerdir+", "datadir+"}:
            for layer in re.split(r"(?<!\\):", _unescaped(value)):
                if layer:
                    yield layer.replace("\\:", ":")


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def is_within(path: str, directory: str) -> bool:
    """Return whether a path is a directory, or below it, by their names."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")
