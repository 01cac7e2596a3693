"""`doctor` reports of a cloud whether damaged bytes are detected, and the open uploads of other programs."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.targets import azure_config, gcs_config, make_gcs_bucket
from worker import cli, clock
from worker.catalogue import Catalogue
from worker.settings import load_settings
from worker.storage.configured_stores import open_driver

Zot = Callable[..., dict[str, Any]]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Zot:
    """Return what runs `doctor` with these stores and returns its checks by name."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))

    def run(**stores: Any) -> dict[str, Any]:
        monkeypatch.setenv("ZOT_STORES", json.dumps(stores))
        cli.run(["doctor", "--json"])
        return {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}

    return run


def _plain(config: Any) -> dict[str, Any]:
    """Return a configuration as a settings file has it."""
    told = config.model_dump(mode="json", exclude_none=True)
    secrets = {name: value.get_secret_value() for name, value in config if hasattr(value, "get_secret_value")}
    return {**told, **secrets}


def test_doctor_tells_whether_wrong_checksums_are_refused(doctor: Zot, strict_gcs, azurite) -> None:
    """One line for each cloud: what it does with a wrong checksum, and whether writes are read back."""
    config = gcs_config(strict_gcs, read_back=None)
    make_gcs_bucket(strict_gcs, str(config.bucket))
    azure = azure_config(azurite, read_back=None, api_version="2025-11-05")
    with_container = open_driver("making", azure)
    with_container._service().create_container(azure.container)  # type: ignore[attr-defined]
    with_container.close()
    blind = config.model_copy(update={"bucket": f"{config.bucket}-blind", "read_back": False})
    make_gcs_bucket(strict_gcs, str(blind.bucket))

    checks = doctor(lax=_plain(config), strict=_plain(azure), blind=_plain(blind))

    lax, strict, blinded = (checks[f"checksums {name}"] for name in ("lax", "strict", "blind"))
    assert (lax["outcome"], lax["detail"]) == (
        "good",
        "the store does not refuse wrong checksums; writes are read back",
    )
    assert strict["detail"] == "the store refuses wrong checksums; writes are not read back"
    assert (blinded["outcome"], blinded["way_out"]) == ("bad", "remove stores.blind.read_back")


def test_doctor_says_what_an_emulator_lacks(doctor: Zot, fake_gcs) -> None:
    """The emulator of the profile `dev` overwrites where it must not: bad, and no advice that is for S3 alone."""
    config = gcs_config(fake_gcs, read_back=None)
    make_gcs_bucket(fake_gcs, str(config.bucket))
    found = doctor(tried=_plain(config))["store tried"]
    assert found["outcome"] == "bad"
    assert "of the other types only emulators do so, which are for trials alone" in found["detail"]


def test_doctor_tells_of_the_uploads_of_others(doctor: Zot, tmp_path: Path) -> None:
    """The unfinished uploads of other programs that the last cleanup left are a line of their store."""
    settings = load_settings()
    settings.prepare()
    catalogue = Catalogue(settings.catalogue_url)
    for number, foreign in enumerate(({"cloud": 7}, {"cloud": 3})):
        now = clock.now() + timedelta(seconds=number)
        held = catalogue.ledger.acquire(
            f"job-{number}",
            "sweep.leftovers",
            {},
            owner="w",
            writes_to=None,
            parent=None,
            now=now,
            lease=timedelta(seconds=60),
        )
        result = {"removed": {"cloud": 0}, "foreign": foreign}
        catalogue.ledger.finish(f"job-{number}", held.record.fence, "succeeded", result=result, now=now)
    catalogue.close()
    root = tmp_path / "root"
    root.mkdir()
    checks = doctor(disk={"type": "filesystem", "root": str(root)})
    assert checks["uploads cloud"]["detail"].startswith("3 unfinished uploads of other programs")
    assert "checksums disk" not in checks


def test_doctor_says_which_stores_it_cannot_tell_apart(doctor: Zot, ministack) -> None:
    """Two stores with real buckets and no place for a marker may be one server at two addresses."""
    keys = {"type": "s3", "layout": "native", "access_key_id": "test", "secret_access_key": "test"}
    port = ministack.endpoint.rpartition(":")[2]
    one = {**keys, "endpoint": f"http://127.0.0.1:{port}"}
    two = {**keys, "endpoint": f"http://localhost:{port}"}
    found = doctor(one=one, two=two)["stores one and two"]
    assert found["outcome"] == "unknown"
    assert "cannot be told" in found["detail"]
    assert "stores.one.reserved_bucket" in found["way_out"]
    assert "stores one and two" not in doctor(one=one, two={**two, "reserved_bucket": "ours"})
