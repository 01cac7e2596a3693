"""Run a command beside an S3 server: `python -m tests.servers s3 -- CMD ...`.

The command gets ZOT_DEMO_S3_ENDPOINT, ZOT_DEMO_S3_BUCKET, ZOT_DEMO_S3_DIR (where the objects are files),
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. The server ends with it; the exit status is the command's.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.servers.process import ServerFailed, ServerMissing
from tests.servers.s3 import RcloneS3

BUCKET = "artifacts"
USAGE = "usage: python -m tests.servers s3 -- CMD ..."


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status: 2 for wrong usage, 3 when there is no server."""
    if len(arguments) < 3 or arguments[:2] != ["s3", "--"]:
        print(USAGE, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the server ends in order
    try:
        with tempfile.TemporaryDirectory(prefix="zot-s3-") as directory, RcloneS3(Path(directory)) as server:
            (server.files / BUCKET).mkdir()
            return run_beside(server, arguments[2:])
    except (ServerMissing, ServerFailed) as error:
        print(f"no S3 server: {error}", file=sys.stderr)
        return 3


def run_beside(server: RcloneS3, command: list[str]) -> int:
    """Run a command that finds the server in its environment, and return its exit status."""
    environment = {
        **os.environ,
        "ZOT_DEMO_S3_ENDPOINT": server.endpoint,
        "ZOT_DEMO_S3_BUCKET": BUCKET,
        "ZOT_DEMO_S3_DIR": str(server.files),
        "AWS_ACCESS_KEY_ID": server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
    }
    environment.pop("AWS_SESSION_TOKEN", None)
    environment.pop("AWS_PROFILE", None)
    with subprocess.Popen(command, env=environment) as child:
        try:
            status = child.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the command too, which cleans up in its own time
            status = child.wait()
        except SystemExit:
            child.terminate()
            child.wait()
            raise
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
