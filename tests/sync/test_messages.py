"""What goes over the wire, and what is refused from it."""

from __future__ import annotations

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_cl.errors import ConfigError, SyncError
from edge_cl.records import Decision, Label, Receipt, SleepReport
from edge_cl.sync import messages
from edge_cl.sync.events import EventGate
from edge_cl.sync.inbox import MAX_LABELS, Arrival, LabelInbox

RECEIPT = Receipt(reading_id="r1", label="walk", status="learned", source="mqtt", seq=3)
REPORT = SleepReport(
    n_sleep=1,
    cause="asked",
    n_exemplars=9,
    n_held_back=3,
    accuracy_before=0.5,
    accuracy_after=0.75,
    adopted=True,
    reason="",
    cpu_s=0.1,
)


@pytest.mark.parametrize(("kind", "record"), [("receipt", RECEIPT), ("sleep", REPORT)])
def test_a_wrapped_record_comes_back(kind: messages.Kind, record: Receipt | SleepReport) -> None:
    fields = {"id": "i1", "epoch": "e", "seq": 7, "boot_id": "b", "session": 2, "up_s": 1.5, "at_s": 9.0}
    payload = messages.wrap(messages.encode(record), **fields)
    assert json.loads(payload)["data"]["reason" if kind == "sleep" else "label"] in ("", "walk")
    assert messages.decode(kind, payload) == messages.Message(**fields, data=record)


def test_a_decision_comes_back() -> None:
    decision = Decision(reading_id="r", t_s=1.0, label="gehen – 走る", confidence=0.9, scores={"a": 0.9})
    assert messages.decode("event", messages.encode(decision)) == decision


def test_a_foreign_message_says_what_was_found() -> None:
    with pytest.raises(SyncError, match=r"not a receipt message.*hello"):
        messages.decode("receipt", b'{"hello": 1}')


def test_only_the_will_of_the_birth_itself_counts() -> None:
    birth = messages.Presence(online=True, boot_id="b", session=4)
    will = messages.Presence(online=False, boot_id="b", session=4, reason="lost")
    late = messages.Presence(online=False, boot_id="b", session=3, reason="lost")
    other = messages.Presence(online=False, boot_id="a", session=4, reason="lost")
    assert not will.is_stale_against(birth)
    assert late.is_stale_against(birth) and other.is_stale_against(birth)
    assert not birth.is_stale_against(late)


@pytest.mark.parametrize("name", ["", "+", "a/b", "#", "Ä", "-a", "x" * 64, "a\n"])
def test_names_that_would_change_the_topic_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"device.name is .* allowed"):
        messages.topic_root("home", name)
    with pytest.raises(ConfigError, match=r"device.site is .* allowed"):
        messages.topic_root(name, "pi")


def test_a_label_is_marked_as_coming_from_afar() -> None:
    label = messages.decode_label(b'{"label": "walk", "reading_id": "r1", "source": "local"}')
    assert label == Label(label="walk", reading_id="r1", source="mqtt/local")
    assert messages.decode_label(b'{"label": "walk"}').source == "mqtt"


def test_a_label_may_say_what_a_reading_was_not() -> None:
    said = messages.decode_label(b'{"label": "walk", "reading_id": "r1", "kind": "not"}')
    assert said == Label(label="walk", reading_id="r1", source="mqtt", kind="not")
    for payload in (b'{"label": "walk", "kind": "no"}', b'{"label": "walk", "not": true}'):
        with pytest.raises(SyncError, match="label refused"):
            messages.decode_label(payload)
    assert not messages.answers(RECEIPT, said), "a receipt for what it was is none for what it was not"
    refused = Receipt(reading_id="r1", label="walk", kind="not", status="learned", source="mqtt")
    assert messages.answers(refused, said)
    assert msgspec.json.decode(messages.encode(refused), type=Receipt).kind == "not"


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (b"walk", "malformed"),
        (b"", "truncated"),
        (b'{"label": "wal', "truncated"),
        (b'{"label": 3}', "Expected `str`, got `int`"),
        (b'{"reading_id": "r"}', "missing required field `label`"),
        (b'{"label": "a", "lable": "b"}', "unknown field `lable`"),
        (b'{"label": "  "}', "empty"),
        (b'{"label": ""}', "empty"),
        (b'{"label": "a\\u0000"}', "printable"),
        (b'{"label": "\xff"}', "utf-8"),
        (b'["label"]', "Expected `object`, got `array`"),
        (b"[" * 5000, "Expected `object`"),
        (json.dumps({"label": "x" * 201}).encode(), "201 characters"),
        (json.dumps({"label": "x", "reading_id": "y" * 999}).encode(), "reading_id has 999"),
        (json.dumps({"label": "x", "source": "y" * 999}).encode(), "source has 999"),
        (json.dumps({"label": "x" * 70_000}).encode(), "more than the 65,536 bytes"),
    ],
)
def test_a_bad_label_says_what_was_found(payload: bytes, found: str) -> None:
    with pytest.raises(SyncError, match="label refused") as refusal:
        messages.decode_label(payload)
    assert found.lower() in str(refusal.value).lower()
    assert len(str(refusal.value)) < 600


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(payload: bytes) -> None:
    with contextlib.suppress(SyncError):
        messages.decode_label(payload)


