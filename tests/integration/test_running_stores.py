"""The stores that are measured: each run of a benchmark finds them as the run before did."""

from pathlib import Path

from azure.storage.blob import BlobServiceClient

from benchmarks.harness.running_stores import REAL, azure
from benchmarks.harness.transfer_in_process import BUCKET
from tests.conformance.targets import AZURITE_API
from tests.servers import Azurite

MORE_THAN_ONE_REQUEST_DELETES = 260


def test_an_emptied_store_keeps_only_what_is_no_artifact(tmp_path: Path) -> None:
    """`empty` deletes all artifacts, however many, and not the store's own records beside them."""
    with azure(tmp_path) as there:
        server = there.server
        assert isinstance(server, Azurite)
        with BlobServiceClient.from_connection_string(server.connection_string, api_version=AZURITE_API) as service:
            container = service.get_container_client(REAL)
            for number in range(MORE_THAN_ONE_REQUEST_DELETES):
                container.upload_blob(f"{BUCKET}/run/{number}", b"bytes")
            container.upload_blob("zot-store/identity", b"bytes")

            there.empty()

            assert list(container.list_blob_names()) == ["zot-store/identity"]
