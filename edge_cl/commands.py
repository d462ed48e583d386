"""What a server may ask of a device, and what comes of it. Pure records.

What is asked is one of nine records, told apart by ``ask``: ``label``, ``sleep``, ``set``, ``install``, ``report``
and the four revisions ``forget``, ``rollback``, ``rename``, ``review``.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from edge_cl.records import LabelKind
from edge_cl.revisions import Forget, Rename, Review, Rollback

Ask: TypeAlias = Literal[
    "label", "sleep", "set", "install", "report", "forget", "rollback", "rename", "review"
]
"""What a key may be allowed; ``release`` besides, to sign bundles."""

MAX_VALID_S = 7 * 86400.0
"""No command is valid for longer."""

ResultStatus: TypeAlias = Literal["done", "failed", "refused", "expired", "interrupted"]


class Teach(msgspec.Struct, frozen=True, kw_only=True, tag_field="ask", tag="label", omit_defaults=True):
    """Learn that a reading was (or, `kind` "not", was not) `label`; without `reading_id` the newest is meant."""

    label: str
    reading_id: str = ""
    kind: LabelKind = "is"


class SleepNow(msgspec.Struct, frozen=True, kw_only=True, tag_field="ask", tag="sleep", omit_defaults=True):
    """Sleep now, whatever the settings say."""


class Adjust(msgspec.Struct, frozen=True, kw_only=True, tag_field="ask", tag="set", omit_defaults=True):
    """Change settings that may be changed from afar; kept over restarts. What is not named stays.

    `min_confidence` is ``trust.min_confidence``, 0 to 1; `after_labels` is ``sleep.after_labels``; `night`
    is ``sleep.night``.
    """

    min_confidence: float | None = None
    after_labels: int | None = None
    night: str | None = None


class Release(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a bundle file is: the part of an installation that is signed once, for all devices.

    Attributes
    ----------
    name, bundle_id
        Of the bundle, as its own manifest has them.
    sha256, size
        Of the whole file (hexadecimal, bytes).
    chunk_bytes, chunks
        Its pieces over MQTT, and the first 16 hexadecimal digits of each one's SHA-256.
    url
        Where the file can be fetched instead, by HTTPS; "" for MQTT.
    includes
        Journal number, by ``site/device``, up to which that device's labels are in the bundle's prior.
    """

    name: str
    bundle_id: str
    sha256: str
    size: int
    chunk_bytes: int
    chunks: list[str]
    url: str = ""
    includes: dict[str, int] = {}


class Install(msgspec.Struct, frozen=True, kw_only=True, tag_field="ask", tag="install", omit_defaults=True):
    """Fetch, check, try and use a bundle. `release` is a :class:`Release` as JSON text, `signature` of that
    text by key `signed_by` (hexadecimal)."""

    release: str
    signed_by: str
    signature: str


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="ask", tag="report", omit_defaults=True):
    """Send something: the ``status`` now, the reports of past ``sleeps``, or what the ``head`` learned."""

    what: Literal["status", "sleeps", "head"] = "status"


Do: TypeAlias = Teach | SleepNow | Adjust | Install | Report | Forget | Rollback | Rename | Review


class Command(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One order to one device in one of its lives.

    Attributes
    ----------
    id
        32 hexadecimal digits; the same id is carried out once.
    to
        ``site/device``.
    boot_id
        The device's, drawn anew at each start: a recorded command is void after it.
    until_s
        The device's own uptime (seconds since its program started, monotonic) after which it is too late.
        No clock needs to be right for this.
    """

    id: str
    to: str
    boot_id: str
    until_s: float
    do: Do

    @property
    def ask(self) -> str:
        """What is asked, as the name that keys are allowed."""
        return ask_of(self.do)


class CommandResult(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="result", omit_defaults=True
):
    """What came of a command. ``interrupted``: the device restarted before it was carried out.

    `data` is a receipt, an outcome, a status or whatever else the command gives, as JSON.
    """

    id: str
    ask: str
    status: ResultStatus
    message: str = ""
    data: dict[str, Any] = {}


def ask_of(do: Do) -> str:
    """The name of what is asked: ``label``, ``sleep``, …"""
    return str(do.__struct_config__.tag)
