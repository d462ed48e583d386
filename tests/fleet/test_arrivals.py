"""Whatever arrives is read or refused, and nothing else."""

from __future__ import annotations

import pytest
from edge_cl_fleet.arrivals import Arrival, Word, parse_topic, read
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.errors import SyncError
from edge_cl.sync.messages import UP, Presence, encode
from tests.fleet.devices import NOW_S, Board, status

KINDS = [*UP, "dream"]


def read_or_refuse(arrival: Arrival) -> Word | None:
    try:
        return read(arrival)
    except SyncError as error:
        assert len(str(error)) < 500
        return None


@settings(max_examples=300)
@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_any_bytes(kind: str, payload: bytes) -> None:
    read_or_refuse(Arrival(f"edgecl/1/lab/dev1/{kind}", payload, NOW_S))


@settings(max_examples=300)
@given(st.sampled_from(KINDS), st.integers(0, 10_000), st.binary(min_size=1, max_size=4), st.booleans())
def test_damaged_messages(kind: str, at: int, damage: bytes, insert: bool) -> None:
    board = Board()
    whole = {"status": board.presence().payload, "state": board.state().payload}.get(kind)
    payload = bytearray(whole or board.says(kind, status()).payload)
    at %= len(payload)
    payload[at : at if insert else at + len(damage)] = damage
    word = read_or_refuse(Arrival(f"edgecl/1/lab/dev1/{kind}", bytes(payload), NOW_S))
    if word is not None and word.row is not None:
        assert "\0" not in word.row.body and 0 <= word.row.seq < 2**63


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nest", [b"[", b'{"a":'])
def test_deep_nesting(kind: str, nest: bytes) -> None:
    deep = nest * 20_000
    message = Board().says(kind, b'{"type": "x"}')
    state = Board().state()
    inside = message._replace(payload=message.payload.replace(b'{"type": "x"}', deep))
    settings = state._replace(payload=state.payload.replace(b'"settings":{', b'"settings":{"a":' + deep))
    for arrival in (inside, settings, message._replace(payload=deep)):
        assert deep in arrival.payload
        assert read_or_refuse(arrival) is None


@settings(max_examples=300)
@given(st.text(max_size=40))
def test_any_topic(text: str) -> None:
    for topic in (text, f"edgecl/1/{text}", f"edgecl/1/lab/{text}/receipt", f"edgecl/1/lab/dev1/{text}"):
        source = parse_topic(topic)
        assert source is None or f"edgecl/1/{source.site}/{source.device}/{source.kind}" == topic


def test_names_of_devices_are_checked() -> None:
    for name in ("", "-a", "A", "a" * 64, "a+", "a\n", "ä", "a b", "../a"):
        assert parse_topic(f"edgecl/1/lab/{name}/receipt") is None
        assert parse_topic(f"edgecl/1/{name}/dev1/receipt") is None
    assert parse_topic("edgecl/1/lab/dev1/cmd/ack") is None
    assert parse_topic("edgecl/2/lab/dev1/receipt") is None


def test_a_cleared_retained_topic_says_nothing() -> None:
    assert read(Arrival("edgecl/1/lab/dev1/status", b"", NOW_S, retained=True)) is None
    assert read(
        Arrival("edgecl/1/lab/dev1/status", encode(Presence(online=True, boot_id="b", session=1)), NOW_S)
    )
