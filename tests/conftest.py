"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mosquitto import MOSQUITTO, Broker


@pytest.fixture
def stopped_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that is not started yet."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed; on Debian: apt-get install mosquitto")
    broker = Broker(tmp_path_factory.mktemp("mosquitto"))
    yield broker
    broker.stop(kill=True)


@pytest.fixture
def broker(stopped_broker: Broker) -> Broker:
    """A running broker; `broker.url` is where."""
    stopped_broker.start()
    return stopped_broker
