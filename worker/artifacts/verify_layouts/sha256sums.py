r"""Verify the files that `sha256sum` and `sha512sum` have listed: `SHA256SUMS`, `*.sha256` and their like.

A line is `DIGEST  NAME`, or `DIGEST *NAME` of a file that was read as binary, or `SHA256 (NAME) = DIGEST`. With a
backslash before it, a backslash or a line end in the name is written as `\\`, `\n` or `\r`. A file `NAME.sha256` may
also be the bare digest of `NAME`.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

from worker.artifacts.disk_sort import DiskSort
from worker.artifacts.verify_layouts.checked_prefix import (
    CheckedPrefix,
    Claim,
    Fault,
    FaultKind,
    NoLayout,
    each_line,
    fault_of,
    is_digest,
    joined,
    merged,
)
from worker.storage.driver import ListedObject
from worker.storage.errors import NotFound, StorageError

_LIST = re.compile(
    r"(?:.*/)?(?:sha(?P<of>256|512)sums?(?:\.txt)?|(?P<target>[^/]+)\.sha(?P<beside>256|512)(?:sums?)?(?:\.txt)?)",
    re.IGNORECASE | re.DOTALL,
)
_NAMES = ("SHA{}SUMS", "SHA{}SUMS.txt", "sha{}sums.txt", "sha{}sum.txt")
_SUFFIXES = (".sha{}", ".sha{}sum")
"""The usual names of lists, which are asked for where no listing shows them."""
_SIGNATURE = re.compile(r"(?P<list>.+)\.(?:asc|gpg|sig|sign|minisig|pem|crt)", re.DOTALL)
_LINE = re.compile(r"(?P<escaped>\\?)(?P<digest>[0-9a-fA-F]+) [ *](?P<name>.+)", re.DOTALL)
_TAGGED = re.compile(r"(?P<escaped>\\?)SHA(?P<of>256|512) \((?P<name>.+)\) = (?P<digest>[0-9a-fA-F]+)", re.DOTALL)
_BARE = re.compile(r"[0-9a-fA-F]+")
_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}


def is_list(key: str) -> bool:
    """Return whether an object is a list of digests, or the signature of one."""
    signed = _SIGNATURE.fullmatch(key)
    return bool(_LIST.fullmatch(key) or (signed and _LIST.fullmatch(signed["list"])))


def verify_sha256sums(place: CheckedPrefix) -> Iterator[Fault]:
    """Verify every object that a list below a prefix names, or whose digest the store keeps beside it.

    An object without a digest is `unreferenced`, except the lists and their signatures.

    Raises:
        NoLayout: there is no list below the prefix.
        StorageError: the listing has not come to its end.
    """

    def others(found: ListedObject) -> Iterable[Fault | tuple[Claim, int | None]]:
        if is_list(found.key):
            return
        try:
            kept = place.store.stat_object(place.bucket, found.key).sha256
        except StorageError as error:
            yield fault_of(error, found.key)
            return
        if kept is None:
            yield Fault(FaultKind.UNREFERENCED, found.key, "no list names it")
        else:
            yield Claim(found.key, (("sha256", kept),), "the store"), found.size

    with place.sorter() as rows:
        yield from sort_lists(place, place.listed(), rows)
        if not place.tally.layouts:
            raise NoLayout(f"{place}: there is no SHA256SUMS and no *.sha256 file below this prefix")
        yield from merged(place, place.listed(), claims_of(rows), others=others)


def sort_lists(place: CheckedPrefix, listing: Iterable[ListedObject], rows: DiskSort) -> Iterator[Fault]:
    """Sort the lines of all lists as rows of key, algorithm, digest and list; yield the faults in the lists."""
    for each in listing:
        place.tally.listed += 1
        if found := _LIST.fullmatch(each.key):
            place.tally.layouts += 1
            try:
                yield from _sort_list(place, each.key, found, rows)
            except StorageError as error:
                yield fault_of(error, each.key)


def lists_above(place: CheckedPrefix, key: str) -> Iterator[ListedObject]:
    """Yield the lists beside an object, in its directory and in those above it, if they have one of the usual names."""
    parts = key.split("/")
    for bits in (256, 512):
        yield from lists_beside(place, key, bits)
        for depth in range(len(parts) - 1):
            yield from lists_beside(place, "".join(f"{part}/" for part in parts[:depth]), bits)


def lists_beside(place: CheckedPrefix, key: str, bits: int = 256) -> Iterator[ListedObject]:
    """Yield the lists beside an object and in its directory, or in that of a prefix, if they have a usual name."""
    directory = key[: key.rfind("/") + 1]
    beside = [f"{key}{each.format(bits)}" for each in _SUFFIXES] if key != directory else []
    for name in (*beside, *(f"{directory}{each.format(bits)}" for each in _NAMES)):
        try:
            found = place.store.stat_object(place.bucket, name)
        except NotFound:
            continue
        yield ListedObject(name, found.size, found.version, found.modified)


def claims_of(rows: DiskSort) -> Iterator[Claim]:
    """Yield the claims of the lists in the order of keys, one for each key."""
    for key, group in groupby(rows, itemgetter(0)):
        some = list(group)
        digests = tuple(dict.fromkeys((row[1], row[2]) for row in some))
        yield Claim(key, digests, ", ".join(dict.fromkeys(row[3] for row in some)))


def _sort_list(place: CheckedPrefix, key: str, found: re.Match[str], rows: DiskSort) -> Iterator[Fault]:
    base, algorithm = key[: key.rfind("/") + 1], f"sha{found['of'] or found['beside']}"

    def sort(line: bytes) -> None:
        if not line.startswith(b"#"):
            of, digest, name = _parsed(line.decode("utf-8"), algorithm, found["target"])
            rows.add((joined(base, name), of, digest, key))

    yield from each_line(place, key, sort, of="sha256sum")


def _parsed(line: str, algorithm: str, target: str | None) -> tuple[str, str, str]:
    """Return algorithm, digest and name of a line; raise ValueError if it is not a line of a list."""
    if target is not None and _BARE.fullmatch(line.strip()):
        return algorithm, _checked(algorithm, line.strip()), target
    if tagged := _TAGGED.fullmatch(line):
        algorithm = f"sha{tagged['of']}"
    found = tagged or _LINE.fullmatch(line)
    if found is None:
        raise ValueError
    name = found["name"]
    if found["escaped"]:
        name = re.sub(r"\\[\\nr]", lambda escape: _ESCAPES[escape[0]], name)
    return algorithm, _checked(algorithm, found["digest"]), name


def _checked(algorithm: str, digest: str) -> str:
    if not is_digest(algorithm, digest.lower()):
        raise ValueError
    return digest.lower()
