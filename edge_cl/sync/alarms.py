"""What a broker or a server does wrong, in words for a person: what it is, and what to do. Pure; the clock
is passed in.
"""

from __future__ import annotations

UNHEARD_S = 120.0
"""After so long without a server's word a person should know."""
UNSEEN_S = 20.0
"""So soon the broker should have given back the device's own birth."""
FORBIDDEN_S = 600.0
"""So long after the last refusal: what is refused is sent again at least every 300 s."""


class Alarms:
    """Remembers what went wrong until it is seen to go right.

    Parameters
    ----------
    url, root
        Where the broker is; the topic that the device's topics begin with.
    by_server
        Whether a server has to confirm messages.
    """

    def __init__(self, url: str, root: str, *, by_server: bool) -> None:
        self._url, self._root, self._by_server = url, root, by_server
        self._unwritable = self._unreadable = self._foreign = self._unheard = self._unseen = ""
        self._refused_s = self._since_s = 0.0
        self._is_seen = self._is_confirmed = self._has_reasons = True

    @property
    def text(self) -> str:
        """The worst of it, or ""."""
        found = (self._unwritable, self._unreadable, self._foreign, self._unseen, self._unheard)
        return next(filter(None, found), "")

    def connected(self, now_s: float, *, reasons: bool) -> None:
        """A connection begins; MQTT 5 gives `reasons` for what is refused, 3.1.1 takes it and drops it."""
        self._unreadable = self._unseen = ""
        self._since_s, self._has_reasons = now_s, reasons
        self._is_seen = self._is_confirmed = False

    def ended(self) -> None:
        """It is over: what was not seen on it says nothing any more."""
        self._unseen = self._unheard = ""
        self._is_seen = True

    def refused_write(self, problem: str, now_s: float) -> None:
        """The broker did not take a message."""
        self._refused_s = now_s
        self._unwritable = (
            f"{self._url} does not let this device write below {self._root} ({problem}); allow it in the "
            "broker. The device goes on learning, messages wait"
        )

    def refused_read(self, problem: str) -> None:
        """The broker did not take a subscription."""
        self._unreadable = (
            f"{self._url} does not let this device read {problem}; allow it in the broker, "
            "else labels and orders do not arrive"
        )

    def saw_birth(self) -> None:
        """The device's own birth came back."""
        self._is_seen, self._unseen, self._unwritable = True, "", ""

    def foreign(self, what: str, version: int) -> None:
        """A server said something that is not in the protocol."""
        self._foreign = (
            f"the fleet server speaks another version of the protocol than this device's {version}: {what}; "
            "upgrade the older one. Messages wait meanwhile"
        )

    def confirmed(self) -> None:
        """A server said that it has messages in its store."""
        self._foreign = self._unheard = self._unseen = ""
        self._is_confirmed = True

    def look(self, now_s: float, *, waits_since_s: float | None, n_waiting: int) -> None:
        """What time shows: nobody answers, nothing comes back, or a refusal is long ago."""
        if now_s - self._refused_s > FORBIDDEN_S:
            self._unwritable = ""
        quiet = not (self._is_seen or self._is_confirmed or self._unwritable or self._unseen)
        if quiet and now_s - self._since_s > UNSEEN_S:
            which = "" if self._has_reasons else f"write below {self._root}, or not "
            unsure = "" if self._has_reasons else " (MQTT 3.1.1 does not say which)"
            self._unseen = (
                f"{self._url} took this device's birth and did not give it back: it does not let the device "
                f"{which}read {self._root}/status{unsure}; allow it in the broker, and to read "
                f"{self._root}/cmd/#. The device goes on learning"
            )
        self._unheard = ""
        if self._by_server and waits_since_s is not None and now_s - waits_since_s >= UNHEARD_S:
            self._unheard = (
                f"no fleet server confirms what this device sends ({n_waiting:,} messages wait); start "
                'edge-cl fleet serve or, without one, set mqtt.confirm = "broker". If it runs: does the '
                f"broker let this device write below {self._root} and read {self._root}/cmd/#?"
            )
