"""Stores that have left the configuration: shown, and forgotten by a command that keeps the last good copies."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from worker import cli, clock
from worker.catalogue import Catalogue, FindingKind, Leased
from worker.exit_status import Status
from worker.settings import load_settings
from worker.storage import Digest
from worker.storage.configured_stores import Stores
from worker.storage.keys import QUARANTINE_BUCKET
from zot_artifact_client.contract import JobState


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalogue]:
    """Return a catalogue in which `old` has a copy of two artifacts, and `dr` one of the first."""
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    settings = load_settings()
    settings.prepare()
    opened = Catalogue(settings.catalogue_url)
    for key, stores in (("both", ["old", "dr"]), ("only", ["old"])):
        digest = Digest(1, "0" * 64)
        artifact = opened.artifacts.record("releases", key, digest, {}, clock.now(), stores=stores).artifact
        for store in stores:
            opened.artifacts.finish_copy(artifact, store, tag="1", evidence={}, now=clock.now())
    yield opened
    opened.close()


@pytest.fixture
def zot(catalogue: Catalogue, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    def run(*arguments: str) -> tuple[int, Any, str]:
        status = cli.run([*arguments, "--json"])
        told = capsys.readouterr()
        return status, json.loads(told.out), told.err

    return run


def test_a_store_that_left_the_configuration_is_shown(zot) -> None:
    """`stores` lists it as not configured with its copies and ends with 3; `doctor` calls it bad."""
    status, document, _ = zot("stores")
    [old] = [each for each in document["stores"] if each["store"] == "old"]
    assert (status, old["configured"], old["reachable"], sum(old["copies"].values())) == (3, False, False, 2)
    checks = {each["name"]: each for each in zot("doctor")[1]["checks"]}
    assert checks["store old"]["outcome"] == "bad"
    assert "stores forget old" in checks["store old"]["way_out"]


@pytest.mark.parametrize(
    ("renamed", "how"),
    [
        ("primary", ": name it `old` again"),
        ("dr", ", and has copies by that name: `zot-artifacts catalogue rebuild --store dr` records the others, then "),
    ],
    ids=["empty", "with copies"],
)
def test_a_store_that_was_renamed_is_told_by_its_new_name(
    zot, catalogue: Catalogue, tmp_path: Path, renamed: str, how: str
) -> None:
    """To forget it would forget copies that are there; where both names have copies, the old name would not help."""
    zot("doctor")  # records the id of each store
    identities = catalogue.store_identities(("primary", "dr"))
    identities.put("old", str(identities.get(renamed)))
    identities.forget(renamed)  # no program has used it by the new name yet
    way_out = f"`{renamed}` in the settings is this very store{how}"
    way_out += "`zot-artifacts stores forget old`" * how.endswith("then ")
    [found] = [each for each in zot("status")[1]["findings"] if each["kind"] == "store_not_configured"]
    assert found["detail"] == f"2 copies; {way_out}"
    [old] = [each for each in zot("stores")[1]["stores"] if each["store"] == "old"]
    assert old["error"] == f"not configured: {way_out}"
    checks = {each["name"]: each for each in zot("doctor")[1]["checks"]}
    assert checks["store old"]["way_out"] == way_out
    assert f"old: {way_out}" in zot("stores", "forget", "old", "--dry-run")[2]


def test_copies_that_two_names_of_one_place_have_are_told(
    zot, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions recorded both: `doctor` counts them, and what is left of the name that goes has a way out."""
    [both] = [each for each in catalogue.artifacts.page("releases") if each.key == "both"]
    catalogue.artifacts.ensure_copy(both, "primary")
    catalogue.artifacts.finish_copy(both, "primary", tag="1", evidence={}, now=clock.now())
    zot("doctor")  # marks both
    stores = tmp_path / "home" / "stores"
    (stores / "dr").rename(tmp_path / "gone")
    mounts = "worker.storage.same_place._roots_overlap"  # as if the share were mounted twice
    monkeypatch.setattr(mounts, lambda *_: None)
    (stores / "dr").symlink_to(stores / "primary")
    catalogue.store_identities(("primary", "dr")).forget("dr")
    checks = {each["name"]: each for each in zot("doctor")[1]["checks"]}
    for name in ("primary", "dr"):
        assert "copies of 1 artifact version are recorded in both" in checks[f"store {name}"]["detail"]
        assert f"`zot-artifacts stores forget {name}`" in checks[f"store {name}"]["way_out"]
    monkeypatch.setenv("ZOT_STORES", json.dumps({"primary": {"type": "filesystem", "root": str(stores / "primary")}}))
    [dr] = [each for each in zot("stores")[1]["stores"] if each["store"] == "dr"]
    assert "`primary` in the settings is this very store, and has copies by that name" in dr["error"]
    assert zot("stores", "forget", "dr")[1]["forgotten"] == 1


