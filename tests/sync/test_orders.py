"""Which orders a device obeys, and why it refuses the others."""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.forgeries import measure
from edge_cl.commands import MAX_VALID_S, Command, Install, Release, SleepNow, Teach
from edge_cl.config import KeySettings, settings_from
from edge_cl.errors import CommandRefused
from edge_cl.revisions import Forget
from edge_cl.sync import signing
from edge_cl.sync.messages import CHUNK_BYTES, MAX_INBOUND_BYTES, Signed
from edge_cl.sync.orders import CODES, MAX_CHUNKS, MAX_RELEASE_BYTES, CommandGate, verify_release

PRIVATE = signing.make_key()
OTHER = signing.make_key()
KEYS: dict[str, KeySettings] = settings_from(
    {
        "commands": {
            "keys": {
                "fleet": {
                    "public": signing.public_of(PRIVATE),
                    "allow": ["label", "sleep", "forget", "release"],
                },
                "labeller": {"public": signing.public_of(OTHER), "allow": ["label"]},
            }
        }
    }
).commands.keys
BOOT = secrets.token_hex(16)
UP_S = 500.0


def gate() -> CommandGate:
    return CommandGate(KEYS, device="home/wrist", boot_id=BOOT)


def command(**changes: Any) -> Command:
    asked = {"id": secrets.token_hex(16), "to": "home/wrist", "boot_id": BOOT, "until_s": UP_S + 60}
    return Command(**(asked | {"do": Teach(label="walk", reading_id="r1")} | changes))


def signed(
    text: str | Command, by: str = "fleet", key: str = PRIVATE, domain: str = signing.COMMAND
) -> bytes:
    if isinstance(text, Command):
        text = msgspec.json.encode(text).decode()
    return msgspec.json.encode(Signed(by=by, signature=signing.sign(key, domain, text), command=text))


def text_of(**changes: Any) -> str:
    """The command's JSON with some of its fields replaced, whatever their types."""
    raw = json.loads(msgspec.json.encode(command()))
    return json.dumps(raw | changes)


def refusal(payload: bytes, *, retained: bool = False, up_s: float = UP_S) -> CommandRefused:
    checked = gate()
    with pytest.raises(CommandRefused) as caught:
        checked.check(payload, up_s, retained=retained)
    assert checked.refused[caught.value.code] == 1 and sum(checked.refused.values()) == 1
    return caught.value


def test_a_good_command_is_let_through_as_it_was_signed() -> None:
    asked = command()
    assert gate().check(signed(asked), UP_S, retained=False) == asked


def test_time_counts_from_the_start_of_the_program() -> None:
    payload = signed(command())
    assert gate().check(payload, UP_S + 60, retained=False)
    assert refusal(payload, up_s=UP_S + 60.1).code == "expired"


def test_keys_may_ask_for_what_they_are_allowed() -> None:
    asked = signed(command(), by="labeller", key=OTHER)
    assert gate().check(asked, UP_S, retained=False).ask == "label"
    found = refusal(signed(command(do=SleepNow()), by="labeller", key=OTHER))
    assert found.code == "not-allowed" and "[commands.keys.labeller]" in str(found)


@pytest.mark.parametrize(
    ("payload", "code", "says"),
    [
        (b"", "malformed", "no signed command"),
        (b"\xff\xfe", "malformed", "no signed command"),
        (b"[" * 60_000, "malformed", "no signed command"),
        (b'{"v":' + b"9" * 60_000 + b"}", "malformed", "out of range"),
        (b'{"by":"x","signature":"","command":"","more":1}', "malformed", "unknown field `more`"),
        (b'{"v":2,"by":"fleet","signature":"","command":""}', "malformed", "version 2, this device speaks 1"),
        (b"x" * (MAX_INBOUND_BYTES + 1), "too-large", "65,536 bytes"),
        (signed(command(), by="eve", key=OTHER), "unknown-key", "known: fleet, labeller"),
        (signed(command(), key=OTHER), "bad-signature", "key fleet"),
        (signed(command(), domain=signing.RELEASE), "bad-signature", "key fleet"),
        (signed(command()).replace(b"walk", b"jump"), "bad-signature", "key fleet"),
        (signed(command(to="home/other")), "foreign", "'home/other', this is home/wrist"),
        (signed(command(boot_id="0" * 32)), "other-boot", "last started"),
        (signed(command(until_s=UP_S - 1)), "expired", "1 s too late"),
        (signed(command(until_s=UP_S + MAX_VALID_S + 1)), "too-far", "7 days"),
        (signed(command(id="../x")), "malformed", "32 hexadecimal digits"),
        (signed(command(do=Teach(label=" "))), "malformed", "label is empty"),
        (signed(text_of(do={"ask": "dance"})), "malformed", "dance"),
        (
            signed(text_of(do={"ask": "forget", "clas_name": "walk"})),
            "malformed",
            "forget knows no 'clas_name'",
        ),
        (signed(text_of(more=1)), "malformed", "unknown field `more`"),
        (signed(text_of().replace('"until_s"', '"until_s": 1, "until_s"')), "malformed", "twice"),
        (signed(text_of(until_s=float("nan"))), "malformed", "malformed"),
        (signed(text_of().replace(str(UP_S + 60), "1e999")), "malformed", "out of range"),
        (signed("[" * 40_000), "malformed", "Expected `object`"),
        (signed(text_of(do={"ask": "sleep", "x": 1})[:-2] + "," + '"y":' + "[" * 30_000), "malformed", ""),
    ],
)
def test_a_refusal_has_a_code_and_says_why(payload: bytes, code: str, says: str) -> None:
    found = refusal(payload)
    assert found.code == code
    assert says in str(found) and len(str(found)) < 500
    assert code in CODES


