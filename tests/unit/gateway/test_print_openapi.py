"""The OpenAPI document in docs/ is that of the code."""

import hashlib
from pathlib import Path

from worker.gateway.app import openapi
from worker.gateway.print_openapi import text

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "openapi.json"


def test_the_document_is_that_of_the_code() -> None:
    """After a change of the gateway, `python -m worker.gateway.print_openapi > docs/openapi.json` writes it anew."""
    assert DOCUMENT.read_text() == text()


def test_errors_are_problem_documents() -> None:
    """The document gives every error the media type that the gateway sends."""
    answers = [
        found for path in openapi()["paths"].values() for each in path.values() for found in each["responses"].items()
    ]
    kinds = {media for status, answer in answers if status.endswith("XX") for media in answer["content"]}
    assert kinds == {"application/problem+json"}


def test_the_typescript_client_is_generated_from_the_document() -> None:
    """After a change of the document, `make typescript` writes the types of the client anew."""
    kept = DOCUMENT.parents[1] / "api_client" / "typescript" / "src" / "schema.sha256"
    assert kept.read_text().strip() == hashlib.sha256(DOCUMENT.read_bytes()).hexdigest()
