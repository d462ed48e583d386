"""Ed25519 signatures of texts, and the files that hold the keys.

A signature covers a domain besides the text, so one that was made for a command is none for a release.
Needs `cryptography`, which is imported when something is signed or checked, and not before.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from edge_cl.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

COMMAND = "edge-cl command 1"
RELEASE = "edge-cl release 1"

_HEX_KEY = re.compile(r"[0-9a-f]{64}")
_HEX_SIGNATURE = re.compile(r"[0-9a-f]{128}")


def require() -> None:
    """Raise `ConfigError` where signatures can be neither made nor checked."""
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "signed commands need the package cryptography, which is not installed; "
            "`pip install 'edge-cl[signed]'`, or leave [commands.keys] out of the settings"
        ) from error


def make_key() -> str:
    """A new private key, 64 hexadecimal digits."""
    require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate().private_bytes_raw().hex()


def public_of(private_hex: str) -> str:
    """The public key of a private one, 64 hexadecimal digits."""
    return _private(private_hex).public_key().public_bytes_raw().hex()


def sign(private_hex: str, domain: str, text: str) -> str:
    """The signature of `text` in a domain (`COMMAND`, `RELEASE`), 128 hexadecimal digits."""
    return _private(private_hex).sign(_signed(domain, text)).hex()


def verify(public_hex: str, domain: str, text: str, signature_hex: str) -> bool:
    """True when the owner of the key signed exactly this text in this domain; False for any nonsense."""
    require()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if not (_HEX_KEY.fullmatch(public_hex) and _HEX_SIGNATURE.fullmatch(signature_hex)):
        return False
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))
        key.verify(bytes.fromhex(signature_hex), _signed(domain, text))
    except (InvalidSignature, ValueError):
        return False
    return True


def write_key(path: Path, private_hex: str) -> Path:
    """Write a private key into a new file that only its owner can read, the public one beside it (``.pub``).

    Raises
    ------
    ConfigError
        When a file is there already: a key that was overwritten is lost.
    """
    public_path = path.with_name(path.name + ".pub")
    for file, mode, text in ((path, 0o600, private_hex), (public_path, 0o644, public_of(private_hex))):
        try:
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            raise ConfigError(f"{file} exists; a key is never overwritten, name another file") from None
        except OSError as error:
            raise ConfigError(f"{file}: the key cannot be written ({error.strerror})") from error
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(text + "\n")
    return public_path


def read_key(path: Path) -> str:
    """The private key of a file that nobody else can read.

    Raises
    ------
    ConfigError
        Says what is wrong with the file and what to do; never what is in it.
    """
    try:
        with path.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            text = stream.read(200).decode("ascii", "replace").strip()
    except OSError as error:
        raise ConfigError(
            f"{path}: the key cannot be read ({error.strerror}); `edge-cl fleet keygen FILE` makes one"
        ) from error
    if path.suffix == ".pub":
        private = path.with_suffix("")
        raise ConfigError(f"{path} is the public key, for devices; name the private one, {private}")
    if mode & 0o077:
        raise ConfigError(f"{path}: others can read this private key (mode {mode:o}); `chmod 600 {path}`")
    if not _HEX_KEY.fullmatch(text):
        raise ConfigError(
            f"{path}: this is no private key; expected one line of 64 hexadecimal digits, as "
            "`edge-cl fleet keygen FILE` writes it"
        )
    return text


def _private(private_hex: str) -> Ed25519PrivateKey:
    require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private_hex))


def _signed(domain: str, text: str) -> bytes:
    # ValueError for a text with a lone surrogate: it has no bytes, so nobody can have signed it.
    return domain.encode() + b"\n" + text.encode()
