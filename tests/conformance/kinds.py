"""The stores that the conformance suite tests, and which of its cases apply to each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.conformance import targets
from tests.conformance.targets import SMALL_PART, Target


@dataclass(frozen=True)
class Kind:
    """One store under test, as far as it is known before it is opened: which cases are generated for it.

    Attributes:
        open: opens it, given the value of the fixture `server` (None without one) and a directory.
        offers: the optional abilities that it has; a case marked `needs(ability)` is generated for those alone.
        excludes: what is not tested on it, with the reason; a case marked `unless(name)` is not generated for it. One
            marked `unless("server")`, which would take a server too long, is generated for no store that has one.
        data_path: how it is configured. `auto` changes only how small objects are read and written: only cases
            marked `reads` are generated.
    """

    open: Callable[[Any, Path], Target]
    server: str = ""
    offers: frozenset[str] = frozenset({"parts", "server_copy"})
    excludes: Mapping[str, str] = field(default_factory=dict)
    data_path: str = "sdk"


def _filesystem(_server: None, directory: Path) -> Target:
    (directory / "root").mkdir()
    return targets.filesystem(directory / "root")


def _small(store: Callable[..., Target]) -> Callable[[Any, Path], Target]:
    """Return what opens a store with small parts: what is sent to it takes most of the processor time of its cases."""
    return partial(store, part_size=SMALL_PART)


RCLONE = {
    "prefix_keys": "rclone keeps objects as files: `a` beside `a/b` is a 500",
    "claims": "rclone forgets the metadata of a file whose size has changed",
    "pages": "rclone takes a minute for 1,000 objects while it may remember no folder",
    "byte_order": "rclone lists folder by folder, not by the bytes of whole keys",
    "part_again": "rclone streams parts as they come and cannot replace one",
    "part_left_out": "rclone streams parts as they come and cannot leave one out",
    "stale_part": "rclone streams parts as they come and cannot replace one",
    "odd_keys": "rclone keeps objects as files, and lists other characters in place of those",
    "race": "rclone can keep the bytes of one writer beside the metadata of another, or answer 500",
}
_OF_ANOTHER = "another store of the provider is sent the same requests"
SAME = dict.fromkeys(("pages", "copies", "names"), _OF_ANOTHER)
NATIVE = dict.fromkeys(("pages", "copies", "layout"), f"{_OF_ANOTHER}, but for the name of the bucket")
PARTS, COPIES, FILES, PATCHES = (frozenset({ability}) for ability in ("parts", "server_copy", "files", "patches"))
CHUNKS = PARTS | COPIES | PATCHES

KINDS = {
    "memory": Kind(lambda _server, _directory: targets.memory(), offers=frozenset()),
    "filesystem": Kind(_filesystem, offers=FILES),
    "s3-ministack": Kind(partial(targets.s3_ministack, part=SMALL_PART), "ministack", CHUNKS),
    "s3-aws": Kind(targets.s3_aws, "ministack", CHUNKS, excludes=dict.fromkeys(("pages", "names"), _OF_ANOTHER)),
    "s3-native": Kind(targets.s3_native, "ministack", CHUNKS, excludes=NATIVE),
    "s3-rclone": Kind(partial(targets.s3_rclone, part=SMALL_PART), "rclone", PARTS | FILES, RCLONE),
    "gcs": Kind(_small(targets.gcs), "strict_gcs"),
    "gcs-native": Kind(_small(targets.gcs_native), "strict_gcs", excludes=NATIVE),
    "gcs-resumable": Kind(_small(targets.gcs_resumable), "strict_gcs", COPIES, SAME),
    "azure": Kind(_small(targets.azure), "azurite", CHUNKS),
    "azure-native": Kind(_small(targets.azure_native), "azurite", CHUNKS, NATIVE),
}
_QUOTING = {"quoting": "plain requests quote the same keys in the other layout"}
KINDS |= {
    f"{name}-auto": replace(KINDS[name], data_path="auto")
    for name in ("s3-ministack", "s3-aws", "s3-rclone", "gcs", "azure")
}
KINDS |= {
    f"{name}-auto": replace(KINDS[name], data_path="auto", excludes=NATIVE | _QUOTING)
    for name in ("s3-native", "gcs-native", "azure-native")
}
