"""What is under test, and whether its inside may be looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.counterparts import OWN_DEVICE, OWN_SERVER, Boss, Ear, Subject
from tests.mosquitto import MOSQUITTO, Broker


@pytest.fixture(scope="module")
def module_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker for the tests of a module, which keeps what is retained over a restart."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed; on Debian: apt-get install mosquitto")
    broker = Broker(tmp_path_factory.mktemp("mosquitto"))
    broker.start()
    yield broker
    broker.stop(kill=True)


@pytest.fixture(scope="module")
def ear(module_broker: Broker) -> Iterator[Ear]:
    """Hears everything; confirms nothing until told to."""
    found = Ear(module_broker.url)
    yield found
    found.close()


@pytest.fixture(scope="module")
def boss(ear: Ear) -> Boss:
    """Whose commands the device obeys."""
    return Boss(ear)


@pytest.fixture(scope="module")
def device(module_broker: Broker, boss: Boss, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """A device that is not started yet."""
    folder = tmp_path_factory.mktemp("device")
    command = os.environ.get("EDGE_CL_DEVICE", OWN_DEVICE)
    subject = Subject(command, module_broker.url, folder, boss.public)
    yield subject
    subject.kill()


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps its store."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(module_broker: Broker, server_folder: Path) -> Iterator[Subject]:
    """A server that is not started yet."""
    subject = Subject(os.environ.get("EDGE_CL_SERVER", OWN_SERVER), module_broker.url, server_folder)
    yield subject
    subject.kill()
