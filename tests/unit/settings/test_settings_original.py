"""The original store's configuration file loads unchanged, as one store named `default`."""

import pytest

from worker.settings import Settings, SettingsError, load_settings
from worker.storage.config import FilesystemConfig, GcsConfig, S3Config

SERVER = """
distSpecVersion: 1.1.0-dev
http:
  address: 0.0.0.0
  port: "8443"
  tls: {cert: /zot/config/tls/server.crt, key: /zot/config/tls/server.key}
log: {level: warn, output: /zot/logs/zot-artifact-store.log}
extensions:
  s3api: {enabled: true, basePath: /s3, metadataDBPath: /zot/data/metadata.db}
  rbac: {enabled: true, keycloak: {clientSecret: "${KEYCLOAK_CLIENT_SECRET}"}}
  metrics: {enabled: true}
"""
"""What the original's own server reads from the same file."""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load settings from a file with this text."""

    def load(text: str) -> Settings:
        (tmp_path / "config.yaml").write_text(text)
        monkeypatch.setenv("ZOT_CONFIG", str(tmp_path / "config.yaml"))
        monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
        return load_settings()

    return load


@pytest.fixture
def default(load):
    """Load settings and return the one store."""

    def default(text: str):
        settings = load(text)
        assert list(settings.stores) == ["default"]
        assert settings.placement_stores == ("default",)
        return settings.stores["default"]

    return default


def refused(load, text: str) -> list[str]:
    with pytest.raises(SettingsError) as error:
        load(text)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    "storage",
    [
        "{rootDirectory: /zot/data, dedupe: true, gc: true, gcDelay: 1h, gcInterval: 24h}",
        "{type: filesystem, rootDirectory: /zot/data, enableChecksum: true, maxRetries: 3, retryDelay: 100}",
        "{type: filesystem, filesystem: {rootDirectory: /zot/data}, s3: {bucket: other, region: ''}}",
        "{filesystem: {root_directory: /zot/data}}",
        "{type: filesystem, filesystem: {root: /zot/data}}",
    ],
)
def test_a_directory(default, storage):
    """Each way in which the original's files name its directory gives the filesystem store at that root."""
    store = default(f"{SERVER}\nstorage: {storage}")
    assert isinstance(store, FilesystemConfig)
    assert str(store.root) == "/zot/data"


def test_a_relative_directory(default, tmp_path):
    """A relative directory starts at the file, as in a file of ours."""
    assert default("storage: {rootDirectory: data}").root == tmp_path / "data"


def test_s3(default):
    """The original's documented example: an endpoint of Amazon's is spoken to as Amazon, with the keys in the file."""
    store = default(
        """
storage:
  type: s3
  s3:
    endpoint: https://s3.amazonaws.com  # or https://minio.example.com
    region: us-east-1
    bucket: my-artifacts
    accessKeyID: AKIAIOSFODNN7EXAMPLE
    secretAccessKey: wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY
    useSSL: true
"""
    )
    assert isinstance(store, S3Config)
    assert (store.endpoint, store.region, store.bucket) == ("https://s3.amazonaws.com", "us-east-1", "my-artifacts")
    assert (store.provider, store.layout) == ("aws", "prefixed")
    assert store.access_key_id.get_secret_value() == "AKIAIOSFODNN7EXAMPLE"
    assert store.secret_access_key.get_secret_value() == "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    ("said", "url"),
    [
        ("endpoint: 'minio:9000', useSSL: true", "https://minio:9000"),
        ("endpoint: 'minio:9000', useSSL: false", "http://minio:9000"),
        ("endpoint: 'minio:9000'", "http://minio:9000"),
        ("endpoint: 'https://minio:9000', useSSL: false", "https://minio:9000"),
        ("endpoint: ''", None),
    ],
)
def test_use_ssl_decides_where_the_endpoint_has_no_scheme(default, said, url):
    """The endpoint means what it meant to the original's SDK, in which `useSSL` is off unless it is said."""
    assert default(f"storage: {{type: s3, s3: {{bucket: b, {said}}}}}").endpoint == url


def test_s3_without_keys(default):
    """Keys that are left out or empty, which the original refused, leave the finding of credentials to the SDK."""
    for keys in ("", ", accessKeyID: '', secretAccessKey: ''"):
        store = default(f"storage: {{type: s3, s3: {{bucket: b, region: eu-central-1{keys}}}}}")
        assert (store.access_key_id, store.secret_access_key) == (None, None)


def test_s3_native(default):
    """The one addition to the original's names reaches what it wrote to the top of the bucket."""
    assert default("storage: {type: s3, s3: {bucket: b, layout: native}}").layout == "native"


