"""Topics and messages of the protocol: pure encoding and decoding, no input or output.

Everything is below ``edgecl/1/<site>/<device>/`` and, but for chunks, JSON; docs/protocol.md has the rules.

============= === ======== ==============================================================
up            QoS retained payload
============= === ======== ==============================================================
status        1   yes      `Presence`: the birth, the last will and the farewell
state         1   yes      `State`: how it is doing now, its settings, its uptime
event         0   no       `Decision` record, for whoever watches
receipt       1   no       `Message` around a `Receipt`
sleep         1   no       `Message` around a `SleepReport`
summary       1   no       `Message` around a `Summary`
health        1   no       `Message` around a `Status`
result        1   no       `Message` around a `CommandResult`
install       1   no       `Message` around an `InstallReport`
part          1   no       `Message` around a `Part` of something large that was asked for
gone          1   no       `Message` around a `Gone`: numbers that will never come
want          1   no       `Want`: chunks of a bundle that it asks for
============= === ======== ==============================================================

============= === ======== ==============================================================
down          QoS retained payload
============= === ======== ==============================================================
cmd/ack       0   no       `Ack`: messages that are in the store
cmd/resend    0   no       `Resend`: numbers that are missing there
cmd/do        1   no       `Signed`: a command
cmd/label     1   no       ``{"label": …, "reading_id": …, "source": …, "kind": "is" or "not"}``;
                           without reading_id the newest is meant, with "shown" the last ``event``
cmd/sleep     1   no       anything: sleep now
cmd/undo      1   no       anything: take back the last label that came by ``cmd/label``
cmd/chunk/S/I 1   no       bytes: chunk I of the bundle whose SHA-256 begins with S (16 digits)
============= === ======== ==============================================================

A server's worker that (re)starts says `Hello` on ``edgecl/1/fleet/hello``.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import msgspec

from edge_cl.commands import CommandResult
from edge_cl.errors import ConfigError, SyncError
from edge_cl.records import Decision, Label, LabelKind, Receipt, SleepReport, Status, Summary

PROTOCOL = 1
MAX_MESSAGE_BYTES = 128 * 1024
"""The least that hosted brokers take."""
MAX_INBOUND_BYTES = 64 * 1024
"""Of what a device reads as JSON."""
CHUNK_BYTES = 96 * 1024
PART_BYTES = 72 * 1024
MAX_NAME_CHARS = 200
HELLO = "edgecl/1/fleet/hello"
SHOWN = "shown"
"""As a label's reading: that of the last `event` sent, which is what somebody far away can see."""

Kind: TypeAlias = Literal[
    "status", "state", "event", "receipt", "sleep", "summary", "health", "result", "install", "part", "gone",
    "want",
]  # fmt: skip
DURABLE: tuple[Kind, ...] = (
    "receipt", "sleep", "summary", "health", "result", "install", "part", "gone",
)  # fmt: skip
"""Kinds that wait on disk until a server has confirmed them."""
T = TypeVar("T")

