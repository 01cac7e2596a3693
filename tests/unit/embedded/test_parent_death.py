"""No process outlives the one that forked it, once it has asked to die with it."""

import subprocess
import sys

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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sends a signal at the death of a parent")
@pytest.mark.parametrize("parent_dies", ["before", "after"])
def test_a_process_dies_with_its_parent(parent_dies: str) -> None:
    """Also one whose parent died before it asked for that, such as a worker that is killed while its pool starts."""
    command = [sys.executable, "-c", ASKS, parent_dies]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)  # to the end of both
    assert (run.stdout, run.stderr) == ("", "")
