"""`sweep --dry-run` tells what a sweep would do, and nothing is sent; mistakes of usage are told."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from tests.unit.cli.test_status import Zot, artifact, catalogue, judge, zot  # noqa: F401 - fixtures
from worker import cli, clock
from worker.catalogue import Artifact, Catalogue, tables
from worker.storage import Digest
from worker.storage.writer_record import Sign, WriterRecord


def rows(zot: Zot, *arguments: str) -> dict[str, dict[str, Any]]:  # noqa: F811
    status, document = zot("sweep", *arguments, "--dry-run")
    assert status == 0
    return {row.pop("store"): row for row in document["stores"]}


def test_a_dry_run_counts_what_is_due_and_what_can_be_repaired(
    catalogue: Catalogue,  # noqa: F811
    artifact: Artifact,  # noqa: F811
    zot: Zot,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Due copies with their bytes, bad copies with a good one elsewhere; a paused store is left out, and is named."""
    with catalogue._database.write() as connection:
        connection.execute(sa.update(tables.copies).values(read_at=clock.now() - timedelta(days=60)))
    due = {store: (row["due"], row["about"], row["requests"]) for store, row in rows(zot, "verify").items()}
    assert due == {"primary": (1, "1 B", 1), "dr": (1, "1 B", 1)}
    record, long_ago = catalogue.artifacts.record, clock.now() - timedelta(days=60)
    large = record("releases", "large", Digest(5 << 30, "a" * 64), {}, long_ago, stores=["dr"]).artifact
    catalogue.artifacts.finish_copy(large, "dr", tag="1", evidence={}, now=long_ago)
    assert rows(zot, "verify")["dr"]["about"] == "5.0 GiB", "its whole size"
    period = timedelta(days=30)
    assert catalogue.sweep_claims.mean_size("dr", period=period, now=clock.now(), largest=9) == 5, "9 B and 1 B"
    judge(catalogue, artifact, "dr", "corrupt")
    nothing = {"repairable": 0, "wrong_metadata": 0, "stopped": None}
    assert rows(zot, "repair") == {"primary": nothing, "dr": {"repairable": 1, "wrong_metadata": 0, "stopped": None}}
    assert rows(zot, "repair", "--prefix", "releases/other") == {"primary": nothing, "dr": nothing}
    catalogue.pauses.begin("store", "primary", reason=None, now=clock.now())
    assert set(rows(zot, "repair")) == {"dr"}
    assert cli.run(["sweep", "repair", "--store", "primary", "--dry-run"]) == 0
    assert "primary is paused and would be left out" in capsys.readouterr().err
    now = clock.now()
    catalogue.writers.see("dr", WriterRecord(Sign("token of a copy", "/copy", now)), now=now)
    assert cli.run(["sweep", "repair", "--dry-run"]) == 0
    assert "dr would be left out, because another copy of the catalogue writes" in capsys.readouterr().err


def test_a_dry_run_lists_and_compares(
    catalogue: Catalogue,  # noqa: F811
    artifact: Artifact,  # noqa: F811
    zot: Zot,  # noqa: F811
) -> None:
    """Reconcile names what differs now, and cleanup counts stale uploads; neither writes anything."""
    found = rows(zot, "reconcile", "--store", "dr")["dr"]
    assert (found["listed"], found["recorded"]) == (0, 1)
    assert rows(zot, "cleanup")["dr"] == {"stale": 0, "ours": 0}


def test_a_dry_run_counts_what_the_rules_want(
    catalogue: Catalogue,  # noqa: F811
    artifact: Artifact,  # noqa: F811
    zot: Zot,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An artifact that lacks a copy where a rule wants one is counted for that store, with the cost of reading it."""
    stores = {name: {"type": "filesystem", "root": str(tmp_path / name)} for name in ("primary", "dr", "cold")}
    config = tmp_path / "zot.yaml"
    rule = {"bucket": "rel*", "stores": ["cold", "dr"]}
    prices = {"primary": {"requests_1000": 2000}, "dr": {"requests_1000": 10}}
    config.write_text(yaml.safe_dump({"stores": stores, "placement_rules": [rule], "prices": prices}))
    monkeypatch.setenv("ZOT_CONFIG", str(config))
    nothing = {"absent": 0, "size": "0 B", "read from": None, "costs": None, "without a good copy": 0}
    cold = nothing | {"absent": 1, "size": "1 B", "read from": "primary 1 B in 1 copy", "costs": "2.00"}
    judge(catalogue, artifact, "primary", "verified")
    assert rows(zot, "replicate") == {"primary": nothing, "dr": nothing, "cold": cold}


@pytest.mark.parametrize(
    "arguments",
    [
        ("scrub",),
        ("verify", "--prefix", "releases/"),
        ("probe", "--prefix", "releases/"),
        ("probe", "--dry-run"),
        ("recover", "--store", "dr"),
        ("verify", "--store", "nowhere"),
        ("verify", "--store", "dr", "--inventory", "s3:b/manifest.json"),
        ("reconcile", "--inventory", "s3:b/manifest.json"),
        ("reconcile", "--store", "dr", "--inventory", "s3:b/manifest.json", "--dry-run"),
    ],
)
def test_mistakes_are_told(catalogue: Catalogue, arguments: tuple[str, ...]) -> None:  # noqa: F811
    """An unknown sweep or store, and an option that a sweep does not have, end with 2 and send nothing."""
    assert cli.run(["sweep", *arguments]) == 2
