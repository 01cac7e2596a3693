"""Sources of uploads: files under configured roots and URLs of configured hosts, and nothing else."""

from worker.artifacts.sources.errors import SourceRefused
from worker.artifacts.sources.partial import remove_partial
from worker.artifacts.sources.source import (
    Source,
    open_source,
    remove_staged,
    remove_staged_directory,
    staged_directory,
)

__all__ = [
    "Source",
    "SourceRefused",
    "open_source",
    "remove_partial",
    "remove_staged",
    "remove_staged_directory",
    "staged_directory",
]
