"""Make the pages of a store's listings small, so that a few objects fill several of them."""

from typing import Any

import pytest
from botocore.client import BaseClient
from google.cloud.storage._http import Connection

from worker.storage.azure import driver as azure_driver

SMALL = 10
"""Objects on a page. The clouds give 1,000, and a test that writes so many takes a minute."""


def make_pages_small(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Ask for small pages; return the list to which each request to a cloud for one is added."""
    asked: list[object] = []
    for limit in (_s3, _gcs, _azure):
        limit(asked, monkeypatch)
    monkeypatch.setattr("worker.storage.filesystem.listing._BATCH", SMALL)
    return asked


def _s3(asked: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    call = BaseClient._make_api_call

    def make_api_call(self: BaseClient, operation: str, params: dict[str, Any]) -> Any:
        if operation == "ListObjectsV2":
            params.setdefault("MaxKeys", SMALL)
            asked.append(params)
        return call(self, operation, params)

    monkeypatch.setattr(BaseClient, "_make_api_call", make_api_call)


def _gcs(asked: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    request = Connection.api_request

    def api_request(self: Connection, *args: Any, **named: Any) -> Any:
        if str(named.get("path")).endswith("/o") and named["method"] == "GET":
            named["query_params"].setdefault("maxResults", SMALL)
            asked.append(named)
        return request(self, *args, **named)

    monkeypatch.setattr(Connection, "api_request", api_request)


def _azure(asked: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    clean = azure_driver._clean_page

    def clean_page(reply: Any) -> None:
        asked.append(reply)
        clean(reply)

    monkeypatch.setattr(azure_driver, "_PAGE", SMALL)
    monkeypatch.setattr(azure_driver, "_clean_page", clean_page)
