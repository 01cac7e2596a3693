"""The settings: one frozen model, read from a file and the environment."""

from worker.settings.loading import load_settings, stores_in_file
from worker.settings.model import Settings, SettingsError

__all__ = ["Settings", "SettingsError", "load_settings", "stores_in_file"]
