"""A bundle's file on its way to its slot, from the fleet server, a URL or a file here; what is told of it."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

from edge_cl.commands import Release
from edge_cl.sync.fetch import Fetch
from edge_cl.sync.messages import InstallReport
from edge_cl.upgrade.comparison import Comparison

log = logging.getLogger(__name__)

MOST_CHUNKS = 16
"""That came and were not written yet."""


Phase: TypeAlias = Literal["fetched", "shadow", "committed", "rolled-back", "failed"]


def report_of(phase: Phase, release: Release, id: str, reason: str, seen: Comparison) -> InstallReport:
    """How far the installation that command `id` asked for is."""
    return InstallReport(
        id=id,
        sha256=release.sha256,
        bundle_id=release.bundle_id,
        phase=phase,
        reason=reason,
        n_readings=seen.n_readings,
        n_trusted=seen.n_trusted,
        accuracy_old=seen.accuracy_old,
        accuracy_new=seen.accuracy_new,
    )


class Delivery:
    """One file; all but `chunk` is called on the run loop's thread.

    Parameters
    ----------
    release
        What comes.
    path
        Where it is written.
    file
        Where it lies already on this machine; None when it has to be fetched.
    want
        Asks the fleet server for chunks: SHA-256, first, how many.
    clock
        Seconds that never go back.
    """

    def __init__(
        self,
        release: Release,
        path: Path,
        *,
        file: Path | None,
        want: Callable[[str, int, int], None],
        clock: Callable[[], float],
    ) -> None:
        self.release = release
        self._file, self._want, self._clock = file, want, clock
        self._chunks: queue.Queue[tuple[int, bytes]] = queue.Queue(MOST_CHUNKS)
        self.fetch = Fetch(release, path, self._ask, clock=clock)

    def chunk(self, begins: str, index: int, body: bytes) -> None:
        """A chunk of the file whose SHA-256 `begins` so came; from any thread. Too many at once are dropped:
        they are asked for again."""
        if not self.release.sha256.startswith(begins):
            return
        try:
            self._chunks.put_nowait((index, body))
        except queue.Full:
            log.info("a chunk came too soon and was dropped")

    def step(self, slice_s: float) -> None:
        """Write what came and ask for more, for about so long."""
        while self.fetch.state == "fetching" and not self._chunks.empty():
            self.fetch.chunk(*self._chunks.get_nowait())
        until_s = self._clock() + slice_s
        self.fetch.step()
        while self.fetch.state in ("looking", "checking") and self._clock() < until_s:
            self.fetch.step()

    def describe(self) -> str:
        """How far it is, for a person."""
        return f"{self.fetch.n_have:,} of {len(self.release.chunks):,} chunks are here"

    def _ask(self, first: int, n: int) -> None:
        if self._file is None:
            self._want(self.release.sha256, first, n)
            return
        try:
            with self._file.open("rb") as file:
                file.seek(first * self.release.chunk_bytes)
                for index in range(first, first + n):
                    self._chunks.put_nowait((index, file.read(self.release.chunk_bytes)))
        except OSError as error:
            self.fetch.fail(f"{self._file}: cannot be read ({error.strerror})")
