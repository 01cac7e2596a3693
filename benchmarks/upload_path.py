"""Count the functions and modules of ours that one 1 KiB upload passes through: `python -m benchmarks.upload_path`.

A real worker runs six uploads to one directory store; the last one is traced, in the worker's main process and in its
child, from the message to the acknowledgement. Code of `worker/` and `tasks/` counts; comprehensions, lambdas and the
bodies of classes do not. The functions are printed in the order of their first call.
"""

import mmap
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType

from tests.servers.process import REPOSITORY
from tests.servers.valkey import Valkey
from tests.servers.worker import Worker
from zot_artifact_client import ArtifactClient

_DIRECTORY = "ZOT_UPLOAD_PATH"
_ROOTS = (f"{REPOSITORY}/worker/", f"{REPOSITORY}/tasks/")
_UPLOADS = 6
_ACKNOWLEDGED_WITHIN = 0.5
"""Seconds after the result within which the worker acknowledges the message."""


class TracedWorker(Worker):
    """`celery -A worker.app worker`, which notes each function of ours when it is told to."""

    name = "traced-worker"

    def command(self) -> Sequence[str]:
        return (sys.executable, "-m", "benchmarks.upload_path", *super().command()[3:])

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), _DIRECTORY: str(self.directory)}


def trace(directory: Path) -> None:
    """Append the name of each function that is called in this process and its children, while the switch is on."""
    switch = _switch(directory)
    noted = os.open(directory / "noted", os.O_WRONLY | os.O_APPEND)
    seen: set[CodeType] = set()

    def profile(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not switch[0] or code in seen:
            return
        seen.add(code)
        if code.co_filename.startswith(_ROOTS) and not code.co_name.startswith("<") and code.co_flags & 2:
            name = f"{Path(code.co_filename).relative_to(REPOSITORY)} {code.co_qualname}\n"
            os.write(noted, name.encode())

    sys.setprofile(profile)


def _switch(directory: Path) -> mmap.mmap:
    with (directory / "switch").open("r+b") as file:
        return mmap.mmap(file.fileno(), 1)


def main() -> None:
    """Run the uploads, and print what the last one passed through."""
    with tempfile.TemporaryDirectory() as name, Valkey(Path(name, "valkey")) as valkey:
        directory = Path(name, "worker")
        directory.mkdir()
        (directory / "switch").write_bytes(b"\0")
        (directory / "noted").touch()
        switch = _switch(directory)
        incoming = Path(name, "incoming")
        incoming.mkdir()
        source = incoming / "source"
        settings = {"sources__roots": f'["{incoming}"]', "sweep__verify__enabled": "false"}
        with (
            TracedWorker(directory, valkey.url, concurrency=1, fork=False, **settings),
            ArtifactClient(valkey.url) as client,
        ):
            for number in range(_UPLOADS):
                source.write_bytes(os.urandom(1024))
                switch[0] = number == _UPLOADS - 1
                client.upload(source, "releases", f"app/{number}", stores=["primary"]).wait(60)
            time.sleep(_ACKNOWLEDGED_WITHIN)
            switch[0] = False
        noted = list(dict.fromkeys((directory / "noted").read_text().splitlines()))
    for line in noted:
        print(line)
    modules = Counter(line.split()[0] for line in noted)
    for module, functions in modules.most_common():
        print(f"{functions:4} {module}")
    print(f"{len(noted)} functions in {len(modules)} modules")


if __name__ == "__main__":
    if directory := os.environ.pop(_DIRECTORY, None):
        trace(Path(directory))
        from celery.__main__ import main as celery

        sys.exit(celery())
    main()
