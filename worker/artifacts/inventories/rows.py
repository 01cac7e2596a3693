"""Read the rows of the files of an inventory report: CSV, Parquet and ORC."""

import base64
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import IO, Any
from urllib.parse import unquote_plus

from worker.artifacts.inventories.manifest import BadInventory, Report
from worker.storage.cloud.metadata import sha256_of

_BATCH = 10_000
_GZIP = b"\x1f\x8b"
_LIVE = {"true", "1"}
_UNKNOWN = datetime.fromtimestamp(0, UTC)

# By the field of an InventoryRow, the column of each provider, in lower case and without `_` and `-`.
_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "s3": {"bucket": "bucket", "key": "key", "size": "size", "version": "etag", "modified": "lastmodifieddate",
           "latest": "islatest", "deleted": "isdeletemarker", "sha256": "sha256"},
    "gcs": {"bucket": "bucket", "key": "name", "size": "size", "version": "generation", "modified": "updated",
            "gone": "timedeleted", "crc32c": "crc32c", "md5": "md5hash"},
    "azure": {"key": "name", "size": "contentlength", "version": "etag", "modified": "lastmodified",
              "latest": "iscurrentversion", "deleted": "deleted", "gone": "snapshot", "folder": "hdiisfolder",
              "content_md5": "contentmd5"},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class InventoryRow:
    """One current object as a report lists it, under its real names. What the report does not tell is None or empty."""

    bucket: str
    key: str
    size: int | None
    version: str
    modified: datetime
    checksums: Mapping[str, str]


class MissingPyarrow(BadInventory):
    """Parquet and ORC need an optional package."""


def read_rows(name: str, file: IO[bytes], report: Report) -> Iterator[InventoryRow | None]:
    """Yield the rows of one file; None for what is no current object, such as an older version.

    Raises:
        BadInventory: the file is damaged, or has no column that is needed.
        MissingPyarrow: its format needs the extra `inventory`.
    """
    readers = {"csv": _csv, "parquet": _parquet, "orc": _orc}
    wanted = _COLUMNS[report.provider]
    try:
        for number, values in enumerate(readers[report.format](name, file, report, wanted)):
            if number == 0 and (lacking := {"key"} - {field for field, column in wanted.items() if column in values}):
                raise BadInventory(f"{name}: it has no column for the {', '.join(sorted(lacking))}")
            yield _row(report, {field: values.get(column) for field, column in wanted.items()})
    except (
        OSError,
        EOFError,
        ValueError,
        OverflowError,
        KeyError,
        AttributeError,
        TypeError,
        zlib.error,
        csv.Error,
    ) as error:
        raise BadInventory(f"{name}: it is damaged: {type(error).__name__}: {str(error)[:120]}") from error


def _csv(name: str, file: IO[bytes], report: Report, wanted: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    del wanted
    packed = file.read(2) == _GZIP
    file.seek(0)
    raw: Any = gzip.GzipFile(fileobj=file) if packed else file
    with io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
        lines = csv.reader(text, strict=True, delimiter=report.delimiter)
        columns = [_plain(each) for each in report.columns]
        for values in lines:
            if lines.line_num == 1 and (not columns or {_plain(each) for each in values} == set(columns)):
                columns = [_plain(each) for each in values]  # it is the header
                continue
            if len(values) != len(columns):
                raise BadInventory(f"{name}: line {lines.line_num} has {len(values)} values, not {len(columns)}")
            row = dict(zip(columns, values, strict=True))
            if report.computed and not _add_computed(row):
                continue
            if report.provider == "s3":
                row["key"] = unquote_plus(row["key"], errors="strict")
            yield row


def _add_computed(row: dict[str, Any]) -> bool:
    """Add ETag and SHA-256 from the message of a succeeded task; return False for a row that is none.

    A composite checksum is over the checksums of the parts, and says nothing about the SHA-256 of the object.
    """
    if row["taskstatus"].lower() != "succeeded":
        return False  # the header too, if the file has one
    found = json.loads(row["resultmessage"])
    row["etag"] = found.get("etag")
    if (found["checksumAlgorithm"], found["checksumType"]) == ("SHA256", "FULL_OBJECT"):
        row["sha256"] = found["checksum_hex"]
    return True


def _parquet(name: str, file: IO[bytes], _report: Report, wanted: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    _need_pyarrow(name)
    from pyarrow import parquet

    opened = parquet.ParquetFile(file)
    names = _chosen(opened.schema_arrow.names, wanted)
    for batch in opened.iter_batches(batch_size=_BATCH, columns=list(names)):
        yield from _dicts(batch, names)


def _orc(name: str, file: IO[bytes], _report: Report, wanted: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    _need_pyarrow(name)
    from pyarrow import orc

    opened = orc.ORCFile(file)
    names = _chosen(opened.schema.names, wanted)
    for number in range(opened.nstripes):
        yield from _dicts(opened.read_stripe(number, columns=list(names)), names)


def _need_pyarrow(name: str) -> None:
    if find_spec("pyarrow") is None:
        raise MissingPyarrow(
            f"{name}: Parquet and ORC need pyarrow: install zot-artifact-worker[inventory], or order CSV reports"
        )


def _chosen(names: list[str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the columns of a file that are needed, each with its plain name."""
    return {name: _plain(name) for name in names if _plain(name) in wanted.values()}


def _dicts(batch: Any, names: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    columns = [batch.column(name).to_pylist() for name in names]
    for values in zip(*columns, strict=True):
        yield dict(zip(names.values(), values, strict=True))


def _plain(column: str) -> str:
    return column.strip().lower().replace("_", "").replace("-", "")


def _row(report: Report, values: Mapping[str, Any]) -> InventoryRow | None:
    old = values.get("latest") not in {None, ""} and str(values["latest"]).lower() not in _LIVE
    gone = str(values.get("deleted") or "").lower() in _LIVE or bool(values.get("gone"))
    key, size = values["key"], values.get("size")
    size = None if size in {None, ""} else int(str(size))  # before a row is left out: another schema shows in any row
    if old or gone or str(values.get("folder") or "").lower() in _LIVE:
        return None
    if not isinstance(key, str) or not key:
        raise ValueError("a row has no key")
    bucket = values.get("bucket") or report.bucket
    if report.provider == "azure":
        bucket, _, key = key.partition("/")
    version = str(values.get("version") or "")
    return InventoryRow(
        str(bucket or ""),
        key,
        size,
        version if report.provider == "gcs" else version.removeprefix("W/").strip('"'),
        _time(values.get("modified")),
        _checksums(values),
    )


def _checksums(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the checksums of a row as the drivers record them: Azure's in hex, Google's in base64."""
    found = {name: str(values[name]) for name in ("crc32c", "md5", "content_md5", "sha256") if values.get(name)}
    if "sha256" in found and (sha256 := sha256_of(found["sha256"])) is not None:
        found["sha256"] = sha256
    if "content_md5" in found:
        found["content_md5"] = base64.b64decode(found["content_md5"], validate=True).hex()
    return found


def _time(value: Any) -> datetime:
    if value is None or value == "":
        return _UNKNOWN
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value / 1000, UTC)
    text = str(value)
    if text.isdecimal():
        return datetime.fromtimestamp(int(text) / 1000, UTC)
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)
