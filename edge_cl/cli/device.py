"""``edge-cl status`` and ``edge-cl label``: ask a device, running or stopped."""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec

from edge_cl.cli.owner import kept_by_its_owner
from edge_cl.errors import DeviceNotRunning, StateError
from edge_cl.records import LabelKind, Receipt, SleepReport, Status
from edge_cl.sync.control import SOCKET_NAME, Request, ask

state_option = click.option(
    "--state",
    "state_dir",
    type=click.Path(path_type=Path, readable=False),  # whose group may talk to a device need not read it
    default="edge-cl-state",
    show_default=True,
    envvar="EDGE_CL_STATE",
    callback=kept_by_its_owner,
    help="The device's state folder.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command()
@state_option
@json_option
def status(state_dir: Path, as_json: bool) -> None:
    """Show how a device is doing, running or stopped."""
    found, origin, age_s = find_status(state_dir)
    if found is None:
        raise click.ClickException(
            f"no device state in {state_dir}; start a device with edge-cl run, or name its folder: --state"
        )
    if as_json:
        fields = {"running": origin == "running", "age_s": age_s} | msgspec.to_builtins(found)
        click.echo(msgspec.json.encode(fields))
        return
    width = max(len(name) for name, _ in _rows(found))
    click.echo(f"{'device':<{width}}  {origin}" + (f", seen {age_s:.0f} s ago" if age_s >= 1 else ""))
    for name, text in _rows(found):
        click.echo(f"{name:<{width}}  {text}")


@click.command()
@click.argument("label")
@click.option("--reading", default="", help="The reading's id; without it the newest reading is meant.")
@click.option("--not", "is_not", is_flag=True, help="The reading was not LABEL.")
@state_option
@json_option
def label(label: str, reading: str, is_not: bool, state_dir: Path, as_json: bool) -> None:
    """Teach a running device: its newest (or the named) reading was LABEL, or, with --not, was no LABEL."""
    kind: LabelKind = "not" if is_not else "is"
    reply = ask(state_dir / SOCKET_NAME, Request(op="label", label=label, kind=kind, reading_id=reading))
    receipt = reply.receipt
    if receipt is None:
        raise click.ClickException(
            "the device answered without a receipt; do both sides have the same version?"
        )
    click.echo(msgspec.json.encode(receipt) if as_json else _receipt_text(receipt))
    if receipt.status in ("unknown-reading", "refused"):
        raise click.exceptions.Exit(1)


def find_status(state_dir: Path) -> tuple[Status | None, str, float]:
    """A device's status, ``running`` or ``stopped``, and how many seconds old it is."""
    try:
        reply = ask(state_dir / SOCKET_NAME, Request(op="status"), timeout_s=5.0)
    except DeviceNotRunning:
        if state_dir.is_dir() and not os.access(state_dir, os.R_OK):
            raise StateError(
                f"no edge-cl runs with the state folder {state_dir}, and what it learned is not this user's "
                "to read: put sudo before the command"
            ) from None
        from edge_cl.state import describe
        from edge_cl.upgrade.pointer import describe_install, read_pointer
        from edge_cl.upgrade.slots import active_state

        found = describe(active_state(state_dir))
        if found is not None:
            found = msgspec.structs.replace(found, installed=describe_install(read_pointer(state_dir)[0]))
        return found, "stopped", 0.0
    return reply.status, "running", reply.age_s


def _rows(status: Status) -> list[tuple[str, str]]:
    n_classes = len(status.class_names)
    names = ", ".join(status.class_names[:8]) + (", …" if n_classes > 8 else "")
    holders = ", ".join(f"{who} {_kb(n)}" for who, n in status.held.items())
    rows = [
        ("bundle", f"{status.bundle_name} ({status.bundle_id[:12]})"),
        ("installed", status.installed),
        ("head", status.head),
        ("classes", f"{n_classes}: {names}"),
        (
            "readings",
            f"{status.n_readings:,}, {status.n_bad_readings:,} bad, {status.n_pending:,} await a label",
        ),
        ("labels", f"{status.n_labels:,} learned, journal at {status.journal_seq:,}"),
        ("accuracy", "no label yet" if status.accuracy_now is None else f"{status.accuracy_now:.3f} lately"),
        (
            "memory",
            f"{_kb(status.held_bytes)} of {_kb(status.budget_bytes)}" + (f": {holders}" if holders else ""),
        ),
        ("sleeps", _sleep_text(status.n_sleeps, status.last_sleep)),
        ("review", f"{status.n_held:,} labels wait: edge-cl review" if status.n_held else ""),
        ("written", f"{status.written_bytes / 1e6:,.1f} MB to disk so far" if status.written_bytes else ""),
        ("board", _board_text(status)),
        ("recovered", status.recovered),
        ("alarm", status.alarm),
    ]
    return [(name, text) for name, text in rows if text]


def _board_text(status: Status) -> str:
    heat = "" if status.celsius is None else f"{status.celsius:.0f} °C"
    return ", ".join(filter(None, [heat, status.power]))


def _sleep_text(n_sleeps: int, last: SleepReport | None) -> str:
    if last is None:
        return f"{n_sleeps:,}"
    verdict = "adopted" if last.adopted else f"kept the old head ({last.reason})"
    return f"{n_sleeps:,}; the last: {last.accuracy_before:.3f} → {last.accuracy_after:.3f}, {verdict}"


def _receipt_text(receipt: Receipt) -> str:
    subject = ("not " if receipt.kind == "not" else "") + f"“{receipt.label}”"
    if receipt.reading_id:
        subject += f" for reading {receipt.reading_id}"
    lines = [f"{receipt.status}: {subject}" + (" (a new class)" if receipt.new_class else "")]
    if receipt.status == "learned":
        lines[0] += f", confidence {receipt.confidence_before:.2f} → {receipt.confidence_after:.2f}"
        lines.append(
            f"{len(receipt.changed)} of {receipt.n_compared} remembered readings changed their answer"
        )
    if receipt.message:
        lines[1:] = [receipt.message]
    return "\n".join(lines)


def _kb(nbytes: int) -> str:
    return f"{nbytes / 1024:,.0f} KB"