def test_what_a_broker_kept_is_a_replay() -> None:
    assert refusal(signed(command()), retained=True).code == "retained"


def test_only_a_good_signature_makes_an_id_known() -> None:
    """A result is sent for an id that is known: nobody may make a device answer for ids of his own."""
    asked = command(until_s=UP_S - 1)
    assert refusal(signed(asked)).command_id == asked.id
    assert refusal(signed(asked, key=OTHER)).command_id == ""


def test_a_mistyped_criterion_does_not_forget_everything() -> None:
    assert gate().check(signed(command(do=Forget(class_name="walk"))), UP_S, retained=False).ask == "forget"
    typo = text_of(do={"ask": "forget", "class": "walk"})
    assert refusal(signed(typo)).code == "malformed"


@settings(max_examples=200)
@given(st.binary(max_size=400), st.booleans(), st.floats())
def test_no_bytes_do_more_than_be_refused(payload: bytes, retained: bool, up_s: float) -> None:
    with pytest.raises(CommandRefused):
        gate().check(payload, up_s, retained=retained)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200)
@given(st.sampled_from(["id", "to", "boot_id", "until_s", "do"]), json_values)
def test_no_signed_content_does_more_than_be_refused(field: str, value: Any) -> None:
    checked = gate()
    try:
        found = checked.check(signed(text_of(**{field: value})), UP_S, retained=False)
    except CommandRefused:
        return
    assert field == "until_s" and UP_S <= found.until_s <= UP_S + MAX_VALID_S


def test_without_keys_nothing_is_obeyed() -> None:
    with pytest.raises(CommandRefused, match="known: none"):
        CommandGate({}, device="home/wrist", boot_id=BOOT).check(signed(command()), UP_S, retained=False)


# -- bundles ---------------------------------------------------------------------------------


def release(**changes: Any) -> Release:
    body = b"x" * 2500
    chunks = [hashlib.sha256(body[i : i + 1000]).hexdigest()[:16] for i in (0, 1000, 2000)]
    fields = {"name": "wrist", "bundle_id": "b1", "sha256": hashlib.sha256(body).hexdigest(), "size": 2500}
    return Release(**(fields | {"chunk_bytes": 1000, "chunks": chunks} | changes))


def install(found: Release | str, by: str = "fleet", key: str = PRIVATE) -> Install:
    text = found if isinstance(found, str) else msgspec.json.encode(found).decode()
    return Install(release=text, signed_by=by, signature=signing.sign(key, signing.RELEASE, text))


@pytest.mark.parametrize(
    "url", ["", "https://example.org/a.ecl", "http://10.0.0.2:8000/a?b=1", "https://[::1]/a"]
)
def test_a_signed_release_comes_back(url: str) -> None:
    assert verify_release(install(release(url=url, includes={"home/wrist": 7})), KEYS) == release(
        url=url, includes={"home/wrist": 7}
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": MAX_RELEASE_BYTES + 1}, "size is"),
        ({"chunk_bytes": 0}, "chunk_bytes is 0"),
        ({"chunk_bytes": -1000}, "chunk_bytes is -1000"),
        ({"chunk_bytes": CHUNK_BYTES + 1}, "chunk_bytes is"),
        ({"size": 3001}, "lists 3 chunks, its size needs 4"),
        ({"size": 3000, "chunk_bytes": 1, "chunks": ["0" * 16] * 3000}, "at most 2,048"),
        ({"sha256": "A" * 64}, "sha256"),
        ({"chunks": ["0" * 16, "0" * 16, "../../../etc/pwd"]}, "chunk's hash"),
        ({"name": ""}, "name"),
        ({"bundle_id": "x" * 65}, "bundle_id"),
        ({"url": "file:///etc/passwd"}, "url"),
        ({"url": "https://anna:secret@example.org/a"}, "url"),
        ({"url": "https://example.org/a b"}, "url"),
        ({"url": "https:///a"}, "url"),
        ({"url": "https://[::1/a"}, "url"),
        ({"includes": {"home/wrist": -1}}, "includes"),
    ],
)
def test_a_release_that_makes_no_sense_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CommandRefused, match=says) as caught:
        verify_release(install(release(**changes)), KEYS)
    assert caught.value.code == "malformed" and "secret" not in str(caught.value)


def test_who_may_install_may_not_therefore_sign_bundles() -> None:
    for by, key, code in (
        ("labeller", OTHER, "not-allowed"),
        ("fleet", OTHER, "bad-signature"),
        ("eve", OTHER, "unknown-key"),
    ):
        with pytest.raises(CommandRefused) as caught:
            verify_release(install(release(), by, key), KEYS)
        assert caught.value.code == code
    with pytest.raises(CommandRefused, match="truncated") as caught:
        verify_release(install("{"), KEYS)
    assert caught.value.code == "malformed"


def test_the_largest_release_fits_into_a_command() -> None:
    largest = release(
        size=MAX_RELEASE_BYTES,
        chunk_bytes=CHUNK_BYTES,
        chunks=["0123456789abcdef"] * MAX_CHUNKS,
        url="https://example.org/" + "a" * 900,
        includes={f"home/device-{n}": n for n in range(100)},
    )
    asked = install(largest)
    assert verify_release(asked, KEYS) == largest
    assert len(signed(command(do=asked))) <= MAX_INBOUND_BYTES


def test_thousands_of_bad_orders_and_none_is_obeyed() -> None:
    figures = measure(3_000, seed=1)
    assert figures["bad_commands"] == 3_000
    assert figures["bad_commands_executed"] == 0 and figures["crashes"] == 0
    assert figures["good_commands_executed"] == figures["good_commands"] >= 30
    assert figures["growth_mb"] <= 5
    reasons = {code for code, n in figures["refused"].items() if n}
    assert reasons == set(CODES) - {"busy"}
