"""What was said to a device before, as its journal tells."""

from __future__ import annotations

from edge_cl.knowledge import Knowledge
from edge_cl.memory import PendingFeature
from edge_cl.records import Label
from edge_cl.revisions import HeadRecord, HeldLabel
from edge_cl.state import StateStore, heads_of, held_labels, holds, revised_by, said_after


class Past:
    """A look at the journal; nothing was said where none is kept.

    Parameters
    ----------
    store
        The state folder, or None.
    knowledge
        What is known now: its names are those that are asked in.
    """

    def __init__(self, store: StateStore | None, knowledge: Knowledge) -> None:
        self._store, self._knowledge = store, knowledge

    def heard(self, label: Label, reading_id: str, known: PendingFeature | None) -> bool:
        """Whether this was said of the reading already; of one no longer `known` the journal tells."""
        knowledge = self._knowledge
        name = knowledge.naming.resolve(label.label)
        if known is not None:
            if label.kind == "not":
                return knowledge.refuses(known.feature, name)
            return known.taught >= 0 and knowledge.class_names[known.taught] == name
        if self._store is None or not reading_id:
            return False
        counts, last = self._store.counts, None
        for seq, kind, said in self._store.journal.said_of(reading_id):
            said = knowledge.naming.resolve(said)
            if holds(counts, seq) and (kind == "label" or said == name):
                last = kind, said
        return last == ("not" if label.kind == "not" else "label", name)

    def taught_lately(self) -> dict[str, int]:
        """The class that a reading has as its label now, by the journal's last entries; -1 for none."""
        if self._store is None:
            return {}
        counts, naming = self._store.counts, self._knowledge.naming
        number = {name: k for k, name in enumerate(naming.names)}
        taught: dict[str, int] = {}
        for seq, kind, reading_id, label in self._store.journal.said_lately():
            if not holds(counts, seq):
                continue
            said = number.get(naming.resolve(label), -1)
            if kind == "label":
                taught[reading_id] = said
            elif taught.get(reading_id) == said:
                taught[reading_id] = -1
        return taught

    def said_after(self, seq: int, limit: int) -> list[HeldLabel]:
        """Labels on disk after journal entry `seq`, the oldest of them; `reason` is "" for those learned."""
        return [] if self._store is None else said_after(self._store, seq, limit)

    def held_labels(self) -> list[HeldLabel]:
        """Labels that wait for a review, oldest first."""
        return [] if self._store is None else held_labels(self._store)

    def heads(self) -> list[HeadRecord]:
        """The heads that are kept, oldest first."""
        return [] if self._store is None else heads_of(self._store.folder)

    def revised_by(self, source: str) -> int:
        """Journal number of the newest revision by a source that ends in this, or 0."""
        return 0 if self._store is None else revised_by(self._store, source)

    @property
    def history_id(self) -> str:
        """Tells this history from every other; "" without a folder."""
        return "" if self._store is None else self._store.journal.uid

    @property
    def state_hash(self) -> str:
        """End of the journal's chain of hashes, the bundle's id while it is empty; "" without a folder."""
        return "" if self._store is None else self._store.journal.chain or self._store.bundle_id
