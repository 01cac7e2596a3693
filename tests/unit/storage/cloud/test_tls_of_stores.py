"""A store, or a broker, whose TLS is refused: one line says what is wrong and what to change."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.servers.tls import Authority, TlsProxy
from worker.storage.azure import client as azure
from worker.storage.config import AzureConfig, GcsConfig, S3Config
from worker.storage.configured_stores import open_driver
from worker.storage.errors import Unavailable
from worker.storage.gcs import client as gcs
from worker.storage.s3 import providers as s3
from zot_artifact_client.broker_urls import redis_client
from zot_artifact_client.connection import broker_errors
from zot_artifact_client.errors import BrokerUnavailable

KEY = base64.b64encode(b"key").decode()
UNTRUSTED = "the authority of its certificate is not trusted; name the authority's certificate in {}"
EXPIRED = "its certificate, or one of its authorities, has expired; renew it on the server"
OTHER_NAME = "its certificate is for another host name; use a name that it is for, or issue it for this one"
NO_FILE = "{} names {}, which does not exist; correct the path"


class Servers(NamedTuple):
    """Ports that speak TLS, with a certificate that is valid and one that has expired, and the authority of both."""

    good: int
    expired: int
    authority: Path
    other: Path


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    directory = tmp_path_factory.mktemp("tls")
    ours, other = Authority(directory, "ours"), Authority(directory, "other")
    # Nothing is behind them: what is wrong is found before the first byte of a request.
    with TlsProxy(1, ours.context()) as good, TlsProxy(1, ours.context(expired=True)) as expired:
        yield Servers(good.port, expired.port, ours.path, other.path)


@pytest.fixture(autouse=True)
def _seldom_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    monkeypatch.setattr(azure, "RETRIES", 0)
    monkeypatch.setattr(gcs, "RETRY_FOR", 0.1)


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_a_store_says_what_is_wrong_with_its_tls(
    kind: str, servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An unknown authority, an end that has passed, another name and a missing file each name the way out."""
    variable = "AWS_CA_BUNDLE" if kind == "s3" else "REQUESTS_CA_BUNDLE"

    def fault(host: str, port: int, bundle: Path, variable: str = variable) -> str:
        monkeypatch.setenv(variable, str(bundle))
        url = f"https://{host}:{port}"
        config = {
            "s3": lambda: S3Config(bucket="b", endpoint=url, access_key_id=KEY, secret_access_key=KEY),
            "gcs": lambda: GcsConfig(bucket="b", endpoint=url, anonymous=True),
            "azure": lambda: AzureConfig(container="b", account_url=f"{url}/account", account_key=KEY),
        }[kind]()
        with pytest.raises(Unavailable) as refused:
            open_driver("cloud", config).check()
        assert "\n" not in refused.value.message
        return refused.value.message

    absent = tmp_path / "absent.pem"
    assert UNTRUSTED.format(variable) in fault("127.0.0.1", servers.good, servers.other)
    assert EXPIRED in fault("127.0.0.1", servers.expired, servers.authority)
    assert OTHER_NAME in fault("localhost", servers.good, servers.authority)
    assert NO_FILE.format(variable, absent) in fault("127.0.0.1", servers.good, absent)
    if kind != "s3":
        monkeypatch.delenv(variable)
        assert NO_FILE.format("CURL_CA_BUNDLE", absent) in fault("127.0.0.1", servers.good, absent, "CURL_CA_BUNDLE")


def test_a_broker_says_what_is_wrong_with_its_tls(servers: Servers, tmp_path: Path) -> None:
    """The same for a broker, whose URL names the authority."""

    def fault(host: str, port: int, bundle: Path | None) -> str:
        url = f"rediss://:secret@{host}:{port}/0" + (f"?ssl_ca_certs={bundle}" if bundle else "")
        with (
            pytest.raises(BrokerUnavailable) as refused,
            broker_errors("broker", url),
            redis_client(url, socket_timeout=5, socket_connect_timeout=5) as client,
        ):
            client.ping()
        assert "secret" not in str(refused.value)
        return str(refused.value)

    setting, absent = "ssl_ca_certs of its URL", tmp_path / "absent.pem"
    assert UNTRUSTED.format(setting) in fault("127.0.0.1", servers.good, None)
    assert UNTRUSTED.format(setting) in fault("127.0.0.1", servers.good, servers.other)
    assert EXPIRED in fault("127.0.0.1", servers.expired, servers.authority)
    assert OTHER_NAME in fault("localhost", servers.good, servers.authority)
    assert NO_FILE.format(setting, absent) in fault("127.0.0.1", servers.good, absent)
