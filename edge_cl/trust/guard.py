"""What protects learned state from bad labels: teachers, the exam, answers to trusted labels."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from edge_cl.config import TrustSettings
from edge_cl.records import FloatArray, under
from edge_cl.trust.pinned import Pinned
from edge_cl.trust.relapse import TrustedAnswers
from edge_cl.trust.teachers import TRUSTED, Origin, Said, Teachers


class Guard:
    """Everything that learned state remembers to check labels and heads by; a pure function of the journal.

    Parameters
    ----------
    n_features
        Length D of a feature vector.
    settings
        Who may teach what.
    rows
        Features of trusted labels that are kept to check labels by; half as many guard sleeps.
    """

    def __init__(self, n_features: int, settings: TrustSettings | None, rows: int) -> None:
        self.teachers = Teachers(n_features, settings, capacity=rows)
        self.pinned = Pinned(n_features, capacity=rows // 2)
        self.answers = TrustedAnswers()
        self.suspected: list[int] = []
        """Journal numbers of learned labels whose source became suspect since: to be held back."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.teachers.reference.nbytes + self.pinned.nbytes

    def note(self, x: FloatArray, y: int, origin: Origin, *, right: bool | None) -> None:
        """A label was learned, its answer before `right` or not; None: it was held."""
        if right is not None and origin.trust >= TRUSTED:
            self.answers.note(origin.seq, right=right)
        said = Said(x, y, origin.source, origin.trust, origin.at_s)
        self.suspected += self.teachers.note(said, origin.seq, learned=right is not None)

    def note_not(self, origin: Origin) -> None:
        """Somebody said what a reading is not."""
        self.teachers.note_not(origin.source, origin.trust, origin.at_s)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any], dict[str, Any]]:
        """Arrays and JSON values, and those that know entries by number and time."""
        reference, reference_meta = self.teachers.reference.state()
        pinned, pinned_meta = self.pinned.state()
        arrays = {f"reference.{name}": array for name, array in reference.items()}
        arrays |= {f"pinned.{name}": array for name, array in pinned.items()}
        by_entry = {"accounts": self.teachers.accounts_state(), "answers": self.answers.state()}
        return arrays, {"reference": reference_meta, "pinned": pinned_meta}, by_entry

    def restore(
        self, arrays: dict[str, NDArray[Any]], meta: dict[str, Any], by_entry: dict[str, Any]
    ) -> None:
        """Take back what `state` gave."""
        self.teachers.reference.restore(under(arrays, "reference."), meta["reference"])
        self.pinned.restore(under(arrays, "pinned."), meta["pinned"])
        self.teachers.restore_accounts(by_entry["accounts"])
        self.answers.restore(by_entry["answers"])
