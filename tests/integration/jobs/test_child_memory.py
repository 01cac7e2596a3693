"""The memory of a child of the pool does not grow with its jobs."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.servers import Valkey
from tests.servers.process import REPOSITORY
from tests.waiting import WITHIN

ABSENT_HOST = "http://127.0.0.1:9"
ROUNDS = 70
CURSORS = 2 * 200
"""Dead references to cursors that two connections keep at most: the module `sqlite3` removes them after each 200."""
PER_ROUND = 2
"""Objects that each round may keep: far less than one exception with its frames."""
GARBAGE_PER_ROUND = 100
"""Objects of a round that only the garbage collector may free: the traceback of one failure alone has thousands."""


def test_a_child_keeps_nothing_of_the_jobs_that_it_has_done(valkey: Valkey, tmp_path: Path):
    """Uploads, verifies, deletes, failing jobs and retried ones leave no object and no cycle in their process."""
    sources = tmp_path / "in"
    sources.mkdir()
    (sources / "app.tgz").write_bytes(b"release one")
    settings = {
        "ZOT_HOME": str(tmp_path / "home"), "ZOT_BROKER": valkey.url,
        "ZOT_SOURCES__ROOTS": json.dumps([str(sources)]), "ZOT_SOURCES__HOSTS": json.dumps([ABSENT_HOST]),
        "ABSENT_HOST": ABSENT_HOST, "SOURCE": str(sources / "app.tgz"), "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip
    command = (sys.executable, "-m", "tests.integration.jobs.counting_child", str(ROUNDS))
    done = subprocess.run(
        command, env=os.environ | settings, cwd=REPOSITORY, capture_output=True, text=True, timeout=WITHIN, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after, garbage = map(int, done.stdout.split()[-3:])
    assert after - before < CURSORS + PER_ROUND * ROUNDS, done.stdout
    assert garbage < GARBAGE_PER_ROUND, done.stdout
