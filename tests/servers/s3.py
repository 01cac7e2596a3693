"""Two servers that speak S3: one right in its semantics, one with real signatures and real files."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers.http_server import HttpServer
from tests.servers.process import find_server


class S3Server(HttpServer):
    """What both have in common: an endpoint, and the credentials that it was started with."""

    access_key_id = "test"
    secret_access_key = "test"


class Ministack(S3Server):
    """Right about conditions, multipart and errors; accepts any credentials; keeps everything in memory."""

    name = "ministack"

    def command(self) -> Sequence[str]:
        return (find_server("ministack"),)

    def environment(self) -> Mapping[str, str]:
        return {
            "SERVICES": "s3",
            "BIND_HOST": "127.0.0.1",
            "MINISTACK_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(self.port),
            "S3_PERSIST": "0",
        }


class RcloneS3(S3Server):
    """Checks signatures and keeps each object as the file `files/bucket/key`; knows no conditions."""

    name = "rclone"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.files = directory / "files"
        self.access_key_id = secrets.token_hex(8)
        self.secret_access_key = secrets.token_hex(16)
        self.next_key = (secrets.token_hex(8), secrets.token_hex(16))
        """Another key of the same account, as there are two while one is rotated."""

    def command(self) -> Sequence[str]:
        self.files.mkdir(parents=True, exist_ok=True)
        address = f"127.0.0.1:{self.port}"
        fresh = ("--dir-cache-time", "1ms")  # or it goes on answering from memory when another process changes a file
        return (find_server("rclone"), "serve", "s3", "--addr", address, *fresh, str(self.files))

    def environment(self) -> Mapping[str, str]:
        # Not as an argument, which every process can see. In quotes, because rclone reads this one as a list.
        keys = ",".join(f'"{id_},{key}"' for id_, key in ((self.access_key_id, self.secret_access_key), self.next_key))
        return {"RCLONE_CONFIG": "/dev/null", "RCLONE_AUTH_KEY": keys}