def test_a_store_that_was_forgotten_is_no_finding_any_more(zot, catalogue: Catalogue) -> None:
    """The finding ends with the last copy, not with the next sweep; what is kept keeps it open."""
    catalogue.findings.see_store(FindingKind.STORE_NOT_CONFIGURED, "old", {"copies": 2}, now=clock.now())
    zot("stores", "forget", "old")
    assert [each.store for each in catalogue.findings.page()] == ["old"]
    zot("stores", "forget", "old", "--allow-last")
    assert catalogue.findings.page() == []


class Terminal(io.StringIO):
    """A terminal at which this is typed."""

    def isatty(self) -> bool:
        return True


def test_forgetting_keeps_the_last_good_copy(zot, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A dry run changes nothing; without --allow-last the only good copy of an artifact stays, and the status is 1.

    At a terminal the command asks first.
    """
    status, document, _ = zot("stores", "forget", "old", "--dry-run")
    assert (status, document["forgotten"], document["last_examples"]) == (1, 1, ["releases/only"])
    with monkeypatch.context() as terminal:
        terminal.setattr("sys.stdin", Terminal("n\n"))
        assert cli.run(["stores", "forget", "old", "--allow-last"]) == Status.INTERRUPTED
        told = capsys.readouterr()
        assert "forget 2 copies in old, 1 of them the only good one of its artifact?" in told.out + told.err
        assert zot("stores", "forget", "old", "--dry-run")[1]["forgotten"] == 1
        assert zot("stores", "forget", "old", "--yes")[1]["forgotten"] == 1
    assert zot("stores", "forget", "old")[1]["forgotten"] == 0
    assert [copy["store"] for copy in zot("show", "releases/both")[1]["copies"]] == ["dr"]
    assert [copy["store"] for copy in zot("show", "releases/only")[1]["copies"]] == ["old"]
    status, document, _ = zot("stores", "forget", "old", "--allow-last")
    assert (status, document["forgotten"]) == (0, 1)
    assert [each["store"] for each in zot("stores")[1]["stores"]] == ["primary", "dr"]


def test_what_cannot_be_undone_is_asked_at_a_terminal(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The question says how much goes, also what was not tried yet; without a yes nothing does, and --yes is one."""
    ended = clock.now() - timedelta(days=1)
    begun = catalogue.ledger.acquire(
        "job", "upload", {"notify": ["ci"]}, owner="here", writes_to=None, parent=None, now=ended,
        lease=timedelta(seconds=30),
    )  # fmt: skip
    assert isinstance(begun, Leased)
    catalogue.ledger.finish("job", begun.record.fence, JobState.SUCCEEDED, now=ended, result={})
    with closing(Stores(load_settings().stores)) as stores:
        stores["dr"].create_bucket(QUARANTINE_BUCKET)
        stores["dr"].write_object(QUARANTINE_BUCKET, "releases/job/app.tgz", io.BytesIO(b"rot"))
    old = ("quarantine", "purge", "--older-than", "1h")
    for command, question in (
        (("webhooks", "forget", "ci"), "forget the ends of 1 job that ci does not have?"),
        (old, "delete 1 object from quarantine for good?"),
    ):
        for more, status, asked in (((), Status.INTERRUPTED, True), (("--yes",), Status.GOOD, False)):
            monkeypatch.setattr("sys.stdin", Terminal("n\n"))
            assert (cli.run([*command, *more]), question in capsys.readouterr().err) == (status, asked), command


def test_only_a_store_that_is_gone_can_be_forgotten(zot) -> None:
    """A configured store and a mistyped name are errors with status 2."""
    assert zot("stores", "forget", "dr")[0] == 2
    status, document, _ = zot("stores", "forget", "odl")
    assert (status, "did you mean 'old'?" in document["error"]["message"]) == (2, True)


def test_a_store_that_was_replaced_is_accepted(zot, tmp_path: Path) -> None:
    """`stores accept` lets another disk be used under a store's name; a mistyped name is an error with status 2."""
    root = tmp_path / "home" / "stores" / "dr"
    assert zot("doctor")[1]["checks"][-1]["name"]  # it probes each store, and records what is there
    root.rename(tmp_path / "gone")
    root.mkdir()
    checks = {each["name"]: each for each in zot("doctor")[1]["checks"]}
    assert "`zot-artifacts stores accept dr`" in checks["store dr"]["detail"]
    assert zot("stores", "accept", "dr")[0] == 0
    checks = {each["name"]: each for each in zot("doctor")[1]["checks"]}
    assert checks["store dr"]["outcome"] == "good"
    assert zot("stores", "accept", "rd")[0] == 2
