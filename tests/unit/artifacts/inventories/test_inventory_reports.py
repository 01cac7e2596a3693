"""Reports of three providers in all their formats are one listing, and one that is not whole is refused before it."""

import csv
import gzip
import hashlib
import io
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.unit.artifacts.inventories.reports import (
    AT,
    OLD,
    Object,
    azure_report,
    change_manifest,
    gcs_report,
    s3_report,
)
from worker.artifacts.inventories import BadInventory, open_inventory
from worker.settings import Settings
from worker.storage.config import AzureConfig, FilesystemConfig, GcsConfig, S3Config
from worker.storage.driver import ListedObject

KEYS = ["a", "a b+c/d%e", "a/b", "dir/Ünïcode \U0001f984", "zz"]
OBJECTS = [Object(f"releases/{key}", key.encode(), modified=OLD + timedelta(days=n)) for n, key in enumerate(KEYS)]
OTHERS = [Object("other/x"), Object("other/.zot-bucket"), Object("zot-quarantine/x"), Object("noslash")]
URL = "https://account.blob.core.windows.net"
CONFIGS: dict[str, Any] = {
    "s3": S3Config(bucket="src"),
    "gcs": GcsConfig(bucket="src"),
    "azure": AzureConfig(container="src", account_url=URL),
    "native": S3Config(layout="native"),
    "nas": FilesystemConfig(root=Path("/nowhere")),
}
REPORTS: dict[str, tuple[str, Callable[..., Path], str]] = {
    "s3-csv": ("s3", s3_report, "CSV"),
    "s3-orc": ("s3", s3_report, "ORC"),
    "s3-parquet": ("s3", s3_report, "Parquet"),
    "gcs-csv": ("gcs", gcs_report, "CSV"),
    "gcs-parquet": ("gcs", gcs_report, "Parquet"),
    "azure-csv": ("azure", azure_report, "csv"),
    "azure-parquet": ("azure", azure_report, "parquet"),
}


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """Return a root of sources, where reports are."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def read(tmp_path: Path, where: Path) -> Callable[..., list[ListedObject]]:
    """Return what lists a bucket of a store from the report with this manifest."""
    settings = Settings(home=tmp_path / "home", stores=CONFIGS, sources={"roots": [where]})

    def read(manifest: Path, store: str, bucket: str = "releases", prefix: str = "", **of: Any) -> list[ListedObject]:
        scope = of.get("of", bucket)
        stores: Any = {}
        with open_inventory(str(manifest), store, scope, prefix, stores=stores, settings=settings) as listing:
            assert listing.at == AT
            return list(listing.list_objects(bucket, prefix))

    return read


@pytest.mark.parametrize("kind", REPORTS)
def test_every_report_is_the_same_sorted_listing(where: Path, read, kind: str) -> None:
    """Keys with spaces, plus and percent signs and all of Unicode, sizes, times and version tags; no reserved ones."""
    store, make, format_ = REPORTS[kind]
    manifest = make(where / "report", [*OBJECTS, *OTHERS], format_)
    listed = read(manifest, store, of=None)
    assert [each.key for each in listed] == sorted(KEYS, key=str.encode)
    assert {each.key: (each.size, each.version) for each in listed} == {key: (len(key.encode()), "7") for key in KEYS}
    assert {each.key: each.modified for each in listed} == {
        key: OLD + timedelta(days=number) for number, key in enumerate(KEYS)
    }
    assert [each.key for each in read(manifest, store, "other", of=None)] == ["x"]
    assert [each.key for each in read(manifest, store, prefix="a/")] == ["a/b"]


@pytest.mark.parametrize("header", [True, False])
def test_a_storage_insights_report_is_read_with_its_own_delimiter(where: Path, read, *, header: bool) -> None:
    """As its configuration has it; a manifest that does not tell of a header is read with and without one."""
    options = {"record_separator": "\n", "delimiter": ";"}
    manifest = gcs_report(where / "report", OBJECTS, csv_options=options, header=header)
    assert [each.key for each in read(manifest, "gcs")] == sorted(KEYS, key=str.encode)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("s3-csv", {"IsLatest": False}),
        ("s3-parquet", {"IsDeleteMarker": True}),
        ("gcs-csv", {"timeDeleted": "2026-11-02T00:00:00Z"}),
        ("azure-csv", {"hdi_isfolder": "true"}),
        ("azure-parquet", {"Deleted": "true"}),
    ],
)
def test_what_is_no_current_object_is_left_out(where: Path, read, kind: str, more: dict[str, Any]) -> None:
    """Older versions, delete markers, what was deleted, and folders."""
    store, make, format_ = REPORTS[kind]
    manifest = make(where / "report", [Object("releases/a"), Object("releases/old", more=more)], format_)
    assert [each.key for each in read(manifest, store)] == ["a"]


def damage(which: str) -> Callable[[Path], None]:
    def change(manifest: Path) -> None:
        files = sorted(each for each in manifest.parents[1].rglob("*") if each.suffix in {".gz", ".csv", ".parquet"})
        data = files[0].read_bytes()
        if which == "truncated":
            files[0].write_bytes(data[:-7])
        elif which == "flipped":
            files[0].write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
        elif which == "gone":
            files[0].unlink()

    return change


@pytest.mark.parametrize("which", ["truncated", "flipped", "gone"])
@pytest.mark.parametrize("kind", ["s3-csv", "s3-parquet"])
def test_a_file_that_is_not_the_one_of_the_manifest_is_refused(where: Path, read, kind: str, which: str) -> None:
    """By size and MD5, before one row counts."""
    store, make, format_ = REPORTS[kind]
    manifest = make(where / "report", OBJECTS, format_)
    damage(which)(manifest)
    with pytest.raises(BadInventory, match="part-0"):
        read(manifest, store)


@pytest.mark.parametrize("kind", ["gcs-csv", "gcs-parquet", "azure-csv", "azure-parquet"])
def test_a_report_that_lacks_rows_is_refused(where: Path, read, kind: str) -> None:
    """By the number of rows in the manifest, or because a file cannot be read to its end."""
    store, make, format_ = REPORTS[kind]
    manifest = make(where / "report", OBJECTS, format_)
    damage("truncated")(manifest)
    with pytest.raises(BadInventory):
        read(manifest, store)
    manifest = make(where / "again", OBJECTS, format_)
    name = "records_processed" if store == "gcs" else "summary"
    change_manifest(manifest, lambda said: said.update({name: 6 if store == "gcs" else {"objectCount": 6}}))
    with pytest.raises(BadInventory, match="5 rows, the manifest says 6"):
        read(manifest, store)


def test_a_manifest_without_its_checksum_or_with_another_is_refused(where: Path, read) -> None:
    """The provider writes the checksum when the report is complete."""
    manifest = s3_report(where, OBJECTS)
    manifest.write_text(manifest.read_text().replace("2016-11-30", "2016-11-31"))
    with pytest.raises(BadInventory, match="MD5"):
        read(manifest, "s3")
    manifest.with_suffix(".checksum").unlink()
    with pytest.raises(BadInventory, match="not complete"):
        read(manifest, "s3")


@pytest.mark.parametrize(
    ("make", "store", "why"),
    [
        (lambda at: s3_report(at, OBJECTS, bucket="theirs"), "s3", "lists the bucket theirs"),
        (lambda at: s3_report(at, OBJECTS, bucket="theirs"), "native", "lists the bucket theirs, not releases"),
        (lambda at: gcs_report(at, OBJECTS, bucket="theirs"), "gcs", "lists the bucket theirs"),
        (lambda at: s3_report(at, OBJECTS), "gcs", "an inventory of s3"),
        (lambda at: gcs_report(at, OBJECTS), "nas", "an inventory of gcs"),
        (
            lambda at: s3_report(at, [Object("releases/a", more={"Bucket": "theirs"})]),
            "s3",
            "a row of the bucket",
        ),
    ],
)
def test_a_report_of_another_bucket_is_refused(
    where: Path, read, make: Callable[[Path], Path], store: str, why: str
) -> None:
    """Of another bucket by its manifest or by a row, or of another kind of store."""
    with pytest.raises(BadInventory, match=why):
        read(make(where / "report"), store)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda said: said.update(status="Failed"), "Failed"),
        (lambda said: said.update(endpoint="https://other.blob.core.windows.net"), "lists the account other"),
        (
            lambda said: said["ruleDefinition"]["filters"].update(prefixMatch=["src/other/"]),
            "has only what begins",
        ),
        (lambda said: said["ruleDefinition"]["filters"].update(excludePrefix=["src/x"]), "leaves out"),
        (lambda said: said["ruleDefinition"]["filters"].update(blobTypes=["pageBlob"]), "leaves out block blobs"),
    ],
)
def test_a_report_of_a_part_is_refused(where: Path, read, change: Callable[[Any], object], why: str) -> None:
    """What a rule leaves out would look missing."""
    manifest = azure_report(where / "report", OBJECTS)
    change_manifest(manifest, change)
    with pytest.raises(BadInventory, match=why):
        read(manifest, "azure")


def test_a_manifest_that_names_a_field_twice_is_refused(where: Path, read) -> None:
    """The one that counts would be another one for another reader."""
    manifest = azure_report(where / "report", OBJECTS)
    manifest.write_text(manifest.read_text().replace("{", '{"destinationContainer": "other", ', 1))
    with pytest.raises(BadInventory, match="destinationContainer is there twice"):
        read(manifest, "azure")


def test_a_report_of_a_prefix_is_enough_for_that_prefix(where: Path, read) -> None:
    """And for one below it."""
    manifest = azure_report(where / "report", OBJECTS)
    change_manifest(manifest, lambda said: said["ruleDefinition"]["filters"].update(prefixMatch=["src/releases/a"]))
    assert [each.key for each in read(manifest, "azure", prefix="a/")] == ["a/b"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"files": []}', '{"sourceBucket": "src"}', "[" * 100_000])
def test_what_is_no_manifest_is_refused(where: Path, read, text: str) -> None:
    """One line names the file."""
    (where / "manifest.json").write_text(text)
    with pytest.raises(BadInventory, match=r"manifest\.json"):
        read(where / "manifest.json", "s3")


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd"])
def test_a_manifest_leads_to_no_other_file(where: Path, read, name: str) -> None:
    """Only the last part of a name counts, and it is looked for beside the manifest."""
    manifest = s3_report(where / "report", OBJECTS)
    change_manifest(manifest, lambda said: said["files"][0].update(key=name))
    with pytest.raises(BadInventory, match="not there"):
        read(manifest, "s3")


def test_parquet_without_pyarrow_is_one_clear_error(where: Path, read, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the extra to install; CSV needs nothing."""
    csv_, parquet = s3_report(where / "csv", OBJECTS), s3_report(where / "parquet", OBJECTS, "Parquet")
    for name in [each for each in sys.modules if each.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert len(read(csv_, "s3")) == len(KEYS)
    with pytest.raises(BadInventory, match=r"zot-artifact-worker\[inventory\]"):
        read(parquet, "s3")


def rewrite(manifest: Path, change: Callable[[str], str], *, fields: str | None = None) -> None:
    """Rewrite the CSV files of a report as its provider could have written them, and their digests in the manifest."""
    new: dict[str, tuple[int, str]] = {}
    for path in manifest.parents[0 if manifest.name.endswith("_manifest.json") else 1].rglob("*.csv*"):
        packed = path.suffix == ".gz"
        text = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()).decode()
        data = change(text).encode()
        path.write_bytes(gzip.compress(data) if packed else data)
        new[path.name] = (path.stat().st_size, hashlib.md5(path.read_bytes()).hexdigest())

    def described(said: Any) -> None:
        for each in said.get("files", []):
            size, md5 = new[str(each.get("key") or each.get("blob")).rpartition("/")[2]]
            each.update({"size": size} | ({"MD5checksum": md5} if "MD5checksum" in each else {}))
        if fields is not None:
            said["fileSchema"] = fields

    if manifest.name.endswith("_manifest.json"):
        return  # Storage Insights has neither sizes nor digests
    change_manifest(manifest, described)


