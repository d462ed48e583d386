"""``edge-cl sleep now``, ``status`` and ``history``: ask a device, running or stopped."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import click
import msgspec

from edge_cl.cli.device import json_option, state_option
from edge_cl.errors import DeviceNotRunning
from edge_cl.records import SleepProgress, SleepReport, Status
from edge_cl.sync.control import SOCKET_NAME, Request, ask

POLL_S = 0.2
LINE_EVERY_S = 10.0


@click.group()
def sleep() -> None:
    """Let a device rehearse what it remembers, or see what its sleeps did."""


@sleep.command()
@state_option
@click.option("--bundle", type=click.Path(path_type=Path), help="For a stopped device: its bundle.")
@click.option(
    "--config", type=click.Path(path_type=Path), envvar="EDGE_CL_CONFIG", help="Its settings (TOML)."
)
@json_option
def now(state_dir: Path, bundle: Path | None, config: Path | None, as_json: bool) -> None:
    """Sleep now, whatever the settings wait for, and report."""
    try:
        report = _ask_to_sleep(state_dir)
    except DeviceNotRunning:
        if bundle is None:
            raise click.ClickException(
                f"no device runs with the state folder {state_dir}; start it with edge-cl run, "
                "or let it sleep while stopped: --bundle FILE"
            ) from None
        report = _sleep_stopped(state_dir, bundle, config)
    click.echo(msgspec.json.encode(report) if as_json else _report_text(report))


@sleep.command()
@state_option
@json_option
def status(state_dir: Path, as_json: bool) -> None:
    """Is it asleep, what does it wait for, and what did the last sleep do?"""
    found, last = _state(state_dir)
    if as_json:
        click.echo(msgspec.json.encode({"sleep_state": found, "last_sleep": last}))
        return
    click.echo(found)
    click.echo(_report_text(last) if last else "it has not slept yet")


@sleep.command()
@state_option
@click.option("-n", "n", default=20, show_default=True, type=click.IntRange(1), help="At most so many.")
@json_option
def history(state_dir: Path, n: int, as_json: bool) -> None:
    """The last sleeps: why, how long, balanced accuracy before and after, adopted or not and why."""
    reports = _reports(state_dir)[-n:]
    if as_json:
        click.echo(msgspec.json.encode(reports))
        return
    if not reports:
        click.echo("it has not slept yet")
    for report in reports:
        click.echo(_line(report))


def _ask_to_sleep(state_dir: Path) -> SleepReport:
    """Ask a running device, show how far it is, return its report."""
    socket = state_dir / SOCKET_NAME
    before = ask(socket, Request(op="status")).status
    n_before = before.last_sleep.n_sleep if before and before.last_sleep else 0
    ask(socket, Request(op="sleep"))
    said_at, said = time.monotonic(), ""
    while True:
        time.sleep(POLL_S)
        found = ask(socket, Request(op="status")).status
        if found is not None and found.last_sleep is not None and found.last_sleep.n_sleep > n_before:
            return found.last_sleep
        state = found.sleep_state if found else ""
        if state != said and (sys.stderr.isatty() or time.monotonic() - said_at >= LINE_EVERY_S):
            said_at, said = time.monotonic(), state
            click.echo(state, err=True)


def _sleep_stopped(state_dir: Path, bundle: Path, config: Path | None) -> SleepReport:
    from edge_cl.bundle import Bundle
    from edge_cl.config import Settings, load_settings
    from edge_cl.encoders.choice import read_choice
    from edge_cl.learner import Learner
    from edge_cl.upgrade.slots import active_place

    settings = load_settings(config) if config else Settings()
    place = active_place(state_dir, bundle)
    loaded, choice = Bundle.load(place.bundle), read_choice(state_dir)
    with Learner.from_bundle(loaded, state_dir=place.folder, settings=settings, choice=choice) as learner:
        _show(learner.sleep("asked"))
        report = learner.knowledge.last_sleep
    if report is None:
        raise click.ClickException("the sleep left no report; this is a defect, please tell us")
    return report


def _show(progress: Iterator[SleepProgress]) -> None:
    """A bar where somebody watches, a line every ten seconds elsewhere."""
    if sys.stderr.isatty() and importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("sleep")
            for piece in progress:
                bar.update(task, description=piece.phase, completed=piece.done, total=piece.total)
        return
    said_at = time.monotonic()
    for piece in progress:
        if time.monotonic() - said_at >= LINE_EVERY_S:
            said_at = time.monotonic()
            click.echo(f"{piece.phase}: {piece.done:,} of {piece.total:,}", err=True)


def _state(state_dir: Path) -> tuple[str, SleepReport | None]:
    try:
        found: Status | None = ask(state_dir / SOCKET_NAME, Request(op="status")).status
    except DeviceNotRunning:
        from edge_cl.state import describe
        from edge_cl.upgrade.slots import active_state

        found = describe(active_state(state_dir))
        return "the device is stopped", found.last_sleep if found else None
    return (found.sleep_state, found.last_sleep) if found else ("the device is starting", None)


def _reports(state_dir: Path) -> list[SleepReport]:
    try:
        return ask(state_dir / SOCKET_NAME, Request(op="sleeps")).sleeps or []
    except DeviceNotRunning:
        from edge_cl.state import sleep_reports
        from edge_cl.upgrade.slots import active_state

        return sleep_reports(active_state(state_dir))


def _line(report: SleepReport) -> str:
    when = datetime.fromtimestamp(report.began_s).strftime("%Y-%m-%d %H:%M:%S") if report.began_s else "?"
    verdict = "adopted" if report.adopted else "kept the old head"
    return (
        f"{report.n_sleep:>4}  {when}  {_change(report):13}  "
        f"{report.cpu_s:6.2f} s  {verdict}: {report.reason}  ({report.cause})"
    )


def _change(report: SleepReport) -> str:
    """Balanced accuracy before and after, where somebody judged."""
    if not report.by_class:
        return "not judged"
    return f"{report.accuracy_before:.3f} → {report.accuracy_after:.3f}"


def _report_text(report: SleepReport) -> str:
    rows = [
        ("sleep", f"{report.n_sleep}, because: {report.cause}"),
        ("rehearsed", f"{report.n_exemplars:,} exemplars, {report.sampler}, {report.n_steps:,} steps"),
        (
            "judged",
            f"on {report.n_held_back:,} held-back exemplars: {_change(report)}",
        ),
        *(("", f"{name}: {before:.2f} → {after:.2f}") for name, (before, after) in report.by_class.items()),
        ("verdict", f"{'adopted' if report.adopted else 'kept the old head'}: {report.reason}"),
        (
            "stability",
            f"min-ACC {report.min_acc:.3f}, WC-ACC {report.wc_acc:.3f}, "
            f"gap {report.stability_gap:.3f} awake, {report.gap_asleep:.3f} asleep",
        ),
        ("cost", f"{report.cpu_s:.2f} s of processor time, {report.held_bytes / 1024:,.0f} KB held"),
    ]
    return "\n".join(f"{name:<10} {text}".rstrip() for name, text in rows)
