"""What a connection to Cloud Storage takes from the environment, and when."""

from pathlib import Path

import pytest

from worker.storage.config import GcsConfig
from worker.storage.gcs.client import connect

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_certificates_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file of certificates counts although the environment is read once, and a netrc file is never read."""
    bundle = tmp_path / "bundle.pem"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    session = connect("cloud", GcsConfig(type="gcs", bucket="b", endpoint="http://127.0.0.1:9", anonymous=True)).session
    assert not session.trust_env
    assert session.verify == str(bundle)


def test_a_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment names a proxy, requests go through it, unless `no_proxy` names the host."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    config = GcsConfig(type="gcs", bucket="b", endpoint="https://127.0.0.1:9", anonymous=True)
    session = connect("cloud", config).session
    assert session.proxies["https"] == "http://127.0.0.1:1"
    assert not session.trust_env  # a netrc file could replace the token
    monkeypatch.setenv("no_proxy", "127.0.0.0/8")
    assert not connect("cloud", config).session.proxies