def columns(text: str, order: Callable[[list[str]], list[str]]) -> str:
    """Return a CSV text with its columns in another order."""
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows(order(row) for row in csv.reader(io.StringIO(text, newline="")))
    return out.getvalue()


@pytest.mark.parametrize("kind", ["s3-csv", "gcs-csv", "azure-csv"])
def test_line_ends_quotes_and_the_order_of_columns_change_nothing(where: Path, read, kind: str) -> None:
    """CRLF, every value in quotes, a line end within a key, and columns in another order than the provider's usual."""
    store, make, format_ = REPORTS[kind]
    odd = [Object("releases/a"), Object('releases/line\nend, "quoted"'), Object("releases/z")]
    manifest = make(where / "report", odd, format_)
    fields = "ETag, LastModifiedDate, Size, IsDeleteMarker, IsLatest, VersionId, Key, Bucket" if store == "s3" else None
    rewrite(manifest, lambda text: columns(text, lambda row: row[::-1]), fields=fields)
    assert [each.key for each in read(manifest, store)] == ["a", 'line\nend, "quoted"', "z"]


@pytest.mark.parametrize("kind", REPORTS)
def test_a_report_of_an_empty_bucket_and_one_without_sizes_are_read(where: Path, read, kind: str) -> None:
    """Nothing is listed, or an object of unknown size; neither is an error of the report."""
    store, make, format_ = REPORTS[kind]
    assert read(make(where / "empty", [], format_), store) == []
    size = {"s3": "Size", "gcs": "size", "azure": "Content-Length"}[store]
    nulls = [Object("releases/a", more={size: None}), Object("releases/b", more={size: None})]
    listed = read(make(where / "nulls", nulls, format_), store)
    assert [(each.key, each.size) for each in listed] == [("a", None), ("b", None)]


@pytest.mark.parametrize("fields", ["Bucket, Key", "Size, Key, Bucket, VersionId, IsLatest, IsDeleteMarker, X, ETag"])
def test_a_schema_that_is_not_that_of_the_files_is_refused(where: Path, read, fields: str) -> None:
    """A value in the place of another is never taken for it."""
    manifest = s3_report(where / "report", OBJECTS)
    rewrite(manifest, lambda text: text, fields=fields)
    with pytest.raises(BadInventory):
        read(manifest, "s3")
