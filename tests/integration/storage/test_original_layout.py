"""Data of the original store is read unchanged, and the original can read what we write."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.bodies import some_bytes, source
from tests.conformance.targets import PART, filesystem
from tests.integration.storage.originals import OriginalCloud, OriginalFiles, read, sha256
from worker.settings import load_settings
from worker.storage import Store, Verdict
from worker.storage.configured_stores import Stores, open_driver
from worker.storage.errors import DigestMismatch

BODY = b"an artifact of the original"
DIGESTS = {"bare": "{0}", "newline": "{0}\n", "capitals": "{1}", "spaces": " {0} \r\n"}
"""How a digest may be written, by the way in which it came about."""


def written(how: str, data: bytes) -> str:
    return DIGESTS[how].format(sha256(data), sha256(data).upper())


@pytest.fixture
def original(tmp_path: Path) -> OriginalFiles:
    (tmp_path / "original").mkdir()
    return OriginalFiles(tmp_path / "original")


@pytest.fixture
def files(original: OriginalFiles) -> Store:
    return filesystem(original.root).store


@pytest.fixture(params=["prefixed", "native"])
def ours(request: pytest.FixtureRequest, cloud: OriginalCloud, tmp_path: Path) -> Iterator["Ours"]:
    """Return the store in one layout: `native` finds what the original left at the top of its bucket."""
    store = Store(open_driver("cloud", cloud.config(layout=request.param)), spool_dir=tmp_path)
    yield Ours(store, "releases", "releases/") if request.param == "prefixed" else Ours(store, cloud.bucket, "")
    store.close()


@dataclass(frozen=True)
class Ours:
    """A store in one layout: its logical bucket, and the prefix of a key in the real one."""

    store: Store
    bucket: str
    before: str


def bytes_of(store: Store, bucket: str, key: str) -> bytes:
    with store.read_object(bucket, key) as reader:
        return b"".join(reader)


class TestFilesystem:
    @pytest.mark.parametrize("how", DIGESTS)
    def test_it_is_read_and_verified(self, original: OriginalFiles, files: Store, how: str) -> None:
        """An object is read, held against its sidecar however that is written, and called what it is."""
        path = original.write("releases", "v1/app.tgz", BODY, written(how, BODY))
        with files.read_object("releases", "v1/app.tgz") as reader:
            assert (reader.verified, b"".join(reader)) == (True, BODY)
        assert files.stat_object("releases", "v1/app.tgz").sha256 == sha256(BODY)
        assert files.verify_object("releases", "v1/app.tgz").verdict is Verdict.VERIFIED
        path.write_bytes(BODY.swapcase())
        assert files.verify_object("releases", "v1/app.tgz").verdict is Verdict.CORRUPT
        with pytest.raises(DigestMismatch):
            bytes_of(files, "releases", "v1/app.tgz")

    @pytest.mark.parametrize("sidecar", [None, "", "no digest"])
    def test_without_a_digest_it_is_unverifiable_and_readable(
        self, original: OriginalFiles, files: Store, sidecar: str | None
    ) -> None:
        """What no digest is kept of can be read, unverified and said to be; nothing calls it good or bad."""
        original.write("releases", "app.tgz", BODY, sidecar)
        with files.read_object("releases", "app.tgz") as reader:
            assert (reader.verified, b"".join(reader)) == (False, BODY)
        assert files.stat_object("releases", "app.tgz").sha256 is None
        assert files.verify_object("releases", "app.tgz").verdict is Verdict.UNVERIFIABLE

    def test_it_is_listed(self, original: OriginalFiles, files: Store) -> None:
        """A listing has the keys and none of their sidecars, nor what the original's server kept in the same root."""
        keys = ["a.tgz", "a/b.tgz", "v1/app.tgz", "v1/app.tgz.sig", "ü ß.bin"]
        for key in keys:
            original.write("releases", key, BODY, sha256(BODY))
        original.write("releases", "no-digest", BODY, None)
        (original.root / "metadata.db").write_bytes(b"the server's own")
        found = {row.key: row.size for row in files.list_objects("releases")}
        assert found == dict.fromkeys([*keys, "no-digest"], len(BODY))
        assert [row.key for row in files.list_objects("releases", "v1/")] == ["v1/app.tgz", "v1/app.tgz.sig"]
        files.health_check()

    @pytest.mark.parametrize("before", [None, b"of the original"])
    def test_what_we_write_it_can_read(self, original: OriginalFiles, files: Store, before: bytes | None) -> None:
        """An object of ours is data and bare hex where the original looks, also over one that it wrote itself."""
        if before:
            original.write("releases", "v1/app.tgz", before, sha256(before) + "\n")
        files.write_object("releases", "v1/app.tgz", source(BODY))
        assert original.read("releases", "v1/app.tgz") == BODY
        assert {path.name for path in (original.root / "releases" / "v1").iterdir()} == {"app.tgz", "app.tgz.sha256"}

    def test_what_we_delete_is_gone_for_it(self, original: OriginalFiles, files: Store) -> None:
        """Deleting an object of the original's takes its sidecar along, so that no later object meets it."""
        path = original.write("releases", "app.tgz", BODY, sha256(BODY))
        assert files.delete_object("releases", "app.tgz")
        assert not path.exists()
        assert not path.with_name("app.tgz.sha256").exists()


