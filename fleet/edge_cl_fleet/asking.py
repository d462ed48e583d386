"""``edge-cl fleet keygen``, ``tell``, ``commands``: giving devices orders.

They write into the store; a worker that has a key (`edge-cl fleet serve --key FILE`) signs and sends.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import click
import msgspec
from sqlalchemy import Row, and_, select

from edge_cl.commands import MAX_VALID_S, Adjust, Do, Report, SleepNow, Teach
from edge_cl.errors import FleetError
from edge_cl.revisions import Forget, Rename, Review, Rollback
from edge_cl.sync import signing
from edge_cl_fleet.database import guarded
from edge_cl_fleet.orders import OPEN, Orders, lacking
from edge_cl_fleet.queries import Device, find_device
from edge_cl_fleet.showing import json_option, printable, store_option, table
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.tables import commands

POLL_S = 0.2
DAY_S, HOUR_S, MINUTE_S = 86400.0, 3600.0, 60.0
_UNITS = {"": 1.0, "s": 1.0, "m": MINUTE_S, "h": HOUR_S, "d": DAY_S}
_WORDS = {MINUTE_S: "a minute", HOUR_S: "an hour", DAY_S: "a day"}
_MOMENT = click.DateTime(["%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d"])


def duration(_ctx: click.Context, _option: click.Parameter, value: str) -> float:
    """Seconds of a time as in 15m; for click."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", value)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= MAX_VALID_S:
        raise click.BadParameter(f'{value!r} is no time up to 7 days; write it as "90s", "15m", "2h" or "7d"')
    return seconds


@dataclass
class _Told:
    """Whom to tell, and where it is kept."""

    store_url: str
    device: str


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--releases", is_flag=True, help="For bundles: a key for `edge-cl fleet add` and `rollout`.")
def keygen(file: Path, releases: bool) -> None:
    """Make a key that signs commands or bundles: FILE for the server alone, FILE.pub for the devices."""
    private_hex = signing.make_key()
    public_file = signing.write_key(file, private_hex)
    use = f"fleet add BUNDLE --key {file}" if releases else f"fleet serve --key {file}"
    whose = "signs what devices run" if releases else "commands"
    click.echo(f"{file} is the private key: `edge-cl {use}`; whoever has it {whose}.")
    click.echo(f"{public_file} is the public one. In the settings of every device:\n")
    name = "release" if releases else "fleet"
    allow = '["release"]' if releases else '["label", "sleep", "set", "report", "install"]'
    click.echo(f'[commands.keys.{name}]\npublic = "{signing.public_of(private_hex)}"\nallow = {allow}')


@click.group()
@click.argument("device")
@store_option
@click.pass_context
def tell(ctx: click.Context, device: str, store_url: str) -> None:
    """Give DEVICE (site/name, or the name alone) an order; it is carried out once, or expires."""
    ctx.obj = _Told(store_url, device)


def _order_options(default_s: float) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in (
            json_option,
            click.option("--wait", is_flag=True, help="Wait for the result and show it."),
            click.option(
                "--valid", "valid_s", callback=duration, default=f"{default_s:g}s", metavar="TIME",
                help=f'Not after so long, as in "15m"; {_WORDS[default_s]} if not given, 7d at most.',
            ),
            click.pass_obj,
        ):  # fmt: skip
            command = option(command)
        return command

    return decorate


@tell.command()
@click.argument("label")
@click.option("--reading", default="", help="Of this reading; the newest if not given.")
@click.option("--not", "negated", is_flag=True, help="Say that the reading was not LABEL.")
@_order_options(MINUTE_S)
def label(
    told: _Told, label: str, reading: str, negated: bool, valid_s: float, wait: bool, as_json: bool
) -> None:
    """Teach that a reading was LABEL."""
    kind: Literal["is", "not"] = "not" if negated else "is"
    _ask(told, Teach(label=label, reading_id=reading, kind=kind), valid_s, wait, as_json)


@tell.command()
@_order_options(HOUR_S)
def sleep(told: _Told, valid_s: float, wait: bool, as_json: bool) -> None:
    """Sleep now."""
    _ask(told, SleepNow(), valid_s, wait, as_json)