def decision(label: str) -> Decision:
    return Decision(reading_id="r", t_s=0.0, label=label, confidence=1.0)


def test_events_pass_on_change_and_every_five_seconds() -> None:
    gate = EventGate()
    passed = [n for n in range(15_000) if gate.passes(decision("a" if n < 6_000 else "b"), n / 1_000)]
    assert passed == [0, 5_000, 6_000, 11_000]


def test_a_flickering_label_passes_at_most_ten_times_a_second() -> None:
    gate = EventGate()
    passed = sum(gate.passes(decision("ab"[n % 2]), n / 1_500) for n in range(15_000))
    assert 80 <= passed <= 101


def arrival(payload: bytes, mid: int = 1, **fields: bool) -> Arrival:
    return Arrival("edgecl/1/lab/pi/cmd/label", payload, mid, session=1, **fields)


def test_a_label_is_acknowledged_only_after_its_receipt() -> None:
    inbox = LabelInbox()
    assert inbox.receive(arrival(b'{"label": "walk", "reading_id": "r1"}', mid=5)) is None
    assert inbox.receive(arrival(b'{"label": "sit"}', mid=6)) is None
    assert [label.label for label in inbox.poll()] == ["walk", "sit"]
    assert inbox.take_settled(1) == []
    inbox.settle(Receipt(reading_id="r9", label="sit", status="learned", source="local"))
    inbox.settle(Receipt(reading_id="r2", label="walk", status="learned", source="mqtt"))
    assert inbox.take_settled(1) == []
    inbox.settle(Receipt(reading_id="r9", label="sit", status="learned", source="mqtt"))
    assert inbox.take_settled(1) == [6]
    inbox.settle(Receipt(reading_id="r1", label="walk", status="duplicate", source="mqtt"))
    assert inbox.take_settled(1) == [5]


def test_a_message_number_of_an_earlier_connection_is_not_used() -> None:
    inbox = LabelInbox()
    inbox.receive(arrival(b'{"label": "walk"}', mid=5))
    inbox.settle(Receipt(reading_id="r1", label="walk", status="learned", source="mqtt"))
    assert inbox.take_settled(2) == []
    inbox.receive(arrival(b'{"label": "sit"}', mid=6))
    inbox.forget_connection()
    inbox.settle(Receipt(reading_id="r1", label="sit", status="learned", source="mqtt"))
    assert inbox.take_settled(1) == []


def test_labels_that_would_be_learned_for_the_wrong_reading_are_refused() -> None:
    inbox = LabelInbox()
    again = inbox.receive(arrival(b'{"label": "walk"}', redelivered=True))
    assert again is not None and "names no reading" in again.message
    retained = inbox.receive(arrival(b'{"label": "walk", "reading_id": "r1"}', retained=True))
    assert retained is not None and "retained" in retained.message
    assert inbox.receive(arrival(b'{"label": "walk", "reading_id": "r1"}', redelivered=True)) is None
    assert (inbox.n_bad, len(inbox.poll())) == (2, 1)


def test_labels_that_nobody_fetches_are_bounded() -> None:
    inbox = LabelInbox()
    refusals = [inbox.receive(arrival(b'{"label": "walk"}')) for _ in range(MAX_LABELS + 3)]
    assert sum(refusal is not None for refusal in refusals) == 3
    assert len(inbox.poll()) == MAX_LABELS


def test_nobody_can_pose_as_all_newcomers() -> None:
    with pytest.raises(SyncError, match="without \\*"):
        messages.decode_label(b'{"label": "walk", "source": "*"}')
