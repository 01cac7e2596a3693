"""The OpenAPI document in docs/ is that of the code."""

from pathlib import Path

from worker.gateway.openapi import text

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "openapi.json"


def test_the_document_is_that_of_the_code() -> None:
    """After a change of the gateway, `python -m worker.gateway.openapi > docs/openapi.json` writes it anew."""
    assert DOCUMENT.read_text() == text()
