"""What a store says is compared by name, and only where it was recorded at the write."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from worker.artifacts.check_evidence import compare_listed, compare_stat
from worker.catalogue import RecordedEvidence
from worker.storage import ListedObject, ObjectStat

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KNOWN = RecordedEvidence(1, "app", 1, 3, "a" * 64, "7", {"crc32c": "c", "md5": "m", "etag": "e"}, NOW)
STAT = ObjectStat("b", "app", 3, "7", NOW, "a" * 64, storage_tags={"crc32c": "c", "md5": "m", "etag": "e"})


def test_what_agrees_is_named() -> None:
    """Size, version tag, digest and the checksums of the provider; an ETag is no checksum, and changes by itself."""
    found = compare_stat(KNOWN, replace(STAT, storage_tags={**STAT.storage_tags, "etag": "other"}))
    assert (found.outcome, found.compared, found.source) == ("agrees", "size, version, sha256, crc32c, md5", "stat")


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"size": 4}, "size"),
        ({"version": "8"}, "version"),
        ({"sha256": "b" * 64}, "sha256"),
        ({"storage_tags": {"crc32c": "x"}}, "crc32c"),
        ({"storage_tags": {"md5": "x"}}, "md5"),
    ],
)
def test_whatever_differs_is_told(changed: dict[str, object], name: str) -> None:
    """With both values."""
    found = compare_stat(KNOWN, replace(STAT, **changed))
    assert found.outcome == "differs"
    assert found.detail is not None
    assert found.detail.startswith(f"{name} is ")


def test_what_was_not_recorded_is_not_compared() -> None:
    """A checksum that only one side has says nothing."""
    known = replace(KNOWN, evidence={}, tag=None)
    stat = replace(STAT, sha256=None, storage_tags={"content_md5": "x"})
    assert compare_stat(known, stat).compared == "size"


def test_a_listing_without_values_tells_nothing() -> None:
    """A row without size and version agrees with nothing."""
    assert compare_listed(KNOWN, ListedObject("app", None, "", NOW)).outcome == "unknown"
    assert compare_listed(KNOWN, ListedObject("app", 3, "7", NOW)).compared == "size, version"
    assert compare_listed(KNOWN, ListedObject("app", 3, "8", NOW)).outcome == "differs"
