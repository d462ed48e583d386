"""``edge-cl fleet devices | show | events | export-csv | group``: what the store knows."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any, TextIO

import click
import msgspec

from edge_cl.errors import ConfigError, FleetError
from edge_cl_fleet.queries import (
    Device,
    Event,
    all_events,
    find_device,
    last_number,
    list_devices,
    list_events,
    newest_events,
    set_group,
)
from edge_cl_fleet.store import FleetStore

FOLLOW_S = 0.5
LATE = 5_000
"""Numbers are given when a batch begins, and seen when it is committed: how far back a follower looks."""
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}

store_option = click.option(
    "--store",
    "store_url",
    envvar="EDGE_CL_STORE",
    required=True,
    metavar="URL",
    help="sqlite:///fleet.db or postgresql://user@host/name; also from EDGE_CL_STORE.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")


@click.command()
@store_option
@json_option
def devices(store_url: str, as_json: bool) -> None:
    """List the devices and how they do."""
    found = list_devices(FleetStore(store_url, create=False))
    if as_json:
        click.echo(_encode(found))
    elif not found:
        click.echo("no device has spoken to this store yet")
    else:
        click.echo(
            "\n".join(
                table(
                    ["device", "", "group", "bundle", "accuracy", "labels", "seen", "alarm"],
                    [_line(device, time.time()) for device in found],
                )
            )
        )


@click.command()
@click.argument("device")
@store_option
@json_option
def show(device: str, store_url: str, as_json: bool) -> None:
    """Show all that is known of one DEVICE ("site/device", or "device" when only one site has it)."""
    store = FleetStore(store_url, create=False)
    found = find_device(store, device)
    if as_json:
        click.echo(_encode(found))
        return
    facts = msgspec.to_builtins(found)
    for name in ("first_seen_s", "last_seen_s", "up_at_s", "cloned_s"):
        facts[name] = _time(facts[name]) if facts[name] is not None else ""
    if found.cloned_s is not None:
        click.echo(f"two boards spoke as {found.name}, last at {facts['cloned_s']}: give one another name")
    for name, value in facts.items():
        if name != "status" and value not in ("", None, {}):
            click.echo(f"{name.removesuffix('_s'):>14}  {value}")
    for name, value in found.status.items():
        click.echo(f"{'status.' + name:>24}  {value}")
    for event in newest_events(store, found, 5):
        click.echo(_event_line(event))


@click.command()
@click.option("--device", default="", metavar="DEVICE", help="Only of this one.")
@click.option("--kind", default="", help="Only of this kind: receipt, sleep, summary, health, result, …")
@click.option("--since", default="", metavar="TIME", help="Since 10m, 2h, 7d ago, or 2026-11-30T12:00.")
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@store_option
@json_option
def events(device: str, kind: str, since: str, follow: bool, store_url: str, as_json: bool) -> None:
    """Print messages in the order in which they came; all, or only some."""
    store = FleetStore(store_url, create=False)
    filters = _filters(store, device, kind, since)
    write = _encode if as_json else _event_line
    found = _follow(store, filters) if follow else all_events(store, **filters)
    for event in found:
        click.echo(write(event))


@click.command("export-csv")
@click.option("--kind", default="", help="Only of this kind.")
@click.option("--device", default="", metavar="DEVICE", help="Only of this one.")
@click.option("--since", default="", metavar="TIME", help="Since 10m, 2h, 7d ago, or 2026-11-30T12:00.")
@click.option("--out", type=click.File("w", lazy=True), default="-", help="Into this file.")
@store_option
def export_csv(kind: str, device: str, since: str, out: TextIO, store_url: str) -> None:
    """Write messages as CSV: a row each, the record in the column "data" as JSON.

    With --kind the record's own fields get columns, too.
    """
    store = FleetStore(store_url, create=False)
    found = all_events(store, **_filters(store, device, kind, since))
    names = ["n", "id", "site", "device", "epoch", "seq", "kind", "at_s", "happened_s", "received_s"]
    write_csv(found, names, out, flat=bool(kind))


@click.command()
@click.argument("name")
@click.argument("device", nargs=-1, required=True)
@store_option
def group(name: str, device: tuple[str, ...], store_url: str) -> None:
    """Put every DEVICE into group NAME; "-" takes them out of theirs."""
    if not name.isprintable() or len(name) > 63 or not name.strip():
        raise ConfigError(f"the group's name is {name!r}; write 1 to 63 printable characters, or -")
    store = FleetStore(store_url, create=False)
    found = [find_device(store, one) for one in device]
    set_group(store, "" if name == "-" else name, found)
    click.echo(f"{len(found)} devices are in {'no group' if name == '-' else name} now")


def table(heads: list[str], lines: list[list[str]]) -> list[str]:
    """Text in columns.

    >>> table(["a", "bcd"], [["one", "2"]])
    ['a    bcd', 'one  2']
    """
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in [heads, *lines]
    ]


def write_csv(found: Iterator[Event], names: list[str], out: TextIO, *, flat: bool) -> None:
    """Messages as CSV; `flat` adds columns for the fields of the first one's record."""
    writer = csv.writer(out)
    fields: list[str] | None = None
    for event in found:
        record = msgspec.json.decode(event.data)
        if fields is None:
            fields = list(record) if flat and isinstance(record, dict) else []
            writer.writerow([*names, *(f"data.{field}" for field in fields), "data"])
        mine = [_cell(record.get(field)) for field in fields] if isinstance(record, dict) else []
        whole = bytes(event.data).decode()
        writer.writerow([*(_cell(getattr(event, name)) for name in names), *mine, _cell(whole)])
    if fields is None:
        writer.writerow([*names, "data"])


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        value = _encode(value)
    # A spreadsheet takes a text that begins like this for a formula, and devices' texts are not ours.
    return (
        f"'{value}"
        if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
        else value
    )