def test_a_storage_driver(default):
    """The server's own form, `storageDriver`, is the same store under the names that it has there."""
    store = default(
        SERVER + "storage: {rootDirectory: /zot/data, dedupe: true, storageDriver: {name: s3, region: us-east-1, "
        "bucket: zot-artifacts, accesskey: some, secretkey: other, secure: true, skipverify: false}}"
    )
    assert isinstance(store, S3Config)
    assert (store.bucket, store.access_key_id.get_secret_value()) == ("zot-artifacts", "some")


def test_gcs(default):
    """The documented example of a Google bucket."""
    said = "bucket: b, credentialsFile: /etc/account.json, projectID: p"
    store = default(f"storage: {{type: gcs, gcs: {{{said}}}}}")
    assert isinstance(store, GcsConfig)
    assert (store.bucket, str(store.credentials_file), store.project) == ("b", "/etc/account.json", "p")


def test_azure(default):
    """An account's key goes with the account's own address, or with the address that is named beside it."""
    said = "accountName: acc, accountKey: a2V5, containerName: artifacts"
    store = default(f"storage: {{type: azure, azure: {{{said}}}}}")
    assert (store.container, store.account_url) == ("artifacts", "https://acc.blob.core.windows.net")
    assert store.account_key.get_secret_value() == "a2V5"
    store = default(f"storage: {{type: azure, azure: {{{said}, endpoint: 'http://127.0.0.1:10000/acc'}}}}")
    text = "AccountName=acc;AccountKey=a2V5;BlobEndpoint=http://127.0.0.1:10000/acc"
    assert store.connection_string.get_secret_value() == text


def test_a_variable_is_replaced_by_its_value(default, load, monkeypatch):
    """`${NAME}`, which the original's own examples write for secrets, is read from the environment, or named."""
    text = "storage: {type: s3, s3: {bucket: b, accessKeyID: 'id', secretAccessKey: '${MY_SECRET}'}}"
    assert refused(load, text) == ["storage.s3.secretAccessKey: the variable MY_SECRET is not set"]
    monkeypatch.setenv("MY_SECRET", "hunter2")
    assert default(text).secret_access_key.get_secret_value() == "hunter2"


def test_our_own_settings_may_be_beside_it(load):
    """The original's file may hold our settings too."""
    settings = load(SERVER + "storage: {rootDirectory: /zot/data}\nretry: {max_attempts: 3}")
    assert settings.retry.max_attempts == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("storage: {rootDirectory: /a}\nstores: {}", "storage and stores exclude each other"),
        ("storage: {rootDirectroy: /a}", "storage.rootDirectroy is not a setting of the original; did you mean 'rootd"),
        ("storage: {type: s3, s3: {bukcet: b}}", "storage.s3.bukcet is not a setting of the original; did you mean 'b"),
        ("storage: {type: s4}", "storage.type: 's4' is no backend of the original: it had filesystem, s3, gcs, azure"),
        ("storage: {type: s3}", "storage.s3: the layout 'prefixed' needs `bucket`"),
        ("storage: {type: s3, s3: {bucket: b, accessKeyID: a}}", "storage.s3: access_key_id and secret_access_key"),
        ("storage: {type: s3, s3: {bucket: [b]}}", "storage.s3.bucket: Input should be a valid string"),
        ("storage: {type: s3, s3: {bucket: b, useSSL: 'yes'}}", "storage.s3.useSSL: true or false is expected"),
        ("storage: {}", "storage.filesystem.root: Field required"),
        ("storage: s3", "storage: a mapping is expected"),
        ("storage: {type: s3, s3: [a]}", "storage.s3: a mapping is expected"),
        ("storage: {storageDriver: {name: s3, bucket: b, skipverify: true}}", "skipverify: certificates are always"),
        ("storage: {storageDriver: {name: s3, bukcet: b}}", "storage.storageDriver.bukcet is not a setting"),
        ("storage: {rootDirectory: /a}\nretyr: {}", "retyr is not a setting; did you mean 'retry'?"),
        ("http: {port: 1}", "http is not a setting"),
    ],
)
def test_what_cannot_be_meant_is_named(load, text, says):
    """A mistake in the original's file gets one line with the file's own name for it, and so does mixing the two."""
    assert says in "\n".join(refused(load, text))


def test_no_secret_is_printed(load):
    """What is wrong with the file is told without its values."""
    lines = refused(load, "storage: {type: s3, s3: {secretAccessKey: hunter2, accesKeyID: hunter2, useSSL: hunter2}}")
    assert len(lines) >= 2
    assert "hunter2" not in "\n".join(lines)
