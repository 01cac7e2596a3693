"""A server that is ready when it answers HTTP."""

import http.client
from typing import ClassVar

from tests.servers.process import Server


class HttpServer(Server):
    """What the emulators of clouds have in common."""

    ready_path: ClassVar[str] = "/"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def probe(self) -> None:
        """Return when it answers HTTP, whatever it answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", self.ready_path)
            connection.getresponse().read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()
