"""Keys and signatures."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.errors import ConfigError
from edge_cl.sync import signing

PRIVATE = signing.make_key()
PUBLIC = signing.public_of(PRIVATE)


@settings(max_examples=50)
@given(st.text(max_size=200), st.text(max_size=200))
def test_only_the_text_that_was_signed_verifies(text: str, other: str) -> None:
    signature = signing.sign(PRIVATE, signing.COMMAND, text)
    assert signing.verify(PUBLIC, signing.COMMAND, text, signature)
    assert signing.verify(PUBLIC, signing.COMMAND, other, signature) == (text == other)
    assert not signing.verify(PUBLIC, signing.RELEASE, text, signature)
    assert not signing.verify(signing.public_of(signing.make_key()), signing.COMMAND, text, signature)


def test_the_signature_is_plain_ed25519() -> None:
    """With the key of RFC 8032's first test; any other implementation can check it."""
    private = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert signing.public_of(private) == public
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signature = bytes.fromhex(signing.sign(private, signing.COMMAND, "{}"))
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, b"edge-cl command 1\n{}")


@pytest.mark.parametrize("signature", ["", "0" * 128, "zz" * 64, "0" * 127, "0" * 4000, "ß" * 128, "\ud800"])
def test_nonsense_never_verifies_and_never_raises(signature: str) -> None:
    assert not signing.verify(PUBLIC, signing.COMMAND, "text", signature)
    assert not signing.verify(signature, signing.COMMAND, "text", "0" * 128)
    assert not signing.verify(PUBLIC, signing.COMMAND, "\ud800", "0" * 128)


def test_a_key_file_is_for_its_owner_only(tmp_path: Path) -> None:
    public_file = signing.write_key(tmp_path / "fleet.key", PRIVATE)
    assert stat.S_IMODE((tmp_path / "fleet.key").stat().st_mode) == 0o600
    assert signing.read_key(tmp_path / "fleet.key") == PRIVATE
    assert public_file.read_text() == PUBLIC + "\n"

    (tmp_path / "fleet.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode 640.*chmod 600"):
        signing.read_key(tmp_path / "fleet.key")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    signing.write_key(tmp_path / "k", PRIVATE)
    with pytest.raises(ConfigError, match="never overwritten"):
        signing.write_key(tmp_path / "k", signing.make_key())
    assert signing.read_key(tmp_path / "k") == PRIVATE


@pytest.mark.parametrize("content", [b"", b"secret", b"\xff" * 64, PRIVATE.encode() * 4])
def test_a_file_that_is_no_key_is_named_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "k"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=r"no private key.*edge-cl fleet keygen") as caught:
        signing.read_key(file)
    assert "secret" not in str(caught.value) and PRIVATE not in str(caught.value)


def test_an_absent_key_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*keygen"):
        signing.read_key(tmp_path / "none")


def test_without_cryptography_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(ConfigError, match=r"pip install 'edge-cl\[signed\]'"):
        signing.make_key()


def test_the_public_key_is_not_taken_for_the_private_one(tmp_path: Path) -> None:
    public = signing.write_key(tmp_path / "fleet.key", signing.make_key())
    public.chmod(0o600)
    with pytest.raises(ConfigError, match=r"is the public key.*fleet\.key$"):
        signing.read_key(public)
