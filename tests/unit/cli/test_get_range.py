"""Test that an impossible range is a usage error."""

from datetime import UTC, datetime

import pytest

from worker.catalogue import Artifact
from worker.cli.errors import Failure
from worker.cli.get import _part
from worker.storage.driver import Digest


@pytest.mark.parametrize(
    "text", ["", "-", "5", "-5", "3-2", "9-", "a-b", "9" * 5000 + "-", f"0-{'9' * 5000}", "\u0663-\u0664", "0-1 "]
)
def test_an_absurd_range_is_refused(text: str) -> None:
    """Neither its length nor digits of other scripts make anything else of a range."""
    artifact = Artifact(1, "releases", "app", 1, Digest(5, "0" * 64), {}, datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(Failure, match="write it FIRST-LAST"):
        _part(text, artifact)
    assert _part("1-99", artifact).length == 4
