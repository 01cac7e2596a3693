"""Verify BagIt bags (RFC 8493): every file that a manifest lists, and that each payload file is listed."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from worker.artifacts.disk_sort import DiskSort
from worker.artifacts.verify_layouts.checked_prefix import (
    CheckedPrefix,
    Claim,
    Fault,
    FaultKind,
    InvalidLayout,
    NoLayout,
    each_line,
    fault_of,
    is_digest,
    joined,
    merged,
)
from worker.storage.driver import ListedObject
from worker.storage.errors import NotFound, StorageError

_DECLARATION = "bagit.txt"
_SMALL = 1 << 20
_MANIFEST = re.compile(r"(?P<tag>tag)?manifest-(?P<algorithm>[A-Za-z0-9_-]+)\.txt")
_LINE = re.compile(r"(?P<digest>\S+)[ \t]+\*?(?P<path>\S.*)")
_FETCH = re.compile(r"(?P<url>\S+)[ \t]+(?P<length>\d+|-)[ \t]+(?P<path>\S.*)")
_VERSION = re.compile(r"BagIt-Version: (?P<major>\d{1,3})\.(?P<minor>\d{1,3})")
_ENCODING = re.compile(r"Tag-File-Character-Encoding: (?P<name>[A-Za-z0-9._:-]{1,40})")
_OXUM = re.compile(r"payload-oxum[ \t]*:[ \t]*(?P<octets>\d{1,20})\.(?P<count>\d{1,20})[ \t]*", re.IGNORECASE)
_ENCODINGS = re.compile(r"utf-?8|us-ascii|ascii|iso-?8859-\d{1,2}|windows-125\d", re.IGNORECASE)
_ESCAPED = re.compile(r"%(0[aAdD]|25)")
_WHERE_FROM = "fetch.txt"


@dataclass(slots=True)
class _Bag:
    """One bag: its directory, and what its declaration says."""

    root: str
    complete_manifests: bool = True
    """Each manifest lists the whole payload, as BagIt 1.0 demands."""
    encoding: str = "utf-8"


def verify_bagit(place: CheckedPrefix) -> Iterator[Fault]:
    """Verify every bag below a prefix; objects that are in no bag are `unreferenced`.

    Every file is compared by each algorithm that lists it, and every payload file must be listed. A file that
    `fetch.txt` names and that is not there is `missing`. Memory does not grow with the number of files.

    Raises:
        NoLayout: there is no bag below the prefix.
        StorageError: the listing has not come to its end.
    """
    roots = _roots(place)
    if not roots:
        raise NoLayout(f"{place}: there is no BagIt bag below this prefix: no object is named {_DECLARATION}")
    place.tally.layouts = len(roots)
    if roots != {place.prefix}:
        for each in place.listed():
            if not _is_within(each.key, roots):
                yield Fault(FaultKind.UNREFERENCED, each.key, "it is in no bag")
    for root in sorted(roots):
        yield from _verify(place, root)


def _roots(place: CheckedPrefix) -> set[str]:
    roots: set[str] = set()
    for each in place.listed():
        place.tally.listed += 1
        root = each.key.removesuffix(_DECLARATION)
        # A bag inside the payload of another is payload, and its declaration comes later in the listing.
        if root != each.key and (not root or root.endswith("/")) and not _is_within(root, roots, "data/"):
            roots.add(root)
    return roots


def _is_within(key: str, roots: set[str], below: str = "") -> bool:
    ends = [0, *(at + 1 for at, char in enumerate(key) if char == "/")]
    return any(key[:end] in roots and key[end:].startswith(below) for end in ends)


def _verify(place: CheckedPrefix, root: str) -> Iterator[Fault]:
    bag = _Bag(root)
    yield from _read_declaration(place, bag)
    with place.sorter() as rows:
        payload, tags = _manifests(place, root)
        if not payload:
            yield Fault(FaultKind.MISSING, f"{root}manifest-sha256.txt", "a bag has at least one payload manifest")
        for name in [*payload, *tags]:
            yield from _sort_manifest(place, bag, name, rows)
        yield from _sort_fetch(place, bag, rows)
        counted = _Counted(root)

        def others(found: ListedObject) -> Iterable[Fault]:
            if found.key.startswith(f"{root}data/"):
                yield Fault(FaultKind.UNREFERENCED, found.key, "no manifest lists it")

        listing = counted.through(place.listed(root))
        yield from merged(place, listing, _claims(bag, rows, payload), others=others)
    yield from _check_oxum(place, bag, counted)


def _read_declaration(place: CheckedPrefix, bag: _Bag) -> Iterator[Fault]:
    key = bag.root + _DECLARATION
    try:
        lines = place.small(key, _SMALL).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        yield Fault(FaultKind.INVALID, key, "it is not UTF-8")
        return
    except StorageError as error:
        yield fault_of(error, key)
        return
    version = _VERSION.fullmatch(lines[0]) if lines else None
    encoding = _ENCODING.fullmatch(lines[1]) if len(lines) > 1 else None
    if version is None or encoding is None:
        yield Fault(FaultKind.INVALID, key, "it must declare BagIt-Version and Tag-File-Character-Encoding")
        return
    bag.complete_manifests = int(version["major"]) >= 1
    if _ENCODINGS.fullmatch(encoding["name"]):
        bag.encoding = encoding["name"]
    else:
        yield Fault(FaultKind.UNVERIFIABLE, key, f"tag files in {encoding['name']} cannot be read")


def _manifests(place: CheckedPrefix, root: str) -> tuple[list[str], list[str]]:
    """Return the names of the payload manifests and of the tag manifests."""
    some = [each.key.removeprefix(root) for part in ("manifest-", "tagmanifest-") for each in place.listed(root + part)]
    found = [match for name in some if (match := _MANIFEST.fullmatch(name))]
    return [each[0] for each in found if not each["tag"]], [each[0] for each in found if each["tag"]]


def _sort_manifest(place: CheckedPrefix, bag: _Bag, name: str, rows: DiskSort) -> Iterator[Fault]:
    """Sort the lines of a manifest as rows of key, manifest, algorithm and digest."""
    match = _MANIFEST.fullmatch(name)
    assert match is not None
    algorithm = match["algorithm"].lower().replace("-", "_")
    algorithm = algorithm.replace("_", "") if algorithm.startswith("sha_") else algorithm

    def sort(line: str) -> None:
        found = _LINE.fullmatch(line)
        if found is None or not is_digest(algorithm, found["digest"].lower()):
            raise ValueError
        key = _path(bag, found["path"])
        if bool(match["tag"]) == key.startswith(f"{bag.root}data/"):
            raise InvalidLayout(f"{found['path']!r} belongs in a {'payload' if match['tag'] else 'tag'} manifest")
        rows.add((key, name, algorithm, found["digest"].lower()))

    yield from _lines_of(place, bag, name, sort)


def _sort_fetch(place: CheckedPrefix, bag: _Bag, rows: DiskSort) -> Iterator[Fault]:
    def sort(line: str) -> None:
        found = _FETCH.fullmatch(line)
        if found is None:
            raise ValueError
        rows.add((_path(bag, found["path"]), _WHERE_FROM, "", ""))

    yield from _lines_of(place, bag, _WHERE_FROM, sort, optional=True)


def _lines_of(
    place: CheckedPrefix, bag: _Bag, name: str, do: Callable[[str], None], *, optional: bool = False
) -> Iterator[Fault]:
    """Do something with each line of a file of the bag, and yield what is wrong with it."""
    key = bag.root + name
    try:
        yield from each_line(place, key, lambda line: do(line.decode(bag.encoding)), of="such a file")
    except NotFound as error:
        if not optional:
            yield fault_of(error, key)
    except StorageError as error:
        yield fault_of(error, key)


def _path(bag: _Bag, path: str) -> str:
    """Return the key that a manifest names; line ends and percent signs are percent-encoded in it."""
    escaped = path if not bag.complete_manifests else _ESCAPED.sub(lambda found: chr(int(found[1], 16)), path)
    return joined(bag.root, escaped)


def _claims(bag: _Bag, rows: DiskSort, payload: list[str]) -> Iterator[Claim | Fault]:
    for key, group in groupby(rows, itemgetter(0)):
        some = list(group)
        listed = [row for row in some if row[1] != _WHERE_FROM]
        fetched = len(listed) < len(some)
        if not listed:
            yield Fault(FaultKind.INVALID, key, f"{_WHERE_FROM} names it, and no manifest does")
            continue
        names = list(dict.fromkeys(row[1] for row in listed))
        lacking = [name for name in payload if name not in names]
        if bag.complete_manifests and lacking and key.startswith(f"{bag.root}data/"):
            yield Fault(FaultKind.INVALID, key, f"{', '.join(lacking)} does not list it, {', '.join(names)} does")
        absent = f"{names[0]} names it and it was not fetched: {_WHERE_FROM} says from where" if fetched else ""
        digests = tuple(dict.fromkeys((row[2], row[3]) for row in listed))
        yield Claim(key, digests, ", ".join(names), absent)


class _Counted:
    """Counts the payload while it is listed."""

    def __init__(self, root: str) -> None:
        self._data = f"{root}data/"
        self.count = self.octets = 0

    def through(self, listing: Iterable[ListedObject]) -> Iterator[ListedObject]:
        for each in listing:
            if each.key.startswith(self._data):
                self.count += 1
                self.octets += each.size or 0
            yield each


def _check_oxum(place: CheckedPrefix, bag: _Bag, counted: _Counted) -> Iterator[Fault]:
    key = f"{bag.root}bag-info.txt"
    try:
        text = place.small(key, _SMALL).decode(bag.encoding, "replace")
    except NotFound:
        return  # it is optional
    except StorageError as error:
        yield fault_of(error, key)
        return
    for line in text.splitlines():
        said = _OXUM.fullmatch(line)
        if said and (int(said["octets"]), int(said["count"])) != (counted.octets, counted.count):
            detail = f"Payload-Oxum is {said['octets']}.{said['count']}, there are {counted.octets}.{counted.count}"
            yield Fault(FaultKind.SIZE_MISMATCH, key, detail)
