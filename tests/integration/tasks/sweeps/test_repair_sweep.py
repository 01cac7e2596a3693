"""Bad copies are repaired without an operator; other bad copies are shown and not touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.replicate import replicate
from tasks.sweeps.repair import sweep_repair
from tasks.upload import upload
from tasks.verify import verify
from worker import cli
from worker.context import Context
from worker.settings import Settings
from worker.settings.section_models import RepairSweepSettings
from zot_artifact_client.contract import (
    ReplicateRequest,
    SweepRepairRequest,
    SweepRepairResult,
    UploadRequest,
    VerifyRequest,
)

Sweep = Callable[[], SweepRepairResult]


def with_repair(settings: Settings, **values: Any) -> Settings:
    sweep = settings.sweep.model_copy(update={"repair": RepairSweepSettings(**values)})
    return settings.model_copy(update={"sweep": sweep})


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[ReplicateRequest]:
    """Return what the sweep sends; the queue between is that of tests with real workers."""
    jobs: list[ReplicateRequest] = []
    monkeypatch.setattr("tasks.sweeps.repair.send_child", lambda spec, request, **_: jobs.append(request))
    return jobs


@pytest.fixture
def sweep(run, sent: list[ReplicateRequest]) -> Sweep:
    """Return what runs the sweep and the jobs that it sends."""

    def swept() -> SweepRepairResult:
        result: SweepRepairResult = run(sweep_repair, SweepRepairRequest())
        while sent:
            run(replicate, sent.pop())
        return result

    return swept


@pytest.fixture
def put(run, source):
    def put(key: str) -> None:
        run(upload, UploadRequest(bucket="releases", key=key, source=source(key.encode())))

    return put


@pytest.fixture
def status(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return what runs `status` on this catalogue, with checks of a broker that are good: there is none here."""
    monkeypatch.setattr("worker.cli.session.load_settings", lambda: settings)
    monkeypatch.setattr("worker.cli.status.broker_checks", lambda _: iter(()))
    monkeypatch.setattr("worker.cli.status.open_breakers", lambda _: {})
    return lambda: cli.run(["status"])


def rot(path: Path) -> bytes:
    """Flip a bit and return the rotten bytes."""
    bad = bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]
    path.write_bytes(bad)
    return bad


def states(context: Context, key: str) -> dict[str, str]:
    artifact = context.catalogue.artifacts.current("releases", key)
    assert artifact is not None
    return {store: copy.state.value for store, copy in context.catalogue.artifacts.copies(artifact).items()}


def test_a_flipped_byte_is_shown_until_it_is_repaired(run, put, sweep: Sweep, stored, settings, status) -> None:
    """After verify `status` ends with 1, after the repair with 0; the right bytes are back, the bad ones are kept."""
    put("app.tgz")
    assert status() == 0
    bad = rot(stored("dr"))
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    assert status() == 1
    assert sweep().claimed == {"dr": 1}
    assert status() == 0
    assert stored("dr").read_bytes() == b"app.tgz"
    kept = [path.read_bytes() for path in settings.stores["dr"].root.rglob("*") if path.is_file()]
    assert bad in kept
    assert sweep().claimed == {}


def test_a_lost_object_is_written_again(run, put, sweep: Sweep, stored, status) -> None:
    """A copy whose object is gone is repaired from the other store."""
    put("app.tgz")
    stored("dr").unlink()
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    assert status() == 1
    assert sweep().claimed == {"dr": 1}
    assert (stored("dr").read_bytes(), status()) == (b"app.tgz", 0)


def test_a_lost_artifact_is_shown_and_not_touched(
    context: Context, run, put, sweep: Sweep, stored, status, capsys
) -> None:
    """With all copies bad nothing is sent or written, the artifact is `lost`, and `status` ends with 1."""
    put("app.tgz")
    before = {store: rot(stored(store)) for store in ("primary", "dr")}
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    result = sweep()
    assert (result.claimed, result.lost) == ({}, 1)
    assert {store: stored(store).read_bytes() for store in before} == before
    assert states(context, "app.tgz") == {"primary": "corrupt", "dr": "corrupt"}
    assert status() == 1
    assert "1 lost" in capsys.readouterr().out


def test_a_claim_keeps_the_next_sweep_from_sending_the_same_repair(run, put, stored, sent) -> None:
    """Until the repair has run or its claim has ended, no second one is sent for the same copy."""
    put("app.tgz")
    rot(stored("dr"))
    run(verify, VerifyRequest(bucket="releases", key="app.tgz"))
    assert run(sweep_repair, SweepRepairRequest()).claimed == {"dr": 1}
    assert run(sweep_repair, SweepRepairRequest()).claimed == {}
    assert [request.to for request in sent] == [("dr",)]


class TestSuspect:
    """A store with too many bad copies is the suspect."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return with_repair(settings, suspect_copies=2)

    def test_repairs_of_a_store_stop_until_it_is_trusted(
        self, context: Context, run, put, sweep: Sweep, stored, settings, status, capsys, monkeypatch
    ) -> None:
        """More bad copies than `suspect_copies` stop its repairs; `status` shows it, `stores trust` continues them."""
        for key in ("a", "b", "c"):
            put(key)
            rot(stored("dr", key))
            run(verify, VerifyRequest(bucket="releases", key=key))
        for _ in range(2):
            assert (sweep().claimed, sweep().untrusted) == ({}, ("dr",))
        assert states(context, "a")["dr"] == "corrupt"
        assert status() == 1
        assert "store_untrusted" in capsys.readouterr().out
        assert cli.run(["stores", "trust", "dr"]) == 0
        assert (sweep().claimed, sweep().untrusted) == ({"dr": 3}, ())
        assert status() == 0

    def test_repaired_copies_count_too(self, run, put, sweep: Sweep, stored) -> None:
        """A store whose copies go bad as fast as they are repaired is the suspect as well."""
        put("app.tgz")
        claimed = []
        for key in ("a", "b", "c"):
            put(key)
            rot(stored("dr", key))
            run(verify, VerifyRequest(bucket="releases", key=key))
            claimed.append(sweep().claimed)
        assert claimed == [{"dr": 1}, {"dr": 1}, {}]


class TestOff:
    """Repairs can be switched off for one store."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return with_repair(settings, off=("dr",))

    def test_a_store_without_repairs_keeps_its_findings(self, run, put, sweep: Sweep, stored, status) -> None:
        """The copies of a store in `sweep.repair.off` stay as they are, and stay open."""
        put("app.tgz")
        for store in ("primary", "dr"):
            put(store)
            rot(stored(store, store))
            run(verify, VerifyRequest(bucket="releases", key=store))
        assert sweep().claimed == {"primary": 1}
        assert status() == 1
