"""Test that the address of a store or gateway is read once, and that each bad spelling is one line without a secret."""

import pytest

from worker.settings import SettingsError, load_settings
from worker.storage import AzureConfig, GcsConfig, S3Config
from zot_artifact_client import ArtifactClient, InvalidUrl

SECRET = "sEcret"
KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "s3": ("endpoint", {"bucket": "b"}),
    "gcs": ("endpoint", {"bucket": "b", "anonymous": True}),
    "azure": ("account_url", {"container": "b", "account_key": "a2V5"}),
}
SPELLINGS = {
    "": "begins with neither https:// nor http://",
    "store.example:9000": "begins with neither https:// nor http://",
    "htps://store.example": "begins with neither https:// nor http://",
    "s3://b": "begins with neither https:// nor http://",
    "//store.example": "begins with neither https:// nor http://",
    "http:/store.example": "begins with neither https:// nor http://",
    f"https://user:{SECRET}@store.example": "no user and no password",
    f"https://user:{SECRET[:3]}/{SECRET}@store.example": "no user and no password",
    f"https://store.example?sig={SECRET}": "ends before the",
    f"https://store.example/#{SECRET}": "ends before the",
    "https://": "host is no host name",
    "https:///b": "host is no host name",
    "https://-store.example": "host is no host name",
    "https://store..example": "host is no host name",
    "https://store\\example": "host is no host name",
    "https://store%2eexample": "host is no host name",
    "https://" + "a" * 300: "host is no host name",
    "https://256.1.1.1": "neither a name nor an IPv4 address",
    "https://127.1": "neither a name nor an IPv4 address",
    "https://[::1": "IPv6 address is written in brackets",
    "https://[1:2]": "no IPv6 address in the brackets",
    "https://[fe80::1%25]": "no IPv6 address in the brackets",
    "https://2001:db8::1": "port must be a number",
    "https://store.example:": "port is missing",
    "https://store.example:https": "port must be a number",
    "https://store.example:0": "port must be a number",
    "https://store.example:65536": "port must be a number",
    "https://store.example/a//b": "path of the URL",
    "https://store.example/../b": "path of the URL",
    "https://store.example/%2E%2E/b": "path of the URL",
    "https://store.example/<b>": "path of the URL",
    "https://store.example/100%": "must be written as %25",
    " https://store.example": "white space",
    "https://store.example\n": "white space",
    "https://störe.example": "not ASCII",
    "https://store.example:\uff19": "not ASCII",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("url", "reason"), SPELLINGS.items(), ids=range(len(SPELLINGS)))
def test_a_bad_address_is_one_line_that_names_its_setting(kind: str, url: str, reason: str) -> None:
    """Every bad spelling is refused when the settings are read, by one line that names store and setting."""
    field, rest = KINDS[kind]
    with pytest.raises(SettingsError) as caught:
        load_settings(stores={"far": {"type": kind, field: url, **rest}})
    text = str(caught.value)
    assert text.startswith(f"stores.far.{field}: ")
    assert reason in text
    assert "\n" not in text
    assert SECRET not in text


@pytest.mark.parametrize(("url", "reason"), SPELLINGS.items(), ids=range(len(SPELLINGS)))
def test_a_bad_address_of_a_gateway_is_one_line_that_names_the_argument(url: str, reason: str) -> None:
    """The client refuses every bad spelling when it is made, not with an error of Python at its first request."""
    with pytest.raises(InvalidUrl) as caught:
        ArtifactClient(gateway=url, token="zot_token")
    text = str(caught.value)
    assert text.startswith("gateway: ")
    assert reason in text
    assert "\n" not in text
    assert SECRET not in text


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"type": "s3", "bucket": "b", "endpoint": "https://store.example/b"}, "a path behind it"),
        ({"type": "s3", "bucket": "b", "endpoint": "https://s3.amazonaws.com/other"}, "a path behind it"),
        ({"type": "s3", "bucket": "b", "endpoint": "https://store_1"}, "underscore"),
        ({"type": "s3", "bucket": "s3://b"}, "name of one bucket"),
        ({"type": "s3", "bucket": "b/prefix"}, "name of one bucket"),
        ({"type": "gcs", "bucket": "gs://b"}, "name of one bucket"),
        ({"type": "s3", "bucket": "b", "region": "eu west 1"}, "no region"),
        ({"type": "s3", "bucket": "b", "access_key_id": "id\n", "secret_access_key": SECRET}, "white space"),
        ({"type": "s3", "bucket": "b", "access_key_id": "id", "secret_access_key": f"{SECRET}\r\n"}, "white space"),
        ({"type": "azure", "container": "b", "account_url": "https://a.blob.core.windows.net/b"}, "a path behind it"),
        ({"type": "azure", "container": "b", "account_url": "https://a.example", "account_key": SECRET}, "base64"),
        (
            {"type": "azure", "container": "b", "account_url": "https://a.example", "sas_token": f"https://a?{SECRET}"},
            "part behind the '?'",
        ),
        ({"type": "azure", "container": "b", "connection_string": SECRET}, "neither AccountName nor BlobEndpoint"),
        ({"type": "azure", "container": "b", "connection_string": f"AccountName=a;AccountKey={SECRET}"}, "base64"),
        (
            {"type": "azure", "container": "b", "connection_string": f"BlobEndpoint=https://u:{SECRET}@a.example"},
            "BlobEndpoint: no user and no password",
        ),
    ],
)
def test_what_only_a_library_would_refuse_is_one_line(config: dict[str, object], reason: str) -> None:
    """What an SDK would refuse at the first request, or send elsewhere, is refused with the settings."""
    with pytest.raises(SettingsError) as caught:
        load_settings(stores={"far": config})
    text = str(caught.value)
    assert text.startswith("stores.far.")
    assert reason in text
    assert "\n" not in text
    assert SECRET not in text


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("HTTPS://Store.Example:443/", "https://store.example"),
        ("http://store.example:9000/base/", "http://store.example:9000/base"),
        ("http://[2001:DB8:0::1]:9000", "http://[2001:db8::1]:9000"),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("http://minio", "http://minio"),
        ("https://store.example/a%20b", "https://store.example/a%20b"),
    ],
)
def test_an_address_is_given_to_the_sdk_in_one_spelling(given: str, read: str) -> None:
    """Spellings that mean the same are the same afterwards, for every kind of store."""
    assert S3Config(bucket="b", endpoint=given).endpoint == read
    assert GcsConfig(bucket="b", endpoint=given).endpoint == read
    assert AzureConfig(container="b", account_url=given).account_url == read
