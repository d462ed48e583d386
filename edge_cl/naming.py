"""What classes are called: names change and classes become one, while a head keeps its own numbering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_cl.records import FloatArray


class ClassNames:
    """The names that answers have, and which of a head's classes stand behind each.

    A renamed class keeps its place. Merged classes stay apart in the head, which may know them as two
    clusters; their probabilities are added up. Labels with an old name mean the class as it is called now.

    Parameters
    ----------
    names
        Of the classes a head begins with.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = list(names)
        """Of answers, by index."""
        self.inner = list(names)
        """Of the head's classes, by index; a merged one keeps its own."""
        self._outer_of = list(range(len(names)))
        self._now_called: dict[str, str] = {}

    def resolve(self, name: str) -> str:
        """What `name` is called now."""
        while name not in self.names and name in self._now_called:
            name = self._now_called[name]
        return name

    def add(self, name: str) -> None:
        """One more class, the head's next."""
        self._outer_of.append(len(self.names))
        self.names.append(name)
        self.inner.append(name)

    def rename(self, old: str, new: str) -> None:
        """Call `old` `new`; both become one class when `new` is known. An unknown `old` changes nothing."""
        if old not in self.names or old == new:
            return
        k = self.names.index(old)
        if new in self.names:
            into = self.names.index(new)
            into -= into > k
            self._outer_of = [into if o == k else o - (o > k) for o in self._outer_of]
            self.names.pop(k)
        else:
            self.names[k] = new
            self.inner = [new if name == old else name for name in self.inner]
            self._now_called.pop(new, None)
        self._now_called[old] = new

    def gathered(self, scores: FloatArray) -> FloatArray:
        """Probabilities of the head's classes (…, n) as probabilities of answers (…, m)."""
        if len(self.names) == len(self.inner):
            return scores
        gathered = np.zeros((*scores.shape[:-1], len(self.names)), dtype=scores.dtype)
        for k, outer in enumerate(self._outer_of):
            gathered[..., outer] += scores[..., k]
        return gathered

    def of_inner(self) -> list[str]:
        """The answer's name behind each of the head's classes."""
        return [self.names[outer] for outer in self._outer_of]

    def of_head(self, name: str) -> list[int]:
        """The head's classes behind an answer's name, ascending."""
        outer = self.names.index(name)
        return [k for k, o in enumerate(self._outer_of) if o == outer]

    def state(self) -> dict[str, Any]:
        """JSON values that `restore` takes back."""
        return {
            "class_names": list(self.names),
            "head_names": list(self.inner),
            "outer_of": list(self._outer_of),
            "now_called": dict(self._now_called),
        }

    def restore(self, meta: dict[str, Any]) -> None:
        """Take back what `state` gave; earlier releases knew only the names."""
        self.names = list(meta["class_names"])
        self.inner = list(meta.get("head_names", self.names))
        self._outer_of = list(meta.get("outer_of", range(len(self.names))))
        self._now_called = dict(meta.get("now_called", {}))


class NamesNow:
    """What the classes that labels meant, when they came, are called now.

    Parameters
    ----------
    names
        Of the classes a head begins with.
    renames
        Journal number, old and new name of every rename that counts, in order.
    whole
        Whether everything that was taught is asked for; else a rename tells of classes taught before.
    """

    def __init__(self, names: Sequence[str], renames: Sequence[tuple[int, str, str]], *, whole: bool) -> None:
        self._naming = ClassNames(list(names))
        self._renames = renames
        self._n_past = 0
        self._whole = whole

    def of(self, seq: int, name: str, *, taught: bool) -> str:
        """What entry `seq` meant by `name`, as it is called now; to be asked in order.

        `taught`: the entry counts as a label, and may have brought the class.
        """
        while self._n_past < len(self._renames) and self._renames[self._n_past][0] < seq:
            _, old, new = self._renames[self._n_past]
            if not self._whole and old not in self._naming.names:
                self._naming.add(old)
            self._naming.rename(old, new)
            self._n_past += 1
        meant = self._naming.resolve(name)
        if taught and meant not in self._naming.names:
            self._naming.add(meant)
        for _, old, new in self._renames[self._n_past :]:
            if old == meant:
                meant = new
        return meant
