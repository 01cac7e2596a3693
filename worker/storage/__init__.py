"""Stores and the backends behind them; this package knows neither Celery nor the settings nor the catalogue."""

from worker.storage.config import AzureConfig, FilesystemConfig, GcsConfig, S3Config, StoreConfig
from worker.storage.configured_stores import Stores
from worker.storage.driver import Capabilities, Condition, Digest, ListedObject, Match, ObjectStat, StaleUpload
from worker.storage.integrity.verdict import Verdict, Verification
from worker.storage.integrity.verifying_reader import VerifiedReader
from worker.storage.store import Store

__all__ = [
    "AzureConfig",
    "Capabilities",
    "Condition",
    "Digest",
    "FilesystemConfig",
    "GcsConfig",
    "ListedObject",
    "Match",
    "ObjectStat",
    "S3Config",
    "StaleUpload",
    "Store",
    "StoreConfig",
    "Stores",
    "Verdict",
    "Verification",
    "VerifiedReader",
]
