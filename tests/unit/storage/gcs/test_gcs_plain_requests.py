"""What a plain request to Cloud Storage says of its sender, and when its token is renewed."""

from datetime import UTC, datetime, timedelta
from typing import Any

from google.auth.credentials import AnonymousCredentials, Credentials, CredentialsWithQuotaProject
from google.auth.transport.requests import AuthorizedSession

from worker.storage.cloud.plain_requests import BucketEndpoint
from worker.storage.config import GcsConfig
from worker.storage.gcs.client import Connection
from worker.storage.gcs.requests_without_sdk import plain_reads

ENDPOINT = "https://storage.example.com"


class Renewed(CredentialsWithQuotaProject):
    """Credentials whose tokens have a number."""

    def __init__(self, seconds: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds = seconds
        self.number = 0
        self._quota_project_id = "payer"

    def refresh(self, request: Any) -> None:
        """Give the next token."""
        del request
        self.number += 1
        self.token = f"token-{self.number}"
        self.expiry = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=self.seconds)


def located(credentials: Credentials) -> BucketEndpoint:
    config = GcsConfig(bucket="app", endpoint=ENDPOINT, anonymous=True)
    connection = Connection(None, AuthorizedSession(credentials), ENDPOINT, None, None)  # type: ignore[no-untyped-call]
    found = plain_reads(config, lambda: connection)._endpoints.get("app")
    assert found is not None
    return found


def test_a_token_is_renewed_before_its_end() -> None:
    """A request has the token of the library, a new one where it may end on the way, and the project that pays."""
    for seconds, renewed in ((3600, 1), (5, 3)):
        credentials = Renewed(seconds)
        found = located(credentials)
        headers = [found.sign("GET", found.url_of("key"), {}) for _ in range(3)]
        assert credentials.number == renewed
        assert headers[-1]["authorization"] == f"Bearer token-{renewed}"
        assert headers[-1]["x-goog-user-project"] == "payer"
        assert headers[-1]["Accept-Encoding"] == "gzip"  # otherwise the store may decompress


def test_an_emulator_needs_no_token() -> None:
    """Without credentials a request has no authorisation."""
    found = located(AnonymousCredentials())  # type: ignore[no-untyped-call]
    assert found.url_of("a b/c?d") == f"{ENDPOINT}/app/a%20b/c%3Fd"
    assert found.sign("GET", found.url_of("key"), {}) == {"Accept-Encoding": "gzip"}
