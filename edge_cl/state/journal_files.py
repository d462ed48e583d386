"""Files beside the journal: how far it was committed, and its log while the database is opened."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from edge_cl.errors import StateUnwritable


class Mark:
    """How far the journal was committed, in a file that is written over and never synced.

    A power cut may leave an older number there, never a newer one, so it costs no fsync and still tells
    when committed entries have gone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StateUnwritable(f"{path}: cannot be opened ({error.strerror})") from error

    def read(self) -> int | None:
        """The number, 0 when there is none yet, None when it is damaged."""
        raw = os.pread(self._file, 13, 0)
        if not raw.strip(b"\0"):
            return 0
        if len(raw) != 12 or zlib.crc32(raw[:8]) != struct.unpack_from("<I", raw, 8)[0]:
            return None
        return int(struct.unpack_from("<Q", raw)[0])

    def write(self, seq: int) -> None:
        """Note a number; a disk that takes nothing leaves the one before."""
        number = struct.pack("<Q", seq)
        with contextlib.suppress(OSError):  # a full disk has its say at the next commit
            os.pwrite(self._file, number + struct.pack("<I", zlib.crc32(number)), 0)

    def close(self) -> None:
        """Let the file go; again does no harm."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


@contextlib.contextmanager
def log_kept(path: Path) -> Iterator[None]:
    """Should the database not open, its write-ahead log stays.

    SQLite deletes it on closing when its index could not be made (a full disk, SQLite 3.40), committed
    entries and all.
    """
    log, spare = path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-wal.spare")
    with contextlib.suppress(OSError):
        if spare.exists() and not log.exists():  # the last try could not even rename it back
            spare.rename(log)
        spare.unlink(missing_ok=True)
        spare.hardlink_to(log)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            spare.unlink() if log.exists() else spare.rename(log)
        raise
    try:
        spare.unlink(missing_ok=True)
    except OSError as error:  # it must never be there when the log has moved on
        raise StateUnwritable(f"{spare}: cannot be removed ({error.strerror}); check the card") from error
