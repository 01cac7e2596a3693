"""Objects with keys that only another program would choose, worked on by commands beside a real `up`."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.acceptance.commands import Zot
from tests.acceptance.forked_up import running
from tests.servers import Ministack

KEYS = {"folder/": b"", "a//b": b"two slashes", "back\\slash": b"a backslash", "dot.": b"a dot at the end"}
STORES = ("old", "new")


@pytest.fixture(scope="module")
def s3(ministack: Ministack) -> Any:
    keys = {"aws_access_key_id": ministack.access_key_id, "aws_secret_access_key": ministack.secret_access_key}
    client = boto3.client("s3", endpoint_url=ministack.endpoint, region_name="us-east-1", **keys)
    for name in STORES:
        client.create_bucket(Bucket=f"foreign-{name}")
    return client


@pytest.fixture(scope="module")
def zot(tmp_path_factory: pytest.TempPathFactory, ministack: Ministack, s3: Any) -> Iterator[Zot]:
    """Return the command line beside an `up` with two S3 stores, and a directory that another program writes too."""
    directory = tmp_path_factory.mktemp("foreign")
    keys = {"access_key_id": ministack.access_key_id, "secret_access_key": ministack.secret_access_key}
    stores: dict[str, dict[str, str]] = {
        name: {"type": "s3", "bucket": f"foreign-{name}", "endpoint": ministack.endpoint, "region": "us-east-1", **keys}
        for name in STORES
    }
    stores["files"] = {"type": "filesystem", "root": str(directory / "home" / "stores" / "files")}
    config = directory / "zot.yaml"
    config.write_text(json.dumps({"stores": stores}))  # JSON is YAML
    with running(directory / "home", "--no-beat", "--no-flower", ZOT_CONFIG=str(config)):
        yield Zot(directory / "home", {"ZOT_CONFIG": str(config)})


def _listed(zot: Zot, bucket: str, path: Path) -> Path:
    path.write_text("".join(f"{bucket}/{key}\n" for key in sorted(KEYS)))
    return path


def test_keys_of_another_program_are_worked_on_by_name(zot: Zot, s3: Any, tmp_path: Path) -> None:
    """A `folder/` marker, `//`, a backslash and a dot are adopted, verified, replicated and deleted."""
    bucket = f"b{secrets.token_hex(4)}"
    for key, body in KEYS.items():
        s3.put_object(Bucket="foreign-old", Key=f"{bucket}/{key}", Body=body)
    adopted = zot("adopt", f"{bucket}/", "--store", "old", "--first-read", "--json")
    assert (adopted.status, adopted.document["adopted"]) == (0, len(KEYS)), adopted
    assert zot("verify", f"{bucket}/folder/").status == 0
    assert zot("verify", f"{bucket}/a//b").status == 0
    listed = _listed(zot, bucket, tmp_path / "keys")
    replicated = zot("replicate", "--keys-from", listed, "--to", "new", "--json")
    assert (replicated.status, replicated.document["result"]["outcomes"]) == (0, {"stored": len(KEYS)}), replicated
    assert s3.get_object(Bucket="foreign-new", Key=f"{bucket}/a//b")["Body"].read() == KEYS["a//b"]
    verified = zot("verify", "--keys-from", listed, "--json")
    assert (verified.status, verified.document["result"]["outcomes"]) == (0, {"verified": len(KEYS)}), verified
    deleted = zot("delete", "--keys-from", listed, "--json")
    assert (deleted.status, deleted.document["result"]["outcomes"]) == (0, {"deleted": len(KEYS)}), deleted
    for name in STORES:
        assert s3.list_objects_v2(Bucket=f"foreign-{name}", Prefix=f"{bucket}/")["KeyCount"] == 0


def test_a_directory_with_keys_of_another_program(zot: Zot, tmp_path: Path) -> None:
    """What a directory can hold is adopted there, verified, replicated to a store that can hold it, and deleted."""
    bucket = f"b{secrets.token_hex(4)}"
    root = zot.home / "stores" / "files" / bucket
    root.mkdir()
    for key in ("back\\slash", "dot."):
        (root / key).write_bytes(KEYS[key])
    assert zot("adopt", f"{bucket}/", "--store", "files", "--first-read", "--json").document["adopted"] == 2
    assert zot("verify", f"{bucket}/", "--all").status == 0
    assert zot("replicate", f"{bucket}/dot.", "--to", "new").status == 0
    listed = tmp_path / "keys"
    listed.write_text(f"{bucket}/dot.\n{bucket}/back\\slash\n")
    assert zot("delete", "--keys-from", listed).status == 0
    assert list(root.glob("*")) == []
