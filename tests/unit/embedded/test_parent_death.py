"""No process outlives the one that forked it, once it has asked to die with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.process import REPOSITORY

ASKS = """
import os, sys, time
from worker.embedded.parent_death import die_with_parent
parent, (heard, told) = os.getpid(), os.pipe()
if os.fork():
    if sys.argv[1] == "after":
        os.read(heard, 1)
    os._exit(0)
while sys.argv[1] == "before" and os.getppid() == parent:
    time.sleep(0.01)
die_with_parent()
os.write(told, b"1")
time.sleep(30)
print("alive")
"""

SOLO = """
import ctypes, os
from celery.concurrency.solo import TaskPool
from worker.app import app
TaskPool()
signum = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(signum))  # PR_GET_PDEATHSIG
print(signum.value, flush=True)
os._exit(0)
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux sends a signal at the death of a parent")


@pytest.mark.parametrize("parent_dies", ["before", "after"])
def test_a_process_dies_with_its_parent(parent_dies: str) -> None:
    """Also one whose parent died before it asked for that, such as a worker that is killed while its pool starts."""
    command = [sys.executable, "-c", ASKS, parent_dies]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)  # to the end of both
    assert (run.stdout, run.stderr) == ("", "")


def test_a_worker_that_is_its_own_child_outlives_what_started_it(tmp_path: Path) -> None:
    """With `--pool solo` it has no child: it would be killed at the end of the shell that has started it."""
    environment = {**os.environ, "ZOT_HOME": str(tmp_path / "home"), "ZOT_BROKER": "redis://127.0.0.1:1/0"}
    run = subprocess.run(
        [sys.executable, "-c", SOLO], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.returncode) == ("0\n", 0), run.stderr