@tell.command()
@click.option("--to", type=int, help="An entry of the device's journal.")
@click.option("--before", type=_MOMENT, help="To what was known then, in this computer's time.")
@_order_options(DAY_S)
def rollback(
    told: _Told, to: int | None, before: datetime | None, valid_s: float, wait: bool, as_json: bool
) -> None:
    """Return to what was known earlier."""
    if (to is None) == (before is None):
        raise click.UsageError("give --to or --before")
    _ask(told, Rollback(to=to, before_s=before.timestamp() if before else None), valid_s, wait, as_json)


@tell.command()
@click.option("--reading", default="", help="The label of this reading.")
@click.option("--source", default="", help="Every label of this source, and of what lies under it.")
@click.option("--class", "class_name", default="", help="Every label of this class.")
@click.option("--between", nargs=2, type=_MOMENT, metavar="T1 T2", help="Labels learned from T1 until T2.")
@_order_options(DAY_S)
def forget(
    told: _Told, reading: str, source: str, class_name: str, between: tuple[datetime, datetime] | None,
    valid_s: float, wait: bool, as_json: bool,
) -> None:  # fmt: skip
    """Take labels back for good: those that match all that is given."""
    if not (reading or source or class_name or between):
        raise click.UsageError("give --reading, --source, --class or --between")
    since_s, until_s = (between[0].timestamp(), between[1].timestamp()) if between else (None, None)
    asked = Forget(reading=reading, source=source, class_name=class_name, since_s=since_s, until_s=until_s)
    _ask(told, asked, valid_s, wait, as_json)


@tell.command("rename-class")
@click.argument("old")
@click.argument("new")
@click.option("--merge", is_flag=True, help="NEW exists already: make both one class.")
@_order_options(DAY_S)
def rename_class(
    told: _Told, old: str, new: str, merge: bool, valid_s: float, wait: bool, as_json: bool
) -> None:
    """Call class OLD NEW from now on."""
    _ask(told, Rename(old=old, new=new, merge=merge), valid_s, wait, as_json)


@tell.command()
@click.argument("verdict", type=click.Choice(["accept", "reject"]))
@click.argument("ids", type=int, nargs=-1, required=True)
@_order_options(DAY_S)
def review(
    told: _Told, verdict: str, ids: tuple[int, ...], valid_s: float, wait: bool, as_json: bool
) -> None:
    """Learn labels that were held, or never; IDS are their journal numbers."""
    _ask(told, Review(seqs=list(ids), accept=verdict == "accept"), valid_s, wait, as_json)


@tell.command()
@click.argument("what", type=click.Choice(["status", "sleeps", "head"]), default="status")
@_order_options(HOUR_S)
def report(
    told: _Told, what: Literal["status", "sleeps", "head"], valid_s: float, wait: bool, as_json: bool
) -> None:
    """Send something: the status, the reports of past sleeps, what the head learned."""
    _ask(told, Report(what=what), valid_s, wait, as_json)


@tell.command("set")
@click.option("--min-confidence", type=click.FloatRange(0, 1), help="trust.min_confidence")
@click.option("--after-labels", type=click.IntRange(0), help="sleep.after_labels")
@click.option("--night", help='sleep.night, as "22:00-06:00"; "" for any time')
@click.option("--wait", is_flag=True, help="Wait until the device reports them.")
@click.pass_obj
def set_(
    told: _Told, min_confidence: float | None, after_labels: int | None, night: str | None, wait: bool
) -> None:
    """Settings that it should have from now on; asked for whenever it reports others."""
    adjust = Adjust(min_confidence=min_confidence, after_labels=after_labels, night=night)
    if adjust == Adjust():
        raise click.UsageError("name a setting")
    with _opened(told.store_url) as store:
        device = find_device(store, told.device)
        wanted = Orders(store.engine).desire(device.site, device.device, adjust)
        click.echo(f"{device.name} should have {msgspec.json.encode(wanted).decode()}")
        if wait and not device.online:
            _say_away(device, math.inf)
        while wait and _is_lacking(store, device.name):
            time.sleep(POLL_S)


