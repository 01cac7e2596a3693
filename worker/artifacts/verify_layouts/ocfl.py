"""Verify OCFL storage roots and objects (1.0 and 1.1): inventories, the content of all versions, fixity."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from worker.artifacts.verify_layouts.checked_prefix import (
    CheckedPrefix,
    Claim,
    Fault,
    FaultKind,
    InvalidLayout,
    NoLayout,
    fault_of,
    is_digest,
    joined,
    merged,
    parse_object,
)
from worker.storage.driver import ListedObject
from worker.storage.errors import DigestMismatch, NotFound, StorageError

_INVENTORY = 64 << 20
"""Bytes of the largest inventory, which is in memory as a whole."""
_SMALL = 1 << 16
_OBJECT = re.compile(r"(?P<root>(?:.*/)?)0=(?P<says>ocfl_object_\d+\.\d+)", re.DOTALL)
_ROOT = re.compile(r"0=(?P<says>ocfl_\d+\.\d+)")
_SIDECAR = re.compile(r"(?P<digest>[0-9a-fA-F]+)[ \t]+inventory\.json[\r\n]*")
_VERSION = re.compile(r"v(?P<zeros>0*)(?P<number>[1-9]\d{0,8})")
_PLAIN = re.compile(
    r"0=ocfl_object_[^/]+|inventory\.json(?:\.[a-z0-9-]+)?|v\d+/inventory\.json(?:\.[a-z0-9-]+)?|logs/.+|extensions/.+",
    re.DOTALL,
)
_ALGORITHMS = ("sha512", "sha256")
_FIXITY = {"blake2b-512": "blake2b"}
"""Names of algorithms in fixity blocks that Python has under another name."""


@dataclass(slots=True)
class _Inventory:
    """An inventory whose digest is right. `states`: of each version, the digest of each logical path."""

    id: str
    algorithm: str
    head: str
    content: str
    manifest: dict[str, str] = field(default_factory=dict)
    """By content path, the digest."""
    states: dict[str, dict[str, str]] = field(default_factory=dict)
    fixity: list[tuple[str, str, str]] = field(default_factory=list)
    """Path, algorithm and digest."""
    unused: list[str] = field(default_factory=list)
    """Digests that no version has."""


def verify_ocfl(place: CheckedPrefix) -> Iterator[Fault]:
    """Verify every OCFL object below a prefix, which is a storage root, a part of one, or an object.

    Each inventory is compared with its sidecar, all files of all versions with the inventories and their fixity
    blocks, and every file that no inventory names is `unreferenced`. Memory grows with the largest inventory.

    Raises:
        NoLayout: there is neither a storage root nor an object below the prefix.
        StorageError: the listing has not come to its end.
    """
    objects, declared = _find(place)
    if not objects and not declared:
        raise NoLayout(f"{place}: there is neither an OCFL storage root nor an OCFL object below this prefix")
    place.tally.layouts = len(objects)
    if place.prefix not in objects:
        if not declared:
            yield Fault(FaultKind.MISSING, f"{place.prefix}0=ocfl_1.1", "a storage root has this declaration")
        yield from _check_declarations(place, place.prefix, declared)
        for each in place.listed():
            path = each.key.removeprefix(place.prefix)
            if "/" in path and not path.startswith("extensions/") and not _is_within(each.key, objects):
                yield Fault(FaultKind.UNREFERENCED, each.key, "it is in no object")
    for root, says in sorted(objects.items()):
        yield from _verify(place, root, says)


def _find(place: CheckedPrefix) -> tuple[dict[str, list[str]], list[str]]:
    """Return the declarations by the roots of objects, and those of the storage root."""
    objects: dict[str, list[str]] = {}
    declared: list[str] = []
    for each in place.listed():
        place.tally.listed += 1
        if found := _OBJECT.fullmatch(each.key):
            objects.setdefault(found["root"], []).append(found["says"])
        elif found := _ROOT.fullmatch(each.key.removeprefix(place.prefix)):
            declared.append(found["says"])
    outer = {root: says for root, says in objects.items() if not root or not _is_within(root[:-1], objects)}
    return outer, declared


def _is_within(key: str, roots: Mapping[str, object]) -> bool:
    ends = [0, *(at + 1 for at, char in enumerate(key) if char == "/")]
    return any(key[:end] in roots for end in ends)


def _check_declarations(place: CheckedPrefix, root: str, declared: list[str]) -> Iterator[Fault]:
    if len(declared) > 1:
        yield Fault(FaultKind.INVALID, f"{root}0={declared[1]}", "it is the second declaration of one root")
    for says in declared:
        key = f"{root}0={says}"
        try:
            if place.small(key, _SMALL) != f"{says}\n".encode():
                yield Fault(FaultKind.INVALID, key, f"its content is not {says!r} and a line end")
        except StorageError as error:
            yield fault_of(error, key)


def _verify(place: CheckedPrefix, root: str, declared: list[str]) -> Iterator[Fault]:
    yield from _check_declarations(place, root, declared)
    try:
        data = place.small(f"{root}inventory.json", _INVENTORY)
        inventory = _checked_inventory(place, root, data)
    except StorageError as error:
        yield fault_of(error, f"{root}inventory.json", "its object was not verified")
        return
    if inventory.unused and "ocfl_object_1.0" not in declared:
        detail = f"`manifest` has a digest that no version has: {inventory.unused[0]}"
        yield Fault(FaultKind.INVALID, f"{root}inventory.json", detail)
    claims = _claims_of(root, inventory, "inventory.json")
    for version in inventory.states:
        key = f"{root}{version}/inventory.json"
        try:
            older = place.small(key, _INVENTORY)
            if older == data:
                continue
            before = _checked_inventory(place, f"{root}{version}/", older)
        except StorageError as error:
            if not isinstance(error, NotFound):  # each version should have one, and need not
                yield fault_of(error, key)
            continue
        claims += _claims_of(root, before, f"{version}/inventory.json")
        yield from _differences(key, version, before, inventory)
    yield from _compare_files(place, root, inventory, claims)


def _compare_files(
    place: CheckedPrefix, root: str, inventory: _Inventory, claims: Sequence[Claim | Fault]
) -> Iterator[Fault]:
    """Compare the files of an object with what its inventories claim; each version has at least one."""
    yield from (each for each in claims if isinstance(each, Fault))

    def others(found: ListedObject) -> Iterable[Fault]:
        if not _PLAIN.fullmatch(found.key.removeprefix(root)):
            yield Fault(FaultKind.UNREFERENCED, found.key, "no inventory names it")

    wanted = sorted((each for each in claims if isinstance(each, Claim)), key=lambda each: each.key)
    versions = set[str]()

    def listed() -> Iterator[ListedObject]:
        for found in place.listed(root):
            versions.add(found.key.removeprefix(root).partition("/")[0])
            yield found

    yield from merged(place, listed(), _grouped(wanted), others=others)
    for version in inventory.states:
        if version not in versions:  # also one that has no content of its own has a directory with its inventory
            detail = "inventory.json has this version, and nothing of it is there"
            yield Fault(FaultKind.MISSING, f"{root}{version}/", detail)


def _differences(key: str, version: str, older: _Inventory, now: _Inventory) -> Iterator[Fault]:
    """Compare the inventory of a version with that of its object."""
    if version == now.head:
        yield Fault(FaultKind.INVALID, key, "it is not the same as the inventory of its object")
    elif older.id != now.id or older.head != version or older.content != now.content:
        yield Fault(FaultKind.INVALID, key, "its id, head or content directory is not that of its object and version")
    elif older.algorithm == now.algorithm:
        for name, state in older.states.items():
            if state != now.states.get(name):
                yield Fault(FaultKind.INVALID, key, f"it has another state of {name} than the inventory of its object")


def _checked_inventory(place: CheckedPrefix, directory: str, data: bytes) -> _Inventory:
    """Compare an inventory with its sidecar and parse it.

    Raises:
        DigestMismatch: it has another digest than its sidecar.
        InvalidLayout: it or its sidecar breaks the format.
        StorageError: the sidecar cannot be read.
    """
    document = parse_object(data)
    algorithm = document.get("digestAlgorithm")
    if algorithm not in _ALGORITHMS:
        raise InvalidLayout(f"its digestAlgorithm is {str(algorithm)[:40]!r}, not sha512 or sha256")
    name = f"inventory.json.{algorithm}"
    try:
        sidecar = _SIDECAR.fullmatch(place.small(directory + name, _SMALL).decode("ascii", "replace"))
    except NotFound:
        raise InvalidLayout(f"its digest {name} is missing") from None
    if sidecar is None:
        raise InvalidLayout(f"its digest {name} is no line of a digest and `inventory.json`")
    found = hashlib.new(algorithm, data).hexdigest()
    if found != sidecar["digest"].lower():
        raise DigestMismatch(f"its {algorithm} is {found}, {name} says {sidecar['digest'].lower()}")
    return _parsed(document, algorithm)


def _parsed(document: Mapping[str, Any], algorithm: str) -> _Inventory:
    id_, head, content = document.get("id"), document.get("head"), document.get("contentDirectory", "content")
    if not isinstance(id_, str) or not id_ or not isinstance(head, str):
        raise InvalidLayout("it has no `id` or no `head`")
    if not isinstance(content, str) or "/" in content or content in {"", ".", ".."}:
        raise InvalidLayout("its `contentDirectory` is no name")
    inventory = _Inventory(id_, algorithm, head, content)
    for digest, path in _block(document.get("manifest"), algorithm, "manifest"):
        if inventory.manifest.setdefault(path, digest) != digest:
            raise InvalidLayout(f"`manifest` has two digests of {path!r}")
    _parse_versions(inventory, document.get("versions"))
    _parse_fixity(inventory, document.get("fixity", {}))
    return inventory


def _parse_versions(inventory: _Inventory, versions: Any) -> None:
    if not isinstance(versions, dict) or not versions:
        raise InvalidLayout("it has no `versions`")
    _check_sequence(list(versions), inventory.head)
    digests, used = set(inventory.manifest.values()), set[str]()
    for version, block in versions.items():
        state: dict[str, str] = {}
        for digest, path in _block(
            block.get("state") if isinstance(block, dict) else None, inventory.algorithm, "state"
        ):
            joined("", path)
            if digest not in digests:
                raise InvalidLayout(f"version {version} has a digest that is not in `manifest`: {digest}")
            if state.setdefault(path, digest) != digest:
                raise InvalidLayout(f"version {version} has two digests of {path!r}")
            used.add(digest)
        inventory.states[version] = state
    inventory.unused = sorted(digests - used)


def _parse_fixity(inventory: _Inventory, fixity: Any) -> None:
    if not isinstance(fixity, dict):
        raise InvalidLayout("`fixity` is no JSON object")
    for name, block in fixity.items():
        for digest, path in _block(block, None, "fixity"):
            if path not in inventory.manifest:
                raise InvalidLayout(f"`fixity` names {path!r}, `manifest` does not")
            inventory.fixity.append((path, _FIXITY.get(name, name.lower().replace("-", "_")), digest))


def _block(block: Any, algorithm: str | None, name: str) -> Iterator[tuple[str, str]]:
    """Yield each path of a block with its digest before it, lower-case."""
    if not isinstance(block, dict):
        raise InvalidLayout(f"it has no `{name}`")
    for digest, paths in block.items():
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise InvalidLayout(f"`{name}` has no list of paths for {digest[:40]}")
        if algorithm and not is_digest(algorithm, digest.lower()):
            raise InvalidLayout(f"`{name}` has {digest[:40]!r}, which is no digest by {algorithm}")
        yield from ((digest.lower(), path) for path in paths)


def _check_sequence(versions: list[str], head: str) -> None:
    """Raise InvalidLayout unless the versions are v1 to head, or v01 and so on, all of one length."""
    found = {name: match for name in versions if (match := _VERSION.fullmatch(name))}
    numbers = sorted(int(match["number"]) for match in found.values())
    padded = {len(name) for name in versions} if any(match["zeros"] for match in found.values()) else {0}
    if len(found) != len(versions) or numbers != list(range(1, len(versions) + 1)) or len(padded) > 1:
        raise InvalidLayout("its versions are not v1, v2 and so on without a gap")
    if head not in found or int(found[head]["number"]) != len(versions):
        raise InvalidLayout(f"its head {head!r} is not its last version")


def _claims_of(root: str, inventory: _Inventory, by: str) -> list[Claim | Fault]:
    claims: list[Claim | Fault] = []
    fixity: dict[str, list[tuple[str, str]]] = {}
    for path, algorithm, digest in inventory.fixity:
        fixity.setdefault(path, []).append((algorithm, digest))
    for path, digest in inventory.manifest.items():
        try:
            key = joined(root, path)
        except InvalidLayout as error:
            claims.append(Fault(FaultKind.UNSAFE, root + by, error.message))
            continue
        version, _, rest = path.partition("/")
        if version not in inventory.states or not rest.startswith(f"{inventory.content}/"):
            claims.append(Fault(FaultKind.INVALID, root + by, f"{path!r} is in no content directory of a version"))
            continue
        claims.append(Claim(key, ((inventory.algorithm, digest), *fixity.get(path, ())), by))
    return claims


def _grouped(claims: Iterable[Claim]) -> Iterator[Claim]:
    for key, group in groupby(claims, lambda each: each.key):
        some = list(group)
        digests = tuple(dict.fromkeys(each for claim in some for each in claim.digests))
        yield Claim(key, digests, ", ".join(dict.fromkeys(claim.by for claim in some)))