_TOPIC_PART = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class Presence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether the device is there. Retained, so whoever subscribes later still knows.

    Attributes
    ----------
    boot_id
        Drawn anew at each start of the program; commands are bound to it.
    session
        Number of the connection; a birth and the last will of one connection share it.
    seq
        Number of the last message given to the outbox when the connection began.
    head_hash
        SHA-256 of everything learned (first 16 hexadecimal digits), when the device last reckoned it.
    since_s
        When the program started, Unix time by the device's clock.
    reason
        Why it is offline: ``lost`` (the broker sent the last will) or ``stopped``.
    """

    online: bool
    boot_id: str
    session: int
    v: int = PROTOCOL
    seq: int = 0
    bundle_id: str = ""
    head: str = ""
    head_hash: str = ""
    since_s: float = 0.0
    reason: str = ""

    def is_stale_against(self, birth: Presence) -> bool:
        """True for the late last will of an earlier connection: it must not hide `birth`."""
        return not self.online and (self.boot_id, self.session) != (birth.boot_id, birth.session)


class State(msgspec.Struct, frozen=True, kw_only=True):
    """How the device is doing, and its uptime, by which a server knows how long a command may be valid.

    `settings` are those that a server may change (:class:`edge_cl.commands.Adjust`), as they are now.
    `installing` is the id of a bundle that is being fetched or tried, "" when there is none.
    """

    v: int = PROTOCOL
    boot_id: str
    session: int
    up_s: float
    status: Status
    settings: dict[str, Any] = {}
    installing: str = ""


class Message(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """Something that is delivered at least once, until a server confirms its `id`; servers store an id once.

    Attributes
    ----------
    epoch, seq
        `seq` rises by one per message of one outbox (`epoch`), across restarts; a gap is a message that has
        not arrived yet, or one that the device says is `Gone`.
    boot_id, session, up_s
        Of the sender, when it was sent.
    at_s
        When it was made, Unix time by the device's clock, which may be wrong.
    age_s
        How old it was when it was sent; None when it was made before the program last started.
    """

    v: int = PROTOCOL
    id: str
    epoch: str
    seq: int
    boot_id: str
    session: int
    up_s: float
    at_s: float
    age_s: float | None = None
    data: T


class Gone(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="gone"):
    """Numbers, as inclusive ranges, of messages that were dropped for want of room and will never come."""

    epoch: str
    seqs: list[tuple[int, int]]


class Part(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="part"):
    """Piece `index` of `total` of what command `id` asked for; `sha256` is of the whole."""

    id: str
    index: int
    total: int
    sha256: str
    body: bytes


class InstallReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="install"):
    """How far the installation of a bundle is, and why it ended.

    `accuracy_old` and `accuracy_new` are over the `n_trusted` trusted labels seen while both ran.
    """

    id: str
    sha256: str
    bundle_id: str
    phase: Literal["fetched", "shadow", "committed", "rolled-back", "failed"]
    reason: str = ""
    n_readings: int = 0
    n_trusted: int = 0
    accuracy_old: float | None = None
    accuracy_new: float | None = None


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """Chunks `first` to `first + n - 1` of the file with this SHA-256, please."""

    v: int = PROTOCOL
    sha256: str
    first: int
    n: int


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """These messages are in the store. `fleet` is how many devices it knows: they spread their
    reconnections.
    """

    v: int = PROTOCOL
    ids: list[str]
    fleet: int = 0


class Resend(msgspec.Struct, frozen=True, kw_only=True):
    """These numbers, as inclusive ranges, are missing in the store."""

    v: int = PROTOCOL
    epoch: str
    seqs: list[tuple[int, int]]


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """A worker of a server (re)started: send again what is not confirmed."""

    v: int = PROTOCOL
    worker: str


class Signed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A command (`edge_cl.commands.Command` as JSON text), signed by key `by`; `signature` is hexadecimal."""

    v: int = PROTOCOL
    by: str
    signature: str
    command: str


class _InboundLabel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    label: str
    kind: LabelKind = "is"
    reading_id: str = ""
    source: str = ""


UP: dict[str, Any] = {
    "status": Presence,
    "state": State,
    "event": Decision,
    "receipt": Message[Receipt],
    "sleep": Message[SleepReport],
    "summary": Message[Summary],
    "health": Message[Status],
    "result": Message[CommandResult],
    "install": Message[InstallReport],
    "part": Message[Part],
    "gone": Message[Gone],
    "want": Want,
}
"""What a device sends, by kind."""
DOWN: dict[str, Any] = {"ack": Ack, "resend": Resend, "do": Signed}
"""What a server sends, by the topic's last part."""

_encoder = msgspec.json.Encoder()
_label_decoder = msgspec.json.Decoder(_InboundLabel)
_decoders = {kind: msgspec.json.Decoder(type_) for kind, type_ in (UP | DOWN | {"hello": Hello}).items()}


def topic_root(site: str, device: str) -> str:
    """The topic that all of a device's topics begin with; refuses wildcards and slashes."""
    for key, value in (("device.site", site), ("device.name", device)):
        if not _TOPIC_PART.fullmatch(value):
            raise ConfigError(
                f"{key} is {value!r}; allowed: 1 to 63 of a-z, 0-9 and -, beginning with a letter or digit"
            )
    return f"edgecl/1/{site}/{device}"


def encode(record: msgspec.Struct) -> bytes:
    """A record as JSON."""
    return _encoder.encode(record)


def wrap(body: bytes, **fields: Any) -> bytes:
    """The JSON of a `Message` with these `fields` around a record that is JSON already."""
    return _encoder.encode(Message(data=msgspec.Raw(body), **fields))


def parts(command_id: str, body: bytes) -> list[Part]:
    """Something large, in pieces that fit into messages."""
    pieces = [body[at : at + PART_BYTES] for at in range(0, len(body), PART_BYTES)]
    whole = hashlib.sha256(body).hexdigest()
    return [
        Part(id=command_id, index=index, total=len(pieces), sha256=whole, body=piece)
        for index, piece in enumerate(pieces)
    ]


def decode(kind: str, payload: bytes) -> Any:
    """The inverse of `encode` and `wrap`: a kind of `UP`, of `DOWN`, or ``hello``.

    Raises
    ------
    SyncError
        Says what was expected and found.
    """
    try:
        return _decoders[kind].decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
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
