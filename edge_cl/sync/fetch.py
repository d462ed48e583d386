"""Fetching a bundle file: in chunks that somebody is asked for, or from a URL; resumed after any cut.

Nothing is noted of how far it is: which chunks are there is found out from their hashes.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from edge_cl.commands import Release
from edge_cl.release import chunk_hash

AT_ONCE = 8
"""Chunks asked for at a time."""
ASK_AGAIN_S = 20.0
MOST_FAILURES = 3
"""Of the whole, of one chunk, or of the URL."""
PIECE_BYTES = 64 * 1024
RETRY_S = (5.0, 600.0)
"""Before a URL that cannot be reached is tried again: first, and at most."""
TIMEOUT_S = 30.0

State = Literal["looking", "fetching", "checking", "done", "failed"]


class Fetch:
    """One file on its way. All calls come from one thread, in small steps; only a URL is read in another.

    Parameters
    ----------
    release
        What it must become.
    path
        Where it grows; what is there already is used.
    want
        Asks for chunks `first` to `first + n - 1`, which then come by `chunk`; may be lost.
    clock
        Seconds that never go back.
    """

    def __init__(
        self,
        release: Release,
        path: Path,
        want: Callable[[int, int], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.release, self._path, self._want, self._clock = release, path, want, clock
        self.state: State = "looking"
        self.reason = ""
        """Why it failed."""
        self.n_dropped = 0
        """Chunks that were not what was asked for."""
        self._missing = dict.fromkeys(range(len(release.chunks)))
        self._asked: set[int] = set()
        self._next = 0
        self._ask_at_s = 0.0
        self._bad: Counter[object] = Counter()
        self._download: _Download | None = None
        self._retry_s = RETRY_S[0]
        self._file: BinaryIO | None = None
        self._work: Iterator[None] = self._look()

    @property
    def n_have(self) -> int:
        """Chunks that are there."""
        return len(self.release.chunks) - len(self._missing)

    def step(self) -> None:
        """Do a little of what is to be done: look, ask, check. Milliseconds."""
        try:
            if self.state in ("looking", "checking"):
                next(self._work, None)
            elif self.state == "fetching":
                self._follow_url() if self.release.url else self._ask()
        except OSError as error:
            self.fail(f"{self._path}: cannot be written ({error.strerror}); free some disk or check the card")

    def chunk(self, index: int, body: bytes) -> None:
        """A chunk came. What was not missing, or is not what it should be, is dropped and counted."""
        if self.state != "fetching" or index not in self._missing:
            self.n_dropped += 1
            return
        if len(body) != self._length(index) or chunk_hash(body) != self.release.chunks[index]:
            self.n_dropped += 1
            self._asked.discard(index)
            self._count(index, f"chunk {index} of {len(self.release.chunks)} came damaged or truncated")
            return
        try:
            file = self._opened()
            file.seek(index * self.release.chunk_bytes)
            file.write(body)
        except OSError as error:
            self.fail(f"{self._path}: cannot be written ({error.strerror}); free some disk or check the card")
            return
        del self._missing[index]
        self._asked.discard(index)
        if not self._missing:
            self._check()

    def close(self) -> None:
        """Stop; what is there stays for the next time."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._download is not None:
            self._download.stop()

    # ------------------------------------------------------------------ chunks

    def _length(self, index: int) -> int:
        return min(self.release.chunk_bytes, self.release.size - index * self.release.chunk_bytes)

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._file = self._path.open("r+b" if self._path.exists() else "w+b")
        return self._file

    def _look(self) -> Iterator[None]:
        """Which chunks are there already; a piece for each."""
        if self._path.exists():
            file = self._opened()
            if os.fstat(file.fileno()).st_size > self.release.size:
                file.truncate(self.release.size)
            for index in range(len(self.release.chunks)):
                file.seek(index * self.release.chunk_bytes)
                body = file.read(self._length(index))
                if not body:
                    break
                if chunk_hash(body) == self.release.chunks[index]:
                    del self._missing[index]
                yield
        self.state = "fetching"
        if not self._missing:
            self._check()

    def _ask(self) -> None:
        late = self._clock() >= self._ask_at_s
        if self._asked and not late:
            return
        order = sorted(self._missing, key=lambda index: (index < self._next, index))[:AT_ONCE]
        self._next = order[-1] + 1  # one that never comes does not keep the others waiting
        self._asked = set(order)
        self._ask_at_s = self._clock() + ASK_AGAIN_S
        while order:
            n = next((k for k in range(1, len(order)) if order[k] != order[0] + k), len(order))
            self._want(order[0], n)
            order = order[n:]

    # ------------------------------------------------------------------ a URL

    def _follow_url(self) -> None:
        if self._download is None:
            if self._clock() >= self._ask_at_s:
                self._download = _Download(self.release, self._path)
            return
        if self._download.running:
            return
        download, self._download = self._download, None
        if download.whole:
            self._check()
            return
        self._ask_at_s = self._clock() + self._retry_s
        self._retry_s = min(2 * self._retry_s, RETRY_S[1])
        if download.refused:
            self._count("url", download.refused)

    # ------------------------------------------------------------------ the whole

    def _check(self) -> None:
        self.state, self._work = "checking", self._whole()

    def _whole(self) -> Iterator[None]:
        file = self._opened()
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        found, size = hashlib.sha256(), 0
        while piece := file.read(PIECE_BYTES):
            found.update(piece)
            size += len(piece)
            yield
        if (found.hexdigest(), size) == (self.release.sha256, self.release.size):
            self.close()
            self.state = "done"
            return
        file.truncate(0)
        self._missing = dict.fromkeys(range(len(self.release.chunks)))
        self._asked, self.state = set(), "fetching"
        self._count(
            "whole", f"the file has SHA-256 {found.hexdigest()[:12]}…, not {self.release.sha256[:12]}…"
        )

    def _count(self, what: object, problem: str) -> None:
        self._bad[what] += 1
        if self._bad[what] >= MOST_FAILURES:
            self.fail(f"{problem}, {MOST_FAILURES} times; add the bundle to the fleet again")

    def fail(self, reason: str) -> None:
        """Give up."""
        self.close()
        self.state, self.reason = "failed", reason


