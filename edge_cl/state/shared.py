"""How often, and how noisily, statistics of the labels in a journal have left the device."""

from __future__ import annotations

from typing import Self

import msgspec

FROM_OTHERS = "merge/"
"""Sources of labels that a backup of another device brought."""
SHARED = "shared"
"""Name of the journal's note of it."""


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """Reports so far: all, those without noise, and the sum of 1 / noise² of the others.

    Reports with noise σ₁, σ₂, … about one label show as much as one with 1 / √(Σ 1/σ²).
    """

    n_reports: int = 0
    n_plain: int = 0
    information: float = 0.0

    @classmethod
    def read(cls, text: str | None) -> Self:
        """As the journal has it."""
        return cls() if text is None else msgspec.json.decode(text, type=cls)

    @property
    def noise(self) -> float:
        """Of the one report that shows as much as all of them; 0 when one had none."""
        return 0.0 if self.n_plain or not self.information else self.information**-0.5
