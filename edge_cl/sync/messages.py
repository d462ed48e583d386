"""Topics and messages: pure encoding and decoding, no input or output.

Everything is JSON under ``edgecl/1/<site>/<device>/``:

========== === ======== ============================================================
topic      QoS retained payload
========== === ======== ============================================================
status     1   yes      `Presence`: the birth, the last will and the farewell
state      1   yes      `Status` record
event      0   no       `Decision` record
receipt    1   no       `Message` around a `Receipt`, kept on disk until acknowledged
sleep      1   no       `Message` around a `SleepReport`, kept on disk until acknowledged
cmd/label  1   no       in: ``{"label": …, "reading_id": …, "source": …, "kind": "is" or "not"}``
========== === ======== ============================================================
"""

from __future__ import annotations

import re
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import msgspec

from edge_cl.errors import ConfigError, SyncError
from edge_cl.records import Answer, Decision, Label, LabelKind, Receipt, SleepReport, Status

MAX_INBOUND_BYTES = 64 * 1024
MAX_NAME_CHARS = 200

Kind: TypeAlias = Literal["status", "state", "event", "receipt", "sleep"]
T = TypeVar("T")

_TOPIC_PART = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class Presence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether the device is there. Retained, so whoever subscribes later still knows.

    Attributes
    ----------
    boot_id
        Drawn anew at each start of the program.
    session
        Number of the connection; a birth and the last will of one connection share it.
    seq
        Number of the last message given to the outbox when the connection began.
    since_s
        When the program started, Unix time by the device's clock.
    reason
        Why it is offline: ``lost`` (the broker sent the last will) or ``stopped``.
    """

    online: bool
    boot_id: str
    session: int
    seq: int = 0
    bundle_id: str = ""
    head: str = ""
    since_s: float = 0.0
    reason: str = ""

    def is_stale_against(self, birth: Presence) -> bool:
        """True for the late last will of an earlier connection: it must not hide `birth`."""
        return not self.online and (self.boot_id, self.session) != (birth.boot_id, birth.session)


class Message(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """Something that is delivered at least once: receivers drop an `id` they have seen.

    `seq` rises by one per message of a device, across restarts; a gap means that the device
    dropped a message because its outbox was full.
    """

    id: str
    seq: int
    data: T


class _InboundLabel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    label: str
    kind: LabelKind = "is"
    reading_id: str = ""
    source: str = ""


_encoder = msgspec.json.Encoder()
_label_decoder = msgspec.json.Decoder(_InboundLabel)
_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    "status": msgspec.json.Decoder(Presence),
    "state": msgspec.json.Decoder(Status),
    "event": msgspec.json.Decoder(Decision),
    "receipt": msgspec.json.Decoder(Message[Receipt]),
    "sleep": msgspec.json.Decoder(Message[SleepReport]),
}


def topic_root(site: str, device: str) -> str:
    """The topic that all of a device's topics begin with; refuses wildcards and slashes."""
    for key, value in (("device.site", site), ("device.name", device)):
        if not _TOPIC_PART.fullmatch(value):
            raise ConfigError(
                f"{key} is {value!r}; allowed: 1 to 63 of a-z, 0-9 and -, beginning with a letter or digit"
            )
    return f"edgecl/1/{site}/{device}"


def encode(record: Answer | Presence) -> bytes:
    """A record as JSON."""
    return _encoder.encode(record)


def wrap(message_id: str, seq: int, body: bytes) -> bytes:
    """The JSON of a `Message` around a record that is JSON already."""
    return _encoder.encode(Message(id=message_id, seq=seq, data=msgspec.Raw(body)))


def decode(kind: Kind, payload: bytes) -> Any:
    """What a device sent: the inverse of `encode` and `wrap`, for receivers.

    Raises
    ------
    SyncError
        Says what was expected and found.
    """
    try:
        return _decoders[kind].decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SyncError(f"not a {kind} message: {error}; found {_excerpt(payload)}") from error


def decode_label(payload: bytes) -> Label:
    """A label that came over MQTT; its source is marked ``mqtt`` so that nobody far away can pose as local.

    Raises
    ------
    SyncError
        Says what was found and what is expected.
    """
    if len(payload) > MAX_INBOUND_BYTES:
        raise SyncError(f"label refused: it has more than the {MAX_INBOUND_BYTES:,} bytes that are read")
    try:
        found = _label_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SyncError(
            f'label refused: {error}; found {_excerpt(payload)}; send {{"label": "name", "reading_id": "id"}}'
        ) from error
    check_label(found.label, found.reading_id)
    check_name("source", found.source)
    if "*" in found.source:  # stands for all newcomers of a channel
        raise SyncError(f"label refused: source is {found.source!r}; send a name without *")
    source = f"mqtt/{found.source}" if found.source else "mqtt"
    return Label(label=found.label, kind=found.kind, reading_id=found.reading_id, source=source)


def check_label(label: str, reading_id: str) -> None:
    """Raise `SyncError` unless both can be stored and shown."""
    check_name("label", label)
    check_name("reading_id", reading_id)
    if not label.strip():
        raise SyncError("label refused: the label is empty; send the name of a class")


def check_name(field: str, text: str) -> None:
    """Raise `SyncError` for a text that is too long or cannot be printed."""
    if len(text) > MAX_NAME_CHARS:
        raise SyncError(
            f"label refused: {field} has {len(text):,} characters, at most {MAX_NAME_CHARS} are allowed"
        )
    if text and not text.isprintable():
        raise SyncError(f"label refused: {field} is {text!r}; only printable characters are allowed")


def answers(receipt: Receipt, label: Label) -> bool:
    """True when `receipt` can be the answer to `label`."""
    return (
        receipt.label == label.label
        and receipt.kind == label.kind
        and receipt.source == label.source
        and label.reading_id in ("", receipt.reading_id)
    )


def _excerpt(payload: bytes, limit: int = 80) -> str:
    return repr(payload[:limit]) + ("…" if len(payload) > limit else "")
