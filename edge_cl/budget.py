"""The byte ledger: who may hold how much, and who holds how much now."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edge_cl.errors import BudgetExceeded

MIB = 1024 * 1024


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Hard limits for what learning may hold.

    Attributes
    ----------
    ram_bytes
        For everything that grows with use: the head, the replay memory, pending features and
        queues. The interpreter, the libraries and the encoder (about 55 MB with onnxruntime)
        are outside it: they do not grow.
    disk_bytes
        For the state folder: journal, snapshots and outbox.
    """

    ram_bytes: int = 16 * MIB
    disk_bytes: int = 64 * MIB


class Ledger:
    """Adds up what every holder says it holds and refuses what does not fit.

    >>> ledger = Ledger(1000)
    >>> ledger.register("head", lambda: 600)
    >>> ledger.held_bytes, ledger.free_bytes
    (600, 400)
    >>> ledger.require("memory", 500)
    Traceback (most recent call last):
    ...
    edge_cl.errors.BudgetExceeded: memory needs 500 bytes, but 400 of the budget's 1,000 are free ...
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._holders: dict[str, Callable[[], int]] = {}

    def register(self, name: str, nbytes: Callable[[], int]) -> None:
        """Add a holder; `nbytes()` must say what it holds now."""
        self._holders[name] = nbytes

    def release(self, name: str) -> None:
        """Remove a holder; one that is not there is none."""
        self._holders.pop(name, None)

    def held(self) -> dict[str, int]:
        """Bytes held now, by holder."""
        return {name: nbytes() for name, nbytes in self._holders.items()}

    @property
    def held_bytes(self) -> int:
        """Bytes held now, all holders together."""
        return sum(self.held().values())

    @property
    def free_bytes(self) -> int:
        """Bytes that may still be taken (negative when over)."""
        return self.capacity_bytes - self.held_bytes

    def require(self, name: str, nbytes: int) -> None:
        """Raise `BudgetExceeded` unless `nbytes` more fit."""
        if nbytes <= self.free_bytes:
            return
        holders = ", ".join(f"{who} holds {n:,}" for who, n in self.held().items()) or "nobody holds any"
        raise BudgetExceeded(
            f"{name} needs {nbytes:,} bytes, but {self.free_bytes:,} of the budget's {self.capacity_bytes:,} "
            f"are free ({holders}); raise the budget or choose a smaller head"
        )
