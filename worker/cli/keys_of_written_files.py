"""Which key each file of a directory was written for: on the disk, because a bucket may have millions of keys."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class KeysOfFiles:
    """The key of each file, by its device and inode number. Memory does not grow with the number of files.

    They are in a temporary file that ends with the process. Each call raises OSError if that cannot be written.
    Safe for threads.
    """

    def __init__(self) -> None:
        """Begin without files."""
        self._lock = threading.Lock()
        # An empty name is a private database, which SQLite keeps on the disk beyond some MiB.
        self._table = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._table.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; "
            "CREATE TABLE placed (file TEXT PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID"
        )

    def owner(self, device: int, inode: int, key: str) -> str:
        """Return the key that a file was written for; record this one, and return it, if there is none yet."""
        file = f"{device}:{inode}"  # SQLite's integers hold no 64 bits without a sign
        with self._locked() as table:
            found = table.execute("SELECT owner FROM placed WHERE file = ?", (file,)).fetchone()
            if found is None:
                table.execute("INSERT INTO placed VALUES (?, ?)", (file, key))
            return str(found[0]) if found else key

    def replace(self, device: int, inode: int, key: str) -> None:
        """Record another key: the file that the numbers were for is gone, and the disk uses them again."""
        with self._locked() as table:
            table.execute("UPDATE placed SET owner = ? WHERE file = ?", (key, f"{device}:{inode}"))

    def close(self) -> None:
        """Remove the table."""
        self._table.close()

    @contextmanager
    def _locked(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._table
            except sqlite3.Error as error:
                raise OSError(f"the list of written files, in the temporary directory: {error}") from error
