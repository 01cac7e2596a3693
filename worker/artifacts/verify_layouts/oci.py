"""Verify OCI image layouts and the storage of registries: each blob is named by its digest.

An image layout, as zot keeps one for each repository, has `oci-layout`, `index.json` and `blobs/ALGORITHM/HEX`. The
storage of Distribution and Harbor has `docker/registry/v2/blobs/ALGORITHM/HE/HEX/data` for all repositories, and in
each repository links: small files whose content is a digest.
"""

import hashlib
import heapq
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

from worker.artifacts.disk_sort import DiskSort
from worker.artifacts.verify_layouts.checked_prefix import (
    CheckedPrefix,
    Claim,
    Fault,
    FaultKind,
    InvalidLayout,
    NoLayout,
    fault_of,
    is_digest,
    parse_object,
)
from worker.storage.driver import ListedObject
from worker.storage.errors import DigestMismatch, StorageError

_MANIFEST = 4 << 20
"""Bytes of the largest manifest: registries take no larger one."""
_INDEX = 256 << 20
"""Bytes of the largest `index.json`, which lists all manifests of a repository."""
_LINK = 1024

_ALGORITHM = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*")
_BLOB = re.compile(r"(?P<root>(?:.*/)?)blobs/(?P<algorithm>[^/]+)/(?P<name>[^/]+)")
_V2 = re.compile(r"(?P<root>(?:.*/)?docker/registry/v2/)(?P<rest>.+)")
_V2_BLOB = re.compile(r"blobs/(?P<algorithm>[^/]+)/(?P<start>[^/]+)/(?P<name>[^/]+)/data")
_V2_LINK = re.compile(
    r"repositories/(?P<repository>.+)/"
    r"(?P<kind>_layers|_manifests/revisions|_manifests/tags/(?P<tag>[^/]+)/index)/(?P<algorithm>[^/]+)/(?P<hex>[^/]+)/link"
)
_V2_TAG = re.compile(r"repositories/(?P<repository>.+)/_manifests/tags/(?P<tag>[^/]+)/current/link")
_REVISIONS, _LAYERS = "_manifests/revisions", "_layers"
_LINKS = {_REVISIONS, _LAYERS}
_PARSED = {
    "application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.artifact.manifest.v1+json",
}  # fmt: skip
"""The media types of descriptors whose blobs name other blobs."""
_FOREIGN = ("nondistributable", "foreign")
"""In the media types of layers that a registry need not have."""
_EMPTY = f"sha256:{hashlib.sha256().hexdigest()}"
_SHARED = "_blobstore/"
"""The last directory of a repository in which zot keeps the originals of blobs that several repositories have."""


@dataclass(frozen=True, slots=True)
class _Named:
    """A descriptor: a blob that a manifest or an index names, and where: `manifests`, `layers` and so on."""

    digest: str
    size: int | None
    media_type: str
    within: str
    optional: bool = False


@dataclass(slots=True)
class _Link:
    """The content of a link of a registry."""

    faults: list[Fault] = field(default_factory=list)
    named: list[_Named] = field(default_factory=list)
    wanted: list[tuple[str, str]] = field(default_factory=list)
    """Kind and digest of the links that must be in the same repository."""
    unknown: bool = False


def verify_oci(place: CheckedPrefix) -> Iterator[Fault]:
    """Verify all blobs below a prefix against their names, and that manifests and blobs fit together.

    A blob that no manifest names is `unreferenced`, and one that a manifest names and that is gone is `missing`. Memory
    does not grow with the number of blobs, but with the number of manifests of one repository.

    Raises:
        NoLayout: there is neither an image layout nor a registry below the prefix.
        StorageError: the listing has not come to its end.
    """
    with place.sorter() as blobs, place.sorter() as named, place.sorter() as links, place.sorter() as wanted:
        sweep = _Sweep(place, blobs, named, links, wanted)
        yield from sweep.list_all()
        for root in sorted(sweep.roots):
            yield from sweep.walk(root)
        yield from sweep.walk_links()
        yield from place.compare(sweep.joined())


