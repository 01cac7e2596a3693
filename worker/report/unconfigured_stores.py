"""Stores that have copies in the catalogue and are not in the settings."""

from worker.report.sources import Sources


def unconfigured(sources: Sources) -> dict[str, dict[str, int]]:
    """Return the stores that have copies in the catalogue and are not in the settings, with their copies by state."""
    return sources.catalogue.store_records.unconfigured(sources.settings.stores)


def way_out_of_unconfigured(sources: Sources, name: str) -> str:
    """Return what to do about a store that has copies in the catalogue and is not in the settings."""
    other_way = f"add it to `stores` again, or `zot-artifacts stores forget {name} --dry-run`"
    return way_out_of_renamed(sources, name) or other_way


def way_out_of_renamed(sources: Sources, name: str) -> str | None:
    """Return what to do about a store that is in the settings by another name; None if it is not."""
    settings = sources.settings
    identities = sources.catalogue.store_identities(settings.stores)
    if renamed := identities.renamed_to(name):
        same = f"`{renamed}` in the settings is this very store"
        others = [each for each in settings.stores if each != renamed]
        if renamed not in sources.catalogue.store_records.unconfigured(others):
            return f"{same}: name it `{name}` again"
        return (
            f"{same}, and has copies by that name: `zot-artifacts catalogue rebuild --store {renamed}` records the "
            f"others, then `zot-artifacts stores forget {name}`"
        )
    return None
