"""A device's life as its server sees it, once: started, killed, started, cut off, stopped. Rules
D1 to D14, P1 to P3.
"""

from __future__ import annotations

import re
import time
from typing import NamedTuple

import pytest

from edge_cl.sync import messages
from tests.conformance.counterparts import ROOT, Ear, Subject
from tests.mosquitto import Broker, wait_until

pytestmark = [pytest.mark.broker, pytest.mark.slow]


class Story(NamedTuple):
    """What was heard, and at which point of it something was done."""

    ear: Ear
    killed: int
    restarted: int
    confirmed: list[str]
    confirmed_at: int
    back: int
    hello: int
    hello_s: float
    stopped: int


@pytest.fixture(scope="module")
def story(module_broker: Broker, ear: Ear, device: Subject) -> Story:
    device.start()
    wait_until(lambda: len(_ids(ear)) >= 3, "three messages that want to be confirmed", 40)
    ear.wait_for("state", 2)
    killed = len(ear.heard)
    device.kill()
    wait_until(lambda: not ear.of("status")[-1].online, "the last will", 40)
    restarted = len(ear.heard)
    device.start()
    wait_until(lambda: set(_ids(ear)) == set(_ids(ear, restarted)) | set(), "all come again", 40)
    confirmed = _ids(ear, restarted)[:2]
    confirmed_at = len(ear.heard)
    ear.confirm(confirmed)
    wait_until(lambda: set(_ids(ear, confirmed_at)) - set(confirmed), "something new", 40)
    hello, hello_s = len(ear.heard), time.monotonic()
    waiting = set(_ids(ear)) - set(confirmed)
    ear.say(messages.HELLO, messages.encode(messages.Hello(worker="w1")))
    wait_until(lambda: waiting <= set(_ids(ear, hello)), "all that waits comes again", 40)
    hello_s = time.monotonic() - hello_s
    back = len(ear.heard)
    module_broker.stop()
    module_broker.start()
    wait_until(lambda: ear.of("status", since=back), "it is back", 60)
    wait_until(lambda: waiting <= set(_ids(ear, back)), "all that waits comes again", 60)
    stopped = len(ear.heard)
    device.stop()
    wait_until(lambda: not ear.of("status", since=stopped)[-1].online, "the farewell", 40)
    return Story(ear, killed, restarted, confirmed, confirmed_at, back, hello, hello_s, stopped)


def _ids(ear: Ear, since: int = 0) -> list[str]:
    return [message.id for message in ear.durable(since=since)]


def _statuses(story: Story, first: int = 0, last: int | None = None) -> list[messages.Presence]:
    heard = [heard for heard in story.ear.heard[first:last] if heard.kind == "status"]
    return [messages.decode("status", one.payload) for one in heard]


def test_p1_topics_and_sizes(story: Story) -> None:
    mine = [heard for heard in story.ear.heard if "/cmd/" not in heard.topic and "/fleet/" not in heard.topic]
    assert {heard.topic.rpartition("/")[0] for heard in mine} == {ROOT}
    assert {heard.kind for heard in mine} <= messages.UP.keys()
    assert all(len(heard.payload) <= messages.MAX_MESSAGE_BYTES for heard in mine)
    assert all(heard.topic.count("/") <= 7 for heard in story.ear.heard)


def test_p2_payloads_are_as_in_the_schema(story: Story) -> None:
    for heard in story.ear.heard:
        if heard.kind in messages.UP:
            messages.decode(heard.kind, heard.payload)


def test_p3_only_status_and_state_are_retained(story: Story, module_broker: Broker) -> None:
    late = Ear(module_broker.url)
    late.wait_for("status")
    late.wait_for("state")
    assert {heard.kind for heard in late.heard if heard.retained} == {"status", "state"}
    late.close()


def test_d1_a_birth_comes_first(story: Story) -> None:
    for begin in (0, story.restarted):
        first = next(heard for heard in story.ear.heard[begin:] if heard.topic.startswith(ROOT))
        birth = messages.decode("status", first.payload)
        assert first.kind == "status" and birth.online and birth.session > 0
    newest = _statuses(story, story.restarted, story.back)[-1]
    assert newest.bundle_id and newest.head and newest.head_hash


def test_d2_the_last_will_belongs_to_the_birth(story: Story) -> None:
    birth, will = _statuses(story, 0, story.killed)[-1], _statuses(story, story.killed, story.restarted)[-1]
    assert (will.online, will.reason) == (False, "lost")
    assert (will.boot_id, will.session) == (birth.boot_id, birth.session)


def test_d3_lives_and_sessions(story: Story) -> None:
    first = {presence.boot_id for presence in _statuses(story, 0, story.restarted)}
    second = {presence.boot_id for presence in _statuses(story, story.restarted)}
    assert len(first) == len(second) == 1 and first != second
    assert all(re.fullmatch("[0-9a-f]{32}", boot_id) for boot_id in first | second)
    births = [p.session for p in _statuses(story) if p.online]
    assert sorted(births) == births and len(set(births)) >= 3


def test_d4_an_orderly_end_is_said(story: Story) -> None:
    assert _statuses(story, story.stopped)[-1].reason == "stopped"


def test_d5_state_tells_the_uptime(story: Story) -> None:
    found = [
        messages.decode("state", heard.payload)
        for heard in story.ear.heard[: story.killed]
        if heard.kind == "state"
    ]
    assert len({state.boot_id for state in found}) == 1
    assert [s.up_s for s in found] == sorted(s.up_s for s in found) and found[-1].up_s > found[0].up_s
    assert found[-1].status.bundle_id and "min_confidence" in found[-1].settings


def test_d7_a_message_keeps_its_id(story: Story) -> None:
    by_id: dict[str, set[tuple[str, int, bytes]]] = {}
    for message in story.ear.durable():
        by_id.setdefault(message.id, set()).add((message.epoch, message.seq, messages.encode(message.data)))
    assert all(len(same) == 1 for same in by_id.values())


def test_d8_numbers_rise_by_one(story: Story) -> None:
    numbers: dict[str, set[int]] = {}
    for message in story.ear.durable():
        numbers.setdefault(message.epoch, set()).add(message.seq)
    for found in numbers.values():
        assert found == set(range(min(found), max(found) + 1))
    assert len(numbers) == 1  # the outbox outlived the kill


def test_d9_what_is_not_confirmed_comes_again_on_a_new_connection(story: Story) -> None:
    before, after = set(_ids(story.ear)), set(_ids(story.ear, story.back))
    unconfirmed = {m.id for m in story.ear.durable() if m.id not in story.confirmed}
    assert unconfirmed & before <= after | set(_ids(story.ear, story.back))


def test_d10_what_is_confirmed_does_not(story: Story) -> None:
    assert not set(story.confirmed) & set(_ids(story.ear, story.back))


def test_d11_a_hello_is_answered_soon(story: Story) -> None:
    assert story.hello_s < 6.0


def test_d14_ages_are_told_within_a_life(story: Story) -> None:
    first = story.ear.durable()[0]
    assert first.age_s is not None and 0 <= first.age_s < 60
    again = next(m for m in story.ear.durable(since=story.restarted) if m.id == first.id)
    assert again.age_s is None and again.at_s == first.at_s
