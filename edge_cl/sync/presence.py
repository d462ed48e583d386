"""What a device says of itself: births, wills, farewells, its state. Builds messages; sends nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from edge_cl.records import Status
from edge_cl.sync import messages
from edge_cl.sync.outbox import Outbox


class Bearing:
    """The newest word on the device, and the messages that tell it."""

    def __init__(self, outbox: Outbox) -> None:
        self.is_new = False
        """True while the newest state was not sent."""
        self.reported: Mapping[str, Any] = {}
        """Settings that a server may change, as they are now."""
        self._outbox = outbox
        self._since_s = time.time()
        self._status: Status | None = None
        self._installing = ""

    def note_status(self, status: Status) -> bool:
        """The newest state; True when the birth has to be said anew: another bundle, or another head."""
        before, self._status, self.is_new = self._status, status, True
        return before is None or (before.bundle_id, before.head) != (status.bundle_id, status.head)

    def note_install(self, report: messages.InstallReport) -> None:
        """An installation goes on, or has ended."""
        self._installing = report.bundle_id if report.phase in ("fetched", "shadow") else ""
        self.again()

    def again(self) -> None:
        """Nobody may know the state: it is new."""
        self.is_new = self._status is not None

    def birth(self) -> bytes:
        """It is there."""
        status = self._status
        return messages.encode(
            messages.Presence(
                online=True,
                boot_id=self._outbox.boot_id,
                session=self._outbox.session,
                seq=self._outbox.seq,
                bundle_id=status.bundle_id if status else "",
                head=status.head if status else "",
                head_hash=status.state_hash if status else "",
                since_s=self._since_s,
            )
        )

    def end(self, session: int, reason: str) -> bytes:
        """It is gone: ``stopped`` by itself, or ``lost``."""
        boot_id = self._outbox.boot_id
        return messages.encode(
            messages.Presence(online=False, boot_id=boot_id, session=session, reason=reason)
        )

    def take_state(self) -> bytes | None:
        """The newest state when it was not sent; it counts as sent."""
        if not self.is_new or self._status is None:
            return None
        self.is_new = False
        return messages.encode(
            messages.State(
                boot_id=self._outbox.boot_id,
                session=self._outbox.session,
                up_s=round(self._outbox.up_s, 3),
                status=self._status,
                settings=dict(self.reported),
                installing=self._installing,
            )
        )
