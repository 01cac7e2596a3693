"""Where the facts of the report come from."""

from dataclasses import dataclass

from worker.catalogue import Catalogue
from worker.settings import Settings
from worker.storage.configured_stores import Stores


@dataclass(frozen=True, slots=True)
class Sources:
    """The settings, the catalogue, and the stores without admission control."""

    settings: Settings
    catalogue: Catalogue
    stores: Stores
