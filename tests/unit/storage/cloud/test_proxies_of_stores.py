"""A store behind a proxy that cannot be used: one line says so, and holds no password."""

import base64
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from tests.servers.process import free_port
from worker.storage.azure import client as azure
from worker.storage.cloud.error_mapping import Origin, by_class
from worker.storage.config import AzureConfig, GcsConfig, S3Config
from worker.storage.configured_stores import open_driver
from worker.storage.errors import StorageError, Timeout, Unavailable
from worker.storage.gcs import client as gcs
from worker.storage.s3 import providers as s3

KEY = base64.b64encode(b"key").decode()
PASSWORD = "hunt%40er2"
URL = "https://store.example"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    monkeypatch.setattr(azure, "RETRIES", 0)
    monkeypatch.setattr(gcs, "RETRY_FOR", 0.1)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Refusing(ThreadingHTTPServer):
    """A proxy, or a store, that answers each request with the same status, and keeps who asked."""

    def __init__(self, status: int) -> None:
        self.users: set[str | None] = set()

        class Handler(BaseHTTPRequestHandler):
            def do_CONNECT(handler) -> None:  # noqa: N805 - `self` is the server
                self.users.add(handler.headers["Proxy-Authorization"])
                handler.send_error(status)

            def do_GET(handler) -> None:  # noqa: N805
                self.users.add(handler.headers["Authorization"])
                handler.send_error(status)

            def log_message(handler, *_args: object) -> None:  # noqa: N805
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


@pytest.fixture(params=[407, 403])
def refusing(request: pytest.FixtureRequest) -> Iterator[tuple[Refusing, int]]:
    with Refusing(request.param) as server:
        yield server, request.param


def error_of(kind: str, url: str = URL) -> StorageError:
    account = "https://account.blob.core.windows.net" if url == URL else f"{url}/account"
    config: Any = {
        "s3": lambda: S3Config(bucket="b", endpoint=url, access_key_id=KEY, secret_access_key=KEY),
        "gcs": lambda: GcsConfig(bucket="b", endpoint=url, anonymous=True),
        "azure": lambda: AzureConfig(container="b", account_url=account, account_key=KEY),
    }[kind]()
    driver = open_driver("cloud", config)
    try:
        with pytest.raises(StorageError) as refused:
            driver.check()
    finally:
        driver.close()
    assert "hunt" not in f"{refused.value} {refused.value.__cause__!r}"
    return refused.value


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_a_proxy_that_refuses_is_told_with_its_status(
    kind: str, refusing: tuple[Refusing, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked with the user and password of its URL, and nothing is said of the endpoint of the store."""
    proxy, status = refusing
    monkeypatch.setenv("https_proxy", f"http://me:{PASSWORD}@127.0.0.1:{proxy.server_port}")
    error = error_of(kind)
    assert isinstance(error, Unavailable)
    assert f"the proxy that the environment names refuses the connection with status {status}" in error.message
    assert ("user and password" in error.message) == (status == 407)
    assert proxy.users == {"Basic " + base64.b64encode(b"me:hunt@er2").decode()}


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_a_proxy_that_is_away_is_told(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens there."""
    monkeypatch.setenv("https_proxy", f"http://me:{PASSWORD}@127.0.0.1:{free_port()}")
    error = error_of(kind)
    assert isinstance(error, Unavailable)
    assert "the proxy that the environment names cannot be reached" in error.message


def test_a_proxy_that_may_be_what_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout or a broken connection may be the fault of the proxy, and not of the store."""
    monkeypatch.setenv("https_proxy", f"http://me:{PASSWORD}@127.0.0.1:3128")
    rows = [(Timeout, "did not answer in time", (TimeoutError,))]
    error = by_class(TimeoutError(), rows, Origin("cloud", URL, "b"), "b/k", trust="NO_BUNDLE")
    told = "cloud: b/k: https://store.example through the proxy http://127.0.0.1:3128: did not answer in time"
    assert error.message == f"{told} (TimeoutError)"


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
@pytest.mark.parametrize(
    "proxy", ["http://me:{}@proxy.example:port", "http://[::1", "http://me:{}@a b:1", "socks5://me:{}@127.0.0.1:1"]
)
def test_a_proxy_whose_url_is_none_is_told(kind: str, proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is about the proxy, and not about the answer of a store that was never asked."""
    monkeypatch.setenv("https_proxy", proxy.format(PASSWORD))
    assert re.search(
        "proxy that the environment names cannot be used|a proxy of the kind socks5", error_of(kind).message
    )


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "127.0.0.1:{}", "127.0.0.0/8", "*", "other, 127.0.0.1"])
def test_all_drivers_read_no_proxy_in_the_same_way(kind: str, no_proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each spelling keeps the requests of each driver away from the proxy."""
    with Refusing(403) as proxy, Refusing(403) as store:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        monkeypatch.setenv("no_proxy", no_proxy.format(store.server_port))
        error_of(kind, f"http://127.0.0.1:{store.server_port}")
        assert not proxy.users
        assert store.users


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_no_netrc_file_replaces_a_signature(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where the environment names a proxy."""
    (tmp_path / "netrc").write_text("default login me password hunter\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    with Refusing(403) as store:
        error_of(kind, f"http://127.0.0.1:{store.server_port}")
    assert not any((user or "").startswith("Basic") for user in store.users)
