"""The report has coverage, findings and what was done about them, as JSON and as one page that loads nothing."""

import re
import shutil
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.unit.cli.test_status import Zot, artifact, catalogue, judge, zot  # noqa: F401 - fixtures
from worker import cli, clock
from worker.catalogue import Artifact, Catalogue, EvidenceCheck
from worker.settings import load_settings
from worker.storage import Digest, FilesystemConfig

VOID = {"meta", "rect", "line", "br", "path"}


class Balanced(HTMLParser):
    """Checks that every element is closed, and keeps all attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_report_tells_what_was_found_and_how_long_it_took(
    catalogue: Catalogue,  # noqa: F811
    artifact: Artifact,  # noqa: F811
    zot: Zot,  # noqa: F811
) -> None:
    """Ages add up to the copies, resolved findings have their time, open ones are named, and the log has its head."""
    now = clock.now()
    judge(catalogue, artifact, "primary", "verified", now=now - timedelta(days=40))
    judge(catalogue, artifact, "dr", "corrupt", now=now - timedelta(hours=3))
    judge(catalogue, artifact, "dr", "verified", now=now - timedelta(hours=1))
    judge(catalogue, artifact, "dr", "missing")
    status, document = zot("report")
    assert status == 1
    stores = {row["store"]: row for row in document["stores"]}
    assert sum(stores["dr"]["ages"]["read"]) == stores["dr"]["ages"]["read"][0] == 1
    assert (stores["primary"]["ages"]["read"][-1], sum(stores["primary"]["ages"]["not_read_yet"])) == (1, 0)
    assert stores["dr"]["bad_verdicts"] == {"corrupt": 1, "missing": 1}
    corrupt = document["handled"]["corrupt"]
    assert (corrupt["opened"], corrupt["resolved"], corrupt["median_seconds"]) == (1, 1, 7200)
    assert [(each["kind"], each["how"]) for each in document["resolved"]] == [("corrupt", "verified by job job-1")]
    assert {each["kind"] for each in document["findings"]} == {"missing", "overdue"}
    assert document["log_head"]["id"] == 4


def test_the_page_is_whole_and_loads_nothing(
    catalogue: Catalogue,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What comes from outside is escaped, no element is left open, and nothing refers to another address."""
    key = "<script>alert(1)</script>\u202e\x1b[31m"
    made = catalogue.artifacts.record("releases", key, Digest(1, "0" * 64), {}, clock.now(), stores=["dr"]).artifact
    catalogue.artifacts.finish_copy(made, "dr", tag="1", evidence={}, now=clock.now())
    judge(catalogue, made, "dr", "corrupt")
    assert cli.run(["report", "--html", str(tmp_path / "report.html")]) == 1
    page = (tmp_path / "report.html").read_text()
    read = Balanced(page)
    assert read.open == []
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"[\u202e\x1b]", page)
    assert "Open: 1 lost, 1 corrupt" in page
    assert {name for name, _ in read.attributes} & {"src", "href", "onload", "style"} == set()
    assert "http" not in page.replace("http-equiv", "")
    assert "report.html" in capsys.readouterr().out


def test_a_report_needs_a_form(catalogue: Catalogue) -> None:  # noqa: F811
    """Without --html and --json there is nothing to write."""
    assert cli.run(["report"]) == 2


def test_the_level_of_preservation_names_what_is_missing_for_the_next(
    catalogue: Catalogue,  # noqa: F811
    artifact: Artifact,  # noqa: F811
    zot: Zot,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One machine is level 1; with a store elsewhere overdue copies prevent level 3, and a bad copy level 4."""
    judge(catalogue, artifact, "primary", "verified")
    level = zot("report")[1]["preservation"]
    assert (level["level"], level["missing"]) == (
        1, ["the catalogue and all stores are on this machine: add a store or a catalogue elsewhere"]
    )  # fmt: skip
    monkeypatch.setattr("worker.report.preservation_level._apart", lambda _: (True, "elsewhere"))
    assert zot("report")[1]["preservation"]["level"] == 4
    judge(catalogue, artifact, "dr", "corrupt")
    level = zot("report")[1]["preservation"]
    assert (level["level"], level["missing"]) == (3, ["1 bad copy not repaired yet"])
    judge(catalogue, artifact, "primary", "verified", now=clock.now() - timedelta(days=40))
    assert zot("report")[1]["preservation"]["level"] == 2


def test_the_time_to_detect_counts_from_the_last_good_read(
    catalogue: Catalogue,  # noqa: F811
    artifact: Artifact,  # noqa: F811
    zot: Zot,  # noqa: F811
) -> None:
    """The copy went bad at some time after it."""
    now = clock.now()
    judge(catalogue, artifact, "dr", "verified", now=now - timedelta(hours=5))
    judge(catalogue, artifact, "dr", "corrupt", now=now - timedelta(hours=2))
    assert zot("report")[1]["detected"] == {"findings": 1, "median_seconds": 10800, "longest_seconds": 10800}


def test_checks_without_reading_and_budgets_are_told_apart_from_reads(
    catalogue: Catalogue,  # noqa: F811
    artifact: Artifact,  # noqa: F811
    zot: Zot,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store's answers are counted by their outcome and never as verified; the page has them, and each budget."""
    monkeypatch.setenv("ZOT_PRICES__DR__REQUESTS_1000", "1")
    monkeypatch.setenv("ZOT_BUDGETS__DR__COST_PER_MONTH", "50")
    copies = catalogue.artifacts.copies(artifact)
    now = clock.now()
    catalogue.evidence_checks.record([EvidenceCheck(copies["dr"].id, "listing", "agrees")], now=now)
    catalogue.evidence_checks.record([EvidenceCheck(copies["primary"].id, "stat", "differs")], now=now)
    stores = {row["store"]: row for row in zot("report")[1]["stores"]}
    assert (stores["dr"]["bytes"], stores["dr"]["buckets"]) == (1, {"releases": {"copies": 1, "bytes": 1}})
    assert (stores["primary"]["bytes"], stores["dr"]["pass"]["cost"]) == (1, 0.001)
    assert stores["primary"]["pass"]["cost"] == 0  # it has no price
    assert stores["dr"]["evidence"]["outcomes"] == {"agrees": 1}
    assert stores["primary"]["evidence"]["outcomes"] == {"differs": 1}
    assert (stores["dr"]["read_within_period"], stores["dr"]["budget"]["cost_per_month"]) == (0, 50)
    cli.run(["report", "--html", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    cells = re.sub(r' data-name="[^"]*"', "", page)
    assert "<td>dr</td><td>1</td><td>0</td><td>0</td><td>0</td>" in cells
    assert "<td>0.00</td><td>50.00</td>" in cells
    assert '<td data-name="at most">50.00</td>' in page, "on a phone, where a row is a card"
    assert Balanced(page).open == []


def test_a_quarantine_that_cannot_be_listed_has_no_size(
    catalogue: Catalogue,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The page says no number of bytes where the store did not tell one."""
    store = load_settings().stores["dr"]
    assert isinstance(store, FilesystemConfig)
    shutil.rmtree(store.root)
    cli.run(["report", "--html", str(tmp_path / "report.html")])
    quarantine = (tmp_path / "report.html").read_text().partition("<h2>Quarantine</h2>")[2].partition("<h2>")[0]
    row = re.sub(r' data-name="[^"]*"', "", quarantine).partition("<td>dr</td>")[2].partition("</tr>")[0]
    assert row.startswith("<td>-</td><td>-</td><td"), row
    assert str(store.root) in row
