"""Receipts and sleep reports on their way into the outbox, in the order of the journal, none left out.

Journal and outbox are two databases. In the transaction of each receipt the outbox notes the journal entry it
was of; whatever the journal has beyond that is made again from it.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_cl.records import Receipt, SleepReport
from edge_cl.sync import messages
from edge_cl.sync.outbox import Outbox
from edge_cl.sync.outbox_rows import Keep


class ReceiptLog:
    """Knows which journal entry's receipt was kept last."""

    def __init__(self, outbox: Outbox) -> None:
        self.behind = False
        """Receipts are missing; until they are made again from the journal, no newer one is taken."""
        self.catching_up = False
        """They are being made."""
        self._outbox = outbox
        self._history = ""

    @property
    def told_seq(self) -> int:
        """The newest journal entry whose receipt is in the outbox, or was."""
        return int(self._outbox.notes.get(f"receipts.{self._history}", "0"))

    def follow(self, history: str, committed_seq: int, sleeps: Sequence[SleepReport]) -> None:
        """Receipts and reports are of this history from now on: begin where its last ones were kept.

        A history that was never followed begins at its end.
        """
        self._history = history
        notes = self._outbox.notes
        if f"receipts.{history}" not in notes:
            self._outbox.note(f"receipts.{history}", str(committed_seq))
            self._outbox.note(f"sleeps.{history}", str(max((sleep.n_sleep for sleep in sleeps), default=0)))
        self.behind = self.told_seq < committed_seq
        told = int(notes.get(f"sleeps.{history}", "0"))
        for sleep in sleeps:
            if sleep.n_sleep > told:
                self.keep_sleep(sleep)

    def fall_behind(self) -> None:
        """One could not be taken."""
        self.behind = True

    def keep(self, receipt: Receipt) -> None:
        """One that was given now."""
        if not (receipt.seq and self._history):
            self._outbox.put("receipt", messages.encode(receipt), Keep.ALWAYS)
        elif not self.behind:
            self._keep_in_order([receipt])

    def keep_sleep(self, report: SleepReport) -> None:
        """The report of a sleep that ended now."""
        if self._outbox.put("sleep", messages.encode(report), Keep.WHILE_ROOM) and self._history:
            self._outbox.note(f"sleeps.{self._history}", str(report.n_sleep))

    def catch_up(self, receipts: Sequence[Receipt]) -> None:
        """Those made from the journal, the next after `told_seq`; none when there are no more."""
        self.behind = bool(receipts)
        self._keep_in_order(receipts)
        self.catching_up = False

    def _keep_in_order(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            if not self._outbox.put("receipt", messages.encode(receipt), Keep.ALWAYS):
                self.behind = True
                return
            self._outbox.note(f"receipts.{self._history}", str(receipt.seq))
