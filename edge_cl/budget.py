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

    Parameters
    ----------
    capacity_bytes
        The budget.
    setting
        The key that raises it, for messages: there is one ledger for RAM and one for disk.

    >>> ledger = Ledger(1000)
    >>> ledger.register("head", lambda: 600)
    >>> ledger.held_bytes, ledger.free_bytes
    (600, 400)
    >>> ledger.require("memory", 500)
    Traceback (most recent call last):
    ...
    edge_cl.errors.BudgetExceeded: memory needs 500 bytes, but 400 of the budget's 1,000 are free ...
    """

    def __init__(self, capacity_bytes: int, *, setting: str = "budget.ram_mb") -> None:
        self.capacity_bytes = capacity_bytes
        self.setting = setting
        self._holders: dict[str, Callable[[], int]] = {}
        self._shrink: dict[str, Callable[[int], None]] = {}

    def register(
        self, name: str, nbytes: Callable[[], int], *, shrink: Callable[[int], None] | None = None
    ) -> None:
        """Add a holder.

        Parameters
        ----------
        name
            Whose bytes these are.
        nbytes
            Says what it holds now.
        shrink
            Gives back at least so many bytes, or raises BudgetExceeded and keeps all.
        """
        self._holders[name] = nbytes
        self._shrink.pop(name, None)
        if shrink is not None:
            self._shrink[name] = shrink

    def release(self, name: str) -> None:
        """Remove a holder; one that is not there is none."""
        self._holders.pop(name, None)
        self._shrink.pop(name, None)

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
        raise BudgetExceeded(
            f"{name} needs {nbytes:,} bytes, but {self.free_bytes:,} of the budget's {self.capacity_bytes:,} "
            f"are free ({self._who()}); raise the budget ({self.setting}) or choose a smaller head"
        )

    def lower(self, capacity_bytes: int) -> None:
        """Change the budget; when more is held than that, holders that can give back what is over.

        Raises BudgetExceeded when they cannot; the budget then stays what it was.
        """
        for shrink in self._shrink.values():
            over = self.held_bytes - capacity_bytes
            if over > 0:
                shrink(over)
        if self.held_bytes > capacity_bytes:
            raise BudgetExceeded(
                f"{self.setting} cannot be lowered to {capacity_bytes:,} bytes: {self.held_bytes:,} are held "
                f"({self._who()}) and nobody can give more back; choose a smaller head, or start anew"
            )
        self.capacity_bytes = capacity_bytes

    def _who(self) -> str:
        held = ", ".join(f"{who} holds {n:,}" for who, n in self.held().items())
        return held or "nobody holds any"