def _filters(store: FleetStore, device: str, kind: str, since: str) -> dict[str, Any]:
    return {
        "device": find_device(store, device) if device else None,
        "kind": kind,
        "since_s": _parse_time(since) if since else None,
    }


def _follow(store: FleetStore, filters: dict[str, Any]) -> Iterator[Event]:
    newest, shown = last_number(store), dict[int, None]()
    for event in list_events(store, after=max(0, newest - LATE), limit=LATE, **filters):
        shown[event.n] = None
    while True:
        for event in list_events(store, after=max(0, newest - LATE), limit=2 * LATE, **filters):
            if event.n not in shown:
                shown[event.n] = None
                newest = max(newest, event.n)
                yield event
        for n in [n for n in shown if n < newest - LATE]:
            del shown[n]
        sys.stdout.flush()
        time.sleep(FOLLOW_S)


def _parse_time(text: str) -> float:
    number, unit = text[:-1], text[-1]
    if unit in _UNITS_S and number.isdigit():
        return time.time() - int(number) * _UNITS_S[unit]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise FleetError(f"--since is {text!r}; write 10m, 2h, 7d, or 2026-11-30T12:00") from error


def _line(device: Device, now_s: float) -> list[str]:
    accuracy = "" if device.accuracy_now is None else f"{device.accuracy_now:.2f}"
    alarm = "two boards under this name" if device.cloned_s else printable(device.alarm)
    seen = f"{ago(now_s - device.last_seen_s)} ago"
    name = str(device.status.get("bundle_name", "")) or device.bundle_id[:12]
    online = "online" if device.online else "offline"
    return [
        device.name,
        online,
        device.group_name,
        printable(name),
        accuracy,
        str(device.n_labels),
        seen,
        alarm,
    ]


def ago(s: float) -> str:
    """A span of time for a person.

    >>> [ago(s) for s in (5, 300, 7300, 200_000)]
    ['5 s', '5 min', '2 h', '2 d']
    """
    for unit, size_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if s >= size_s * (2 if unit == "d" else 1):
            return f"{s / size_s:.0f} {unit}"
    return f"{max(s, 0):.0f} s"


def printable(text: str) -> str:
    """A device's text, safe for a terminal."""
    return "".join(one if one.isprintable() else "�" for one in text)


def _time(at_s: float) -> str:
    try:
        return datetime.fromtimestamp(at_s).isoformat(" ", "seconds")
    except (OverflowError, OSError, ValueError):
        return f"{at_s:g}"


def _event_line(event: Event) -> str:
    data = printable(bytes(event.data).decode())
    return f"{_time(event.happened_s)}  {event.site}/{event.device}  {event.kind:<8} {data}"


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()
