"""Sources of uploads: files under configured roots and URLs of configured hosts, and nothing else."""

from worker.artifacts.sources.errors import SourceRefused
from worker.artifacts.sources.open_source import (
    HashedSource,
    Source,
    open_source,
    remove_staged,
    remove_staged_directory,
)
from worker.artifacts.sources.partial_download import remove_partial

__all__ = [
    "HashedSource",
    "Source",
    "SourceRefused",
    "open_source",
    "remove_partial",
    "remove_staged",
    "remove_staged_directory",
]
