"""A container with immutable storage for versions holds blobs itself; others offer no hold.

azurite has no legal holds: a proxy in front of it answers as Azure documents them.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.conformance.targets import AZURITE_API, azure_config
from tests.servers import Azurite
from tests.servers.proxy import FaultyProxy, Request, Say
from worker.artifacts.store_holds import tries_to_delete_held
from worker.storage import Store, Stores
from worker.storage.errors import AccessDenied, HoldNotOffered

PATH = ("releases", "app.tgz")
_IMMUTABLE = Say(
    409,
    b"<?xml version='1.0'?><Error><Code>BlobImmutableDueToPolicy</Code><Message>held</Message></Error>",
    {"Content-Type": "application/xml", "x-ms-error-code": "BlobImmutableDueToPolicy"},
)


class HoldingAzure(FaultyProxy):
    """A proxy whose containers have immutable storage, and whose blobs have one version with or without a hold."""

    def __init__(self, upstream: int) -> None:
        super().__init__(upstream, lambda _: None)
        self.held: set[str] = set()
        self.ignores = False

    def forward(self, request: Request, body: bytes) -> Say:
        url = urlsplit(request.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        if asked.get("comp") == "legalhold":
            assert request.method == "PUT"
            hold = request.headers["x-ms-legal-hold"]
            if self.ignores:
                return Say(200)
            (self.held.add if hold == "true" else self.held.discard)(url.path)
            return Say(200, b"", {"x-ms-legal-hold": hold})
        if request.method == "DELETE" and url.path in self.held:
            return _IMMUTABLE
        answer = super().forward(request, body)
        if asked.get("restype") == "container" and "comp" not in asked:
            answer.headers["x-ms-immutable-storage-with-versioning-enabled"] = "true"
        if asked.get("comp") == "list" and "versions" in asked.get("include", ""):
            answer = Say(
                answer.status,
                re.sub(rb"<Name>([^<]*)</Name>(.*?)<Properties>", self._version, answer.body),
                answer.headers,
            )
        return answer

    def _version(self, name: re.Match[bytes]) -> bytes:
        held = any(path.endswith("/" + name[1].decode()) for path in self.held)
        version = b"<VersionId>2026-11-26T00:00:00.0000000Z</VersionId>"
        legal = f"<Properties><LegalHold>{str(held).lower()}</LegalHold>".encode()
        return b"<Name>" + name[1] + b"</Name>" + version + name[2] + legal


@pytest.fixture
def azure(azurite: Azurite) -> Iterator[HoldingAzure]:
    with HoldingAzure(azurite.port) as proxy:
        yield proxy


@pytest.fixture
def store(azurite: Azurite, azure: HoldingAzure, tmp_path: Path) -> Iterator[Store]:
    """Return a store behind the proxy, with one object."""
    config = azure_config(azurite, api_version=AZURITE_API)
    url = str(config.account_url).replace(str(azurite.port), str(azure.port))
    with_container = Stores({"azure": config}, spool_dir=tmp_path)
    with_container["azure"]._driver._service().create_container(str(config.container))
    with_container.close()
    opened = Stores({"azure": config.model_copy(update={"account_url": url})}, spool_dir=tmp_path)
    opened["azure"].write_object(*PATH, io.BytesIO(b"content"))
    yield opened["azure"]
    opened.close()


def test_a_held_blob_is_not_deleted_until_its_release(store: Store) -> None:
    """The store itself refuses it, and `doctor` finds that it does."""
    assert store.offers_hold("releases")
    store.set_hold(*PATH, held=True)
    with pytest.raises(AccessDenied, match="a legal hold protects it"):
        store.delete_object(*PATH)
    assert not store.delete_held(*PATH)
    store.set_hold(*PATH, held=False)
    assert store.delete_object(*PATH)
    assert tries_to_delete_held(store) is None


def test_a_server_that_ignores_the_hold_offers_none(store: Store, azure: HoldingAzure) -> None:
    """What the store answers to a hold is compared with what it was asked."""
    azure.ignores = True
    with pytest.raises(HoldNotOffered, match="ignores the hold"):
        store.set_hold(*PATH, held=True)


def test_a_container_without_immutable_storage_offers_no_hold(azurite: Azurite, tmp_path: Path) -> None:
    """The container itself says so, and no blob of it is asked for a hold."""
    config = azure_config(azurite, api_version=AZURITE_API)
    opened = Stores({"azure": config}, spool_dir=tmp_path)
    opened["azure"]._driver._service().create_container(str(config.container))
    assert not opened["azure"].offers_hold("releases")
    opened.close()
