"""Answers devices that ask for pieces of a bundle: on a thread of its own, so storing never waits for it."""

from __future__ import annotations

import logging
import queue
import re
import threading
import time

from sqlalchemy import select

from edge_cl.errors import StoreUnavailable
from edge_cl.sync.messages import CHUNK_BYTES, Want
from edge_cl_fleet import tables
from edge_cl_fleet.arrivals import Source
from edge_cl_fleet.connection import Publish
from edge_cl_fleet.database import guarded
from edge_cl_fleet.store import FleetStore

MAX_CHUNKS = 8
"""Sent for one `Want`; the device asks again for what it lacks."""
MAX_WAITING = 1_000
_SHA256 = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger(__name__)


class ChunkServer:
    """Sends chunks from the table ``bundles``, one `Want` after the other."""

    def __init__(self, store: FleetStore, publish: Publish) -> None:
        self.n_sent = 0
        self._store, self._publish = store, publish
        self._kept = ("", b"")
        self._wants: queue.Queue[tuple[Source, Want] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="fleet-chunks", daemon=True)

    def wanted(self, source: Source, want: Want) -> None:
        """Answer soon; beyond a full queue not at all, the device asks again."""
        if _SHA256.fullmatch(want.sha256) and 0 <= want.first < 2**31 and want.n > 0:
            try:
                self._wants.put_nowait((source, want))
            except queue.Full:
                log.warning(
                    "too many ask for chunks at once; %s/%s will ask again", source.site, source.device
                )

    def start(self) -> None:
        """Begin answering."""
        self._thread.start()

    def stop(self) -> None:
        """End; who still waits asks another worker."""
        try:
            self._wants.put_nowait(None)
        except queue.Full:
            return  # a daemon: it ends with the process
        self._thread.join(5.0)

    def answer(self, source: Source, want: Want) -> None:
        """Send what is asked for, as far as there is such a bundle."""
        body = self._body(want.sha256)
        for index in range(want.first, want.first + min(want.n, MAX_CHUNKS)):
            chunk = body[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
            if not chunk:
                return
            topic = f"edgecl/1/{source.site}/{source.device}/cmd/chunk/{want.sha256[:16]}/{index}"
            if self._publish(topic, chunk, qos=1, expires_s=60):
                self.n_sent += 1

    def _body(self, sha256: str) -> bytes:
        # The last one stays in memory: a rollout's devices all ask for the same.
        if self._kept[0] != sha256:
            bundles = tables.bundles.c
            with guarded(self._store.engine), self._store.reading.connect() as connection:
                found = connection.execute(select(bundles.body).where(bundles.sha256 == sha256)).scalar()
            if found is None:
                return b""
            self._kept = sha256, bytes(found)
        return self._kept[1]

    def _run(self) -> None:
        while (asked := self._wants.get()) is not None:
            try:
                self.answer(*asked)
            except StoreUnavailable as error:
                log.error("%s; the device will ask again", error)
                time.sleep(1.0)
