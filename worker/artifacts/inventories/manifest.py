"""Read the manifest of an inventory report: which files it has, of what bucket and time it is, and what they hold."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from worker.counted import counted
from worker.storage.errors import PermanentError
from zot_artifact_client.input_rules import unique_names

FileFormat = Literal["csv", "parquet", "orc"]


class BadInventory(PermanentError):
    """An inventory is incomplete, damaged, of another bucket, or none at all."""


@dataclass(frozen=True, slots=True)
class ReportFile:
    """A file of the report: its name in its bucket, and its size and MD5 in hex where the manifest has them."""

    name: str
    size: int | None = None
    md5: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The content of a manifest.

    Attributes:
        provider: whose inventory it is.
        at: the time whose state it has; what changed later may be in it or not.
        format: the format of its files.
        files: all of them.
        columns: the names of the columns of CSV files; empty if their header has them.
        delimiter: what is between two values of a CSV file.
        bucket: the real bucket that it lists, or None if each row names its own.
        account: the host of the account, for Azure.
        rows: how many rows there are in all, where the manifest tells.
        within: the real `bucket/prefix` texts that it is limited to; empty if it has everything.
        computed: it has checksums that S3 computed at rest, of some objects: it lists no bucket.
    """

    provider: Literal["s3", "gcs", "azure"]
    at: datetime
    format: FileFormat
    files: tuple[ReportFile, ...]
    columns: tuple[str, ...] = ()
    bucket: str | None = None
    account: str | None = None
    rows: int | None = None
    within: tuple[str, ...] = ()
    computed: bool = False
    delimiter: str = ","


def parse_manifest(name: str, data: bytes) -> Report:
    """Parse a manifest.

    Raises:
        BadInventory: it is not a manifest of a provider, or its report is not complete.
    """
    try:
        document = json.loads(data, object_pairs_hook=unique_names)
        if not isinstance(document, dict):
            raise TypeError
        for key, parse in (
            ("sourceBucket", _s3), ("report_shards_file_names", _gcs), ("destinationContainer", _azure),
            ("ReportSchema", _s3_batch),
        ):  # fmt: skip
            if key in document:
                return parse(name, document)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise BadInventory(
            f"{name}: it is no manifest of an inventory: {type(error).__name__} {str(error)[:80]}"
        ) from None
    raise BadInventory(
        f"{name}: it is no manifest of S3 Inventory, S3 Batch Operations, Storage Insights or Azure Blob Inventory"
    )


def check_checksum(name: str, data: bytes, checksum: bytes) -> None:
    """Compare a manifest with the MD5 that the provider writes beside it when the report is complete.

    Raises:
        BadInventory: it is another manifest.
    """
    said = checksum.decode("ascii", "replace").strip().lower()
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if said != found:
        raise BadInventory(f"{name}: its MD5 is {found}, the file beside it says {said[:64]!r}")


def _s3(name: str, document: Mapping[str, Any]) -> Report:
    formats: dict[str, FileFormat] = {"CSV": "csv", "PARQUET": "parquet", "ORC": "orc"}
    format_ = formats.get(str(document["fileFormat"]).upper())
    if format_ is None:
        raise BadInventory(f"{name}: files in {str(document['fileFormat'])[:40]!r} cannot be read")
    columns = tuple(each.strip() for each in str(document["fileSchema"]).split(",")) if format_ == "csv" else ()
    files = tuple(
        ReportFile(str(each["key"]), int(each["size"]), str(each["MD5checksum"]).lower()) for each in document["files"]
    )
    at = datetime.fromtimestamp(int(document["creationTimestamp"]) / 1000, UTC)
    return Report("s3", at, format_, files, columns, str(document["sourceBucket"]).removeprefix("arn:aws:s3:::"))


def _s3_batch(name: str, document: Mapping[str, Any]) -> Report:
    """Parse the manifest of a completion report. Only succeeded tasks have a checksum."""
    if document["Format"] != "Report_CSV_20180820":
        raise BadInventory(f"{name}: a completion report in {str(document['Format'])[:40]!r} cannot be read")
    columns = tuple(each.strip() for each in str(document["ReportSchema"]).split(","))
    files = tuple(
        ReportFile(str(each["Key"]), md5=str(each["MD5Checksum"]).lower())
        for each in document["Results"]
        if str(each["TaskExecutionStatus"]).lower() == "succeeded"
    )
    return Report("s3", _time(document["ReportCreationDate"]), "csv", files, columns, computed=True)


def _gcs(name: str, document: Mapping[str, Any]) -> Report:
    config = document.get("report_config") or {}
    options = config.get("object_metadata_report_options") or {}
    files = tuple(ReportFile(str(each)) for each in document["report_shards_file_names"])
    if len(files) != int(document.get("shard_count") or len(files)):
        raise BadInventory(f"{name}: it names {counted(len(files), 'file')} of {document['shard_count']}")
    parquet = "parquet_options" in config or any(each.name.endswith(".parquet") for each in files)
    csv = config.get("csv_options") or {}
    header = parquet or csv.get("header_required")  # which Google leaves out if it is false
    columns = () if header else tuple(options.get("metadata_fields") or ())
    bucket = (options.get("storage_filters") or {}).get("bucket")
    rows = int(document["records_processed"])
    at = _time(document["snapshot_time"])
    return Report(
        "gcs", at, "parquet" if parquet else "csv", files, columns, bucket, rows=rows,
        delimiter=str(csv.get("delimiter") or ","),
    )  # fmt: skip


def _azure(name: str, document: Mapping[str, Any]) -> Report:
    rule = document["ruleDefinition"]
    if document["status"] != "Succeeded":
        raise BadInventory(f"{name}: the provider has not completed it: {document['status']}")
    if rule["objectType"] != "blob":
        raise BadInventory(f"{name}: it is an inventory of {rule['objectType']}s, not of blobs")
    filters = rule.get("filters") or {}
    if filters.get("excludePrefix") or filters.get("creationTime"):
        raise BadInventory(f"{name}: its rule leaves out blobs by prefix or age: they would look missing")
    if "blockBlob" not in filters.get("blobTypes", ["blockBlob"]):
        raise BadInventory(f"{name}: its rule leaves out block blobs")
    format_: FileFormat = "parquet" if str(rule["format"]).lower() == "parquet" else "csv"
    files = tuple(ReportFile(str(each["blob"]), int(each["size"])) for each in document["files"])
    host = str(document["endpoint"]).partition("://")[2].partition("/")[0]
    rows = (document.get("summary") or {}).get("objectCount")
    return Report(
        "azure", _time(document["inventoryStartTime"]), format_, files, account=host,
        rows=None if rows is None else int(rows), within=tuple(filters.get("prefixMatch") or ()),
    )  # fmt: skip


def _time(text: object) -> datetime:
    at = datetime.fromisoformat(str(text))
    return at if at.tzinfo else at.replace(tzinfo=UTC)
