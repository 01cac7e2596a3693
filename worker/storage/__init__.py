"""Stores and the backends behind them. Knows neither Celery nor the settings nor the catalogue."""

from worker.storage.config import AzureConfig, FilesystemConfig, GcsConfig, S3Config, StoreConfig
from worker.storage.driver import Capabilities, Condition, Digest, ListedObject, Match, ObjectStat, Unfinished
from worker.storage.registry import Stores, open_store
from worker.storage.store import Store
from worker.storage.verdict import Verdict, Verification
from worker.storage.verifying import VerifiedReader

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
    "Store",
    "StoreConfig",
    "Stores",
    "Unfinished",
    "Verdict",
    "Verification",
    "VerifiedReader",
    "open_store",
]
