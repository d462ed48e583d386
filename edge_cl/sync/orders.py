"""Which orders from afar are obeyed. Pure: no clock, no input or output.

The broker is not trusted: whoever can publish may send anything here, any number of times.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from edge_cl.commands import MAX_VALID_S, Command, Install, Release, Teach
from edge_cl.config import KeySettings
from edge_cl.errors import CommandRefused, SyncError
from edge_cl.sync import signing
from edge_cl.sync.messages import CHUNK_BYTES, MAX_INBOUND_BYTES, PROTOCOL, Signed, check_label

CODES = (
    "malformed", "too-large", "retained", "unknown-key", "bad-signature", "not-allowed", "foreign",
    "other-boot", "expired", "too-far", "busy",
)  # fmt: skip
"""Why an order is not obeyed; ``busy`` is the word of :class:`edge_cl.sync.accepted.Accepted`."""
MAX_CHUNKS = 2048
"""As many as the command around a release has room for."""
MAX_RELEASE_BYTES = MAX_CHUNKS * CHUNK_BYTES

_ID = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = re.compile(r"[0-9a-f]{16}")
_URL = re.compile(r"https?://[!-~]{1,1000}")
_MAX_SEQ = 2**63

_signed_decoder = msgspec.json.Decoder(Signed)
_command_decoder = msgspec.json.Decoder(Command)
_release_decoder = msgspec.json.Decoder(Release)
_UNREADABLE = (ValueError, RecursionError)  # msgspec's and json's errors are ValueErrors


class CommandGate:
    """Lets a command through that a known key signed for this device in this life, in time, and may ask for.

    Checks go from cheap to dear, and nothing of a command is believed before its signature.

    Parameters
    ----------
    keys
        Who may ask for what, by name.
    device
        ``site/name``.
    boot_id
        Drawn at this start of the program; commands for another are recordings.

    Attributes
    ----------
    refused
        How many were refused, by code.
    """

    def __init__(self, keys: Mapping[str, KeySettings], *, device: str, boot_id: str) -> None:
        if keys:
            signing.require()
        self.refused = dict.fromkeys(CODES, 0)
        self._keys = keys
        self._device = device
        self._boot_id = boot_id

    def check(self, payload: bytes, up_s: float, *, retained: bool) -> Command:
        """The command in a message on ``cmd/do`` that came at uptime `up_s`.

        Raises
        ------
        CommandRefused
            Its `code` is counted in `refused`.
        """
        try:
            signed = self._open(payload, retained=retained)
            return self._read(signed, up_s)
        except CommandRefused as refusal:
            self.refused[refusal.code] += 1
            raise

    def _open(self, payload: bytes, *, retained: bool) -> Signed:
        if retained:
            raise CommandRefused(
                "retained",
                "command refused: the broker had kept it, so anybody who connects gets it again; "
                "publish commands without the retain flag",
            )
        if len(payload) > MAX_INBOUND_BYTES:
            raise CommandRefused(
                "too-large",
                f"command refused: it has more than the {MAX_INBOUND_BYTES:,} bytes that are read",
            )
        try:
            signed = _signed_decoder.decode(payload)
        except _UNREADABLE as error:
            raise CommandRefused(
                "malformed", f"command refused: it is no signed command ({_short(error)})"
            ) from None
        if signed.v != PROTOCOL:
            raise CommandRefused(
                "malformed",
                f"command refused: it has protocol version {signed.v}, this device speaks {PROTOCOL}",
            )
        check_signature(self._keys, signed.by, signing.COMMAND, signed.command, signed.signature)
        return signed

    def _read(self, signed: Signed, up_s: float) -> Command:
        command = _parse(signed.command)
        for code, wrong, message in (
            (
                "foreign",
                command.to != self._device,
                f"it is for {command.to[:127]!r}, this is {self._device}",
            ),
            (
                "not-allowed",
                command.ask not in self._keys[signed.by].allow,
                f"key {signed.by} may not ask for {command.ask}; see [commands.keys.{signed.by}]",
            ),
            ("other-boot", command.boot_id != self._boot_id, "it was signed before this device last started"),
            ("expired", command.until_s < up_s, f"it came {up_s - command.until_s:.0f} s too late"),
            (
                "too-far",
                command.until_s > up_s + MAX_VALID_S,
                f"it would be valid for more than {MAX_VALID_S / 86400:.0f} days",
            ),
        ):
            if wrong:
                raise CommandRefused(code, f"command refused: {message}", command.id)
        return command


def check_signature(keys: Mapping[str, KeySettings], by: str, domain: str, text: str, signature: str) -> None:
    """Raise `CommandRefused` unless a key of that name signed the text."""
    key = keys.get(by)
    if key is None:
        raise CommandRefused(
            "unknown-key",
            f"command refused: no key is called {by[:63]!r} here; known: {', '.join(sorted(keys)) or 'none'}",
        )
    if not signing.verify(key.public, domain, text, signature):
        raise CommandRefused(
            "bad-signature",
            f"command refused: the signature is not of key {by}; see its public key in the settings",
        )


def verify_release(install: Install, keys: Mapping[str, KeySettings]) -> Release:
    """The release that an installation names, when a key signed it that may, and it makes sense.

    Raises
    ------
    CommandRefused
        With the codes unknown-key, bad-signature, not-allowed, malformed.
    """
    by = install.signed_by
    check_signature(keys, by, signing.RELEASE, install.release, install.signature)
    if "release" not in keys[by].allow:
        raise CommandRefused(
            "not-allowed",
            f"bundle refused: key {by} may not sign bundles; [commands.keys.{by}] lists what it may",
        )
    try:
        release = _release_decoder.decode(install.release)
    except _UNREADABLE as error:
        raise CommandRefused("malformed", f"bundle refused: {_short(error)}") from None
    wrong = _fault(release)
    if wrong:
        raise CommandRefused("malformed", f"bundle refused: {wrong}")
    return release


def _parse(text: str) -> Command:
    """A signed command: every field known, none twice, since a mistyped one could widen what is asked."""
    try:
        command = _command_decoder.decode(text)
        raw = json.loads(text, object_pairs_hook=_once)
    except _UNREADABLE as error:
        raise CommandRefused("malformed", f"command refused: {_short(error)}") from None
    if not _ID.fullmatch(command.id):
        raise CommandRefused(
            "malformed", f"command refused: its id is {command.id[:63]!r}, expected 32 hexadecimal digits"
        )
    unknown = raw["do"].keys() - {"ask", *command.do.__struct_encode_fields__}
    wrong = ""
    if unknown:
        wrong = f"{command.ask} knows no {min(unknown)[:63]!r}; is the server newer than the device?"
    elif not math.isfinite(command.until_s):
        wrong = "until_s is no finite number"
    elif isinstance(command.do, Teach):
        wrong = _fault_of_label(command.do)
    if wrong:
        raise CommandRefused("malformed", f"command refused: {wrong}", command.id)
    return command


def _fault_of_label(teach: Teach) -> str:
    try:
        check_label(teach.label, teach.reading_id)
    except SyncError as error:
        return str(error)
    return ""


def _short(error: Exception) -> str:
    return str(error)[:200]  # it may quote what came


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _fault(release: Release) -> str:
    """What is wrong with a release, or ""."""
    r = release
    n_chunks = -(-r.size // r.chunk_bytes) if r.chunk_bytes > 0 else 0
    for sound, wrong in (
        (0 < r.size <= MAX_RELEASE_BYTES, f"size is {r.size}, allowed: 1 to {MAX_RELEASE_BYTES:,} bytes"),
        (0 < r.chunk_bytes <= CHUNK_BYTES, f"chunk_bytes is {r.chunk_bytes}, allowed: 1 to {CHUNK_BYTES:,}"),
        (len(r.chunks) == n_chunks, f"it lists {len(r.chunks):,} chunks, its size needs {n_chunks:,}"),
        (n_chunks <= MAX_CHUNKS, f"it has {n_chunks:,} chunks, at most {MAX_CHUNKS:,} are allowed"),
        (_SHA256.fullmatch(r.sha256), "sha256 is not 64 hexadecimal digits"),
        (all(map(_CHUNK.fullmatch, r.chunks)), "a chunk's hash is not 16 hexadecimal digits"),
        (0 < len(r.name) <= 200 and r.name.isprintable(), "its name is empty, too long or not printable"),
        (0 < len(r.bundle_id) <= 64 and r.bundle_id.isprintable(), "its bundle_id is no such thing"),
        (
            r.url == "" or _is_web(r.url),
            'url is not https://host/…, http://host/… or "", without a user in it',
        ),
        (all(0 <= seq < _MAX_SEQ for seq in r.includes.values()), "a number in includes is out of range"),
    ):
        if not sound:
            return wrong
    return ""


def _is_web(url: str) -> bool:
    """Whether a file can be fetched there. Plain http will do: the signed SHA-256 says what must come."""
    if not _URL.fullmatch(url):
        return False
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        return False
