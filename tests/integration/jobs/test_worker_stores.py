"""Every kind of store inside real prefork children: clients made after the fork, threads and all."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.conformance import targets
from tests.servers.worker import Worker
from tests.waiting import WITHIN
from zot_artifact_client import ArtifactClient

KINDS = ("filesystem", "s3", "gcs", "azure")


def as_json(config: Any) -> dict[str, Any]:
    """Return a store's configuration as a person writes it, with its secrets."""
    given = {name: getattr(config, name) for name in config.model_fields_set | {"type"}}
    plain = {name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in given.items()}
    return {name: f"{value}B" if name == "part_size" else str(value) if isinstance(value, Path) else value
            for name, value in plain.items()}  # fmt: skip


@pytest.fixture(scope="module")
def stores(ministack, strict_gcs, azurite, tmp_path_factory) -> dict[str, Any]:
    four = targets.one_of_each(ministack, strict_gcs, azurite, tmp_path_factory.mktemp("root"))
    return {name: as_json(config) for name, config in four.items()}


@pytest.fixture(scope="module")
def client(valkey, stores, tmp_path_factory) -> Iterator[ArtifactClient]:
    incoming = tmp_path_factory.mktemp("incoming")
    (incoming / "small").write_bytes(b"release one")
    (incoming / "large").write_bytes(os.urandom(2 * targets.PART + 7))
    settings = {
        "stores": json.dumps(stores),
        "sources__roots": json.dumps([str(incoming)]),
        "sweep__verify__enabled": "false",
    }
    with Worker(tmp_path_factory.mktemp("worker"), valkey.url, **settings), ArtifactClient(valkey.url) as opened:
        opened.incoming = incoming  # type: ignore[attr-defined]
        yield opened


@pytest.mark.parametrize("size", ["small", "large"])
def test_every_kind_of_store_works_in_a_prefork_child(client, size):
    """Upload, verify, repair and delete work on all four stores from inside the worker's children."""
    uploaded = client.upload(client.incoming / size, "releases", size).wait(WITHIN)
    assert [(copy.store, copy.outcome) for copy in uploaded.copies] == [(kind, "stored") for kind in KINDS]
    verified = client.verify("releases", size).wait(WITHIN)
    assert {copy.store: copy.verdict for copy in verified.copies} == dict.fromkeys(KINDS, "verified")
    for kind in KINDS[1:]:
        client.delete("releases", size, stores=[kind]).wait(WITHIN)
    restored = client.replicate("releases", size, to=KINDS[1:]).wait(WITHIN)
    assert {copy.outcome for copy in restored.copies} == {"stored"}
    assert client.verify("releases", size).wait(WITHIN).good
    assert len(client.delete("releases", size).wait(WITHIN).copies) == len(KINDS)


def test_many_jobs_at_once_share_nothing_that_breaks(client):
    """Jobs that come faster than they are done, on all stores at once, all end well."""
    jobs = [client.upload(client.incoming / "small", "many", f"{n:03}") for n in range(24)]
    assert all(len(job.wait(WITHIN).copies) == len(KINDS) for job in jobs)
    checks = [client.verify("many", f"{n:03}") for n in range(24)]
    assert all(check.wait(WITHIN).good for check in checks)
