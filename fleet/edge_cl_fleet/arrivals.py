"""What came over MQTT, read: pure functions from topics and payloads to typed words and rows of the store.

Whatever has a readable envelope is stored and confirmed, even if this server does not understand what is in
it (a newer device): otherwise the device would send it for ever.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import msgspec

from edge_cl.commands import CommandResult
from edge_cl.errors import SyncError
from edge_cl.records import Status
from edge_cl.sync.messages import (
    MAX_MESSAGE_BYTES,
    Gone,
    InstallReport,
    Message,
    Presence,
    State,
    Want,
    decode,
)

MAX_NUMBER = 2**63 - 1
MAX_RANGES = 10_000

_TOPIC = re.compile(r"edgecl/1/([a-z0-9][a-z0-9-]{0,62})/([a-z0-9][a-z0-9-]{0,62})/([a-z][a-z0-9-]{0,15})")
_ID = re.compile(r"[0-9A-Za-z_-]{1,32}")
_envelope = msgspec.json.Decoder(Message[msgspec.Raw])
_contents: dict[str, msgspec.json.Decoder[Any]] = {
    "health": msgspec.json.Decoder(Status),
    "result": msgspec.json.Decoder(CommandResult),
    "install": msgspec.json.Decoder(InstallReport),
    "gone": msgspec.json.Decoder(Gone),
}


class Source(NamedTuple):
    """Who sent something, and of which kind it is."""

    site: str
    device: str
    kind: str


class Arrival(NamedTuple):
    """One PUBLISH as it came. `retained`: an old word that the broker kept, not a sign of life."""

    topic: str
    payload: bytes
    received_s: float
    retained: bool = False


class Row(NamedTuple):
    """One row of the table ``messages``, but for its number."""

    id: str
    site: str
    device: str
    epoch: str
    seq: int
    kind: str
    boot_id: str
    at_s: float
    happened_s: float
    received_s: float
    body: str


Content: TypeAlias = Presence | State | Want | Status | CommandResult | InstallReport | Gone | None


class Word(NamedTuple):
    """An arrival that could be read.

    `row` is what is to be stored, None for what is not durable. `content` is what of it the server itself
    acts on. `up_s` is the sender's uptime, None for what does not say it.
    """

    source: Source
    arrival: Arrival
    boot_id: str
    session: int
    up_s: float | None
    row: Row | None
    content: Content


@lru_cache(maxsize=1 << 16)
def parse_topic(topic: str) -> Source | None:
    """Who and what; None for a topic that is not of the protocol."""
    found = _TOPIC.fullmatch(topic)
    return None if found is None else Source(*found.groups())


def read(arrival: Arrival) -> Word | None:
    """An arrival, read; None for a `Decision`, which is for whoever watches and is not kept.

    Raises
    ------
    SyncError
        For what is not a message of the protocol.
    """
    source = parse_topic(arrival.topic)
    if source is None:
        raise SyncError(f"not a topic of a device: {arrival.topic[:80]!r}")
    if len(arrival.payload) > MAX_MESSAGE_BYTES:
        raise SyncError(f"{len(arrival.payload):,} bytes; the protocol allows {MAX_MESSAGE_BYTES:,}")
    if source.kind == "event" or not arrival.payload:
        return None
    try:
        if source.kind in ("status", "state", "want"):
            return _read_plain(source, arrival)
        return _read_message(source, arrival)
    except RecursionError as error:
        raise SyncError(f"not a {source.kind} message: it is nested too deeply") from error


def _read_plain(source: Source, arrival: Arrival) -> Word:
    content = decode(source.kind, arrival.payload)
    boot_id, session, up_s = "", 0, None
    if isinstance(content, Presence | State):
        boot_id, session = content.boot_id, content.session
        _check_sender(boot_id, session)
    if isinstance(content, State):
        up_s = _live(content.up_s, arrival)
    return Word(source, arrival, boot_id, session, up_s, None, content)


def _read_message(source: Source, arrival: Arrival) -> Word:
    try:
        message = _envelope.decode(arrival.payload)
        body = str(message.data, "utf-8")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SyncError(f"not a {source.kind} message: {error}") from error
    _check_sender(message.boot_id, message.session)
    if not (_ID.fullmatch(message.id) and _ID.fullmatch(message.epoch) and 0 <= message.seq <= MAX_NUMBER):
        raise SyncError(f"not a {source.kind} message: id, epoch or seq cannot be stored")
    if not math.isfinite(message.at_s) or "\0" in body:
        raise SyncError(f"not a {source.kind} message: at_s or data cannot be stored")
    age_s, received_s = message.age_s, arrival.received_s
    known = age_s is not None and 0 <= age_s < received_s
    row = Row(
        message.id,
        source.site,
        source.device,
        message.epoch,
        message.seq,
        source.kind,
        message.boot_id,
        message.at_s,
        received_s - age_s if known and age_s is not None else message.at_s,
        received_s,
        body,
    )
    up_s = _live(message.up_s, arrival)
    content = _content(source.kind, message.data, age_s)
    return Word(source, arrival, message.boot_id, message.session, up_s, row, content)


def _content(kind: str, body: msgspec.Raw, age_s: float | None) -> Content:
    """What the server acts on; None for what it only keeps, and for what it cannot read."""
    decoder = _contents.get(kind)
    if decoder is None:
        return None
    try:
        found: Content = decoder.decode(body)
    except msgspec.DecodeError:
        return None
    if isinstance(found, Status) and (age_s is None or age_s > 30.0):
        return None  # how it was then is not how it is
    if isinstance(found, Gone) and not _are_ranges(found):
        return None
    return found


def _are_ranges(gone: Gone) -> bool:
    within = all(0 <= first <= last <= MAX_NUMBER for first, last in gone.seqs)
    return within and len(gone.seqs) <= MAX_RANGES and _ID.fullmatch(gone.epoch) is not None


def _check_sender(boot_id: str, session: int) -> None:
    if not (_ID.fullmatch(boot_id) and 0 <= session <= MAX_NUMBER):
        raise SyncError("boot_id or session cannot be stored")


def _live(up_s: float, arrival: Arrival) -> float | None:
    return up_s if not arrival.retained and math.isfinite(up_s) and up_s >= 0 else None
