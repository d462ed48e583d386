"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.mosquitto import MOSQUITTO, Broker
from tests.postgres import MISSING, PostgreSQL

# Tests on real data look in $EDGE_CL_DATA, then in a shared folder beside the checkout.
SHARED = Path(__file__).parents[2] / "shared" / "data"
if "EDGE_CL_DATA" not in os.environ and SHARED.is_dir():
    os.environ["EDGE_CL_DATA"] = str(SHARED)


# A deadline would measure the machine. Under CI the same examples are drawn every time.
settings.register_profile("edge-cl", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("edge-cl")


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    """A running PostgreSQL; `postgres.url()` gives an empty database."""
    if MISSING:
        pytest.skip(MISSING)
    server = PostgreSQL()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty fleet store may be made; tests that use it run with either database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/fleet.db"
    server: PostgreSQL = request.getfixturevalue("postgres")
    return server.url()