class _Download:
    """Reads a URL into a file in a thread, from where the file ends."""

    def __init__(self, release: Release, path: Path) -> None:
        self._release, self._path = release, path
        self.whole = False
        self.refused = ""
        """What the server said that another try will hardly change."""
        self._stopped = False
        self._thread = threading.Thread(target=self._read, name="edge-cl-fetch", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self._stopped = True
        self._thread.join(2.0)

    def _read(self) -> None:
        from http.client import HTTPException  # a device that is never upgraded this way loads none of it
        from urllib.error import HTTPError

        try:
            self._resume()
        except HTTPError as error:
            self.refused = f"{self._release.url}: the server answered {error.code} {error.reason}"
        except (OSError, HTTPException, ValueError):
            return  # not reached, or cut: tried again later

    def _resume(self) -> None:
        from urllib.request import Request, urlopen

        release = self._release
        if not release.url.startswith(("https://", "http://")):
            self.refused = f"{release.url}: not a URL that bundles are fetched from; use https://"
            return
        have = self._path.stat().st_size if self._path.exists() else 0
        if have >= release.size:
            self.whole = True
            return
        request = Request(release.url, headers={"Range": f"bytes={have}-"} if have else {})
        with urlopen(request, timeout=TIMEOUT_S) as answer:
            mode = "ab" if have and answer.status == 206 else "wb"
            have = have if mode == "ab" else 0
            with self._path.open(mode) as file:
                while not self._stopped and (piece := answer.read(PIECE_BYTES)):
                    have += len(piece)
                    if have > release.size:
                        self.refused = f"{release.url}: longer than the {release.size:,} bytes it should have"
                        file.truncate(0)
                        return
                    file.write(piece)
        self.whole = have == release.size
