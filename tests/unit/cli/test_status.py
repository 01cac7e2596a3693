"""`status` shows what is open until it is resolved, and its exit status says so; `stores` and `doctor` agree."""

import json
import logging
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from worker import cli, clock
from worker.artifacts.verification_log.kept_head import see_head
from worker.artifacts.verification_log.signature import LogKeys
from worker.catalogue import Artifact, Catalogue, Leased, VerdictRow, sqlite
from worker.cli.job_outcome import outcome_of, print_outcome
from worker.limits.snooze import StoreRefuses
from worker.metrics.catalogue_figures import LedgerFigures
from worker.readable import moment
from worker.settings import load_settings
from worker.storage import Digest, Stores
from worker.storage.writer_record import Sign, WriterRecord
from zot_artifact_client.contract import JobState

Zot = Callable[..., tuple[int, Any]]


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalogue]:
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    settings = load_settings()
    settings.prepare()
    opened = Catalogue(settings.catalogue_url)
    yield opened
    opened.close()


@pytest.fixture
def artifact(catalogue: Catalogue) -> Artifact:
    """Return an artifact with a copy in each of both stores."""
    digest, stores = Digest(1, "0" * 64), ["primary", "dr"]
    made = catalogue.artifacts.record("releases", "app.tgz", digest, {}, clock.now(), stores=stores).artifact
    for store in stores:
        catalogue.artifacts.finish_copy(made, store, tag="1", evidence={}, now=clock.now())
    return made


@pytest.fixture
def zot(capsys: pytest.CaptureFixture[str]) -> Zot:
    def run(*arguments: str) -> tuple[int, Any]:
        status = cli.run([*arguments, "--json"])
        return status, json.loads(capsys.readouterr().out)

    return run


def judge(catalogue: Catalogue, artifact: Artifact, store: str, verdict: str, **more: Any) -> None:
    copy = catalogue.artifacts.copies(artifact)[store]
    row = VerdictRow.of("job-1", artifact, copy, verdict, tag="1", retry_at=more.get("retry_at"))
    catalogue.verifications.record(row, now=more.get("now") or clock.now())


def kinds(document: dict[str, Any]) -> dict[str, tuple[str, int]]:
    return {each["kind"]: (each["store"], each["count"]) for each in document["findings"]}


@pytest.mark.parametrize("verdict", ["corrupt", "missing", "size_mismatch"])
def test_a_bad_copy_is_open_until_it_is_right_again(
    catalogue: Catalogue, artifact: Artifact, zot: Zot, verdict: str
) -> None:
    """A bad copy is in `status` by name and ends `status`, `stores` and `doctor` with 1, until it is verified."""
    judge(catalogue, artifact, "dr", verdict)
    status, document = zot("status")
    assert (status, kinds(document)) == (1, {verdict: ("dr", 1)})
    assert [store["bytes"] for store in document["stores"]] == [1, 1], "no sweep has counted them yet"
    [example] = document["findings"][0]["examples"]
    assert (example["bucket"], example["key"], example["store"]) == ("releases", "app.tgz", "dr")
    assert zot("stores")[0] == 1
    checks = {each["name"]: each for each in zot("doctor")[1]["checks"]}
    assert (checks["copies dr"]["outcome"], checks["copies dr"]["detail"]) == ("bad", f"1 {verdict}")
    judge(catalogue, artifact, "dr", "verified")
    status, document = zot("status")
    assert (status, document["findings"]) == (3, [])  # there is no broker here
    assert zot("stores")[0] == 0
    assert "copies dr" not in {each["name"] for each in zot("doctor")[1]["checks"]}


