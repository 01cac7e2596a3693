"""Inventory reports as the providers document them, of one bucket, in every format."""

import base64
import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
from pyarrow import orc, parquet

AT = datetime(2026, 11, 25, 1, 0, tzinfo=UTC)
OLD = datetime(2026, 11, 1, tzinfo=UTC)
GCS_CSV: Mapping[str, Any] = {"record_separator": "\n", "delimiter": ",", "header_required": True}
AZURE = "https://account.blob.core.windows.net"


@dataclass(frozen=True)
class Object:
    """An object of the bucket; `more` are further columns of its row."""

    key: str
    body: bytes = b"x"
    version: str = "7"
    modified: datetime = OLD
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def md5(self) -> str:
        return base64.b64encode(hashlib.md5(self.body).digest()).decode()


def s3_report(directory: Path, objects: Sequence[Object], format_: str = "CSV", *, bucket: str = "src") -> Path:
    """Write an S3 Inventory of two files, unsorted, and return the path of its manifest."""
    names = ["Bucket", "Key", "VersionId", "IsLatest", "IsDeleteMarker", "Size", "LastModifiedDate", "ETag"]
    lower = ["bucket", "key", "version_id", "is_latest", "is_delete_marker", "size", "last_modified_date", "e_tag"]

    def row(each: Object) -> list[Any]:
        values = [bucket, each.key, "", True, False, len(each.body), each.modified, each.version]
        return list((dict(zip(names, values, strict=True)) | each.more).values())

    def packed(rows: list[list[Any]]) -> bytes:
        if format_ == "CSV":
            text = io.StringIO()
            out = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
            for bucket_, key, version, latest, deleted, size, modified, tag in rows:
                when = modified.strftime("%Y-%m-%dT%H:%M:%S.000Z")
                flags = [str(latest).lower(), str(deleted).lower()]
                out.writerow([bucket_, quote_plus(key, safe="/"), version, *flags, size, when, tag])
            return gzip.compress(text.getvalue().encode())
        return _columns(lower, rows, orc.write_table if format_ == "ORC" else parquet.write_table)

    suffix = {"CSV": "csv.gz", "ORC": "orc", "Parquet": "parquet"}[format_]
    base = directory / "inventory" / bucket / "daily"
    (base / "data").mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(2):
        data = packed([row(each) for each in list(reversed(objects))[number::2]])
        (base / "data" / f"part-{number}.{suffix}").write_bytes(data)
        key = f"inventory/{bucket}/daily/data/part-{number}.{suffix}"
        files.append({"key": key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()})
    manifest = {
        "sourceBucket": bucket, "destinationBucket": "arn:aws:s3:::reports", "version": "2016-11-30",
        "creationTimestamp": str(int(AT.timestamp() * 1000)), "fileFormat": format_,
        "fileSchema": ", ".join(names), "files": files,
    }  # fmt: skip
    return write_manifest(base / "2026-11-25T01-00Z" / "manifest.json", manifest)


def s3_batch_report(directory: Path, objects: Sequence[Object], *, bucket: str = "src") -> Path:
    """Write a completion report of a Compute checksum job, and return the path of its manifest.

    `more` of an object are further fields of its message. One task failed, as AWS writes it: in no valid CSV.
    """
    results = directory / "job-f8fb9d89" / "results"
    results.mkdir(parents=True)
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    for each in objects:
        digest = hashlib.sha256(each.body)
        message = {
            "checksum_base64": base64.b64encode(digest.digest()).decode(), "etag": each.version,
            "checksumAlgorithm": "SHA256", "checksumType": "FULL_OBJECT", "checksum_hex": digest.hexdigest().upper(),
        } | each.more  # fmt: skip
        said = json.dumps(message, separators=(",", ":")).replace("=", "\\u003d")
        out.writerow([bucket, quote_plus(each.key, safe="/"), "", "succeeded", 200, "", said])
    files = {"succeeded": text.getvalue().encode(), "failed": b'src,gone,,failed,200,PermanentFailure,"x: {""m"":"T}\n'}
    listed = []
    for status, content in files.items():
        name = f"{hashlib.sha1(content).hexdigest()}.csv"
        (results / name).write_bytes(content)
        md5 = hashlib.md5(content).hexdigest()
        key = f"job-f8fb9d89/results/{name}"
        listed.append({"TaskExecutionStatus": status, "Bucket": "my-job-reports", "MD5Checksum": md5, "Key": key})
    schema = "Bucket, Key, VersionId, TaskStatus, ErrorCode, HTTPStatusCode, ResultMessage"
    document = {"Format": "Report_CSV_20180820", "ReportCreationDate": f"{AT:%Y-%m-%dT%H:%M:%S}.725Z",
                "Results": listed, "ReportSchema": schema}  # fmt: skip
    manifest = directory / "job-f8fb9d89" / "manifest.json"
    manifest.write_text(json.dumps(document))
    return manifest


