"""What the store knows, read: devices, messages, and the figures of the fleet page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec
from sqlalchemy import Select, func, select, update

from edge_cl.errors import FleetError
from edge_cl_fleet import tables
from edge_cl_fleet.database import guarded
from edge_cl_fleet.store import FleetStore

PAGE = 1_000
LATELY = 200_000
_devices, _messages = tables.devices.c, tables.messages.c


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device as the table ``devices`` has it; `status`, `settings` and `desired` are read."""

    site: str
    device: str
    group_name: str
    online: bool
    boot_id: str
    session: int
    up_s: float | None
    up_at_s: float | None
    first_seen_s: float
    last_seen_s: float
    bundle_id: str
    head: str
    accuracy_now: float | None
    n_labels: int
    alarm: str
    status: dict[str, Any]
    settings: dict[str, Any]
    desired: dict[str, Any]
    cloned_s: float | None

    @property
    def drift_points(self) -> float | None:
        """How far accuracy is below its best since the last sleep; None where the device does not say."""
        found = self.status.get("drift_points")
        return float(found) if isinstance(found, int | float) else None

    @property
    def name(self) -> str:
        """``site/device``."""
        return f"{self.site}/{self.device}"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A message in the store; `data` is the record."""

    n: int
    id: str
    site: str
    device: str
    epoch: str
    seq: int
    kind: str
    boot_id: str
    at_s: float
    happened_s: float
    received_s: float
    data: msgspec.Raw


def list_devices(store: FleetStore) -> list[Device]:
    """All devices, by site and name."""
    query = select(tables.devices).order_by(_devices.site, _devices.device)
    return [_device(row) for row in _rows(store, query)]


def find_device(store: FleetStore, name: str) -> Device:
    """The device called ``site/device``, or ``device`` when only one site has it.

    Raises
    ------
    FleetError
        When there is none, or more than one.
    """
    site, _, device = name.rpartition("/")
    query = select(tables.devices).where(_devices.device == device).order_by(_devices.site)
    found = [_device(row) for row in _rows(store, query.where(_devices.site == site) if site else query)]
    if len(found) == 1:
        return found[0]
    if found:
        raise FleetError(f"{name!r} is at several sites; write one of {', '.join(one.name for one in found)}")
    raise FleetError(f"no device {name!r} has spoken to this store; edge-cl fleet devices lists them")


def list_events(
    store: FleetStore,
    *,
    device: Device | None = None,
    kind: str = "",
    since_s: float | None = None,
    after: int = 0,
    limit: int = PAGE,
) -> list[Event]:
    """At most `limit` messages with a number above `after`, in the order in which they came."""
    query = select(tables.messages).where(_messages.n > after).order_by(_messages.n).limit(limit)
    if device is not None:
        query = query.where(_messages.site == device.site, _messages.device == device.device)
    if kind:
        query = query.where(_messages.kind == kind)
    if since_s is not None:
        query = query.where(_messages.received_s >= since_s)
    return [_event(row) for row in _rows(store, query)]


def all_events(store: FleetStore, **filters: Any) -> Iterator[Event]:
    """As `list_events`, page by page: any number of messages without holding them all."""
    after = 0
    while page := list_events(store, after=after, **filters):
        yield from page
        after = page[-1].n


def newest_events(store: FleetStore, device: Device, limit: int) -> list[Event]:
    """The last messages of a device, oldest first."""
    query = select(tables.messages).where(_messages.site == device.site, _messages.device == device.device)
    return [_event(row) for row in _rows(store, query.order_by(_messages.n.desc()).limit(limit))][::-1]


def last_number(store: FleetStore) -> int:
    """Of the newest message."""
    return _rows(store, select(func.max(_messages.n)))[0][0] or 0


def recent(store: FleetStore, kind: str, *, since_s: float) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """What each device sent of one kind lately, oldest first; looks at the newest `LATELY` messages only."""
    query = select(_messages.site, _messages.device, _messages.body).where(
        _messages.kind == kind, _messages.received_s >= since_s, _messages.n > last_number(store) - LATELY
    )
    found: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in _rows(store, query.order_by(_messages.n)):
        body = _json(row.body)
        if body:
            found[row.site, row.device].append(body)
    return found


def count_by(store: FleetStore, column: Any) -> dict[str, int]:
    """How many rows have each value of a column."""
    return {row[0]: row[1] for row in _rows(store, select(column, func.count()).group_by(column))}


def set_group(store: FleetStore, group_name: str, devices: list[Device]) -> None:
    """Put devices into a group; "" takes them out of theirs."""
    with guarded(store.engine), store.engine.begin() as connection:
        for device in devices:
            connection.execute(
                update(tables.devices)
                .where(_devices.site == device.site, _devices.device == device.device)
                .values(group_name=group_name)
            )


def _rows(store: FleetStore, query: Select[Any]) -> Any:
    with guarded(store.engine), store.reading.connect() as connection:
        return connection.execute(query).all()


def _device(row: Any) -> Device:
    columns = dict(row._mapping)
    for name in ("status", "settings", "desired"):
        columns[name] = _json(columns[name])
    return Device(**columns)


def _event(row: Any) -> Event:
    columns = dict(row._mapping)
    return Event(data=msgspec.Raw(columns.pop("body").encode()), **columns)


def _json(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
