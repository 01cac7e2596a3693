"""The logs of `up` are bounded, and a program that holds its log open goes on writing to it."""

import sys
from pathlib import Path

from tests.waiting import until
from worker.embedded.processes import Children, Program

TALK = "import time\nwhile True:\n    print('x' * 999, flush=True)\n    time.sleep(0.001)"


def test_a_long_log_is_rotated_and_the_oldest_is_dropped(tmp_path: Path) -> None:
    """A log above the size becomes the first of `keep` earlier ones; the program needs no restart."""
    said: list[str] = []
    with Children(tmp_path, said.append) as children:
        children.start(Program("talker", (sys.executable, "-c", TALK)))
        log = tmp_path / "talker.log"
        for _ in range(4):
            until(lambda: log.exists() and log.stat().st_size > 20_000)
            children.rotate(20_000, 2)
            assert log.stat().st_size < 20_000
        children.rotate(10_000_000, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talker.log", "talker.log.1", "talker.log.2"]
    assert (tmp_path / "talker.log.1").read_text().startswith("xxx")
    assert said == []