def test_the_bytes_of_many_copies_are_those_that_a_sweep_has_counted(
    catalogue: Catalogue,
    artifact: Artifact,
    zot: Zot,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """To count the bytes of a large catalogue takes seconds, so `status` says what counts them."""
    monkeypatch.setattr("worker.report.status._COUNTED_AT_ONCE", len(catalogue.artifacts.copies(artifact)) - 1)
    catalogue.budgets.usage("dr", now=clock.now() - timedelta(hours=3))  # as `sweep.verify` does
    cli.run(["status"])
    told = capsys.readouterr().out
    assert re.findall(r"(\S+): the next `zot-artifacts sweep verify`", told) == ["primary"]
    assert "dr: releases 1 B in 1 copy, counted 3h ago" in told
    assert {each["store"]: each["bytes"] for each in zot("status")[1]["stores"]} == {"primary": None, "dr": 1}


@pytest.mark.usefixtures("artifact")
def test_a_catalogue_that_can_only_be_read_is_shown(zot: Zot, monkeypatch: pytest.MonkeyPatch) -> None:
    """`status` tells all that it reads, and that nothing can be written, with the way out; another user sees it so."""

    def read_only(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA query_only = ON")

    set_up = sqlite.set_up
    monkeypatch.setattr(
        sqlite, "set_up", lambda engine: (set_up(engine), sa.event.listen(engine, "connect", read_only))
    )
    status, document = zot("status")
    assert (status, [store["copies"] for store in document["stores"]]) == (1, [1, 1])
    [check] = [each for each in document["checks"] if each["name"] == "catalogue writes"]
    assert "readonly database; make the file and its directory writable" in check["detail"]
    names = [each["name"] for each in zot("doctor")[1]["checks"]]
    assert {"catalogue", "catalogue writes"} <= set(names)
    assert len(names) == len(set(names)), "a good and a bad line of one name contradict each other"


def test_a_catalogue_that_goes_away_is_not_called_damaged(
    catalogue: Catalogue, zot: Zot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`doctor` tells of one that goes away between two checks as of one that is away when it begins."""
    path = load_settings().home / "catalogue.sqlite3"
    catalogue.close()
    monkeypatch.setattr("worker.cli.doctor.probe", lambda _: path.rename(path.with_suffix(".away")) and None)
    status, document = zot("doctor")
    last = document["checks"][-1]
    assert (status, last["name"], last["outcome"]) == (3, "catalogue reads", "unknown")
    assert "is gone" in last["detail"]


def test_a_catalogue_of_which_a_part_is_damaged_is_bad(catalogue: Catalogue, zot: Zot) -> None:
    """`doctor` says so beside its other checks, with the way out: the file opens well, and jobs wait at that part."""
    path = load_settings().home / "catalogue.sqlite3"
    catalogue.close()
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'pauses'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"x" * size)
    status, document = zot("doctor")
    checks = {each["name"]: each for each in document["checks"]}
    assert (status, checks["catalogue reads"]["outcome"], checks["store primary"]["outcome"]) == (1, "bad", "good")
    assert "malformed; move it away and put the catalogue back" in checks["catalogue reads"]["detail"]


def test_wrong_metadata_waits_for_its_repair(catalogue: Catalogue, artifact: Artifact, zot: Zot) -> None:
    """It ends `status` with 1 until a read finds the right digest beside the bytes; the copy itself is good."""
    copy = catalogue.artifacts.copies(artifact)["dr"]
    for stored, kinds_of in (("", {"metadata": ("dr", 1)}), (artifact.digest.sha256, {})):
        seen = VerdictRow.of("job-1", artifact, copy, "verified", stored_sha256=stored, tag="1")
        catalogue.verifications.record(seen, now=clock.now())
        status, document = zot("status")
        assert kinds(document) == kinds_of
        assert (status == 1) == bool(kinds_of)
        assert [each["examples"][0]["doing"] for each in document["findings"]] == ["waits for repair"] * len(kinds_of)
        assert zot("stores")[0] == 0


@pytest.mark.usefixtures("artifact")
def test_stores_names_a_disk_that_was_swapped(
    tmp_path: Path, zot: Zot, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`stores`, `status` and `doctor` tell a store on another disk, and nothing stays on an empty disk.

    What the code that they share with workers logs about it is a line of the command.
    """
    zot("doctor")  # it has seen the right disks
    [root] = (tmp_path / "home").rglob("dr")
    root.rename(tmp_path / "dr-away")
    root.mkdir()
    status, document = zot("stores")
    assert status == 3
    rows = {row["store"]: (row["reachable"], row["error"]) for row in document["stores"]}
    assert rows["primary"] == (True, None)
    assert rows["dr"][0] is False
    assert "its marker is gone" in rows["dr"][1]
    [check] = [each for each in zot("status")[1]["checks"] if each["name"] == "disk dr"]
    assert (check["outcome"], "its marker is gone" in check["detail"]) == ("bad", True)
    status, document = zot("doctor")
    [check] = [each for each in document["checks"] if each["name"] == "store dr"]
    assert (status, check["detail"].startswith("this is not the store")) == (1, True)
    monkeypatch.setattr(logging.root, "handlers", [])  # those of pytest
    cli.run(["log", "verify"])
    assert capsys.readouterr().err.startswith("zot-artifacts: the head of the verification log that dr keeps was not ")
    with Path(os.devnull).open() as unwritable, monkeypatch.context() as during:
        during.setattr("sys.stderr", unwritable)
        assert cli.run(["log", "verify"]) == 0, "a warning that cannot be printed ends no command"
    assert list(root.iterdir()) == []


def test_an_artifact_without_a_good_copy_is_lost(catalogue: Catalogue, artifact: Artifact, zot: Zot) -> None:
    """The first finding that is shown is the lost artifact, and none of its copies is said to wait for a repair."""
    judge(catalogue, artifact, "dr", "corrupt")
    judge(catalogue, artifact, "primary", "missing")
    status, document = zot("status")
    assert (status, [each["kind"] for each in document["findings"]]) == (1, ["lost", "corrupt", "missing"])
    assert [each["examples"][0]["doing"] for each in document["findings"]] == [
        "nothing",
        "no good copy",
        "no good copy",
    ]


def test_a_bad_copy_of_a_deleted_artifact_does_not_wait_for_a_repair(
    catalogue: Catalogue, artifact: Artifact, zot: Zot, capsys: pytest.CaptureFixture[str]
) -> None:
    """No repair begins before an undelete: the finding ends with the purge, and no repair is announced."""
    judge(catalogue, artifact, "dr", "corrupt")
    now = clock.now()
    catalogue.deletions.begin(artifact, now=now, until=now + timedelta(days=7), by="ana", reason="old", job="job-1")
    status, document = zot("status")
    assert (status, [each["examples"][0]["doing"] for each in document["findings"]]) == (1, ["ends with the purge"])
    cli.run(["status"])
    assert "a repair begins" not in capsys.readouterr().out
    catalogue.deletions.undo("releases", "app.tgz", now=now)
    assert [each["examples"][0]["doing"] for each in zot("status")[1]["findings"]] == ["waits for repair"]


def test_what_has_no_answer_and_what_is_late_is_open(catalogue: Catalogue, artifact: Artifact, zot: Zot) -> None:
    """An unreadable and an overdue copy end `status` with 1."""
    now = clock.now()
    judge(catalogue, artifact, "primary", "verified", now=now - timedelta(days=40))
    judge(catalogue, artifact, "dr", "unreadable", retry_at=now + timedelta(hours=1))
    status, document = zot("status")
    assert (status, kinds(document)) == (1, {"unreadable": ("dr", 1), "overdue": ("primary", 1)})


def test_a_store_that_is_not_configured_is_open(
    catalogue: Catalogue, zot: Zot, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copies in a store that left the settings are a finding, whose way out no narrow terminal cuts."""
    made = catalogue.artifacts.record("releases", "a", Digest(1, "0" * 64), {}, clock.now(), stores=["old"]).artifact
    catalogue.artifacts.finish_copy(made, "old", tag="1", evidence={}, now=clock.now())
    status, document = zot("status")
    assert (status, kinds(document)) == (1, {"store_not_configured": ("old", 1)})
    told = "1 copy; add it to `stores` again, or `zot-artifacts stores forget old --dry-run`"
    assert document["findings"][0]["detail"] == told
    cli.run(["status"])
    assert f"store_not_configured old: {told}\n" in capsys.readouterr().out


def test_a_copy_that_an_upload_left_out_is_told(
    catalogue: Catalogue, zot: Zot, capsys: pytest.CaptureFixture[str]
) -> None:
    """After an upload failed in one store, `status` and `show` name that store and the command that adds the copy."""
    digest, stores = Digest(1, "0" * 64), ["primary", "dr"]
    made = catalogue.artifacts.record("releases", "a", digest, {}, clock.now(), stores=stores).artifact
    catalogue.artifacts.finish_copy(made, "primary", tag="1", evidence={}, now=clock.now())
    cli.run(["status"])
    told = capsys.readouterr().out
    assert "dr: 1 copy not written yet" in told
    assert "`zot-artifacts sweep replicate` adds what was left out" in told
    assert "primary: 1 copy not written" not in told
    cli.run(["show", "releases/a"])
    assert "`zot-artifacts replicate releases/a --to dr`" in capsys.readouterr().out
    assert [copy["store"] for copy in zot("show", "releases/a")[1]["copies"]] == ["primary"]


def test_jobs_that_wait_for_a_store_are_told(
    catalogue: Catalogue, zot: Zot, capsys: pytest.CaptureFixture[str]
) -> None:
    """`status` counts the jobs that a store keeps waiting, and says until when, and what ends that.

    `jobs ID` tells of a batch for which store its jobs wait, why, and since when.
    """
    now, lease = clock.now(), timedelta(seconds=30)
    for job, store in (("a", "dr"), ("b", "dr"), ("c", None)):
        catalogue.ledger.acquire(job, "upload", {}, owner="me", writes_to=None, parent=None, now=now, lease=lease)
        why = {"type": "Snooze", "message": "no"} | ({"store": store} if store else {})
        catalogue.ledger.snooze(job, 1, why, since=now, due=now + timedelta(minutes=9))
    waiting = {row["store"]: row["waiting"] for row in zot("status")[1]["stores"]}
    assert waiting["primary"] is None
    assert (waiting["dr"]["jobs"], waiting["dr"]["until"][:16]) == (2, (now + timedelta(minutes=9)).isoformat()[:16])
    cli.run(["status"])
    lists = "zot-artifacts jobs --state queued --state retrying --store dr"
    assert f"at the latest; `{lists}` lists them" in capsys.readouterr().out
    assert {each["job"] for each in zot(*lists.split()[1:])[1]["jobs"]} == {"a", "b"}
    catalogue.ledger.acquire("d", "upload", {}, owner="me", writes_to=None, parent=None, now=now, lease=lease)
    catalogue.ledger.snooze("d", 1, {"type": "Snooze", "store": "primary"}, since=now, due=now - timedelta(hours=1))
    cli.run(["status"])
    assert "primary: 1 job waits for it; `zot-artifacts jobs" in capsys.readouterr().out  # no worker has tried it
    refuses = {"type": StoreRefuses.__name__, "store": "dr", "message": "dr: it refuses all that a page asks: full"}
    assert "store dr" not in {each["name"] for each in zot("status")[1]["checks"]}
    catalogue.ledger.acquire("b" * 36, "batch", {}, owner="me", writes_to=None, parent=None, now=now, lease=lease)
    catalogue.ledger.acquire("e", "page", {}, owner="me", writes_to=None, parent="b" * 36, now=now, lease=lease)
    catalogue.ledger.snooze("e", 1, refuses, since=now - timedelta(hours=2), due=now)
    capsys.readouterr()
    cli.run(["jobs"])
    assert "1 job waiting for dr" in capsys.readouterr().out
    assert [each["waiting"]["dr"]["count"] for each in zot("jobs", "--kind", "batch")[1]["jobs"]] == [1]
    cli.run(["jobs", "b" * 36])
    since = f"{now - timedelta(hours=2):%Y-%m-%d %H:%M}"
    told = re.sub(" +", " ", capsys.readouterr().out)
    assert re.search(f"waiting 1 job for dr since {since}.*: it refuses all that a page asks: full", told), told
    assert zot("jobs", "b" * 36)[1]["waiting"]["dr"]["since"][:16].replace("T", " ") == since
    [told] = [each for each in zot("status")[1]["checks"] if each["name"] == "store dr"]
    assert (told["outcome"], told["detail"].partition("; jobs wait for it since ")[::2]) == (
        "bad", ("it refuses all that a page asks: full", f"{now - timedelta(hours=2):%Y-%m-%d %H:%M:%SZ}")
    )  # fmt: skip
    cli.run(["pause", "store", "dr"])
    cli.run(["status"])
    assert "3 jobs wait for it; `zot-artifacts resume store dr` ends the pause" in capsys.readouterr().out


def test_first_reads_in_time_are_no_slow_pass(catalogue: Catalogue, artifact: Artifact, zot: Zot) -> None:
    """While no read is late, `all read in` is the plan: the rate at which copies became due says nothing about it."""
    for number in range(100):
        digest = Digest(1, f"{number:064x}")
        made = catalogue.artifacts.record("releases", f"{number}", digest, {}, clock.now(), stores=["dr"]).artifact
        catalogue.artifacts.finish_copy(made, "dr", tag="1", evidence={}, now=clock.now())
    judge(catalogue, artifact, "dr", "verified")
    [row] = [each for each in zot("status")[1]["stores"] if each["store"] == "dr"]
    assert (row["first_reads_late"], row["overdue"]) == (0, 0)
    assert row["forecast_seconds"] == row["first_reads_seconds"]


def test_status_says_when_a_repair_begins(
    catalogue: Catalogue, artifact: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a copy that waits for its repair are the time until the next sweep and the command that starts one."""
    cli.run(["status"])
    assert "sweep repair" not in capsys.readouterr().out
    judge(catalogue, artifact, "dr", "corrupt")
    cli.run(["status"])
    assert "within 5m while beat runs, or at once with `zot-artifacts sweep repair`" in capsys.readouterr().out


@pytest.mark.usefixtures("catalogue")
def test_a_disk_that_is_mounted_read_only_is_named(zot: Zot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of its disk says so before the first write to the store fails."""
    found = os.statvfs("/")
    read_only = os.statvfs_result((*found[:8], found.f_flag | os.ST_RDONLY, found.f_namemax))
    monkeypatch.setattr(os, "statvfs", lambda _: read_only)
    checks = {each["name"]: each for each in zot("status")[1]["checks"]}
    assert (checks["disk dr"]["outcome"], "read-only" in checks["disk dr"]["detail"]) == ("unknown", True)


def test_a_disk_that_is_nearly_full_is_named(catalogue: Catalogue, zot: Zot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check names the least room, and the directory of the store, or of the worker, in which to make some.

    Since when a store has so little is told from its probes.
    """
    usage = shutil.disk_usage("/")._replace(free=5 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    checks = {each["name"]: each for each in zot("status")[1]["checks"]}
    for name in ("disk dr", "data directory"):
        assert checks[name]["detail"] == "5.0 MiB free, less than 1.0 GiB"
        assert checks[name]["way_out"].startswith("make room in /")
    first = clock.now() - timedelta(hours=2)
    for job, full, at in (("a", ["dr"], -2), ("b", [], -1), ("c", ["dr"], 0), ("d", ["dr", "primary"], 1)):
        begun = catalogue.ledger.acquire(
            job, "sweep.probe", {}, owner="here", writes_to=None, parent=None, now=first + timedelta(minutes=at),
            lease=timedelta(seconds=30), queue="sweep",
        )  # fmt: skip
        assert isinstance(begun, Leased)
        result = {"probed": ["primary", "dr"], "faults": {}, "little_room": full}
        catalogue.ledger.finish(job, begun.record.fence, JobState.SUCCEEDED, now=clock.now(), result=result)
    checks = {each["name"]: each for each in zot("status")[1]["checks"]}
    assert checks["disk dr"]["detail"] == f"5.0 MiB free, less than 1.0 GiB since {first:%Y-%m-%d %H:%M:%SZ}"


def test_the_screen_fits_eighty_columns(
    catalogue: Catalogue, artifact: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tables for people name the store, its coverage and the finding within 80 columns."""
    judge(catalogue, artifact, "dr", "corrupt")
    assert cli.run(["status"]) == 1
    lines = capsys.readouterr().out.splitlines()
    tables = lines[: lines.index("findings: 1 corrupt")]
    assert max(len(line.rstrip()) for line in tables) <= 80
    assert any(line.split() == ["corrupt", "dr", "0s", "releases/app.tgz", "waits", "for", "repair"] for line in tables)
    assert any(line.split()[:2] == ["dr", "1"] for line in tables)


def test_a_store_that_is_not_trusted_is_open(catalogue: Catalogue, artifact: Artifact, zot: Zot) -> None:
    """A store whose repairs stopped ends `status` with 1 and `doctor` calls it bad, until `stores trust`."""
    catalogue.repairs.distrust("dr", reason="more than 20 of its copies were found bad", now=clock.now())
    status, document = zot("status")
    assert (status, kinds(document)) == (1, {"store_untrusted": ("dr", 1)})
    assert "stores trust dr" in document["findings"][0]["detail"]
    checks = {each["name"]: each["outcome"] for each in zot("doctor")[1]["checks"]}
    assert checks["repairs dr"] == "bad"
    assert zot("stores", "trust", "dr") == (0, {"store": "dr", "stopped": True})
    assert zot("status")[1]["findings"] == []


def test_a_store_that_failed_its_last_probe_is_open(
    catalogue: Catalogue,
    zot: Zot,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store without its bucket opens no circuit breaker, and is told once; a later probe that succeeds closes it.

    Since when the disk of a store is away is told from its probes, too; a disk that is only mounted read-only here does
    not hide what they found.
    """
    zot("doctor")  # it has seen the right disks
    first = clock.now() - timedelta(hours=2)

    def probed(job: str, faults: dict[str, str], now: datetime | None = None, **request: str) -> dict[str, Any]:
        begun = catalogue.ledger.acquire(
            job, "sweep.probe", request, owner="here", writes_to=None, parent=None, now=now or clock.now(),
            lease=timedelta(seconds=30), queue="sweep",
        )  # fmt: skip
        assert isinstance(begun, Leased)
        result = {"probed": [request["store"]] if request else ["primary", "dr"], "faults": faults}
        catalogue.ledger.finish(job, begun.record.fence, JobState.SUCCEEDED, now=clock.now(), result=result)
        return {each["name"]: each for each in zot("status")[1]["checks"] if each["name"].startswith("store ")}

    probed("good", {}, first - timedelta(hours=1))
    probed("first", {"dr": "dr: no answer"}, first)
    gone = probed("next", {"dr": "dr: bucket 'b' does not exist", "retired": "retired: gone"})
    assert f"its probes fail since {first:%Y-%m-%d %H:%M:%SZ}: bucket" in gone["store dr"]["detail"]
    assert {name: each["outcome"] for name, each in gone.items()} == {"store dr": "bad"}
    assert "bucket 'b' does not exist" in gone["store dr"]["detail"]
    assert "`zot-artifacts sweep probe`; the next probe, after 60 min at most" in gone["store dr"]["way_out"]
    cli.run(["status"])
    assert capsys.readouterr().out.count("bucket 'b' does not exist") == 1
    print_outcome(outcome_of(catalogue.ledger.get("next")))
    told = capsys.readouterr()
    assert (told.out, "dr: bucket 'b' does" in told.err, "dr: dr:" in told.err) == (
        "probed: primary, dr\n",
        True,
        False,
    )
    assert probed("of one store", {}, store="primary").keys() == {"store dr"}  # which says nothing about dr
    [root] = (tmp_path / "home").rglob("dr")
    root.rename(away := tmp_path / "away")
    root.mkdir()
    told = {each["name"]: each["detail"] for each in zot("status")[1]["checks"]}
    assert told["disk dr"].startswith(f"its probes fail since {first:%Y-%m-%d %H:%M:%SZ}: this is not the store")
    assert "store dr" not in told, "one cause is told once"
    root.rmdir()
    away.rename(root)
    assert probed("of the other", {}, store="dr") == {}
    assert probed("second", {}) == {}
    root.rename(away)
    told = {each["name"]: each["detail"] for each in zot("status")[1]["checks"]}
    assert re.match(
        rf"its probe of {clock.now():%Y}\S+ \S+ succeeded, now: its root \S+ does not exist", told["disk dr"]
    )
    assert probed("third", {"dr": f"dr: its root {root} does not exist: mount the disk"}) == {}, (
        "one cause is told once"
    )
    [disk] = [each for each in zot("status")[1]["checks"] if each["name"] == "disk dr"]
    assert re.match(rf"its probes fail since {clock.now():%Y}\S+ \S+: its root \S+ does not exist", disk["detail"])
    assert disk["outcome"] == "bad"
    away.rename(root)
    found = os.statvfs("/")
    read_only = os.statvfs_result((*found[:8], found.f_flag | os.ST_RDONLY, found.f_namemax))
    monkeypatch.setattr(os, "statvfs", lambda _: read_only)
    assert "other bytes" in probed("fourth", {"dr": "dr: reads other bytes"})["store dr"]["detail"]
    settings = load_settings()
    record = WriterRecord(Sign("token of a copy", "/copy", clock.now()))
    Stores(settings.stores, spool_dir=settings.spool_dir)["dr"].set_writer(catalogue.identity, record)
    see_head(Stores(settings.stores, spool_dir=settings.spool_dir)["dr"], catalogue, LogKeys())
    assert probed("fifth", {"dr": "dr: another copy of this catalogue, /copy, uses this store"}) == {}
    [copy] = zot("status")[1]["findings"]
    assert (copy["kind"], copy["store"], copy["detail"].partition(", uses")[0]) == (
        "log_changed", "dr", "another copy of this catalogue, /copy",
    )  # fmt: skip


def test_jobs_that_a_store_refused_are_open_for_a_day(catalogue: Catalogue, zot: Zot, capsys) -> None:
    """They fail at once and are no dead letters; what is wrong with a request is for the service that sent it."""

    def failed(job: str, kind: str, **error: str) -> None:
        lease, now = timedelta(seconds=30), clock.now()
        catalogue.ledger.acquire(job, "upload", {}, owner="me", writes_to=None, parent=None, now=now, lease=lease)
        error = {"type": kind, "message": "no"} | error
        catalogue.ledger.finish(job, 1, JobState.FAILED, now=now - timedelta(hours=23), error=error)

    failed("a", "NotFound", store="dr")
    failed("b", "AccessDenied")
    status, document = zot("status")
    assert (status, [each for each in document["checks"] if each["name"] == "store dr"]) == (3, [])
    failed("c", "AccessDenied", store="dr")
    status, document = zot("status")
    [check] = [each for each in document["checks"] if each["name"] == "store dr"]
    assert (status, check["outcome"]) == (1, "bad")
    assert re.match(r"1 job failed with AccessDenied in the last day, first at 20\d\d-", check["detail"])
    assert {(each["error"], each["store"], each["count"]) for each in document["failed_jobs"]} == {
        ("NotFound", "dr", 1), ("AccessDenied", None, 1), ("AccessDenied", "dr", 1),
    }  # fmt: skip
    failed("d", "OutOfSpace")  # of the spool directory
    [check] = [each for each in zot("status")[1]["checks"] if each["name"] == "disks of the workers"]
    assert check["way_out"].startswith("make room, then run `zot-artifacts jobs retry --all --state failed --error Out")
    cli.run(["status"])
    assert (
        "failed in the last day: 2 AccessDenied, 1 NotFound, 1 OutOfSpace; `zot-artifacts jobs"
        in capsys.readouterr().out
    )
    assert catalogue.coverage.failed_jobs(since=clock.now()) == []


def test_a_sweep_whose_last_run_failed_is_open(catalogue: Catalogue, zot: Zot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sweep fails nothing is found any more, which is no good state until a run succeeds, also in the metric.

    A run that has not ended, that was cancelled or that was of one store tells nothing of that; a clock that was ahead
    does not either. A sweep that beat does not start is not counted: its command tells how it ended.
    """

    def ran(job: str, state: JobState, *, ago: timedelta = timedelta(), request: dict[str, str] | None = None) -> Any:
        now, error = clock.now() - ago, {"type": "AccessDenied", "message": f"dr: listing is denied to {job}"}
        kept = {**error, "traceback": "File x", "previous": {**error, "traceback": "File y"}}
        begun = catalogue.ledger.acquire(
            job, "sweep.leftovers", request or {}, owner="here", writes_to=None, parent=None, now=now,
            lease=timedelta(seconds=30), queue="sweep",
        )  # fmt: skip
        assert isinstance(begun, Leased)
        failed = state == JobState.FAILED
        if state.terminal:
            ledger = catalogue.ledger
            ledger.finish(job, begun.record.fence, state, now=now, result={}, error=kept if failed else None)
        samples = (
            each for metric in LedgerFigures(load_settings(), lambda: catalogue).collect() for each in metric.samples
        )
        good = [each.value for each in samples if each.name == "zot_artifacts_sweep_last_success"]
        document = zot("status")[1]
        assert "File " not in str(document["sweeps"]), "only `jobs` has tracebacks"
        checks = [each for each in document["checks"] if each["name"].startswith("sweep ")]
        assert good in ([float(not checks)], [])
        return [(each["name"], each["outcome"], each["detail"], each["way_out"]) for each in checks]

    for ahead in (timedelta(hours=1), timedelta()):
        [(_, _, detail, _)] = ran(f"ahead {ahead}", JobState.FAILED, ago=-ahead)
        assert "dr: listing is denied" in detail
        assert ran(f"good {ahead}", JobState.SUCCEEDED, ago=-ahead) == []
    assert ran("of one store", JobState.FAILED, request={"store": "dr"}) == []
    for seconds in (1, 2):
        ran(f"run {seconds}", JobState.FAILED, ago=-timedelta(seconds=seconds))
    first = catalogue.ledger.get("run 1")
    assert first is not None
    assert first.finished_at is not None
    for number in range(101):
        catalogue.ledger.acquire(
            f"by hand {number}", "sweep.leftovers", {"store": "dr"}, owner="here", writes_to=None, parent=None,
            now=clock.now() + timedelta(seconds=3), lease=timedelta(seconds=30), queue="sweep",
        )  # fmt: skip
    for job, state in (("runs", JobState.RUNNING), ("cancelled", JobState.CANCELLED)):
        [(name, outcome, detail, way_out)] = ran(job, state, ago=-timedelta(seconds=3))
        assert (name, outcome) == ("sweep cleanup", "bad")
        assert detail == f"its runs fail since {moment(first.finished_at)}: dr: listing is denied to run 2"
        [row] = zot("status")[1]["sweeps"]
        assert (row["job"], datetime.fromisoformat(row["failing_since"])) == (job, first.finished_at)
        assert "ended" not in row, "that run has its own fields here"
        assert way_out.startswith(
            "`zot-artifacts jobs run 2` has the cause; repair that, then run `zot-artifacts sweep cleanup`;"
        )
    with monkeypatch.context() as off:
        off.setenv("ZOT_SWEEP__CLEANUP__ENABLED", "false")
        assert ran("by hand", JobState.FAILED, ago=-timedelta(seconds=4)) == []
    assert ran("good", JobState.SUCCEEDED, ago=-timedelta(seconds=5)) == []


def test_sweeps_have_the_names_that_the_command_takes(catalogue: Catalogue, capsys: pytest.CaptureFixture[str]) -> None:
    """The last run of `sweep cleanup` is shown as `cleanup`, although its job has another kind."""
    begun = catalogue.ledger.acquire(
        "job", "sweep.leftovers", {}, owner="here", writes_to=None, parent=None, now=clock.now(),
        lease=timedelta(seconds=30), queue="sweep",
    )  # fmt: skip
    assert isinstance(begun, Leased)
    catalogue.ledger.finish("job", begun.record.fence, JobState.SUCCEEDED, now=clock.now(), result={})
    cli.run(["status"])
    shown = capsys.readouterr().out
    assert "\ncleanup " in shown
    assert "leftovers" not in shown


def test_doctor_names_a_webhook_that_says_nothing_of_buckets(zot: Zot, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which tokens of the gateway cannot name it, and how to open it to all."""
    hook = {"url": "http://127.0.0.1:9/", "secret": "a secret of the receiver"}
    monkeypatch.setenv("ZOT_WEBHOOKS", json.dumps({"old": hook, "ci": hook | {"buckets": ["*"]}}))
    told = {each["name"]: each for each in zot("doctor")[1]["checks"] if each["name"].startswith("webhook")}
    assert {name: (each["outcome"], '["*"]' in each["way_out"]) for name, each in told.items()} == {
        "webhook old": ("good", True)
    }


def test_a_webhook_whose_receiver_refuses_it_is_named(catalogue: Catalogue, zot: Zot) -> None:
    """The screen says how many ends of jobs a receiver does not have, and why."""
    begun = catalogue.ledger.acquire(
        "job", "upload", {"notify": ["ci"]}, owner="here", writes_to=None, parent=None, now=clock.now(),
        lease=timedelta(seconds=30),
    )  # fmt: skip
    assert isinstance(begun, Leased)
    catalogue.ledger.finish("job", begun.record.fence, JobState.SUCCEEDED, now=clock.now(), result={})
    later = clock.now() + timedelta(minutes=1)
    for webhook in catalogue.job_webhooks.claim(["ci"], now=later, until=later):
        catalogue.job_webhooks.failed(webhook, "ci.example: 410 Gone", now=later, next_at=None)
    (told,) = zot("status")[1]["webhooks"]
    assert (told["receiver"], told["pending"], told["given_up"], told["error"]) == ("ci", 0, 1, "ci.example: 410 Gone")
