"""`hold`, `release`, `undelete` and their lists tell who, why and until when."""

from datetime import timedelta

import pytest

from tests.unit.cli.test_status import Zot, artifact, catalogue, zot  # noqa: F401 - fixtures
from worker import cli, clock
from worker.catalogue import Artifact, Catalogue, Leased
from worker.storage import Digest
from zot_artifact_client.contract import PAGE, JobState


def test_a_hold_is_listed_and_shown_until_it_is_released(
    catalogue: Catalogue,  # noqa: F811
    artifact: Artifact,  # noqa: F811
    zot: Zot,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first hold counts; releasing what is not held ends with 1, and so does holding what is not there."""
    assert zot("hold", "releases/app.tgz", "--reason", "case 4711", "--by", "ana")[0] == 0
    assert zot("hold", "releases/app.tgz", "--reason", "another", "--by", "eva")[1]["by"] == "ana"
    assert cli.run(["hold", "releases/app.tgz", "--reason", "another"]) == 0
    assert "releases/app.tgz was held already, by ana: case 4711" in capsys.readouterr().out
    [listed] = zot("holds")[1]["holds"]
    assert (listed["by"], listed["reason"]) == ("ana", "case 4711")
    assert zot("show", "releases/app.tgz")[1]["hold"]["reason"] == "case 4711"
    assert zot("release", "releases/app.tgz")[0] == 0
    assert zot("release", "releases/app.tgz")[0] == 1
    assert zot("holds")[1]["holds"] == []
    assert zot("hold", "releases/none", "--reason", "case 4711")[0] == 1


def test_a_delete_is_listed_and_undone(
    catalogue: Catalogue,  # noqa: F811
    artifact: Artifact,  # noqa: F811
    zot: Zot,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A deleted artifact says how it can be brought back, and is there again after `undelete`.

    A delete that cannot be undone is not listed: its artifact was uploaded again, or its bytes are being purged. An
    upload that failed takes nothing from the delete before it, and one that is still open refuses the undelete.
    """
    now, later = clock.now(), clock.now() + timedelta(days=7)
    catalogue.deletions.begin(artifact, now=now, until=later, by="ana", reason="old", job="job-1")
    [listed] = zot("deleted")[1]["deleted"]
    assert (listed["key"], listed["by"], listed["reason"]) == ("app.tgz", "ana", "old")
    status, document = zot("show", "releases/app.tgz")
    assert status == 1
    assert "zot-artifacts undelete releases/app.tgz" in document["error"]["message"]
    assert zot("sweep", "purge", "--dry-run") == (0, {"sweep": "purge", "dry_run": True, "due": 0})
    told = ("undelete", "releases/app.tgz", "--by", "eva", "--reason", "needed")
    assert zot(*told) == (0, {"bucket": "releases", "key": "app.tgz", "version": 1})
    assert zot("show", "releases/app.tgz")[0] == 0
    history = zot("show", "releases/app.tgz", "--proof")[1]["history"]
    assert [(each["what"], each["job"], each["details"]) for each in history if each["what"].endswith("deleted")] == [
        ("deleted", "job-1", {"by": "ana", "reason": "old"}),
        ("undeleted", None, {"by": "eva", "reason": "needed"}),
    ]
    assert cli.run(["undelete", "releases/app.tgz"]) == 2
    gone = catalogue.deletions.begin(artifact, now=now, until=later, by="ana", reason=None, job="job-2")
    assert catalogue.deletions.begin_purge(gone, now=later) is not None
    again = catalogue.artifacts.record("releases", "again", Digest(1, "0" * 64), {}, now, stores=["dr"]).artifact
    catalogue.deletions.begin(again, now=now, until=later, by="ana", reason=None, job="job-3")
    page = "5f0a1d0e-0000-5000-8000-000000000000.00000001"
    lease = catalogue.ledger.acquire(
        page, PAGE.kind, {}, owner="here", writes_to=None, parent=None, now=now, lease=timedelta(seconds=30)
    )
    assert isinstance(lease, Leased)
    bytes_ = Digest(1, "1" * 64)
    newer = catalogue.artifacts.record("releases", "again", bytes_, {}, now, stores=["dr"], job=page).artifact
    assert [each["key"] for each in zot("deleted")[1]["deleted"]] == ["again"]
    assert cli.run(["undelete", "releases/again"]) == 2, "the page has another attempt"
    assert f"job {page} has begun to replace it" in capsys.readouterr().err
    catalogue.ledger.finish(page, lease.record.fence, JobState.FAILED, now=now)
    assert zot("undelete", "releases/again")[0] == 0, "the upload has failed"
    catalogue.deletions.begin(again, now=now, until=later, by="ana", reason=None, job="job-4")
    catalogue.artifacts.finish_copy(newer, "dr", tag="1", evidence={}, now=now)
    assert zot("deleted")[1]["deleted"] == []


def test_all_deletes_of_a_batch_are_undone_at_once(
    catalogue: Catalogue,  # noqa: F811
    zot: Zot,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dry run lists them and changes nothing; one that was uploaded again is named, and deletes of others stay."""
    monkeypatch.setattr("worker.cli.undelete_and_hold._AT_ONCE", 2)
    now, batch = clock.now(), "5f0a1d0e-0000-5000-8000-000000000000"
    catalogue.ledger.acquire(
        batch, "batch", {}, owner="here", writes_to=None, parent=None, now=now, lease=timedelta(seconds=30)
    )
    for key, job in (("1", f"{batch}.00000001"), ("2", f"{batch}.00000001"), ("3", f"{batch}.00000002"), ("4", "4")):
        digest = Digest(1, "0" * 64)
        made = catalogue.artifacts.record("releases", key, digest, {}, now, stores=["dr"]).artifact
        catalogue.artifacts.finish_copy(made, "dr", tag="1", evidence={}, now=now)
        catalogue.deletions.begin(made, now=now, until=now + timedelta(days=7), by="ana", reason=None, job=job)
    newer = catalogue.artifacts.record("releases", "2", Digest(1, "1" * 64), {}, now, stores=["dr"]).artifact
    catalogue.artifacts.finish_copy(newer, "dr", tag="2", evidence={}, now=now)
    for dry in (("--dry-run",), ()):
        status, document = zot("undelete", "--job", "5f0a1d0e", *dry)
        assert (status, document["job"], document["dry_run"]) == (1, batch, bool(dry))
        assert [each["key"] for each in document["undeleted"]] == ["1", "3"]
        assert ["releases/2 was uploaded again since" in each for each in document["refused"]] == [True]
    assert [each["key"] for each in zot("deleted")[1]["deleted"]] == ["4"]
    assert zot("show", "releases/3")[0] == 0
    assert zot("undelete", "releases/4", "--job", batch)[0] == 2
    assert zot("undelete", "--job", "5f")[1]["undeleted"] == []
    _, document = zot("undelete", "--job", "4")
    assert [each["key"] for each in document["undeleted"]] == ["4"], "a rebuilt catalogue has its deletes, and no job"


def test_a_suggested_name_is_like_the_one_that_was_typed(
    catalogue: Catalogue,  # noqa: F811
    artifact: Artifact,  # noqa: F811
    zot: Zot,  # noqa: F811
) -> None:
    """A typing error in the bucket or in the key gets a suggestion; a key that only shares the bucket is none."""
    for typed in ("releases/ap.tgz", "relases/app.tgz"):
        assert "did you mean 'releases/app.tgz'?" in zot("delete", typed)[1]["error"]["message"]
    digest = Digest(1, "0" * 64)
    catalogue.artifacts.record("Rel_eases", "x", digest, {}, clock.now(), stores=["dr"])
    for typed in ("releases/zz", "releases/nope", "release/nope"):
        assert "did you mean" not in zot("delete", typed)[1]["error"]["message"]
    other = catalogue.artifacts.record("relases", "x", digest, {}, clock.now(), stores=["dr"]).artifact
    catalogue.artifacts.finish_copy(other, "dr", tag="1", evidence={}, now=clock.now())
    told = zot("delete", "relases/app.tgz")[1]["error"]["message"]
    assert "did you mean 'releases/app.tgz'?" in told, "there is also a bucket of the name that was typed"


@pytest.mark.parametrize("command", ["show", "delete"])
def test_a_prefix_in_place_of_a_key_is_told(
    catalogue: Catalogue,  # noqa: F811
    zot: Zot,  # noqa: F811
    command: str,
) -> None:
    """A command for one artifact that was given the directory of many says how to name them all."""
    digest = Digest(1, "0" * 64)
    made = catalogue.artifacts.record("releases", "v1/a/b", digest, {}, clock.now(), stores=["dr"]).artifact
    catalogue.artifacts.finish_copy(made, "dr", tag="1", evidence={}, now=clock.now())
    for typed in ("releases/v1/a", "releases/v1/a/", "releases/v1"):
        told = zot(command, typed)[1]["error"]["message"]
        assert (
            f"the artifacts below '{typed.rstrip('/')}/'? `get` takes them with -r, other commands with --all" in told
        )


def test_companions_are_listed_added_shown_and_removed(
    catalogue: Catalogue,  # noqa: F811
    artifact: Artifact,  # noqa: F811
    zot: Zot,  # noqa: F811
) -> None:
    """`show` tells of both sides; a companion in another bucket, or of what is not there, is refused."""
    for bucket, key in (("releases", "app.tgz.sig"), ("releases", "sbom.json"), ("other", "app.tgz.sig")):
        made = catalogue.artifacts.record(bucket, key, artifact.digest, {}, clock.now(), stores=["dr"]).artifact
        catalogue.artifacts.finish_copy(made, "dr", tag="1", evidence={}, now=clock.now())
    assert zot("companions", "add", "releases/app.tgz", "releases/sbom.json")[0] == 0
    assert zot("companions", "add", "releases/app.tgz", "other/app.tgz.sig")[0] == 2
    assert zot("companions", "add", "releases/app.tgz", "releases/none")[0] == 1
    listed = zot("companions", "ls", "releases/app.tgz")[1]["companions"]
    assert [each["key"] for each in listed] == ["app.tgz.sig", "sbom.json"]
    assert zot("show", "releases/app.tgz")[1]["companions"] == ["app.tgz.sig", "sbom.json"]
    assert zot("show", "releases/sbom.json")[1]["companion_of"] == "app.tgz"
    assert zot("hold", "releases/app.tgz", "--reason", "case 4711")[0] == 0
    assert zot("companions", "rm", "releases/sbom.json")[0] != 0
    assert len(zot("holds")[1]["holds"]) == 3
    assert zot("release", "releases/app.tgz")[0] == 0
    assert zot("companions", "rm", "releases/sbom.json")[1]["was_companion_of"] == "app.tgz"
    assert zot("show", "releases/app.tgz")[1]["companions"] == ["app.tgz.sig"]
