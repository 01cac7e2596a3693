"""`zot-artifacts status` beside a real `up`: a corrupt copy is shown until it is repaired."""

import os
from pathlib import Path

import pytest

from tests.acceptance.commands import Zot
from tests.acceptance.forked_up import running
from tests.waiting import until


@pytest.mark.slow
def test_rot_shows_in_status_until_it_is_repaired(tmp_path: Path) -> None:
    """After flipped bytes `status` ends with 1 and names the copies; after one page has repaired both, with 0 again."""
    zot = Zot(tmp_path / "home", {"ZOT_SWEEP__REPAIR__ENABLED": "false"})
    content = os.urandom(100_000)
    (tmp_path / "file").write_bytes(content)
    copies = [zot.home / "stores" / "dr" / "releases" / key for key in ("a.tgz", "b.tgz")]
    with running(zot.home, "--no-flower", **zot.settings):
        for copy in copies:
            assert zot("upload", tmp_path / "file", f"releases/{copy.name}").status == 0
        until(lambda: zot("status").status == 0)  # once beat has ticked
        for copy in copies:
            copy.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            assert zot("verify", f"releases/{copy.name}").status == 1
        found = zot("status", "--json")
        assert (found.status, [(each["kind"], each["count"]) for each in found.document["findings"]]) == (
            1,
            [("corrupt", 2)],
        )
        shown = zot("status")
        assert "releases/a.tgz" in shown.stdout
        assert "findings: 2 corrupt" in shown.stdout
        planned = zot("sweep", "repair", "--dry-run", "--json").document["stores"]
        assert {row["store"]: row["repairable"] for row in planned} == {"primary": 0, "dr": 2}
        repaired = zot("sweep", "repair", "--json")
        assert (repaired.status, repaired.document["outcomes"]) == (0, {"repaired": 2})
        assert [copy.read_bytes() for copy in copies] == [content] * 2
        assert zot("status").status == 0
        assert zot("sweep", "reconcile").status == 0
        ran = {each["sweep"]: each["state"] for each in zot("status", "--json").document["sweeps"]}
        assert (ran["sweep.repair"], ran["sweep.reconcile"]) == ("succeeded", "succeeded")


@pytest.mark.slow
def test_rot_is_repaired_without_an_operator(tmp_path: Path) -> None:
    """With repairs on, beat, worker and catalogue bring the right bytes back, and nothing stays open."""
    zot = Zot(tmp_path / "home", {"ZOT_SWEEP__REPAIR__EVERY": "2s"})
    source = tmp_path / "app.tgz"
    source.write_bytes(os.urandom(100_000))
    with running(zot.home, "--no-flower", **zot.settings):
        assert zot("upload", source, "releases/app.tgz").status == 0
        copy = zot.home / "stores" / "dr" / "releases" / "app.tgz"
        copy.write_bytes(bytes([source.read_bytes()[0] ^ 1]) + source.read_bytes()[1:])
        assert zot("verify", "releases/app.tgz").status == 1
        until(lambda: copy.read_bytes() == source.read_bytes())
        until(lambda: zot("status").status == 0)
