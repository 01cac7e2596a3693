"""The gateway as its own process: `zot-artifacts serve`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers.forks import PythonServer
from tests.servers.process import REPOSITORY


class GatewayProcess(PythonServer):
    """`zot-artifacts serve` on a data directory, which a worker may share."""

    name = "gateway"

    def __init__(self, directory: Path, home: Path, broker: str, **settings: str) -> None:
        super().__init__(directory)
        ours = {f"ZOT_{name.upper()}": value for name, value in settings.items()}
        self._settings = {"ZOT_HOME": str(home), "ZOT_BROKER": broker, "PYTHONPATH": str(REPOSITORY)} | ours

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Return what it has said so far."""
        return self._log_path.read_text(errors="replace")

    def command(self) -> Sequence[str]:
        return (sys.executable, "-m", "worker.cli", "serve", "--port", str(self.port))

    def environment(self) -> Mapping[str, str]:
        return self._settings
