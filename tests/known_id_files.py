"""The ids of stores without a catalogue."""

import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from shlex import quote

from worker.storage.identity import marker_of
from worker.storage.writer_record import WriterRecord


class KnownIdFiles:
    """The ids of stores (`KnownIds`) as files of one directory, `identity-NAME`: the catalogue keeps them otherwise."""

    def __init__(self, directory: Path, names: Iterable[str]) -> None:
        self._directory = directory
        self._names = tuple(names)

    def get(self, name: str) -> str | None:
        try:
            return self._file(name).read_text().strip() or None
        except FileNotFoundError:
            return None

    def put(self, name: str, store_id: str) -> None:
        temporary = self._directory / f".identity-{name}.{secrets.token_hex(4)}"
        temporary.write_text(f"{store_id}\n")
        temporary.replace(self._file(name))

    def put_place(self, name: str, place: str) -> None:
        """Record nothing: the files know no place."""

    def left_at(self, _place: str) -> str | None:
        return None

    def name_of(self, store_id: str) -> str | None:
        return next((name for name in self._names if (found := self.get(name)) and marker_of(found) == store_id), None)

    def others(self, name: str) -> Mapping[str, str]:
        return {other: found for other in self._names if other != name and (found := self.get(other))}

    def way_out(self, name: str) -> str:
        return f"`rm {quote(str(self._file(name)))}`"

    @property
    def catalogue(self) -> str | None:
        return None

    def refusal(self, _name: str, _writer: WriterRecord | None) -> str | None:
        return None

    def forget(self, name: str) -> None:
        """Remove the record of a store, if there is one."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._directory / f"identity-{name}"