class TestClouds:
    @pytest.mark.parametrize("how", ["bare", "capitals"])
    def test_it_is_read_and_verified(self, cloud: OriginalCloud, ours: Ours, how: str) -> None:
        """An object is held against its metadata, in whatever case name and value are, and called what it is."""
        for name in ("sha256", "Sha256", "SHA256"):
            key = f"v1/{name}.tgz"
            cloud.write(ours.before + key, BODY, {name: written(how, BODY)})
            with ours.store.read_object(ours.bucket, key) as reader:
                assert (name, reader.verified, b"".join(reader)) == (name, True, BODY)
            assert (name, ours.store.stat_object(ours.bucket, key).sha256) == (name, sha256(BODY))
            assert (name, ours.store.verify_object(ours.bucket, key).verdict) == (name, Verdict.VERIFIED)
            cloud.write(ours.before + key, BODY.swapcase(), {name: written(how, BODY)})
            assert (name, ours.store.verify_object(ours.bucket, key).verdict) == (name, Verdict.CORRUPT)

    def test_without_a_digest_it_is_unverifiable_and_readable(self, cloud: OriginalCloud, ours: Ours) -> None:
        """What no digest is kept of can be read, unverified and said to be; an ETag is no digest."""
        cloud.write(f"{ours.before}app.tgz", BODY, {})
        with ours.store.read_object(ours.bucket, "app.tgz") as reader:
            assert (reader.verified, b"".join(reader)) == (False, BODY)
        assert ours.store.verify_object(ours.bucket, "app.tgz").verdict is Verdict.UNVERIFIABLE

    def test_it_is_listed(self, cloud: OriginalCloud, ours: Ours) -> None:
        """A listing has the keys as they are, of this bucket only."""
        for key in ("a.tgz", "v1/app.tgz", "ü ß.bin"):
            cloud.write(ours.before + key, BODY, {"sha256": sha256(BODY)})
        if ours.before:
            cloud.write("nightly/other.tgz", BODY, {})
        assert [row.key for row in ours.store.list_objects(ours.bucket)] == ["a.tgz", "v1/app.tgz", "ü ß.bin"]

    @pytest.mark.parametrize("size", [1000, PART + 1])
    def test_what_we_write_it_can_read(self, cloud: OriginalCloud, ours: Ours, size: int) -> None:
        """An object of ours, in one piece or in parts, has the metadata that the original looks for."""
        ours.store.write_object(ours.bucket, "v1/app.tgz", source(some_bytes(size)))
        assert read(cloud, f"{ours.before}v1/app.tgz") == some_bytes(size)

    def test_it_is_replicated_there_and_back(
        self, original: OriginalFiles, files: Store, cloud: OriginalCloud, ours: Ours
    ) -> None:
        """A tree of the original's becomes a bucket that it can read, and a bucket a tree, proved on the way."""
        original.write("releases", "v1/app.tgz", BODY, sha256(BODY) + "\n")
        with files.read_object("releases", "v1/app.tgz") as reader:
            ours.store.write_object(ours.bucket, "v1/app.tgz", reader)
        assert read(cloud, f"{ours.before}v1/app.tgz") == BODY
        cloud.write(f"{ours.before}v2/app.tgz", BODY, {"SHA256": sha256(BODY).upper()})
        with ours.store.read_object(ours.bucket, "v2/app.tgz") as reader:
            files.write_object("releases", "v2/app.tgz", reader)
        assert original.read("releases", "v2/app.tgz") == BODY


class TestItsConfigurationFile:
    @pytest.fixture
    def default(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Store]:
        """Open the one store of the original's file."""

        def default(text: str) -> Store:
            (tmp_path / "config.yaml").write_text(f"http: {{port: '8081'}}\n{text}\nlog: {{level: info}}")
            monkeypatch.setenv("ZOT_CONFIG", str(tmp_path / "config.yaml"))
            monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
            return Stores(load_settings().stores, spool_dir=tmp_path)["default"]

        return default

    def test_its_directory_is_opened(self, original: OriginalFiles, default: Callable[[str], Store]) -> None:
        """The file that the original's server ran with opens the data that it wrote."""
        original.write("releases", "app.tgz", BODY, sha256(BODY))
        assert bytes_of(default(f"storage: {{rootDirectory: {original.root}}}"), "releases", "app.tgz") == BODY

    @pytest.mark.parametrize("layout", ["", "layout: native, "])
    def test_its_bucket_is_opened(self, cloud: OriginalCloud, default: Callable[[str], Store], layout: str) -> None:
        """The original's own names reach its bucket; `layout: native` finds what it wrote at the top of it."""
        bucket, key = (cloud.bucket, "app.tgz") if layout else ("releases", "releases/app.tgz")
        cloud.write(key, BODY, {"sha256": sha256(BODY)})
        store = default(cloud.file(layout))
        assert bytes_of(store, bucket, "app.tgz") == BODY
        store.write_object(bucket, "other.tgz", source(BODY))
        assert read(cloud, key.replace("app", "other")) == BODY
        store.close()
