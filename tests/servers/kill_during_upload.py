"""Kill a worker in the middle of a multipart upload, and count the parts that are sent before and after."""

import re

from tests.servers.proxy import Request
from tests.servers.worker import Worker
from worker.storage.keys import PROBE_BUCKET


class Killing:
    """Decides for a `FaultyProxy` before an S3 server: every part passes; when so many have come, the worker is killed.

    Attributes:
        worker: who is to be killed, and None when that is done.
        passed: the numbers of the parts that came, in their order, those among them that the death cut off.
        sent: bytes of these parts, each counted whole.
    """

    def __init__(self, at: int) -> None:
        self.worker: Worker | None = None
        self.passed: list[int] = []
        self.sent = 0
        self._at = at

    def __call__(self, request: Request) -> None:
        found = re.search(r"partNumber=(\d+)", request.path)
        if request.method != "PUT" or not found or PROBE_BUCKET in request.path:
            return
        self.passed.append(int(found[1]))
        self.sent += int(next(value for name, value in request.headers.items() if name.lower() == "content-length"))
        if len(self.passed) == self._at and self.worker:
            self.worker.kill()
            self.worker = None
