"""Where the containers of a store in Azure are, and what authorises a request to them that the SDK does not make."""

import time

import pytest
from azure.core.credentials import AccessToken, AzureSasCredential
from azure.storage.blob import BlobServiceClient

from worker.storage.azure.requests_without_sdk import locator
from worker.storage.cloud.plain_requests import BucketEndpoint
from worker.storage.config import AzureConfig

ACCOUNT = "https://account.blob.core.windows.net"
KEY = "a2V5"
SIGNATURE = "sv=2026-02-06&sig=5ecre7%3D"


class Credential:
    """A credential with tokens that are valid for so many seconds."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        self.given = 0

    def get_token(self, *scopes: str, **_: object) -> AccessToken:
        assert scopes == ("https://storage.azure.com/.default",)
        self.given += 1
        return AccessToken(f"token-{self.given}", int(time.time()) + self.seconds)


def located(service: BlobServiceClient, container: str = "app") -> BucketEndpoint:
    config = AzureConfig(container=container, account_url=ACCOUNT)
    found = locator(config, lambda: service)(container)
    assert found is not None
    return found


@pytest.mark.parametrize(("seconds", "asked"), [(3600, 1), (30, 3)])
def test_a_token_is_kept_until_shortly_before_its_end(seconds: int, asked: int) -> None:
    """A credential is not asked for each request, and no token is sent that may end on the way."""
    credential = Credential(seconds)
    found = located(BlobServiceClient(ACCOUNT, credential=credential))
    headers = [found.sign("GET", found.url_of("key"), {"X-Own": "yes"}) for _ in range(3)]
    assert credential.given == asked
    assert [each["Authorization"] for each in headers][-1] == f"Bearer token-{asked}"
    assert all(each["X-Own"] == "yes" and each["x-ms-version"] == "2026-02-06" for each in headers)


@pytest.mark.parametrize(
    "service",
    [
        BlobServiceClient(ACCOUNT, credential=AzureSasCredential(f"?{SIGNATURE}")),
        BlobServiceClient.from_connection_string(f"BlobEndpoint={ACCOUNT}/;SharedAccessSignature={SIGNATURE}"),
    ],
    ids=["sas_token", "connection_string"],
)
def test_a_signature_follows_the_url(service: BlobServiceClient) -> None:
    """A shared access signature is part of the URL of each object and of nothing else."""
    found = located(service)
    assert found.url_of("a b/c?d") == f"{ACCOUNT}/app/a%20b/c%3Fd?{SIGNATURE}"
    assert "5ecre7" not in repr(found) + str(found.sign("GET", found.url_of("key"), {}))


@pytest.mark.parametrize("credential", [KEY, None])
def test_a_key_signs_and_public_containers_need_no_signature(credential: str | None) -> None:
    """The header is the SDK's for a key; without credentials there is none, as in the SDK's own requests."""
    found = located(BlobServiceClient(ACCOUNT, credential=credential), "$web")
    assert found.url_of("key") == f"{ACCOUNT}/%24web/key"
    signed = found.sign("GET", found.url_of("key"), {}).get("Authorization", "")
    assert signed.startswith("SharedKey account:") is (credential is not None)


def test_the_configuration_can_leave_all_to_the_sdk() -> None:
    """With `data_path: sdk` no container is located."""
    config = AzureConfig(container="app", account_url=ACCOUNT, data_path="sdk")
    assert locator(config, lambda: BlobServiceClient(ACCOUNT))("app") is None