def gcs_report(
    directory: Path, objects: Sequence[Object], format_: str = "CSV", *, bucket: str = "src",
    csv_options: Mapping[str, Any] = GCS_CSV, header: bool = True,
) -> Path:  # fmt: skip
    """Write a Storage Insights report of two shards, and return the path of its manifest."""
    names = ["project", "bucket", "name", "size", "updated", "timeDeleted", "crc32c", "md5Hash", "generation"]
    rows = []
    for each in reversed(objects):
        modified: Any = each.modified if format_ == "Parquet" else each.modified.isoformat().replace("+00:00", "Z")
        values = ["p", bucket, each.key, len(each.body), modified, None, None, each.md5, int(each.version)]
        rows.append(list((dict(zip(names, values, strict=True)) | each.more).values()))
    start = "fc95c52f-157a-494f-af4a-d4a53a69ba66_2026-11-25T00:00"
    shards = []
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        part = rows[number::2]
        if format_ == "CSV":
            text = io.StringIO()
            lines = csv.writer(text, lineterminator="\n", delimiter=csv_options.get("delimiter", ","))
            lines.writerows([names, *part] if header else part)
            data, suffix = text.getvalue().encode(), "csv"
        else:
            data, suffix = _columns(names, part, parquet.write_table), "parquet"
        shards.append(f"{start}_{number}.{suffix}")
        (directory / shards[-1]).write_bytes(data)
    kind = {"csv_options": csv_options} if format_ == "CSV" else {"parquet_options": {}}
    manifest = {
        "report_config": {
            "name": "projects/p/locations/us/reportConfigs/fc95c52f",
            **kind,
            "object_metadata_report_options": {
                "metadata_fields": names, "storage_filters": {"bucket": bucket},
                "storage_destination_options": {"bucket": "reports"},
            },
        },
        "records_processed": len(rows), "snapshot_time": AT.isoformat(), "shard_count": 2,
        "report_shards_file_names": shards,
    }  # fmt: skip
    path = directory / f"{start}_manifest.json"
    path.write_text(json.dumps(manifest))
    return path


def azure_report(
    directory: Path, objects: Sequence[Object], format_: str = "csv", *, container: str = "src", endpoint: str = AZURE
) -> Path:
    """Write an Azure Blob Inventory of one file, and return the path of its manifest."""
    names = ["Name", "Last-Modified", "Content-Length", "Content-MD5", "Etag", "hdi_isfolder", "Deleted"]
    rows = []
    for each in reversed(objects):
        modified: Any = int(each.modified.timestamp() * 1000)
        if format_ == "csv":
            modified = each.modified.isoformat().replace("+00:00", "Z")
        values = [f"{container}/{each.key}", modified, len(each.body), each.md5, each.version, None, None]
        rows.append(list((dict(zip(names, values, strict=True)) | each.more).values()))
    base = directory / "2026" / "11" / "25" / "01-00-00" / "rule"
    base.mkdir(parents=True, exist_ok=True)
    if format_ == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([names, *rows])
        data = text.getvalue().encode()
    else:
        data = _columns(names, rows, parquet.write_table)
    (base / f"rule_1000000_0.{format_}").write_bytes(data)
    manifest = {
        "destinationContainer": "reports", "endpoint": endpoint,
        "files": [{"blob": f"2026/11/25/01-00-00/rule/rule_1000000_0.{format_}", "size": len(data)}],
        "inventoryCompletionTime": AT.isoformat(), "inventoryStartTime": AT.isoformat(),
        "ruleDefinition": {
            "filters": {"blobTypes": ["blockBlob"], "prefixMatch": []}, "format": format_, "objectType": "blob",
            "schedule": "daily", "schemaFields": names,
        },
        "ruleName": "rule", "status": "Succeeded", "summary": {"objectCount": len(rows)}, "version": "1.0",
    }  # fmt: skip
    return write_manifest(base / "rule-manifest.json", manifest)


def write_manifest(path: Path, manifest: dict[str, Any]) -> Path:
    """Write a manifest and its checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(manifest).encode()
    path.write_bytes(data)
    path.with_suffix(".checksum").write_text(hashlib.md5(data).hexdigest())
    return path


def change_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest as if its provider had written it so."""
    manifest = json.loads(path.read_text())
    change(manifest)
    write_manifest(path, manifest)


def _columns(names: list[str], rows: list[list[Any]], write: Callable[..., Any]) -> bytes:
    values = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
    arrays = [
        pa.array(each) if any(one is not None for one in each) else pa.array(each, pa.string()) for each in values
    ]
    out = io.BytesIO()
    write(pa.table(dict(zip(names, arrays, strict=True))), out)
    return out.getvalue()