@click.command("commands")
@click.option("--device", default="", help="Of this device alone.")
@click.option("--limit", default=50, show_default=True, help="So many of the newest.")
@store_option
@json_option
def commands_(device: str, limit: int, store_url: str, as_json: bool) -> None:
    """List orders and what came of them, newest first."""
    query = select(commands).order_by(commands.c.created_s.desc()).limit(limit)
    with _opened(store_url) as store:
        if device:
            found = find_device(store, device)
            query = query.where(commands.c.site == found.site, commands.c.device == found.device)
        with store.reading.connect() as connection:
            rows = connection.execute(query).all()
    if as_json:
        click.echo(msgspec.json.encode([_public(row) for row in rows]))
        return
    if not rows:
        click.echo("no order was given; `edge-cl fleet tell DEVICE --help` shows how")
        return
    heads = ["id", "given", "device", "what", "state", "message"]
    lines = [
        [
            row.id[:8],
            datetime.fromtimestamp(row.created_s).isoformat(" ", "seconds"),
            f"{row.site}/{row.device}",
            row.ask,
            row.state,
            printable(row.message),
        ]
        for row in rows
    ]
    click.echo("\n".join(table(heads, lines)))


@contextmanager
def _opened(store_url: str) -> Iterator[FleetStore]:
    store = FleetStore(store_url)
    try:
        with guarded(store.engine):
            yield store
    finally:
        store.close()


def _ask(told: _Told, do: Do, valid_s: float, wait: bool, as_json: bool) -> None:
    with _opened(told.store_url) as store:
        device = find_device(store, told.device)
        command_id = Orders(store.engine).ask(device.site, device.device, do, valid_s=valid_s)
        if wait and not device.online:
            _say_away(device, valid_s)
        row = _result(store, command_id, wait)
    if as_json:
        click.echo(msgspec.json.encode(_public(row)))
    elif row.state in OPEN:
        click.echo(f"{device.name} will be told; `edge-cl fleet commands` shows what came of {row.id[:8]}")
    else:
        click.echo(printable(f"{row.state}: {row.message}" if row.message else row.state))
    if row.state not in (*OPEN, "done"):
        raise click.exceptions.Exit(1)


def _say_away(device: Device, valid_s: float) -> None:
    """Whoever waits should know what for; on standard error, since the result goes to standard output."""
    seen = datetime.fromtimestamp(device.last_seen_s).isoformat(" ", "minutes")
    until = "it is back"
    if valid_s < math.inf:
        expires = datetime.fromtimestamp(time.time() + valid_s)
        until += f", or the order expires on {expires.isoformat(' ', 'minutes')}"
    told = f"{device.name} is away (last seen {seen}); waiting until {until}. Ctrl-C: it is told later"
    click.echo(told, err=True)


def _result(store: FleetStore, command_id: str, wait: bool) -> Row[Any]:
    """The command's row; with `wait` when it has ended, which the server's clock sees to in any case."""
    while True:
        with store.reading.connect() as connection:
            row = connection.execute(select(commands).where(commands.c.id == command_id)).one()
        if not wait or row.state not in OPEN or time.time() > row.expires_s:
            return row
        time.sleep(POLL_S)


def _is_lacking(store: FleetStore, name: str) -> bool:
    """Whether a device does not report the desired settings yet; raises when it will not have them."""
    device = find_device(store, name)
    lacks = lacking(device.desired, device.settings)
    mine = and_(commands.c.site == device.site, commands.c.device == device.device, commands.c.ask == "set")
    with store.reading.connect() as connection:
        newest = select(commands).where(mine).order_by(commands.c.created_s.desc()).limit(1)
        order = connection.execute(newest).first()
    if lacks and order is not None and _has_refused(order, lacks):
        raise FleetError(f"{name} {order.state} it: {printable(order.message)}")
    return bool(lacks)


def _has_refused(order: Row[Any], lacks: dict[str, Any]) -> bool:
    asked = msgspec.json.decode(order.do, type=Adjust)
    return order.state in ("refused", "failed") and asked == Adjust(**lacks)


def _public(row: Row[Any]) -> dict[str, Any]:
    found = dict(row._mapping)
    for name in ("do", "result"):
        found[name] = msgspec.json.decode(found[name]) if found[name] else None
    return found
