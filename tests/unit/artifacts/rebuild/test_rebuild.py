"""The catalogue is rebuilt from what the stores have, and nothing that differs from its digest becomes the truth."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.known_id_files import KnownIdFiles
from worker import clock
from worker.artifacts.rebuild.kept_lists import KeptTombstones, keep_companions, keep_tombstones, restore_companions
from worker.artifacts.rebuild.rebuild_catalogue import Rebuild, Tally
from worker.catalogue import Catalogue, CatalogueUnavailable, FindingKind, Rules, Scope, load_export
from worker.cli.open_limited_stores import stores_within_limits
from worker.settings import Settings
from worker.settings.section_models import PageSettings, StoreLimits
from worker.storage import Store, Stores
from worker.storage.config import FilesystemConfig
from worker.storage.errors import Unavailable
from worker.storage.identity import MARKER_KEY
from worker.storage.integrity.manifest import CHUNK_SIZE
from worker.storage.keys import MARKER_BUCKET

NAMES = ("primary", "dr")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'catalogue.sqlite3'}"


@pytest.fixture
def catalogue(url: str) -> Iterator[Catalogue]:
    opened = Catalogue(url)
    yield opened
    opened.close()


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    return lambda store, key="app", bucket="b": tmp_path / store / bucket / key


def put(stores: Stores, store: str, data: bytes, key: str = "app", *, day: int = 0, bucket: str = "b") -> None:
    """Write an object as the worker does, modified some days after the begin."""
    stores[store].write_object(bucket, key, io.BytesIO(data))
    config = stores._configs[store]
    assert isinstance(config, FilesystemConfig)
    at = (BEGIN + timedelta(days=day)).timestamp()
    os.utime(config.root / bucket / key, (at, at))


def rebuild(catalogue: Catalogue, stores: Stores, **options: object) -> Tally:
    rules = Rules(bool(options.pop("first_read", False)), options.pop("newer_since", None))  # type: ignore[arg-type]
    page = options.pop("page", PageSettings(objects=2, threads=2))
    buckets = options.pop("buckets", ())
    run = Rebuild(catalogue, list(stores.values()), rules, page, job="rebuild-1", by="ada", **options)  # type: ignore[arg-type]
    return run.run(buckets)  # type: ignore[arg-type]


def outcomes(tally: Tally) -> dict[str, dict[str, int]]:
    return {name: dict(each.outcomes) for name, each in tally.stores.items()}


def both(**counts: int) -> dict[str, dict[str, int]]:
    return {name: dict(counts) for name in NAMES}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def copies(catalogue: Catalogue, version: int = 1, key: str = "app") -> dict[str, str]:
    found = catalogue.artifacts.version("b", key, version)
    assert found is not None
    return {name: copy.state.value for name, copy in catalogue.artifacts.copies(found).items()}


def findings(catalogue: Catalogue) -> list[tuple[str, str | None, int | None]]:
    return sorted((each.kind.value, each.store, each.version) for each in catalogue.findings.page())


def test_the_same_bytes_in_two_stores_are_one_version(catalogue, stores):
    """All buckets are read; each version has its digest, its chunks and a verified copy in each store."""
    large = os.urandom(CHUNK_SIZE + 5)
    for name in NAMES:
        put(stores, name, b"one")
        put(stores, name, b"two", "deep/er", bucket="c")
        put(stores, name, large, "large")
    assert outcomes(rebuild(catalogue, stores)) == both(verified=3)
    assert catalogue.artifacts.buckets() == ["b", "c"]
    assert copies(catalogue) == dict.fromkeys(NAMES, "verified")
    found = catalogue.artifacts.current("b", "large")
    assert found.digest.sha256 == sha256(large)
    assert len(catalogue.artifacts.manifest(found)) == 2
    assert findings(catalogue) == []
    assert catalogue.verifications.first_broken() is None
    assert catalogue.verifications.head().id == 6
    assert outcomes(rebuild(catalogue, stores)) == both(known=3)
    assert catalogue.verifications.head().id == 6, "what is recorded is not read again"


def test_rotten_bytes_are_corrupt_with_the_recorded_digest(catalogue, stores, file):
    """A flipped bit beside a good copy is a corrupt copy of the one version."""
    for name in NAMES:
        put(stores, name, b"good")
    file("dr").write_bytes(b"goof")
    assert outcomes(rebuild(catalogue, stores)) == {"primary": {"verified": 1}, "dr": {"corrupt": 1}}
    assert catalogue.artifacts.current("b", "app").digest.sha256 == sha256(b"good")
    assert copies(catalogue) == {"primary": "verified", "dr": "corrupt"}
    assert findings(catalogue) == [("corrupt", "dr", 1)]


@pytest.mark.parametrize("rotten", [b"goof", b"goo", b"good?"])
def test_an_only_copy_that_is_rotten_is_lost_and_not_blessed(catalogue, stores, file, rotten):
    """The version has the digest that the store keeps, and a later good copy with that digest is the artifact again."""
    put(stores, "dr", b"good")
    file("dr").write_bytes(rotten)
    assert outcomes(rebuild(catalogue, stores))["dr"] == {"corrupt": 1}
    assert catalogue.artifacts.current("b", "app").digest.sha256 == sha256(b"good")
    assert findings(catalogue) == [("corrupt", "dr", 1), ("lost", None, 1)]


def test_an_object_that_is_replaced_between_two_reads_is_not_recorded(catalogue, stores, file, monkeypatch):
    """The bytes of one version are never recorded as those of another one; a later run records what is there."""
    put(stores, "dr", b"good")
    file("dr").write_bytes(b"goof")
    verify = Store.verify_object

    def replace_before(self, *args, **options):
        file("dr").write_bytes(b"gook")
        return verify(self, *args, **options)

    monkeypatch.setattr(Store, "verify_object", replace_before)
    assert outcomes(rebuild(catalogue, stores))["dr"] == {"unreadable": 1}
    assert catalogue.artifacts.seen().newest == 0
    monkeypatch.undo()
    assert outcomes(rebuild(catalogue, stores))["dr"] == {"corrupt": 1}


def test_two_versions_are_kept_apart(catalogue, stores):
    """Two stores with other content have two versions, the later written is current, and the other is a finding."""
    put(stores, "primary", b"old", day=1)
    put(stores, "dr", b"new", day=2)
    assert outcomes(rebuild(catalogue, stores)) == {"primary": {"conflict": 1}, "dr": {"verified": 1}}
    assert catalogue.artifacts.current("b", "app").digest.sha256 == sha256(b"new")
    assert (copies(catalogue, 1), copies(catalogue, 2)) == ({"primary": "verified"}, {"dr": "verified"})
    assert findings(catalogue) == [("conflict", "primary", 1)]


def test_a_damaged_sidecar_is_a_conflict_and_no_second_version(catalogue, stores, file):
    """Bytes that another store keeps the digest of are a copy of that version, whatever their own sidecar says."""
    for name in NAMES:
        put(stores, name, b"good")
    file("dr", "app.sha256").write_text("0" * 64)
    assert outcomes(rebuild(catalogue, stores)) == {"primary": {"verified": 1}, "dr": {"conflict": 1}}
    assert catalogue.artifacts.version("b", "app", 2) is None
    assert copies(catalogue) == dict.fromkeys(NAMES, "verified")
    assert findings(catalogue) == [("conflict", "dr", 1)]


def test_an_object_without_a_digest_is_compared_with_the_other_copies(catalogue, stores, file):
    """Without a sidecar the right bytes are a copy, and others are a corrupt one: they are never a version."""
    for name in NAMES:
        put(stores, name, b"good")
        put(stores, name, b"fine", "other")
    for key in ("app.sha256", "other.sha256"):
        file("dr", key).unlink()
    file("dr", "other").write_bytes(b"rott")
    assert outcomes(rebuild(catalogue, stores)) == {"primary": {"verified": 2}, "dr": {"verified": 1, "corrupt": 1}}
    assert copies(catalogue, key="other") == {"primary": "verified", "dr": "corrupt"}


def test_an_object_of_which_no_digest_is_known_is_reported(catalogue, stores, file):
    """It is an orphan, unless the first read is to be the record; then nothing says that it was verified."""
    put(stores, "dr", b"mine")
    file("dr", "app.sha256").unlink()
    assert outcomes(rebuild(catalogue, stores))["dr"] == {"no_digest": 1}
    assert findings(catalogue) == [("orphan", "dr", None)]
    assert catalogue.artifacts.current("b", "app") is None
    assert outcomes(rebuild(catalogue, stores, first_read=True))["dr"] == {"stored": 1}
    assert copies(catalogue) == {"dr": "stored"}
    assert catalogue.verifications.head() is None
    assert findings(catalogue) == []


def test_copies_without_digests_that_agree_are_told_as_such(catalogue, stores, file):
    """Both disks were copied without their sidecars: the finding says that the bytes are the same, and the way out."""
    for name in NAMES:
        put(stores, name, b"mine")
        file(name, "app.sha256").unlink()
    told = {each.store: each.detail for each in rebuild(catalogue, stores).named}
    assert "; dr has the same bytes without one: `catalogue rebuild --first-read` records" in told["primary"]
    assert "; primary has the same bytes without one: " in told["dr"]
    assert catalogue.artifacts.current("b", "app") is None


def test_believed_digests_cost_no_read_and_prove_nothing(catalogue, stores, file, monkeypatch):
    """Copies are recorded as stored; where the stores list different sizes, the bytes are read all the same."""
    for name in NAMES:
        put(stores, name, b"good")
        put(stores, name, b"right", "cut")
    file("dr", "cut").write_bytes(b"righ")
    assert outcomes(rebuild(catalogue, stores, believe_digests=True)) == {
        "primary": {"stored": 1, "verified": 1},
        "dr": {"stored": 1, "corrupt": 1},
    }
    assert copies(catalogue) == dict.fromkeys(NAMES, "stored")
    assert catalogue.artifacts.copies(catalogue.artifacts.current("b", "app"))["dr"].last_verified_at is None


def test_what_the_catalogue_knows_is_never_changed(catalogue, stores, file):
    """Bytes and sidecar that were changed together differ from the record: nothing is recorded but a finding."""
    put(stores, "primary", b"good", day=1)
    rebuild(catalogue, stores)
    put(stores, "dr", b"evil", day=2)
    assert outcomes(rebuild(catalogue, stores)) == {"primary": {"known": 1}, "dr": {"conflict": 1}}
    assert catalogue.artifacts.current("b", "app").digest.sha256 == sha256(b"good")
    assert copies(catalogue) == {"primary": "verified"}
    assert findings(catalogue) == [("conflict", "dr", None)]


def test_what_was_written_after_a_backup_is_the_next_version(catalogue, stores, file):
    """With `newer_since`, right objects written after it supersede what a restored catalogue has."""
    for name in NAMES:
        put(stores, name, b"first", day=1)
        put(stores, name, b"fixed", "old", day=1)
    rebuild(catalogue, stores)
    for name in NAMES:
        put(stores, name, b"second", day=3)
        put(stores, name, b"third", "rotten", day=3)
        file(name, "rotten").write_bytes(b"thirf")
    tally = rebuild(catalogue, stores, newer_since=BEGIN + timedelta(days=2))
    assert outcomes(tally) == both(known=1, verified=1, corrupt=1)
    assert catalogue.artifacts.current("b", "app").version == 2
    assert copies(catalogue, 1) == dict.fromkeys(NAMES, "superseded")
    assert catalogue.artifacts.current("b", "rotten").digest.sha256 == sha256(b"third")


def test_a_whole_copy_corrects_the_size_that_a_cut_one_had(catalogue, stores, file):
    """A cut copy is corrupt with the digest that its store keeps; a whole one that comes later is a good copy."""
    for name in NAMES:
        put(stores, name, b"whole", day=1)
    cut, before = file("dr"), file("dr").stat()
    cut.write_bytes(b"who")
    os.utime(cut, ns=(before.st_atime_ns, before.st_mtime_ns))
    run = Rebuild(catalogue, [stores["dr"]], Rules(), PageSettings(), job="rebuild-1")
    assert dict(run.run().stores["dr"].outcomes) == {"corrupt": 1}
    assert outcomes(rebuild(catalogue, stores))["primary"] == {"verified": 1}
    current = catalogue.artifacts.current("b", "app")
    assert current.digest.size == 5
    seen = stores["primary"].verify_object("b", "app", current.digest)
    assert seen.verdict == "verified"


def test_a_held_artifact_gets_no_newer_version(catalogue, stores):
    """A hold keeps its content current, and the other content is a conflict."""
    put(stores, "dr", b"first", day=1)
    rebuild(catalogue, stores)
    catalogue.holds.place("b", "app", by="ops", reason="audit", now=BEGIN)
    put(stores, "dr", b"second", day=3)
    assert outcomes(rebuild(catalogue, stores, newer_since=BEGIN + timedelta(days=2)))["dr"] == {"conflict": 1}
    assert catalogue.artifacts.current("b", "app").digest.sha256 == sha256(b"first")


def test_a_deleted_artifact_whose_object_is_there_again_is_a_new_version(catalogue, stores):
    """A tombstone is about the past: bytes that no copy is recorded of are a new version."""
    put(stores, "dr", b"first", day=1)
    rebuild(catalogue, stores)
    artifact = catalogue.artifacts.current("b", "app")
    catalogue.artifacts.delete_copies(list(catalogue.artifacts.copies(artifact).values()))
    catalogue.artifacts.tombstone(artifact, BEGIN)
    assert outcomes(rebuild(catalogue, stores))["dr"] == {"verified": 1}
    assert catalogue.artifacts.current("b", "app").version == 2


def test_a_store_that_ends_early_stops_no_other(catalogue, stores, monkeypatch):
    """Its error is told, the other store is read, and a later run adds its copies."""
    for name in NAMES:
        for key in ("a", "b", "c"):
            put(stores, name, key.encode(), key)
    listed = Store.list_objects

    def failing(self, bucket, prefix="", *, after=""):
        for row in listed(self, bucket, prefix, after=after):
            if self.name == "dr" and row.key == "b":
                raise Unavailable("dr: gone")
            yield row

    monkeypatch.setattr(Store, "list_objects", failing)
    tally = rebuild(catalogue, stores)
    assert outcomes(tally) == {"primary": {"verified": 3}, "dr": {"verified": 1}}
    assert tally.stores["dr"].error == "dr: gone"
    monkeypatch.undo()
    assert outcomes(rebuild(catalogue, stores)) == {"primary": {"known": 3}, "dr": {"known": 1, "verified": 2}}
    assert copies(catalogue, key="b") == dict.fromkeys(NAMES, "verified")


@pytest.mark.parametrize("marked", [True, False])
def test_of_two_stores_that_are_one_place_one_is_read(catalogue, tmp_path, file, marked):
    """What is there is recorded as one copy, and the error about the other store names both; also without a marker."""
    for directory in ("primary", "lost"):
        (tmp_path / directory).mkdir()
    (tmp_path / "dr").symlink_to(tmp_path / "primary")
    configs = {name: FilesystemConfig(root=tmp_path / name) for name in NAMES}
    put(Stores(configs, known_ids=KnownIdFiles(tmp_path / "lost", NAMES)), "primary", b"bytes")
    if not marked:
        file("primary", MARKER_KEY, MARKER_BUCKET).unlink()
    tally = rebuild(catalogue, Stores(configs, known_ids=catalogue.store_identities(NAMES)))
    assert outcomes(tally) == {"primary": {"verified": 1}, "dr": {}}
    assert "stores dr and primary are one physical place" in str(tally.stores["dr"].error)
    assert copies(catalogue) == {"primary": "verified"}


def test_a_dry_run_records_nothing(catalogue, stores):
    """It lists and counts what would be recorded."""
    put(stores, "dr", b"good")
    assert outcomes(rebuild(catalogue, stores, dry_run=True))["dr"] == {"to_record": 1}
    assert catalogue.artifacts.seen().newest == 0


def test_both_kinds_of_database_are_rebuilt(catalogue_url, stores, file):
    """Versions, copies, verdicts and findings of a page are recorded in PostgreSQL as in SQLite."""
    put(stores, "primary", b"old", day=1)
    put(stores, "dr", b"new", day=2)
    put(stores, "dr", b"good", "rotten")
    file("dr", "rotten").write_bytes(b"goof")
    rebuilt = Catalogue(catalogue_url)
    assert outcomes(rebuild(rebuilt, stores)) == {"primary": {"conflict": 1}, "dr": {"verified": 1, "corrupt": 1}}
    assert (copies(rebuilt, 1), copies(rebuilt, 2)) == ({"primary": "verified"}, {"dr": "verified"})
    assert findings(rebuilt) == [("conflict", "primary", 1), ("corrupt", "dr", 1), ("lost", None, 1)]
    assert rebuilt.verifications.first_broken() is None
    rebuilt.close()


@pytest.mark.parametrize("deaths", range(1, 14))
def test_a_rebuild_that_dies_ends_right_when_it_is_run_again(url, stores, file, monkeypatch, deaths):
    """Whichever transaction it dies before, a second run records the rest and nothing twice."""
    for name in NAMES:
        for key in ("a", "b", "c", "d", "e"):
            put(stores, name, key.encode(), key)
    file("dr", "c").write_bytes(b"x")
    from worker.catalogue.database import Database

    calls = 0
    for method in ("read", "write"):
        plain = getattr(Database, method)

        def dying(self, plain=plain):
            nonlocal calls
            calls += 1
            if calls == deaths:
                raise CatalogueUnavailable("killed here")
            return plain(self)

        monkeypatch.setattr(Database, method, dying)
    first = None
    try:
        first = Catalogue(url)
        rebuild(first, stores)
    except CatalogueUnavailable:
        pass
    finally:
        if first:
            first.close()
    monkeypatch.undo()
    second = Catalogue(url)
    rebuild(second, stores)
    assert [each.key for each in second.artifacts.page("b")] == ["a", "b", "c", "d", "e"]
    assert all(each.version == 1 for each in second.artifacts.page("b"))
    assert {key: copies(second, key=key)["dr"] for key in "abcde"} == {
        "a": "verified", "b": "verified", "c": "corrupt", "d": "verified", "e": "verified",
    }  # fmt: skip
    assert [each.kind for each in second.findings.page()] == [FindingKind.CORRUPT]
    assert second.verifications.head().id == 10
    assert second.verifications.first_broken() is None
    second.close()


def delete(catalogue: Catalogue, key: str, at: datetime) -> None:
    artifact = catalogue.artifacts.current("b", key)
    catalogue.deletions.begin(artifact, now=at, until=at + timedelta(days=7), by="ana", reason="old", job="job-1")


def kept_rebuild(catalogue: Catalogue, stores: Stores, tmp_path: Path, **options: object) -> Tally:
    with KeptTombstones(stores.values(), tmp_path) as tombstones:
        return rebuild(catalogue, stores, tombstones=tombstones, **options)


def test_a_rebuild_keeps_what_was_deleted_deleted(catalogue, stores, tmp_path, monkeypatch):
    """A lost catalogue comes back with its tombstones: they can be undone, and their grace period begins anew."""
    for name in NAMES:
        for key in ("again", "deleted", "there"):
            put(stores, name, key.encode(), key, day=1)
    rebuild(catalogue, stores)
    for key in ("again", "deleted"):
        delete(catalogue, key, BEGIN + timedelta(days=2))
    assert all(keep_tombstones(stores[name], catalogue, tmp_path) for name in NAMES)
    assert not any(keep_tombstones(stores[name], catalogue, tmp_path) for name in NAMES)
    put(stores, "primary", b"new content", "again", day=3)
    rebuilt = Catalogue(f"sqlite:///{tmp_path / 'new.sqlite3'}")
    assert outcomes(kept_rebuild(rebuilt, stores, tmp_path))["dr"] == {"conflict": 1, "deleted": 1, "verified": 1}
    assert [each.key for each in rebuilt.artifacts.page("b")] == ["again", "there"]
    assert rebuilt.artifacts.current("b", "again").digest.sha256 == sha256(b"new content")
    tombstone = rebuilt.deletions.get("b", "deleted")
    assert (tombstone.by, tombstone.reason, tombstone.deleted_at) == ("ana", "old", BEGIN + timedelta(days=2))
    assert tombstone.purge_after > clock.now() + timedelta(days=6)
    assert outcomes(kept_rebuild(rebuilt, stores, tmp_path))["dr"] == {"known": 3}
    assert rebuilt.deletions.undo("b", "deleted", now=clock.now()).version == 1
    assert copies(rebuilt, key="deleted") == {"primary": "verified", "dr": "verified"}
    rebuilt.close()


def test_a_copy_of_a_deleted_artifact_in_another_store_is_no_new_version(catalogue, stores, file, tmp_path):
    """Within the grace period it is a copy that the purge removes too; after the purge it is an orphan."""
    put(stores, "dr", b"first", day=1)
    rebuild(catalogue, stores)
    delete(catalogue, "app", BEGIN + timedelta(days=2))
    put(stores, "primary", b"first", day=1)
    assert outcomes(kept_rebuild(catalogue, stores, tmp_path)) == {"primary": {"deleted": 1}, "dr": {"known": 1}}
    assert catalogue.artifacts.current("b", "app") is None
    assert copies(catalogue) == {"primary": "verified", "dr": "verified"}
    tombstone = catalogue.deletions.get("b", "app")
    found = catalogue.deletions.begin_purge(tombstone, now=tombstone.purge_after)
    catalogue.artifacts.delete_copies([copy for _, copy in found])
    catalogue.deletions.end_purge([tombstone])
    assert outcomes(kept_rebuild(catalogue, stores, tmp_path))["primary"] == {"deleted": 1}
    assert (catalogue.artifacts.current("b", "app"), findings(catalogue)[0][0]) == (None, "orphan")


def test_deletes_and_undeletes_after_a_backup_are_done_again(catalogue, stores, file, tmp_path):
    """A catalogue that was restored from a backup learns from the stores what was deleted and undeleted since.

    What was uploaded again with the same bytes is back too; what was purged or replaced since stays deleted. What some
    of its stores have stays deleted, too, and the user is asked: it may have been purged while a store was away.
    """
    for name in NAMES:
        put(stores, name, b"away", "away", day=1)
    for key in ("before", "deleted", "purged", "replaced", "since", "undone"):
        put(stores, "dr", key.encode(), key, day=1)
    rebuild(catalogue, stores)
    for key in ("away", "deleted", "purged", "replaced", "undone"):
        delete(catalogue, key, clock.now())
    exported = io.BytesIO()
    catalogue.export(exported)
    since = clock.now()
    delete(catalogue, "since", clock.now())
    for key in ("away", "purged", "replaced", "undone"):
        catalogue.deletions.undo("b", key, now=clock.now())
    file("dr", "purged").unlink()
    file("primary", "away").unlink()
    put(stores, "dr", b"new content", "replaced", day=(since - BEGIN).days + 1)
    keep_tombstones(stores["dr"], catalogue, tmp_path)
    exported.seek(0)
    load_export(f"sqlite:///{tmp_path / 'restored.sqlite3'}", exported)
    restored = Catalogue(f"sqlite:///{tmp_path / 'restored.sqlite3'}")
    other = kept_rebuild(restored, stores, tmp_path, newer_since=since, buckets=["other"])
    assert (other.deletes_redone, other.deletes_undone, other.named) == (0, 0, [])
    for done in (1, 0):
        tally = kept_rebuild(restored, stores, tmp_path, newer_since=since)
        assert (tally.deletes_redone, tally.deletes_undone) == (done, done)
        [undone] = [each for each in restored.history.of("b", "undone") if each.what == "undeleted"]
        assert (undone.details["by"], undone.details["reason"]) == ("ada", "undone after the backup: rebuild-1")
        [asked] = [each for each in tally.named if each.outcome == "undecided"]
        assert (asked.store, asked.key) == ("dr", "away")
        assert "dr has its bytes, primary does not have them" in str(asked.detail)
        assert [each.key for each in restored.artifacts.page("b")] == ["before", "replaced", "undone"]
        assert restored.artifacts.current("b", "replaced").digest.sha256 == sha256(b"new content")
    restored.close()


def test_an_artifact_that_was_uploaded_again_is_not_deleted_by_a_rebuild(catalogue, stores, tmp_path):
    """A store that had the bytes all the time does not tell when they were uploaded again: the list of deletes does."""
    put(stores, "dr", b"first", day=1)
    rebuild(catalogue, stores)
    digest = catalogue.artifacts.current("b", "app").digest
    delete(catalogue, "app", BEGIN + timedelta(days=2))
    assert keep_tombstones(stores["dr"], catalogue, tmp_path)
    again = catalogue.artifacts.record("b", "app", digest, {}, BEGIN + timedelta(days=3), stores=["dr"]).artifact
    tag = stores["dr"].stat_object("b", "app").version
    catalogue.artifacts.finish_copy(again, "dr", tag=tag, evidence={}, now=BEGIN + timedelta(days=3))
    assert keep_tombstones(stores["dr"], catalogue, tmp_path)
    rebuilt = Catalogue(f"sqlite:///{tmp_path / 'new.sqlite3'}")
    assert outcomes(kept_rebuild(rebuilt, stores, tmp_path))["dr"] == {"verified": 1}
    assert rebuilt.artifacts.current("b", "app").digest == digest
    rebuilt.close()


def test_a_damaged_list_of_deletes_stops_no_rebuild(catalogue, stores, file, tmp_path, caplog):
    """It is named in the log, and the list of another store counts."""
    for name in NAMES:
        put(stores, name, b"first", day=1)
    rebuild(catalogue, stores)
    delete(catalogue, "app", BEGIN + timedelta(days=2))
    for name in NAMES:
        keep_tombstones(stores[name], catalogue, tmp_path)
    [path] = (tmp_path / "primary").rglob(f"{catalogue.identity}.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with KeptTombstones(stores.values(), tmp_path) as tombstones:
        assert list(tombstones.take("b", ["app"])) == ["app"]
    assert "cannot be used" in caplog.text


def test_a_rebuild_knows_named_companions_again(catalogue, stores, tmp_path):
    """What was said last counts, also that something is none; what is said of an artifact that is gone is left out."""
    for key in ("app", "app.sig", "gone.json", "sbom.json"):
        put(stores, "dr", key.encode(), key)
    rebuild(catalogue, stores)
    assert not keep_companions(stores["dr"], catalogue, tmp_path)
    named = catalogue.companions
    named.add("b", "sbom.json", "app", by="ana", now=BEGIN)
    assert keep_companions(stores["primary"], catalogue, tmp_path)
    for key in ("gone.json", "app.sig"):
        named.remove("b", key, by="ana", now=BEGIN + timedelta(days=1))
    assert keep_companions(stores["dr"], catalogue, tmp_path)
    assert not keep_companions(stores["dr"], catalogue, tmp_path)
    for past in (timedelta(hours=5), timedelta(hours=3)):  # the clock runs back
        named.add("b", "sbom.json", "app", by="ana", now=BEGIN + past)
        assert keep_companions(stores["dr"], catalogue, tmp_path)
    stores["dr"].delete_object("b", "gone.json")
    rebuilt = Catalogue(f"sqlite:///{tmp_path / 'new.sqlite3'}")
    rebuild(rebuilt, stores)
    assert [each.key for each in rebuilt.companions.of("b", "app")] == ["app.sig"]
    assert restore_companions(rebuilt, stores.values(), tmp_path) == 2
    assert [each.key for each in rebuilt.companions.of("b", "app")] == ["sbom.json"]
    assert restore_companions(rebuilt, stores.values(), tmp_path) == 0
    rebuilt.companions.remove("b", "sbom.json", by="ben", now=BEGIN + timedelta(days=2))
    assert restore_companions(rebuilt, stores.values(), tmp_path) == 0
    rebuilt.close()


def test_all_bytes_that_are_read_count_in_the_bandwidth_of_their_store(
    catalogue: Catalogue, stores: Stores, file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    """By store, also those of a second read; without a broker there is no other worker, and nothing to say of one."""
    for name in NAMES:
        put(stores, name, b"12345")
    file("dr").write_bytes(b"12x45")
    told = dict.fromkeys(NAMES, 0)
    monkeypatch.setattr(
        "worker.limits.admission.BandwidthLimit.take",
        lambda _, name, count, **__: told.update({name: told[name] + count}),
    )
    limits = {name: StoreLimits(bytes_per_second=1 << 30) for name in NAMES}
    configured = {name: FilesystemConfig(root=tmp_path / name) for name in NAMES}
    settings = Settings(home=tmp_path / "home", stores=configured, store_limits=limits)

    with stores_within_limits(settings, stores, NAMES, catalogue=catalogue) as limited:
        rebuild(catalogue, {each.name: each for each in limited})
    assert told == {"primary": 5, "dr": 10}
    assert "Redis" not in caplog.text


def test_the_lists_that_stores_keep_are_read_within_the_limits_of_the_stores(
    catalogue: Catalogue, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """A store that is paused is left out, where only its list is wanted, and the bytes of the others are counted."""
    for name in NAMES:
        put(stores, name, b"12345")
    rebuild(catalogue, stores)
    delete(catalogue, "app", BEGIN + timedelta(days=2))
    for name in NAMES:
        keep_tombstones(stores[name], catalogue, tmp_path)
    told: list[str] = []
    monkeypatch.setattr(
        "worker.limits.admission.BandwidthLimit.take", lambda _, name, *_rest, **_options: told.append(name)
    )
    limits = {name: StoreLimits(bytes_per_second=1 << 30) for name in NAMES}
    configured = {name: FilesystemConfig(root=tmp_path / name) for name in NAMES}
    settings = Settings(home=tmp_path / "home", stores=configured, store_limits=limits)
    catalogue.pauses.begin(Scope.STORE, "dr", reason=None, now=BEGIN)

    with (
        stores_within_limits(settings, stores, [], catalogue=catalogue, optional=NAMES) as limited,
        KeptTombstones(limited, tmp_path) as tombstones,
    ):
        assert list(tombstones.take("b", ["app"])) == ["app"]
    assert set(told) == {"primary"}
    assert "dr: the store is paused: it is left out" in capsys.readouterr().err
