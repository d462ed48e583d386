"""What a device's own words say of it: its row in the store, folded over them. Pure; no clock, no database.

Words may come late, twice and in another order, and two boards may speak under one name. A connection's
number (`session`) rises with every connection of a device, so a word of an earlier one says nothing of now.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from edge_cl.records import Status
from edge_cl.sync.messages import Presence, State, Want
from edge_cl_fleet.arrivals import MAX_NUMBER, Word

CLONE_WINDOW_S = 600.0
TOUCH_S = 5.0
"""Signs of life closer together than this are not written down."""


class Known(msgspec.Struct):
    """A row of ``devices``, as far as the device's own words change it."""

    site: str
    device: str
    first_seen_s: float
    last_seen_s: float
    online: bool = False
    boot_id: str = ""
    session: int = 0
    up_s: float | None = None
    up_at_s: float | None = None
    bundle_id: str = ""
    head: str = ""
    accuracy_now: float | None = None
    n_labels: int = 0
    alarm: str = ""
    status: str = ""
    settings: str = "{}"
    cloned_s: float | None = None


class Lives:
    """Earlier lives (boot ids) of one device, as this worker saw them; one that returns is a second board."""

    def __init__(self) -> None:
        self._past: deque[str] = deque(maxlen=8)
        self._returns: deque[tuple[str, int, float]] = deque(maxlen=2)

    def ended(self, boot_id: str) -> None:
        """Another life speaks now."""
        if boot_id and boot_id not in self._past:
            self._past.append(boot_id)

    def is_past(self, boot_id: str) -> bool:
        """Whether this life was followed by another already."""
        return boot_id in self._past

    def came_back(self, boot_id: str, session: int, at_s: float) -> bool:
        """A past life spoke; true when these are no late words any more: two connections in ten minutes."""
        if not any(one[:2] == (boot_id, session) for one in self._returns):
            self._returns.append((boot_id, session, at_s))
        return len(self._returns) == 2 and at_s - self._returns[0][2] < CLONE_WINDOW_S


def is_news(known: Known, word: Word) -> bool:
    """False for a sign of life that says nothing that `known` does not say."""
    if isinstance(word.content, Want):
        return False  # does not say which life asks
    if isinstance(word.content, Presence | State | Status):
        return True
    same = (known.boot_id, known.session) == (word.boot_id, word.session)
    late = word.arrival.received_s - known.last_seen_s > TOUCH_S
    return not same or late or (known.up_s is None and word.up_s is not None)


def fold(known: Known, word: Word, lives: Lives) -> None:
    """Let `word` change what is known of its device."""
    if not _is_of_now(known, word, lives):
        return
    at_s = word.arrival.received_s
    if not word.arrival.retained:
        known.last_seen_s = max(known.last_seen_s, at_s)
    if word.up_s is not None:
        known.up_s, known.up_at_s = word.up_s, at_s
    content = word.content
    if isinstance(content, Presence):
        _fold_presence(known, content)
    elif isinstance(content, State):
        known.settings = msgspec.json.encode(content.settings).decode()
        _fold_status(known, content.status)
    elif isinstance(content, Status):
        _fold_status(known, content)


def _is_of_now(known: Known, word: Word, lives: Lives) -> bool:
    """Whether the word is of the newest connection; moves `known` on to a newer one."""
    if (known.boot_id, known.session) == (word.boot_id, word.session):
        return True
    other_life = word.boot_id != known.boot_id
    is_end = isinstance(word.content, Presence) and not word.content.online
    if word.session < known.session + is_end and (not other_life or _is_late(known, word, lives)):
        return False
    if other_life and known.boot_id:
        # one life counts on from the other's number: the same number twice is two boards
        if word.session == known.session or (lives.is_past(word.boot_id) and _returns(word, lives)):
            known.cloned_s = word.arrival.received_s
        lives.ended(known.boot_id)
    if other_life:
        known.up_s = known.up_at_s = None
    known.boot_id, known.session = word.boot_id, word.session
    known.online = not is_end
    return True


def _is_late(known: Known, word: Word, lives: Lives) -> bool:
    """A smaller number of another life: late, or (never heard of) a board whose state folder is new."""
    if isinstance(word.content, Presence) and not word.content.online:
        return True
    if not lives.is_past(word.boot_id):
        return False
    if _returns(word, lives):
        known.cloned_s = word.arrival.received_s
    return True


def _returns(word: Word, lives: Lives) -> bool:
    at_s = word.arrival.received_s
    return not word.arrival.retained and lives.came_back(word.boot_id, word.session, at_s)


def _fold_presence(known: Known, presence: Presence) -> None:
    if not presence.online:
        known.online = False
    elif presence.bundle_id:
        known.bundle_id, known.head = storable(presence.bundle_id, 64), storable(presence.head, 32)


def _fold_status(known: Known, status: Status) -> None:
    known.bundle_id, known.head = storable(status.bundle_id, 64), storable(status.head, 32)
    known.accuracy_now, known.n_labels = status.accuracy_now, min(max(status.n_labels, 0), MAX_NUMBER)
    known.alarm = storable(status.alarm)
    known.status = msgspec.json.encode(status).decode()


def storable(text: str, max_chars: int = 2_000) -> str:
    """A device's text as PostgreSQL takes it: not too long, no NUL."""
    return text[:max_chars].replace("\0", "\N{REPLACEMENT CHARACTER}")


def row_of(known: Known) -> dict[str, Any]:
    """The columns of ``devices``."""
    return msgspec.structs.asdict(known)