class _Sweep:
    def __init__(
        self, place: CheckedPrefix, blobs: DiskSort, named: DiskSort, links: DiskSort, wanted: DiskSort
    ) -> None:
        self._place = place
        self._blobs = blobs
        """Rows of digest, root, key, size."""
        self._named = named
        """Rows of digest, root, size or -1, whether the blob may be absent, and the key of the object that names it."""
        self._links = links
        """Rows of root, repository, kind, digest, key."""
        self._wanted = wanted
        """Rows of root, repository, kind, digest, and the key of the object that needs the link."""
        self.roots: set[str] = set()
        self._registries: set[str] = set()
        self._has: set[str] = set()
        self._unknown: set[str] = set()
        """Roots with a manifest that cannot be read: which of their blobs are unreferenced is not known."""

    def list_all(self) -> Iterator[Fault]:
        """Sort the blobs and the links of the prefix, and yield the names that are no digests."""
        place = self._place
        for each in place.listed():
            place.tally.listed += 1
            if found := _V2.fullmatch(each.key):
                self._registries.add(found["root"])
                yield from self._list_v2(found["root"], found["rest"], each)
            elif (found := _BLOB.fullmatch(each.key)) and (found["root"] + "blobs/").startswith(place.prefix):
                self.roots.add(found["root"])
                yield from self._list_blob(found["root"], found["algorithm"], found["name"], each)
            elif each.key.rpartition("/")[2] in {"index.json", "oci-layout"}:
                self._has.add(each.key)
        self.roots |= {key.removesuffix("oci-layout") for key in self._has if key.endswith("oci-layout")}
        place.tally.layouts = len(self.roots) + len(self._registries)
        if not place.tally.layouts:
            raise NoLayout(f"{place}: there is neither an OCI image layout nor a registry's storage below this prefix")

    def walk(self, root: str) -> Iterator[Fault]:
        """Follow the manifests of an image layout from its index."""
        shared, place = root.endswith(_SHARED), self._place
        if root + "oci-layout" not in self._has and not shared:
            yield place.missing(root + "oci-layout", "an image layout has this file")
        if root + "index.json" not in self._has and shared:
            return
        try:
            named = _named_in(parse_object(place.small(root + "index.json", _INDEX)))
        except StorageError as error:
            self._unknown.add(root)
            yield fault_of(error, root + "index.json")
            return
        left, seen = [("index.json", named)], set[str]()
        while left:
            by, named = left.pop()
            for each in named:
                self._named.add((each.digest, root, _size(each), int(each.optional), root + by))
                if each.digest in seen or not _names_others(each):
                    continue
                seen.add(each.digest)
                path = _path(each.digest)
                try:
                    left.append((path, self._manifest(root + path, each.digest)))
                except StorageError as error:
                    self._unknown.add(root)
                    if isinstance(error, InvalidLayout) or place.dry_run:  # the others are found when it is compared
                        yield fault_of(error, root + path)

    def walk_links(self) -> Iterator[Fault]:
        """Read the links of registries and the manifests that they name; yield what is wrong with them."""
        for (root, repository, _, _, key), link in self._place.ahead(lambda row: (row, self._link(row)), self._links):
            yield from link.faults
            if link.unknown:
                self._unknown.add(root)
            for each in link.named:
                self._named.add((each.digest, root, _size(each), int(each.optional), key))
            for kind, digest in link.wanted:
                self._wanted.add((root, repository, kind, digest, key))
        rows = heapq.merge(((*row, "") for row in self._links), ((*row, "wanted") for row in self._wanted))
        for (root, repository, kind, digest), group in groupby(rows, lambda row: row[:4]):
            some = list(group)
            if kind in _LINKS and all(row[5] for row in some):
                at = f"{root}repositories/{repository}/{kind}/{digest.replace(':', '/')}/link"
                yield self._place.missing(at, f"what {some[0][4]} names is not linked in the repository")

    def joined(self) -> Iterator[Fault | tuple[Claim, int | None]]:
        """Yield each blob to be read, with what is claimed of it, and what is missing or unreferenced."""
        rows = heapq.merge(
            ((row[0], 0, *row[1:]) for row in self._blobs), ((row[0], 1, *row[1:]) for row in self._named)
        )
        for digest, group in groupby(rows, itemgetter(0)):
            there: dict[str, tuple[str, int]] = {}
            named: dict[str, str] = {}
            wanted: dict[str, str] = {}
            sizes: set[tuple[str, int]] = set()
            for _, is_named, root, *row in group:  # the blobs come first
                if not is_named:
                    there[root] = (row[0], row[1])
                    continue
                size, optional, by = row
                named.setdefault(root, by)
                if not optional:
                    wanted.setdefault(root, by)
                if root in there and size not in {-1, there[root][1]} and (root, size) not in sizes:
                    sizes.add((root, size))
                    if not _is_shared(digest, root, there):
                        detail = f"it has {there[root][1]} bytes, not {size} as {by} says"
                        yield Fault(FaultKind.SIZE_MISMATCH, there[root][0], detail)
            yield from self._one_digest(digest, there, named)
            for root, by in wanted.items():
                if root not in there:
                    yield self._place.missing(_key(root, digest), f"named by {by}")

    def _one_digest(
        self, digest: str, there: dict[str, tuple[str, int]], named: dict[str, str]
    ) -> Iterator[Fault | tuple[Claim, int | None]]:
        algorithm, _, hex_ = digest.partition(":")
        for root, (key, size) in there.items():
            by = named.get(root) or (next(iter(named.values()), None) if root.endswith(_SHARED) else None)
            if by is None and root not in self._unknown:
                yield Fault(FaultKind.UNREFERENCED, key, "no manifest and no index names it")
            if not _is_shared(digest, root, there):
                yield Claim(key, ((algorithm, hex_),), "its name"), size

    # Internals

    def _list_blob(self, root: str, algorithm: str, name: str, found: ListedObject) -> Iterator[Fault]:
        if not is_digest(algorithm, name):
            yield Fault(FaultKind.INVALID, found.key, f"its name is no digest by {algorithm}")
            return
        self._blobs.add((f"{algorithm}:{name}", root, found.key, found.size or 0))

    def _list_v2(self, root: str, rest: str, found: ListedObject) -> Iterator[Fault]:
        if blob := _V2_BLOB.fullmatch(rest):
            if blob["name"].startswith(blob["start"]) and len(blob["start"]) == 2:  # noqa: PLR2004 - as the layout has it
                yield from self._list_blob(root, blob["algorithm"], blob["name"], found)
            else:
                yield Fault(FaultKind.INVALID, found.key, "its directory is not the start of its digest")
        elif link := _V2_LINK.fullmatch(rest):
            digest = f"{link['algorithm']}:{link['hex']}"
            if is_digest(link["algorithm"], link["hex"]):
                self._links.add((root, link["repository"], link["kind"], digest, found.key))
            else:
                yield Fault(FaultKind.INVALID, found.key, f"its name is no digest by {link['algorithm']}")
        elif tag := _V2_TAG.fullmatch(rest):
            self._links.add((root, tag["repository"], "_tag", "", found.key))

    def _link(self, row: tuple[Any, ...]) -> _Link:
        root, _, kind, digest, key = row
        link = _Link()
        try:
            content = self._place.small(key, _LINK).decode("ascii", "replace").strip()
        except StorageError as error:
            link.faults.append(fault_of(error, key))
            link.unknown = kind != _LAYERS
            return link
        if not _is_full(content) or (digest and content != digest):
            link.faults.append(
                Fault(FaultKind.INVALID, key, f"its content is {content[:80]!r}, not the digest it links")
            )
        if kind == "_tag" and _is_full(content):
            link.wanted.append((_REVISIONS, content))
        if kind != _REVISIONS:
            return link
        link.named.append(_Named(digest, None, "", "revisions"))
        try:
            named = self._manifest(_key(root, digest), digest)
        except StorageError as error:
            link.unknown = True
            if isinstance(error, InvalidLayout) or self._place.dry_run:
                link.faults.append(fault_of(error, _key(root, digest)))
            return link
        link.named += named
        for each in named:
            if not each.optional and each.within != "subject":
                link.wanted.append((_REVISIONS if each.within == "manifests" else _LAYERS, each.digest))
        return link

    def _manifest(self, key: str, digest: str) -> list[_Named]:
        """Return the descriptors in a manifest or an index.

        Raises:
            DigestMismatch: its bytes have another digest than its name, so its content is not used.
            StorageError: it cannot be read, or is no manifest.
        """
        data = self._place.small(key, _MANIFEST)
        algorithm, _, hex_ = digest.partition(":")
        if algorithm in {"sha256", "sha512"} and hashlib.new(algorithm, data).hexdigest() != hex_:
            raise DigestMismatch("its bytes are not those of its name")
        return _named_in(parse_object(data))


