"""URLs are read the same way by worker, client and command line."""

from ssl import CERT_NONE, CERT_REQUIRED

import pytest
from kombu import Connection

from worker.settings import SettingsError, load_settings
from zot_artifact_client import ArtifactClient, InvalidUrl
from zot_artifact_client.broker_urls import parse_result_url, parse_url, redis_client

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://h", "redis://h:6379/0"),
        ("redis://:p%40ss@h:1/3", "redis://:p%40ss@h:1/3"),
        ("redis://[::1]:1", "redis://[::1]:1/0"),
        ("rediss://h:1/0", "rediss://h:1/0?ssl_cert_reqs=CERT_REQUIRED"),
        ("rediss://h:1/0?ssl_cert_reqs=none", "rediss://h:1/0?ssl_cert_reqs=CERT_NONE"),
        ("redis+socket:///run/v.sock", "redis+socket:///run/v.sock?virtual_host=0"),
        ("redis+socket:///run/v.sock?password=p%40&db=2", "redis+socket://:p%40@/run/v.sock?virtual_host=2"),
        ("unix://u:p@/run/a%20b.sock", "redis+socket://u:p@/run/a%20b.sock?virtual_host=0"),
        ("redis://[fe80::1%25eth0]", "redis://[fe80::1%25eth0]:6379/0"),
        ("redis://h?socket_timeout=3&client_name=n", "redis://h:6379/0"),
        ("sentinel://a:1;sentinel://b:2/3", "sentinel://a:1/3;sentinel://b:2/3"),
        ("sentinel://a:1;sentinel://u:p@b:2/3", "sentinel://u:p@a:1/3;sentinel://u:p@b:2/3"),
        ("amqp://u:p@h//", "amqp://u:p@h:5672//"),
        ("amqps://h", "amqps://h:5671/"),
        ("amqps://h/v?ssl_ca_certs=%2Fca.pem&heartbeat=5", "amqps://h:5671/v?heartbeat=5"),
    ],
)
def test_every_documented_spelling_is_read(url: str, text: str) -> None:
    """A URL is given to Celery in the spelling that it reads, with verified TLS as the default."""
    parsed = parse_url(url)
    assert parsed.text == text
    with Connection(parsed.text.split(";")[0], ssl=parsed.tls, transport_options=parsed.transport_options) as opened:
        assert opened.as_uri()


