"""The start of the command line: `zot-artifacts --help` and `ls`, against a program of Typer that does nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL

from benchmarks.harness.processor_time import Run, timed, tool_seconds
from benchmarks.harness.result_rows import Row, Samples, Target
from benchmarks.harness.testbed import Testbed
from worker.catalogue import Catalogue

_BARE = """
import typer

app = typer.Typer()


@app.command()
def ls(prefix: str = "") -> None:
    print(prefix)


@app.command()
def status() -> None:
    print("good")


app()
"""
_LIMITS = {"--help": Target(2), "ls": Target(4)}


def measure(testbed: Testbed) -> Iterator[Row]:
    """Run both in turn, each a process of its own, from its start to its end; the first ones do not count."""
    bare = testbed.directory / "bare.py"
    bare.write_text(_BARE)
    home = testbed.directory / "home"
    (home / "main").mkdir(parents=True)
    Catalogue(f"sqlite:///{home / 'catalogue.sqlite3'}").close()
    stores = json.dumps({"main": {"type": "filesystem", "root": str(home / "main")}})
    # As for a user: both find their bytecode, which the first runs write.
    given = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**given, "ZOT_HOME": str(home), "ZOT_STORES": stores, "ZOT_PLACEMENT": '["main"]'}
    program = str(Path(sys.executable).with_name("zot-artifacts"))
    rounds = 4 if testbed.quick else 9
    for command, limit in _LIMITS.items():
        ours: list[Run] = []
        theirs: list[Run] = []
        for _ in range(1 + rounds):
            theirs.append(_run([sys.executable, str(bare), command], environment))
            ours.append(_run([program, command], environment))
        yield Row(f"`zot-artifacts {command}`, against bare Typer", _shown(ours[1:]), _shown(theirs[1:]), limit)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> Run:
    return timed(
        1, tool_seconds, lambda: subprocess.run(command, env=environment, stdout=DEVNULL, stderr=DEVNULL, check=True)
    )


def _shown(runs: Sequence[Run]) -> Samples:
    """Return the times of some processes, with their processor time."""
    processor = Samples([1000 * run.each for run in runs], " ms of the processor")
    return Samples([1000 / run.rate for run in runs], " ms", cost=str(processor))
