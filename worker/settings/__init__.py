"""The settings: one frozen model, read from a file and the environment."""

from worker.settings.model import Settings, SettingsError, load_settings

__all__ = ["Settings", "SettingsError", "load_settings"]
