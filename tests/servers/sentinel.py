"""A Sentinel that watches one Valkey: the same program in another mode."""

from collections.abc import Sequence
from pathlib import Path

from tests.servers.valkey import Valkey, find_valkey

MASTER = "zot-master"


class Sentinel(Valkey):
    """A Sentinel of one master."""

    name = "sentinel"

    def __init__(self, directory: Path, master: int) -> None:
        super().__init__(directory)
        self._master = master

    def command(self) -> Sequence[str]:
        config = self.directory / "sentinel.conf"
        watched = f"sentinel monitor {MASTER} 127.0.0.1 {self._master} 1"
        config.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {self.directory}\n{watched}\n")
        return (find_valkey(), str(config), "--sentinel")
