"""The stores of one process, which its threads open as they need them."""

import subprocess
import sys

_ALL_AT_ONCE = """
import threading
from concurrent.futures import ThreadPoolExecutor
from worker.storage import AzureConfig, GcsConfig, S3Config
from worker.storage.configured_stores import Stores

stores = Stores({
    "s3": S3Config(bucket="real"),
    "gcs": GcsConfig(bucket="real"),
    "azure": AzureConfig(account_url="https://acme.blob.core.windows.net", container="real"),
})
together = threading.Barrier(6)

def use(name):
    together.wait()
    return stores._driver(name)

with ThreadPoolExecutor(6) as pool:
    opened = list(pool.map(use, [*stores, *stores]))
print(*(first is second for first, second in zip(opened[:3], opened[3:], strict=True)))
"""


def test_threads_of_a_new_process_open_all_clouds_at_once() -> None:
    """Two imports of one library that wait for each other get half of it, so no two stores are opened at a time."""
    done = subprocess.run([sys.executable, "-c", _ALL_AT_ONCE], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("True True True", "")
