"""Ranges of `get`: what is no range, and what cannot be verified, is refused."""

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from worker.catalogue import Artifact
from worker.cli.errors import Failure
from worker.cli.fetch_artifact import _manifest
from worker.cli.get import _part
from worker.cli.session import open_session
from worker.settings import Settings
from worker.storage.driver import Digest
from worker.storage.integrity.manifest import CHUNK_SIZE


@pytest.mark.parametrize(
    "text", ["", "-", "5", "-5", "3-2", "9-", "a-b", "9" * 5000 + "-", f"0-{'9' * 5000}", "\u0663-\u0664", "0-1 "]
)
def test_an_absurd_range_is_refused(text: str) -> None:
    """Neither its length nor digits of other scripts make anything else of a range."""
    artifact = Artifact(1, "releases", "app", 1, Digest(5, "0" * 64), {}, datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(Failure, match="write it FIRST-LAST"):
        _part(text, artifact)
    assert _part("1-99", artifact).length == 4


def test_a_part_without_recorded_digests_is_unverifiable(tmp_path: Path) -> None:
    """Of an artifact whose chunks have no digests no part is written, and the error says so."""
    artifact = Artifact(1, "releases", "app", 1, Digest(CHUNK_SIZE + 1, "0" * 64), {}, datetime(2026, 1, 1, tzinfo=UTC))
    with (
        closing(open_session(Settings(home=tmp_path), create=True)) as session,
        pytest.raises(Failure, match="whole") as refused,
    ):
        _manifest(session, artifact, _part("1-3", artifact))
    assert refused.value.type == "Unverifiable"