def _named_in(document: Mapping[str, Any]) -> list[_Named]:
    """Return the descriptors of an index or a manifest, also one of Docker's.

    Raises:
        InvalidLayout: one is not a valid descriptor; names it.
    """
    found: list[_Named] = []
    for within in ("manifests", "config", "layers", "blobs", "subject", "fsLayers"):
        given = document.get(within)
        if given is None:
            continue
        each: Any
        for each in given if isinstance(given, list) else [given]:
            if not isinstance(each, dict):
                raise InvalidLayout(f"`{within}` has something that is no descriptor")
            digest, size = each.get("digest", each.get("blobSum")), each.get("size")
            if not isinstance(digest, str) or not _is_full(digest):
                raise InvalidLayout(f"`{within}` names {str(digest)[:80]!r}, which is no digest")
            if size is not None and (type(size) is not int or size < 0):
                raise InvalidLayout(f"`{within}` names the size {str(size)[:80]!r} of {digest}")
            media_type = str(each.get("mediaType") or "")
            optional = "data" in each or bool(each.get("urls")) or any(word in media_type for word in _FOREIGN)
            found.append(_Named(digest, size, media_type, within, optional))
    return found


def _is_shared(digest: str, root: str, there: Mapping[str, tuple[str, int]]) -> bool:
    """Return whether a blob is the empty object that zot keeps in place of one that another repository has."""
    return there[root][1] == 0 and digest != _EMPTY and any(size for _, size in there.values())


def _names_others(named: _Named) -> bool:
    return named.media_type in _PARSED or (named.within == "manifests" and not named.media_type)


def _is_full(digest: str) -> bool:
    algorithm, colon, hex_ = digest.partition(":")
    return bool(colon and _ALGORITHM.fullmatch(algorithm)) and is_digest(algorithm, hex_)


def _path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _key(root: str, digest: str) -> str:
    algorithm, _, hex_ = digest.partition(":")
    return (
        f"{root}blobs/{algorithm}/{hex_[:2]}/{hex_}/data"
        if root.endswith("docker/registry/v2/")
        else root + _path(digest)
    )


def _size(named: _Named) -> int:
    return -1 if named.size is None else named.size
