"""`zot-artifacts cache` fills a cache from a gateway, finds what rots in it, and touches nothing that is no chunk."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.gateway.conftest import Gateway
from tests.unit.gateway.test_client_bytes import CONTENT
from worker import cli
from zot_artifact_client import ArtifactClient, ChunkCache


@pytest.fixture
def root(gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the settings say that the cache is; the gateway has an artifact of three chunks."""
    gateway.store("app.tgz", CONTENT)
    monkeypatch.setenv("ZOT_CACHE__ROOT", str(tmp_path / "cache"))
    monkeypatch.setenv("ZOT_CACHE__MIN_FREE", "0B")
    monkeypatch.setenv("ZOT_CACHE__GATEWAY", gateway.url)
    monkeypatch.setenv("ZOT_CACHE__TOKEN", gateway.token())
    return tmp_path / "cache"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    capsys.readouterr()
    status = cli.run(["cache", *arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_what_was_warmed_is_read_without_the_bytes_of_the_gateway(
    gateway: Gateway, root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """After `cache warm` a client reads the artifact although no store has it; a second `warm` fetches nothing."""
    status, warmed = run(capsys, "warm", "releases/app.tgz")
    assert (status, warmed["fetched"], warmed["warmed"][0]["size"]) == (0, 3, len(CONTENT))
    assert run(capsys, "warm", "releases/app.tgz")[1]["fetched"] == 0
    status, shown = run(capsys, "stat")
    assert (status, shown["chunks"], shown["bytes"]) == (0, 3, len(CONTENT))
    for store in ("primary", "dr"):
        gateway.path(store, "app.tgz").unlink()
    with ArtifactClient(gateway=gateway.url, token=gateway.token(name="b"), cache=ChunkCache(root)) as client:
        client.get("releases", "app.tgz", tmp_path / "app.tgz")
    assert (tmp_path / "app.tgz").read_bytes() == CONTENT


def test_rot_of_the_cache_is_found_removed_and_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`cache verify` ends with 1 for a damaged chunk and removes it alone, so that the next one ends with 0."""
    run(capsys, "warm", "releases/app.tgz")
    chunk = min(path for path in (root / "chunks").rglob("*") if path.is_file())
    body = bytearray(chunk.read_bytes())
    body[len(body) // 2] ^= 1
    chunk.write_bytes(body)
    assert run(capsys, "verify") == (1, {"root": str(root), "verified": 2, "removed": 1})
    assert run(capsys, "verify") == (0, {"root": str(root), "verified": 2, "removed": 0})
    assert run(capsys, "warm", "releases/app.tgz")[1]["fetched"] == 1


def test_drop_removes_chunks_and_nothing_else(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`cache drop` empties the cache; a file of others in its directory stays, and a misspelt directory is an error."""
    run(capsys, "warm", "releases/app.tgz")
    mine = root / "chunks" / "aa" / "notes.txt"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    assert run(capsys, "verify")[0] == 0
    assert run(capsys, "drop")[1]["removed"] == 3
    assert run(capsys, "stat")[1]["chunks"] == 0
    assert mine.read_text() == "mine"
    assert cli.run(["cache", "drop", "--root", str(root / "misspelt")]) == 2
    assert not (root / "misspelt").exists()


def test_drop_tells_what_it_could_not_remove(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is left is not counted as removed, and the command ends with 1."""
    run(capsys, "warm", "releases/app.tgz")
    name = "ab" * 32
    (root / "chunks" / "ab" / name).mkdir(parents=True)  # what `unlink` refuses, also for root
    status, told = run(capsys, "drop")
    assert (status, told["removed"], told["left"]) == (1, 3, 1)


def test_what_cannot_be_warmed_is_told(
    gateway: Gateway, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown artifact and one without chunks end `warm` with 1, and no token with 2; the rest is warmed."""
    gateway.store("old.bin", CONTENT, manifest=False)
    status, document = run(capsys, "warm", "releases/none", "releases/old.bin", "releases/app.tgz")
    assert (status, [each["artifact"] for each in document["warmed"]]) == (1, ["releases/app.tgz"])
    monkeypatch.delenv("ZOT_CACHE__TOKEN")
    assert cli.run(["cache", "warm", "releases/app.tgz"]) == 2
    assert root.exists()