def test_what_a_url_says_beside_the_server_reaches_every_library() -> None:
    """Time limits are options for kombu and a part of the URL for the result backend; amqp compares the host's name."""
    url = "redis://h?socket_timeout=3"
    assert parse_url(url).transport_options == {"socket_timeout": 3}
    assert parse_result_url(url).text == "redis://h:6379/0?socket_timeout=3"
    assert redis_client(url, socket_timeout=9).connection_pool.connection_kwargs["socket_timeout"] == 3
    assert parse_url("sentinel://a;sentinel://b?master_name=m").transport_options == {"master_name": "m"}
    verified = {"cert_reqs": CERT_REQUIRED, "server_hostname": None}
    assert parse_url("amqps://h").tls == verified
    assert parse_url("amqps://h?ssl_ca_certs=/ca.pem").tls == verified | {"ca_certs": "/ca.pem"}
    assert parse_url("amqps://h?ssl_cert_reqs=none").tls == {"cert_reqs": CERT_NONE}
    assert parse_url("amqps://h;amqps://i?ssl_cert_reqs=none").tls == {"cert_reqs": CERT_NONE}
    assert parse_url("amqps://h?ssl_cert_reqs=none;amqps://i").tls == {"cert_reqs": CERT_NONE}
    assert parse_url("amqps://h;amqps://i").tls == verified


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"reddis://:{SECRET}@h:1/0", "did you mean redis://"),
        (f"{SECRET}@127.0.0.1:6379", "no scheme"),
        (f"redis://:{SECRET}@h:port/0", "port must be a number"),
        (f"redis://:{SECRET}@h:70000/0", "port must be a number"),
        (f"redis://:{SECRET}@x@h:1/0", "%40"),
        (f"redis://:a/{SECRET}@h:1/0", "%2F"),
        (f"redis://:{SECRET}%@h:1/0", "%25"),
        (f"redis://:{SECRET}@h:1/name", "number of the database"),
        (f"redis://:{SECRET}@h:1/0?ssl_cert_reqs=none", "unknown"),
        (f"rediss://:{SECRET}@h:1/0?ssl_cert_reqs=maybe", "ssl_cert_reqs is one of"),
        (f"redis+socket://:{SECRET}@h/x", "path of a socket"),
        (f" redis://:{SECRET}@h:1/0", "white space"),
        (f"redis://:{SECRET}@h:1/0?socket_timeout=abc", "socket_timeout is a number of seconds"),
        (f"redis://:{SECRET}@h:1/0?protocol=9", "protocol is 2 or 3"),
        (f"redis://:{SECRET}@{'h' * 64}:1/0", "no host name"),
        (f"redis://:{SECRET}@a b:1/0", "no host name"),
        (f"redis://:{SECRET}@%2Frun%2Fv.sock", "no host name"),
        (f"redis://:{SECRET}@a..b:1", "no host name"),
        (f"redis://:{SECRET}%00@h:1", "NUL"),
        (f"redis://:{SECRET}@a:1;redis://b:1", "one redis:// server is expected"),
        (f"sentinel://:{SECRET}@a:1?master_name=", "master_name is the name of the master"),
        (f"sentinel://:{SECRET}@a:1/1;sentinel://b:1/2", "different databases"),
        (f"sentinel://:{SECRET}@a:1;sentinel://:other@b:1", "different passwords"),
        (f"sentinel://:{SECRET}@a?master_name=m;sentinel://b?master_name=n", "different values of master_name"),
        (f"amqps://u:{SECRET}@a?ssl_ca_certs=/a;amqps://b?ssl_ca_certs=/b", "different values of ssl_ca_certs"),
        (f"redis://:{SECRET}@[1:2:3]:1/0", "no IPv6 address in the brackets"),
        (f"redis://:{SECRET}@h:1/99999999999", "number of the database"),
        (f"redis://:{SECRET}@h:1/0?client_name=a%20b", "client_name is a name"),
        (f"redis://:{SECRET}@h:1/0?socket_timeout=0", "socket_timeout is a number of seconds above 0"),
        (f"redis://:{SECRET}@h/0?socket_timeout=1&socket_timeout=2", "socket_timeout is there twice"),
        (f"amqp://u:{SECRET}@h/v?heartbeat=soon", "heartbeat is a number of seconds"),
        (f"amqp://u:{SECRET}@h/v?confirm=1", "unknown"),
    ],
)
def test_a_wrong_url_is_one_line_that_names_the_setting(url: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client names its argument and the worker its variable; neither shows a part of the password."""
    monkeypatch.setenv("ZOT_BROKER", url)
    for name, open_ in (("broker_url", lambda: ArtifactClient(url)), ("ZOT_BROKER", load_settings)):
        with pytest.raises((InvalidUrl, SettingsError)) as caught:
            open_()
        assert says in str(caught.value)
        assert str(caught.value).startswith(f"{name}: ")
        assert SECRET not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "mysql://u:hunter2@h/db",
        "postgresql://u:hunter2@x@h/db",
        "postgresql+psycopg://u:hunter2@h:port/db",
        "postgresql+psycopg://u:hunter2@h:70000/db",
        "postgresql+psycopg://u:hunter2@[::1/db",
        "postgresql+psycopg://u:hunter2@a b/db",
        f"postgresql+psycopg://u:hunter2@{'h' * 64}/db",
        "postgresql+psycopg://u:hunter2%00@h/db",
        "postgresql+psycopg://u:hunter2@h/db\n",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:////data/c.sqlite3?tmeout=5",
        "sqlite:////data/c.sqlite3?timeout=soon",
        "sqlite:////data/c.sqlite3?timeout=1&timeout=2",
        "postgresql+psycopg://u:hunter2@h/db?sslmode=require&sslmode=disable",
        "sqlite:////data/c.sqlite3?mode=ro",
        "sqlite+aiosqlite:////data/c.sqlite3",
        "postgresql+asyncpg://u:hunter2@h/db",
    ],
)
def test_a_wrong_catalogue_is_one_line_that_names_the_setting(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue's URL is checked with the settings, without a part of its password in the error."""
    monkeypatch.setenv("ZOT_CATALOGUE", url)
    with pytest.raises(SettingsError, match=r"^ZOT_CATALOGUE: ") as caught:
        load_settings()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:hun/t?e#r2@h:5433/db",
        "postgresql+psycopg://h/db?password=a",
        "postgresql+psycopg:///db?host=/run/postgresql",
        "postgresql+psycopg://u@/db?host=a:1&host=b:2",
        "postgresql+psycopg://u@[::1]:5433/db",
        "sqlite:////data/\u00e9 %20.sqlite3?timeout=5",
    ],
)
def test_a_right_catalogue_is_taken(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SQLAlchemy reads is no error of ours."""
    monkeypatch.setenv("ZOT_CATALOGUE", url)
    assert load_settings().catalogue_url == url


@pytest.mark.parametrize("url", ["mongodb://u:hunter2@h/x", "memcache://h", "file:///absent/hunter2", "nothing://h"])
def test_a_result_backend_that_celery_cannot_use_here_is_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend of Celery whose library is not installed is found when the settings are read."""
    monkeypatch.setenv("ZOT_RESULTS", url)
    with pytest.raises(SettingsError, match=r"^ZOT_RESULTS: [a-z]+:// cannot be used: ") as caught:
        load_settings()
    assert SECRET not in str(caught.value)


def test_redis_py_verifies_certificates_too() -> None:
    """The command line's own connections read the same URL in the same way."""
    pool = redis_client("rediss://:p@h:1/2").connection_pool
    assert pool.connection_kwargs["ssl_cert_reqs"] == "required"
    assert pool.connection_kwargs["db"] == 2
    assert redis_client("redis+socket:///run/v.sock?virtual_host=4").connection_pool.connection_kwargs["db"] == 4
    assert redis_client("sentinel://h:1/5").connection_pool.connection_kwargs["db"] == 5
