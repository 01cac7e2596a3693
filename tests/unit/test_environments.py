"""The environments of this repository are made also where a program starts them with little of an environment."""

from pathlib import Path

import pytest

from tools.environments import npm_settings


@pytest.mark.parametrize("home", [None, "", "/nonexistent"])
def test_npm_keeps_its_cache_in_the_environment_without_a_home(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Npm would make a directory `~` in the one that it fills; with a home directory it keeps the cache of the user."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "npm_config_cache" not in npm_settings(tmp_path / "azurite")
    if home is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", home)
    assert npm_settings(tmp_path / "azurite")["npm_config_cache"] == str(tmp_path / "azurite" / "npm-cache")
