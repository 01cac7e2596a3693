"""Which key each file of a directory was written for: on the disk, because a bucket may have millions of keys."""

import sqlite3
import threading


class PlacedFiles:
    """The key of each file, by the numbers that the disk has for it. Memory does not grow with their number.

    Its table is in a temporary file that ends with the process. It is safe in several threads.
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
        """Return the key that a file was placed for; that is this one if it was placed for none."""
        file = f"{device}:{inode}"  # SQLite's integers hold no 64 bits without a sign
        with self._lock:
            found = self._table.execute("SELECT owner FROM placed WHERE file = ?", (file,)).fetchone()
            if found is None:
                self._table.execute("INSERT INTO placed VALUES (?, ?)", (file, key))
            return str(found[0]) if found else key

    def replace(self, device: int, inode: int, key: str) -> None:
        """Record another key: the file that the numbers were for is gone, and the disk uses them again."""
        with self._lock:
            self._table.execute("UPDATE placed SET owner = ? WHERE file = ?", (key, f"{device}:{inode}"))

    def close(self) -> None:
        """Remove the table."""
        self._table.close()
