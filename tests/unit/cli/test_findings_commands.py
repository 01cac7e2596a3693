"""`findings` lists, shows and acknowledges; what is acknowledged no longer ends `status` with 1."""

import pytest

from tests.unit.cli.test_status import Zot, artifact, catalogue, judge, zot  # noqa: F401 - fixtures
from worker import cli, clock
from worker.catalogue import Artifact, Catalogue


def test_an_acknowledged_finding_no_longer_ends_status_with_one(
    catalogue: Catalogue,  # noqa: F811
    artifact: Artifact,  # noqa: F811
    zot: Zot,  # noqa: F811
) -> None:
    """`findings` and `status` end with 1 for an open finding, and not for one that is acknowledged; both show it."""
    judge(catalogue, artifact, "dr", "corrupt")
    status, listed = zot("findings")
    [found] = listed["findings"]
    assert (status, found["kind"], found["store"], found["key"]) == (1, "corrupt", "dr", "app.tgz")
    assert zot("findings", "acknowledge", str(found["id"]), "--note", "disk is ordered", "--by", "ana")[0] == 0
    status, listed = zot("findings", "ls")
    assert (status, listed["findings"][0]["note"]) == (0, "disk is ordered")
    status, document = zot("status")
    [group] = document["findings"]
    assert (status, group["count"], group["acknowledged"]) == (3, 1, 1)  # there is no broker here
    assert group["examples"][0]["doing"] == "acknowledged by ana"


def test_one_finding_is_shown_with_its_verdicts(
    catalogue: Catalogue,  # noqa: F811
    artifact: Artifact,  # noqa: F811
    zot: Zot,  # noqa: F811
) -> None:
    """`findings show` has the evidence, how it was resolved and every verdict on the copy, none of another store."""
    judge(catalogue, artifact, "primary", "verified")
    judge(catalogue, artifact, "dr", "corrupt")
    [found] = catalogue.findings.page()
    judge(catalogue, artifact, "dr", "verified")
    status, shown = zot("findings", "show", str(found.id))
    assert (status, shown["finding"]["how"]) == (0, "verified by job job-1")
    assert [row["verdict"] for row in shown["verdicts"]] == ["verified", "corrupt"]
    assert zot("findings")[1]["findings"] == []
    assert [each["id"] for each in zot("findings", "--all", "--kind", "corrupt", "--store", "dr")[1]["findings"]] == [
        found.id
    ]


def test_a_repaired_copy_shows_what_resolved_its_finding(
    catalogue: Catalogue,  # noqa: F811
    artifact: Artifact,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`findings --all` says that the copy was written, and which job repaired it."""
    judge(catalogue, artifact, "dr", "corrupt")
    catalogue.findings.act({("dr", artifact.bucket, artifact.key): "job-9"}, "repair", now=clock.now())
    catalogue.artifacts.finish_copy(artifact, "dr", tag="2", evidence={}, now=clock.now())
    assert cli.run(["findings", "--all"]) == 0
    assert "resolved: the copy was written (repair by job job-9)" in capsys.readouterr().out


def test_mistakes_are_told(catalogue: Catalogue, artifact: Artifact) -> None:  # noqa: F811
    """An unknown kind or store is a mistake of usage; an unknown or resolved finding cannot be acknowledged."""
    assert cli.run(["findings", "--kind", "rotten"]) == 2
    assert (cli.run(["findings", "--store", "dd"]), cli.run(["findings", "--store", "dr"])) == (2, 0)
    assert cli.run(["findings", "--kind", "size-mismatch"]) == 0
    assert cli.run(["findings", "show", "99"]) == 1
    judge(catalogue, artifact, "dr", "corrupt")
    [found] = catalogue.findings.page()
    assert cli.run(["findings", "acknowledge", str(found.id), "--note", " "]) == 2
    judge(catalogue, artifact, "dr", "verified")
    assert cli.run(["findings", "acknowledge", str(found.id), "--note", "late"]) == 1
