"""What learns: one head per file, all with the contract of :class:`edge_cl.heads.base.Head`.

========== ============================== ======================= ==============================
name       memory (bytes, float32)        one label               good at
========== ============================== ======================= ==============================
dual       4·d² + 4·d·(C+D) + 4·W·(D+W)   O(d²) amortised         today *and* last month (default)
slda       4·(D² + D² + 2·C·D)            O(D²)                   remembering; tiny; exact merge
kalman     4·(D² + C·D)                   O(D² + C·D)             tracking drift; uncertainty
prototype  4·(2·C·D + 2·D)                O(D)                    the smallest boards
logistic   4·(D² + 2·C·D)                 O(D² + C·D)             one scale for all; sure answers
knn        memory_bytes + 4·C·D           O(D); predict O(n·D)    classes of any shape; forgets one
========== ============================== ======================= ==============================

D features, C classes, d lifted features, W recent samples, n exemplars.
"""

from __future__ import annotations

from typing import Any

from edge_cl.heads.base import Head, HeadState
from edge_cl.heads.dual import DualHead
from edge_cl.heads.kalman import KalmanHead
from edge_cl.heads.knn import KnnHead
from edge_cl.heads.logistic import LogisticHead
from edge_cl.heads.prototype import PrototypeHead
from edge_cl.heads.slda import SldaHead

HEADS: dict[str, type[Head]] = {
    head.name: head for head in (DualHead, SldaHead, KalmanHead, PrototypeHead, LogisticHead, KnnHead)
}
DEFAULT = "dual"

__all__ = ["DEFAULT", "HEADS", "Head", "HeadState", "create", "from_state"]


def create(name: str = DEFAULT, *, n_features: int, n_classes: int = 0, **options: Any) -> Head:
    """Make a head by name.

    >>> head = create("slda", n_features=2, n_classes=2)
    >>> head.learn_one([0.0, 1.0], 0); head.learn_one([1.0, 0.0], 1)
    >>> int(head.predict_one([0.9, 0.2]).argmax())
    1
    """
    try:
        cls = HEADS[name]
    except KeyError:
        raise ValueError(f"unknown head {name!r}; known: {', '.join(HEADS)}") from None
    try:
        return cls(n_features, n_classes, **options)
    except TypeError as error:
        raise ValueError(f"head {name!r}: {error}") from None


def from_state(state: HeadState) -> Head:
    """Make a head from what `Head.state` gave, bit-exactly.

    Raises
    ------
    ValueError
        When the state belongs to an unknown head or a newer version.
    """
    if state.head not in HEADS:
        raise ValueError(f"state of an unknown head {state.head!r}; known: {', '.join(HEADS)}")
    return HEADS[state.head].from_state(state)
