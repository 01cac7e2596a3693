"""No text that is shown has what may be a secret in a URL."""

import pytest
from celery import Celery

from zot_artifact_client.outgoing_messages import Outgoing, envelope
from zot_artifact_client.text_escaping import without_secrets


@pytest.mark.parametrize(
    "text, shown",
    [
        ("https://host/a?session=x#y", "https://host/a"),
        (
            "{'source': 'https://me:pw@host:1/a/b?x=1&y=2', 'key': 'k?'}",
            "{'source': 'https://host:1/a/b', 'key': 'k?'}",
        ),
        ("see http://host?x, then 'http://b/#frag'", "see http://host then 'http://b/'"),
        ("/in/what?.tgz", "/in/what?.tgz"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(text: str, shown: str) -> None:
    """Users, passwords, queries and fragments are left out, whatever their names; other text stays."""
    assert without_secrets(text) == shown


def test_what_celery_shows_of_a_message_has_no_query() -> None:
    """The text of the arguments that Celery's events and Flower show has no part of a query; the message has it."""
    source = "https://host/a?session=abc123"
    sent = envelope(Celery(set_as_current=False), Outgoing("artifact.upload.v1", "id", "transfer", {"source": source}))
    assert "https://host/a" in sent
    assert "abc123" not in sent
