"""A card was copied: two boards connect under one name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import edge_cl.sync.dialler as dialler_module
import edge_cl.sync.reconnect as reconnect_module
from edge_cl.sync.link import MqttLink
from edge_cl.sync.messages import Presence, encode
from tests.mosquitto import Broker, wait_until
from tests.sync.test_link import ROOT, Watcher, linked, receipt

HOLD_OFF_S = 0.3
"""Instead of a minute."""


@pytest.fixture(autouse=True)
def hold_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect_module, "HOLD_OFF_S", HOLD_OFF_S)
    monkeypatch.setattr(dialler_module, "CLONE_S", 6 * HOLD_OFF_S)


@contextmanager
def twins(url: str, folder: Path, *, mqtt_5: bool) -> Iterator[tuple[MqttLink, MqttLink]]:
    with ExitStack() as stack:
        boards = []
        for name in ("a", "b"):
            (folder / name).mkdir()
            boards.append(stack.enter_context(linked(url, folder / name, mqtt_5=mqtt_5)))
            wait_until(lambda: boards[-1].counts["delivered"], "its birth is acknowledged")
        yield boards[0], boards[1]


def says_so(link: MqttLink) -> bool:
    return "another board connects" in link.alarm and "--device" in link.alarm


@pytest.mark.broker
@pytest.mark.parametrize("mqtt_5", [True, False])
def test_both_boards_say_so_and_neither_fights(broker: Broker, tmp_path: Path, mqtt_5: bool) -> None:
    with twins(broker.url, tmp_path, mqtt_5=mqtt_5) as (first, second):

        def n_connections() -> int:
            return first.counts["connections"] + second.counts["connections"]

        wait_until(lambda: says_so(first) and says_so(second), "both say so")
        assert n_connections() <= 6
        n, began_s = n_connections(), time.monotonic()
        wait_until(lambda: n_connections() >= n + 6, "they go on trying")
        # each waits 1 to 2 hold-offs, so six connections of two boards take two waits or more
        assert time.monotonic() - began_s >= 2 * HOLD_OFF_S
        assert says_so(first) and says_so(second)


@pytest.mark.broker
@pytest.mark.parametrize("mqtt_5", [True, False])
def test_when_one_gets_a_name_of_its_own_all_is_well(broker: Broker, tmp_path: Path, mqtt_5: bool) -> None:
    watcher = Watcher(broker.url)
    with twins(broker.url, tmp_path, mqtt_5=mqtt_5) as (first, second):
        for n, link in enumerate((first, second)):
            link.sink(receipt(n))
        wait_until(lambda: says_so(first) and says_so(second), "both say so")
        second.stop(1.0)
        wait_until(lambda: first.connected and not first.alarm, "the other is content", timeout_s=30)
        first.sink(receipt(2))
        wait_until(lambda: {0, 2} <= set(watcher.receipts()), "what it had to say arrives")
        n_connections = first.counts["connections"]
        first.sink(receipt(3))
        wait_until(lambda: 3 in watcher.receipts(), "it stays connected")
        assert first.counts["connections"] == n_connections
    watcher.close()


@pytest.mark.broker
def test_a_board_that_starts_anew_is_no_second_board(broker: Broker, tmp_path: Path) -> None:
    """Its last birth is retained, and the old program's last will comes late."""
    for _ in range(3):
        with linked(broker.url, tmp_path) as link:
            wait_until(lambda: link.counts["delivered"], "its birth is acknowledged")
            broker.stop(kill=True)
            broker.start()
            wait_until(lambda: link.counts["connections"] == 2 and link.connected, "it is connected again")
            link.sink(receipt(1))
            wait_until(lambda: link.counts["delivered"] == 3, "two births and the receipt are delivered")
            assert not link.alarm and link.counts["connections"] == 2


@pytest.mark.broker
def test_a_late_last_will_does_not_hide_the_device(broker: Broker, tmp_path: Path) -> None:
    """Home Assistant and others look at `online` and cannot compare sessions."""
    watcher = Watcher(broker.url)
    with linked(broker.url, tmp_path) as link:
        wait_until(lambda: watcher.of("status"), "its birth arrives")
        (birth,) = watcher.of("status")
        for boot_id, session in ((birth.boot_id, birth.session - 1), ("another", birth.session)):
            will = Presence(online=False, boot_id=boot_id, session=session, reason="lost")
            n = len(watcher.of("status"))
            watcher.client.publish(f"{ROOT}/status", encode(will), qos=1, retain=True)
            wait_until(lambda n=n: len(watcher.of("status")) == n + 2, "the will, and a birth after it")  # type: ignore[misc]
            assert watcher.of("status")[-1] == birth
        assert not link.alarm and link.counts["connections"] == 1
    wait_until(lambda: watcher.of("status")[-1].reason == "stopped", "the farewell stands")
    watcher.close()
