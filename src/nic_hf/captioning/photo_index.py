"""Which photos a run has met, and where their captions are: on disk, so that memory does not grow with them."""

import hashlib
import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

Key = tuple[int, int]

_TABLES = """
CREATE TABLE photos (digest BLOB PRIMARY KEY, source INTEGER, place INTEGER) WITHOUT ROWID;
CREATE TABLE noted (digest BLOB PRIMARY KEY, source INTEGER, place INTEGER) WITHOUT ROWID;
CREATE TABLE records (number INTEGER PRIMARY KEY, digest BLOB UNIQUE, source INTEGER, place INTEGER,
                      part INTEGER, offset INTEGER);
"""
_IN_ORDER = """
SELECT part, offset FROM records LEFT JOIN photos USING (digest) LEFT JOIN noted USING (digest)
ORDER BY coalesce(photos.source, noted.source, records.source, -1),
         coalesce(photos.place, noted.place, records.place, number), number
"""


class PhotoIndex:
    """Photos by their ids, of which a digest of 12 bytes is kept, in a temporary file that SQLite removes.

    Used by one thread at a time.

    Raises:
        OSError: from all methods, where the temporary file cannot grow.
    """

    def __init__(self) -> None:
        with _as_os_error():
            # Without a name it is private, in memory until it outgrows the cache of 2 MB.
            self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            weakref.finalize(self, self._database.close)
            self._database.execute("PRAGMA journal_mode = OFF")
            self._database.executescript(_TABLES)
            self._database.execute("BEGIN")  # one transaction, never ended: nothing is to last

    def __contains__(self, image_id: str) -> bool:
        query = "SELECT 1 FROM photos WHERE digest = ?"
        with _as_os_error():
            return self._database.execute(query, (id_digest(image_id),)).fetchone() is not None

    def __len__(self) -> int:
        with _as_os_error():
            return self._database.execute("SELECT count(*) FROM photos").fetchone()[0]

    def add(self, image_id: str, key: Key = (-1, -1)) -> bool:
        """Take a photo, with its place in the sources; False where it was met before."""
        query = "INSERT OR IGNORE INTO photos VALUES (?, ?, ?)"
        with _as_os_error():
            return self._database.execute(query, (id_digest(image_id), *key)).rowcount == 1

    def note(self, image_id: str, key: Key) -> None:
        """Another process or an earlier run met a photo at this place; the last note counts, and [`add`] before it."""
        with _as_os_error():
            self._database.execute("INSERT OR REPLACE INTO noted VALUES (?, ?, ?)", (id_digest(image_id), *key))

    def add_record(self, image_id: str, key: Key | None, part: int, offset: int) -> None:
        """The captions of a photo lie at `offset` of file number `part`; a photo's first record counts.

        `key` is its place according to the record itself. What has none and was never met goes in front.
        """
        query = "INSERT OR IGNORE INTO records (digest, source, place, part, offset) VALUES (?, ?, ?, ?, ?)"
        with _as_os_error():
            self._database.execute(query, (id_digest(image_id), *(key or (None, None)), part, offset))

    def records(self) -> Iterator[tuple[int, int]]:
        """Part and offset of each record, in the order of the photos."""
        with _as_os_error():
            yield from self._database.execute(_IN_ORDER)

    def records_are_in_order(self) -> bool:
        """Whether the records were added in the order of the photos."""
        return all(before < after for before, after in pairwise(self.records()))


def id_digest(image_id: str) -> bytes:
    """Stands for an id, where there are millions."""
    return hashlib.blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=12).digest()


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(f"cannot keep the list of photos in the folder for temporary files: {error}") from error
