"""A gateway that really serves, on a catalogue and two directories; no worker runs."""

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests.servers import Valkey
from worker import clock
from worker.catalogue import Artifact
from worker.context import Context
from worker.gateway.access import TokenVerb, new_token
from worker.gateway.server import Address, make_server
from worker.gateway.services import Services
from worker.settings import Settings
from worker.storage.driver import Digest
from worker.storage.integrity.manifest import CHUNK_SIZE, Manifest

STORES = ("primary", "dr")


@lru_cache(maxsize=2)
def hashed(content: bytes) -> tuple[Digest, Manifest]:
    """Return the digest and the manifest of some bytes."""
    chunks = [content[start : start + CHUNK_SIZE] for start in range(0, len(content), CHUNK_SIZE)]
    digests = b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)
    return Digest(len(content), hashlib.sha256(content).hexdigest()), Manifest(len(content), CHUNK_SIZE, digests)


@dataclass
class Gateway:
    """A gateway that serves, its settings and its catalogue."""

    url: str
    settings: Settings
    context: Context
    services: Services
    clients: list[httpx.Client] = field(default_factory=list)

    def client(self, *buckets: str, verbs: tuple[TokenVerb, ...] = tuple(TokenVerb), name: str = "ci") -> httpx.Client:
        """Return a client with a new token."""
        return self.client_of(self.token(*buckets, verbs=verbs, name=name))

    def token(self, *buckets: str, verbs: tuple[TokenVerb, ...] = tuple(TokenVerb), name: str = "ci") -> str:
        """Return a new token."""
        record, text = new_token(name, buckets or ("releases",), verbs, now=clock.now(), expires_at=None)
        assert self.context.catalogue.access_tokens.add(record)
        return text

    def client_of(self, token: str) -> httpx.Client:
        """Return a client that shows this token."""
        made = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
            trust_env=False,
            verify=False,  # the address has no TLS, and to read the certificates takes as long as a short test
        )
        self.clients.append(made)
        return made

    def store(
        self,
        key: str,
        content: bytes,
        *,
        bucket: str = "releases",
        stores: tuple[str, ...] = STORES,
        manifest: bool = True,
        **properties: str,
    ) -> Artifact:
        """Record an artifact and write its copies, as an upload does."""
        digest, chunks = hashed(content)
        artifact = self.context.catalogue.artifacts.record(
            bucket, key, digest, {}, clock.now(), manifest=chunks if manifest else None, stores=stores,
            properties=properties,
        ).artifact  # fmt: skip
        for store in stores:
            path = self.path(store, key, bucket)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self.context.catalogue.artifacts.finish_copy(artifact, store, tag="1", evidence={}, now=clock.now())
        return artifact

    def path(self, store: str, key: str, bucket: str = "releases") -> Path:
        """Return where a store keeps an object."""
        return self.settings.home / "stores" / store / bucket / key


@contextmanager
def serving(settings: Settings, address: Address | None = None, services: Services | None = None) -> Iterator[str]:
    """Serve the gateway of these settings, and return its URL."""
    server = make_server(services or Services(settings), address or Address())
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    try:
        yield f"{'https' if address else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        for each in threading.enumerate():
            if each.name == "AnyIO worker thread" and each.loop.is_closed():  # type: ignore[attr-defined]
                each.join(10)
                assert not each.is_alive(), "a thread is left, for which the process of the gateway would wait"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return settings without a broker, so that the gateway runs where there is none."""
    return Settings(home=tmp_path / "home")


@pytest.fixture
def broker(settings: Settings, valkey: Valkey) -> Settings:
    """Return the same settings with a broker."""
    return settings.model_copy(update={"broker": SecretStr(valkey.url)})


@pytest.fixture
def open_gateway() -> Iterator[Callable[[Settings], Any]]:
    """Return what opens a gateway for settings."""

    @contextmanager
    def opened(settings: Settings) -> Iterator[Gateway]:
        settings.prepare()
        context = Context.open(settings)
        services = Services(settings)
        with serving(settings, services=services) as url:
            made = Gateway(url, settings, context, services)
            yield made
            for client in made.clients:
                client.close()
        context.close()

    return opened


@pytest.fixture
def gateway(settings: Settings, open_gateway: Callable[[Settings], Any]) -> Iterator[Gateway]:
    with open_gateway(settings) as made:
        yield made


@pytest.fixture
def gateway_with_broker(broker: Settings, open_gateway: Callable[[Settings], Any]) -> Iterator[Gateway]:
    with open_gateway(broker) as made:
        yield made
