"""A digest beside the bytes counts as wrong only if it is so when it is asked for again."""

import io
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.conformance.bodies import digest_of
from worker.artifacts.stored_digests import RECORDED, stored_sha256_of
from worker.catalogue import Artifact
from worker.limits.limited_store import LimitedStores
from worker.storage import Stores, Verdict, Verification
from worker.storage.config import FilesystemConfig
from worker.storage.errors import Unavailable

OTHER = "0" * 64


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    (tmp_path / "nas").mkdir()
    opened = Stores({"nas": FilesystemConfig(root=tmp_path / "nas")}, spool_dir=tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def seen(stores: Stores) -> Verification:
    """Return the verification of an object that the store has with its right digest."""
    stores["nas"].write_object("b", "app", io.BytesIO(b"bytes"))
    found = stores["nas"].verify_object("b", "app")
    assert found.verdict is Verdict.VERIFIED
    return found


def stored(
    stores: Mapping[str, object], seen: Verification, found: str | None, evidence: Mapping[str, str] | None = None
) -> str | None:
    artifact = Artifact(1, "b", "app", 1, digest_of(b"bytes"), {}, datetime(2026, 1, 1, tzinfo=UTC))
    limited = cast("LimitedStores", stores)
    return stored_sha256_of(limited, artifact, "nas", evidence or {}, seen._replace(stored_sha256=found))


@pytest.mark.parametrize("found", [OTHER, ""])
def test_a_digest_that_is_right_when_it_is_asked_for_again_is_right(
    stores: Stores, seen: Verification, found: str
) -> None:
    """The sidecar of a small object was read while a writer replaced it."""
    assert stored(stores, seen, found) == seen.sha256


def test_the_digest_of_an_object_that_was_replaced_says_nothing(stores: Stores, seen: Verification) -> None:
    """It belongs to other bytes than those that were read."""
    stores["nas"].write_object("b", "app", io.BytesIO(b"other"))
    assert stored(stores, seen, OTHER) is None


def test_a_store_that_does_not_answer_again_says_nothing(seen: Verification) -> None:
    """The next read tells."""

    def stat_object(bucket: str, key: str) -> None:
        raise Unavailable(f"nas: {bucket}/{key}: no answer")

    assert stored({"nas": SimpleNamespace(stat_object=stat_object)}, seen, OTHER) is None


def test_a_copy_that_was_recorded_without_a_digest_beside_it_has_none_to_lose(
    stores: Stores, seen: Verification
) -> None:
    """An adopted copy without a sidecar is no finding at each read."""
    assert stored(stores, seen, "", {"adopted": RECORDED}) is None


def test_a_digest_that_is_lost_or_wrong_is_told(stores: Stores, seen: Verification, tmp_path: Path) -> None:
    """It is empty where the store has none any more."""
    assert stored(stores, seen, seen.sha256) == seen.sha256
    path = tmp_path / "nas" / "b" / "app"
    path.unlink()
    path.write_bytes(b"bytes")  # without the attribute that has the digest too
    path.with_name("app.sha256").unlink()
    now = seen._replace(version=stores["nas"].stat_object("b", "app").version)
    assert stored(stores, now, "") == ""
    path.with_name("app.sha256").write_text(OTHER)
    assert stored(stores, now, OTHER) == OTHER
