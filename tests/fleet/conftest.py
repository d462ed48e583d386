"""Stores of both kinds, and workers on a real broker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from edge_cl_fleet.connection import Login
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.worker import Worker

from tests.mosquitto import wait_until

Working = Callable[..., AbstractContextManager[Worker]]


@pytest.fixture
def store(store_url: str) -> Iterator[FleetStore]:
    """An empty store, on SQLite and on PostgreSQL."""
    store = FleetStore(store_url)
    yield store
    store.close()


@pytest.fixture
def working() -> Working:
    """``working(store, url)`` is a worker that runs inside the ``with`` block."""
    return _working


@contextmanager
def _working(store: FleetStore, url: str, **options: Any) -> Iterator[Worker]:
    worker = Worker(store, Login(url), **options)
    worker.tick_s = 0.05  # a second, but for tests
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_until(lambda: worker.connection.is_up, "the worker is connected")
        yield worker
    finally:
        worker.stop()
        thread.join(20)
        assert not thread.is_alive()
