"""What devices send when asked for the sums over their labels: asked for, waited for, put together."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from sqlalchemy import select

from edge_cl.commands import Report
from edge_cl.errors import FleetError, SyncError
from edge_cl.statistics import Account, Statistics, from_bytes
from edge_cl.sync.messages import Part
from edge_cl_fleet import tables
from edge_cl_fleet.database import guarded
from edge_cl_fleet.orders import OPEN, Orders
from edge_cl_fleet.queries import Device
from edge_cl_fleet.store import FleetStore

POLL_S = 0.2
MAX_PARTS = 4096
_part = msgspec.json.Decoder(Part)


class Shared(NamedTuple):
    """What one device said."""

    statistics: Statistics
    account: Account


def ask_all(store: FleetStore, devices: list[Device], *, valid_s: float) -> dict[str, Device]:
    """Ask each device for the sums over its labels; the commands' ids."""
    orders = Orders(store.engine)
    return {
        orders.ask(device.site, device.device, Report(what="head"), valid_s=valid_s): device
        for device in devices
    }


def wait_for(
    store: FleetStore, asked: dict[str, Device], *, wait_s: float, heard: Callable[[Device], None]
) -> tuple[dict[str, Shared], dict[str, str]]:
    """What came within `wait_s`, and why the rest did not, both by ``site/device``.

    `heard` is called for each device that has answered.
    """
    found: dict[str, Shared] = {}
    missing: dict[str, str] = {}
    until_s = time.monotonic() + wait_s
    left = dict(asked)
    while left:
        for command_id, device in list(left.items()):
            try:
                shared = look(store, command_id, device)
            except (FleetError, SyncError) as error:
                missing[device.name] = str(error)
                del left[command_id]
                continue
            if shared is not None:
                found[device.name] = shared
                heard(device)
                del left[command_id]
        if time.monotonic() >= until_s:
            break
        time.sleep(POLL_S if left else 0)
    silent = f"no answer in {wait_s:g} s; is it online, and does a worker with a key run?"
    return found, missing | {device.name: silent for device in left.values()}


def look(store: FleetStore, command_id: str, device: Device) -> Shared | None:
    """What a device answered to a command; None while it is on its way.

    Raises
    ------
    FleetError, SyncError
        It answered something else, or what came cannot be used.
    """
    commands = tables.commands.c
    query = select(commands.state, commands.message, commands.created_s).where(commands.id == command_id)
    with guarded(store.engine), store.reading.connect() as connection:
        state, message, created_s = connection.execute(query).one()
    if state in OPEN:
        return None
    if state != "done":
        raise FleetError(f"{state}: {message}" if message else state)
    body = _whole(_parts(store, command_id, device, created_s))
    if body is None:
        return None
    shared = Shared(*from_bytes(body))
    if shared.account.device != device.name:
        raise FleetError(f"it sent what {shared.account.device!r} learned; give the two boards two names")
    return shared


def _parts(store: FleetStore, command_id: str, device: Device, since_s: float) -> list[Part]:
    # Its own messages only: no device may speak for another.
    messages = tables.messages.c
    query = select(messages.body).where(
        messages.site == device.site,
        messages.device == device.device,
        messages.kind == "part",
        messages.received_s >= since_s,
    )
    with guarded(store.engine), store.reading.connect() as connection:
        bodies = connection.execute(query).scalars().all()
    parts = []
    for body in bodies:
        try:
            part = _part.decode(body)
        except msgspec.DecodeError:
            continue  # a newer device's
        if part.id == command_id:
            parts.append(part)
    return parts


def _whole(parts: list[Part]) -> bytes | None:
    """What the parts make up, None while some are missing."""
    if not parts:
        return None
    total, sha256 = parts[0].total, parts[0].sha256
    if any((part.total, part.sha256) != (total, sha256) for part in parts) or total > MAX_PARTS:
        raise FleetError("its parts are not of one whole; ask again")
    by_index = {part.index: part.body for part in parts}
    if len(by_index) < total:
        return None
    body = b"".join(by_index.get(index, b"") for index in range(total))
    if hashlib.sha256(body).hexdigest() != sha256:
        raise FleetError("its parts do not have the SHA-256 that it said; ask again")
    return body
