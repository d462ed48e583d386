"""What a device does with what it is told, and on its way to a broker. Rules D6, D12, D13, D15 to D20."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_cl.commands import Adjust, Report, SleepNow, Teach
from edge_cl.sync import messages, signing
from tests.conformance.counterparts import OWN_DEVICE, ROOT, Boss, Ear, Subject, result_of
from tests.conformance.old_broker import OldBroker
from tests.mosquitto import Broker, wait_until

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.fixture(scope="module")
def live(ear: Ear, device: Subject) -> Iterator[Subject]:
    """A device that runs, whose messages are confirmed."""
    ear.confirms = True
    device.start()
    wait_until(lambda: ear.of("state"), "its state", 40)
    yield device


def settle(ear: Ear, boss: Boss) -> None:
    """Until something that was sent after everything else was answered."""
    result_of(ear, boss.send(Report()))


def test_d12_missing_numbers_come_or_are_gone(ear: Ear, live: Subject) -> None:
    last = ear.wait_for("summary", 2)[-1]
    since = len(ear.heard)
    asked = messages.Resend(epoch=last.epoch, seqs=[(1, 2)])
    ear.say("cmd/resend", messages.encode(asked))
    (gone,) = ear.wait_for("gone", since=since)
    assert gone.data == messages.Gone(epoch=last.epoch, seqs=[(1, 2)])


def test_d15_only_what_is_signed_for_it_now_is_obeyed(ear: Ear, boss: Boss, live: Subject) -> None:
    wait_until(lambda: ear.of("state"), "its state")
    good = boss.command(Adjust(min_confidence=0.11))
    stranger = signing.make_key()
    bad = [
        boss.signed(good, key=stranger),
        boss.signed(good, by="nobody"),
        boss.signed(boss.command(Adjust(min_confidence=0.11), to="lab/other")),
        boss.signed(boss.command(Adjust(min_confidence=0.11), boot_id="0" * 32)),
        boss.signed(boss.command(Adjust(min_confidence=0.11), until_s=0.0)),
        boss.signed(boss.command(Adjust(min_confidence=0.11), until_s=1e9)),
        boss.signed(good).replace(b"0.11", b"0.12"),
        messages.encode(good),
    ]
    for payload in bad:
        ear.say("cmd/do", payload)
    settle(ear, boss)
    assert result_of(ear, boss.send(Report())).data["bundle_id"]
    assert ear.wait_for("state")[-1].settings["min_confidence"] != 0.11
    assert result_of(ear, boss.send(Adjust(min_confidence=0.42))).status == "done"
    wait_until(lambda: ear.of("state")[-1].settings["min_confidence"] == 0.42, "the setting is reported")


def test_d16_an_id_is_carried_out_once(ear: Ear, boss: Boss, live: Subject) -> None:
    wait_until(lambda: ear.of("event"), "a reading")
    reading = ear.of("event")[-1].reading_id
    command = boss.command(Teach(label="walk", reading_id=reading))
    n_labels = ear.of("state")[-1].status.n_labels
    for _ in range(3):
        ear.say("cmd/do", boss.signed(command))
    assert result_of(ear, command.id).data["status"] == "learned"
    settle(ear, boss)
    since = len(ear.heard)
    state = ear.wait_for("state", 2, since=since)[-1]
    assert state.status.n_labels == n_labels + 1


def test_d16_also_over_a_restart(ear: Ear, boss: Boss, live: Subject) -> None:
    command_id = boss.send(Adjust(min_confidence=0.2))
    result_of(ear, command_id)
    result_of(ear, boss.send(Adjust(min_confidence=0.3)))
    before = ear.of("state")[-1].boot_id
    live.kill()
    live.start()
    wait_until(lambda: ear.of("state")[-1].boot_id != before, "its next life", 40)
    boss.send(Adjust(min_confidence=0.2), id=command_id)
    settle(ear, boss)
    assert ear.wait_for("state", since=len(ear.heard))[-1].settings["min_confidence"] == 0.3


def test_what_is_retained_is_not_obeyed(ear: Ear, boss: Boss, live: Subject) -> None:
    before = ear.of("state")[-1].boot_id
    live.kill()
    ear.say("cmd/label", b'{"label": "run"}', retain=True)
    since = len(ear.heard)
    live.start()
    wait_until(lambda: ear.of("state")[-1].boot_id != before, "its next life", 40)
    # the broker may also have kept it for the device that was away, as an ordinary message
    wait_until(lambda: _refused_as_retained(ear, since), "the retained one is refused")
    ear.say("cmd/label", b"", retain=True)


def _refused_as_retained(ear: Ear, since: int) -> bool:
    receipts = [message.data for message in ear.of("receipt", since=since)]
    return any(receipt.status == "refused" and "retained" in receipt.message for receipt in receipts)


def test_d17_results_have_their_commands_ids(ear: Ear, boss: Boss, live: Subject) -> None:
    assert result_of(ear, boss.send(SleepNow())).status == "done"
    assert result_of(ear, boss.send(Adjust(min_confidence=9.0))).status in ("failed", "refused")
    late = boss.command(Report(), until_s=0.0)
    ear.say("cmd/do", boss.signed(late))
    assert result_of(ear, late.id).status == "expired"


def test_d18_labels_are_answered(ear: Ear, live: Subject) -> None:
    since = len(ear.heard)
    ear.say("cmd/label", b'{"label": "run", "source": "anna"}')
    (receipt,) = ear.wait_for("receipt", since=since)
    assert (receipt.data.label, receipt.data.status, receipt.data.source) == ("run", "learned", "mqtt/anna")
    assert receipt.data.reading_id
    ear.say("cmd/label", b"\xff\x00 nonsense")
    wait_until(lambda: len(ear.of("receipt", since=since)) == 2, "an answer to nonsense")
    assert ear.of("receipt", since=since)[-1].data.status == "refused"


def test_d19_anything_else_ends_nothing(ear: Ear, boss: Boss, live: Subject) -> None:
    boot_id = ear.of("state")[-1].boot_id
    for topic in ("cmd/dance", "cmd/do/more", "cmd/ack", "cmd/resend", "cmd/chunk/x/y", "cmd/chunk/aa/1"):
        for payload in (b"", b"\xff" * 100, b'{"v": 7}', b"[" * 5000, b"x" * 90_000):
            ear.say(topic, payload)
    settle(ear, boss)
    assert ear.of("state")[-1].boot_id == boot_id


def test_d20_a_broker_that_knows_only_the_older_version(tmp_path: Path) -> None:
    with OldBroker() as broker:
        device = Subject(_command(), broker.url, tmp_path, signing.public_of(signing.make_key()))
        device.start()
        try:
            wait_until(lambda: broker.n_published > 0, "it publishes there", 60)
            assert broker.versions[-1] == 4
        finally:
            device.kill()


def test_d13_no_more_than_16_on_their_way(tmp_path: Path) -> None:
    with OldBroker(acknowledges=False) as broker:
        device = Subject(_command(), broker.url, tmp_path, signing.public_of(signing.make_key()))
        device.start()
        try:
            for connection in range(2):
                wait_until(lambda n=connection: len(broker.unacknowledged) > n, "it connects", 60)
                wait_until(lambda n=connection: broker.unacknowledged[n] >= 16, "sixteen", 90)
                threading.Event().wait(1.0)  # time to send a seventeenth
                broker.hang_up()
            assert max(broker.unacknowledged) == 16
        finally:
            device.kill()


def test_d6_a_second_board_of_its_name(ear: Ear, boss: Boss, live: Subject, module_broker: Broker) -> None:
    settle(ear, boss)
    stranger = messages.Presence(online=True, boot_id=uuid.uuid4().hex, session=99)
    ear.say("status", messages.encode(stranger), retain=True)
    threading.Event().wait(3.0)
    since = len(ear.heard)
    threading.Event().wait(8.0)  # longer than it usually waits to connect again
    assert not [heard for heard in ear.heard[since:] if heard.topic.startswith(ROOT)]


def _command() -> str:
    import os

    return os.environ.get("EDGE_CL_DEVICE", OWN_DEVICE)
