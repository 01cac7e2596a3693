"""The table of measurements, with lines that could not be measured or were measured again."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import store_transfers
from benchmarks.harness import table
from benchmarks.harness.result_rows import Missing, NotMeasured, Row, Samples, Target
from benchmarks.store_transfers import Bench, Load
from tests.memory_driver import MemoryDriver
from worker.storage import Store


def row(what: str, ours: float) -> Row:
    return Row(what, Samples([ours, ours]), Samples([2.0, 2.0]), Target(0.9, at_least=True))


@dataclass
class Tool:
    """A measurement that needs a second for everything, and fails in the given turn."""

    name: str
    fails_in: int = 99
    turns: int = 0

    def put(self, _path: Path, _key: str) -> float:
        self.turns += 1
        if self.turns == self.fails_in:
            raise NotMeasured(f"{self.name} is broken")
        return 1.0

    def get(self, key: str, path: Path) -> float:
        return self.put(path, key)


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Bench]:
    load = Load("64 MiB", tmp_path / "load", 1, 1.0, " MiB/s", rounds=3)
    return lambda *tools: Bench("azure", Store(MemoryDriver("memory")), tools, load, tmp_path / "got")


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a README whose table of stores has nothing in it."""
    path = tmp_path / "README.md"
    monkeypatch.setattr(table, "README", path)
    first, last = table._marks("stores")
    path.write_text(f"before\n{first}\n\nnone yet\n\n{last}\nafter\n")
    return path


def turns(bench: Bench) -> list[Row | Missing]:
    return list(
        store_transfers._in_turn(bench, "put", bench.tools, lambda tool: (tool.put(bench.load.path, "key"), 0.1))
    )


def test_a_tool_that_fails_costs_its_own_line_only(bench) -> None:
    """The other tool is compared in every round, and the line of the one that failed says why."""
    ours, rclone, s5cmd = Tool("ours"), Tool("rclone"), Tool("s5cmd", fails_in=2)
    compared, missing = turns(bench(ours, rclone, s5cmd))
    assert isinstance(compared, Row)
    assert compared.ratio
    assert (compared.what, len(compared.ratio.values)) == ("azure: put 64 MiB, against rclone", 3)
    assert missing == Missing("azure: put 64 MiB, against s5cmd", "s5cmd is broken")
    assert s5cmd.turns == 2


def test_slow_rounds_end_early(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time is up there are only as many rounds as are the least, and only one when it took very long."""

    def pairs() -> int:
        [compared] = turns(bench(Tool("ours"), Tool("rclone")))
        assert isinstance(compared, Row)
        assert compared.ratio
        return len(compared.ratio.values)

    monkeypatch.setattr(store_transfers, "ENOUGH", -1.0)
    assert pairs() == store_transfers.LEAST
    monkeypatch.setattr(store_transfers, "TOO_LONG", -1.0)
    assert pairs() == 1


def test_a_line_without_numbers_says_why() -> None:
    """The reason is in the table, on one line and without what would break it."""
    text = table.markdown([row("a", 1.0), Missing("b", "no | server:\nrun make setup")], [])
    assert "| a    |" in text
    assert "| **not measured**: no / server: run make setup |" in text


def test_lines_measured_alone_go_into_the_kept_table(readme: Path) -> None:
    """They take the place of the old ones and of the missing ones; the others stay, and so does all around them."""
    table.keep(
        table.markdown([row("a, against x", 1.0), Missing("b", "broken"), row("c", 3.0)], [("CPU", "2")]), "stores"
    )
    table.exchange([row("a, against x", 7.0), row("b, against x", 8.0), row("b, against y", 9.0)], "stores")
    table.exchange([Missing("c", "broken now")], "stores")
    text = readme.read_text()
    lines = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("|")][2:]
    assert [(what.strip(), ours.strip()[0]) for what, ours in lines] == [
        ("a, against x", "7"), ("b, against x", "8"), ("b, against y", "9"), ("c", "3"),
    ]  # fmt: skip
    assert "- CPU: 2\n- Measured again on " in text
    assert "alone: a, against x; b, against x; b, against y\n" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")


def test_what_was_measured_is_told_whatever_comes_after(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A measurement that breaks in the middle leaves the lines before it and one that says why, and the status is 1."""

    def breaks(_scene):
        yield row("a", 1.0)
        raise NotMeasured("the disk is full")

    monkeypatch.setitem(program.ALL, "latency", breaks)
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)  # this process is not the program's
    assert program.main(["latency", "--quick", "--dir", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "| a " in printed.out
    assert "| **not measured**: the disk is full |" in printed.out
    assert "a: 1 (1 to 1), 2 (2 to 2), 0.50 (0.50 to 0.50), 2, ≥ 0.9, **no**" in printed.err


@pytest.mark.parametrize(
    ("page", "begin", "end"),
    [
        ("README.md", "\n## Measured\n", "\n## "),
        ("docs/howto/recover.md", "| the host of a worker |", "\n\n"),
    ],
)
def test_the_figures_of_the_documentation_are_those_of_the_kept_tables(page: str, begin: str, end: str) -> None:
    """A new table changes the pages that quote it: one that quotes an earlier run would contradict the others."""
    root = Path(program.__file__).parents[1]
    measured = (root / "benchmarks/README.md").read_text()
    kept = "".join(re.findall(r"<!-- the last full run.*?<!-- the end", measured, re.DOTALL))
    known = _figures(kept + measured.partition("\n## Soak\n")[2])
    quoted = _figures((root / page).read_text().partition(begin)[2].partition(end)[0])
    assert quoted
    assert quoted <= known


def _figures(text: str) -> set[str]:
    """Return the numbers of three digits and more, and those with a fraction; dates, names and revisions are none."""
    found = re.findall(r"(?<![\w,.-])(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+\.[0-9]+|[0-9]{3,})(?![\w.-])", text)
    return {each.replace(",", "") for each in found}
