"""``edge-cl estimate``: what a bundle will need on a board, before it is bought or installed."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import click
import msgspec

from edge_cl.bundle import Bundle
from edge_cl.config import Settings, load_settings
from edge_cl.encoders.forms import RUNTIMES, is_installed
from edge_cl_device.board import read_board
from edge_cl_device.board_files import (
    REFERENCE,
    BoardFile,
    Figure,
    Hardware,
    board_names,
    load_board,
    save_board,
)
from edge_cl_device.estimate import Estimate, Time, estimate
from edge_cl_device.measurements import (
    MOST_CLASSES,
    Measured,
    in_runtime,
    measure,
    measure_packaged,
    packaged_bundle,
)

MB = 1024 * 1024


@click.command("estimate")
@click.argument("bundle", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--board", default="", help=f"{', '.join(board_names())}, or a FILE.toml.")
@click.option("--config", type=click.Path(path_type=Path), help="Settings (TOML) of the device.")
@click.option(
    "--measure", "measured_file", type=click.Path(dir_okay=False, path_type=Path),
    help="On a board: measure the packaged bundle there and write a board file.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def estimate_command(
    bundle: Path | None, board: str, config: Path | None, measured_file: Path | None, as_json: bool
) -> None:
    """Say what BUNDLE will need on a board: memory, time, disk, and how many classes fit.

    Takes some seconds: memory and proportions are measured on this machine. Figures of boards that nobody has
    measured yet are scaled, and say so.
    """
    if measured_file is not None:
        if bundle or board:
            raise click.UsageError("--measure takes this machine and the packaged bundle; give nothing else")
        found_here = measure_packaged()
        save_board(measured_file, board_of(found_here, in_other_runtimes(found_here)))
        click.echo(f"wrote {measured_file}; use it with edge-cl estimate BUNDLE --board {measured_file}")
        return
    if bundle is None or not board:
        raise click.UsageError(f"give a BUNDLE and --board: {', '.join(board_names())}, or a FILE.toml")
    found = estimate_bundle(bundle, load_board(board), config)
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        for line in lines(found):
            click.echo(line)


def estimate_bundle(path: Path, board: BoardFile, config: Path | None = None) -> Estimate:
    """Measure a bundle here, and the packaged one to compare, and reckon for the board."""
    settings = load_settings(config) if config else Settings()
    bundle = Bundle.load(path)
    packaged_here = measure_packaged()
    same = config is None and bundle.bundle_id == Bundle.load(packaged_bundle()).bundle_id
    here = packaged_here if same else measure(path, config)
    if here.encode_ms is not None and here.runtime not in ("identity", packaged_here.runtime):
        packaged_here = in_runtime(packaged_here, here.runtime)
    return estimate(bundle.manifest, settings, board, load_board(REFERENCE), here, packaged_here)


def in_other_runtimes(packaged: Measured) -> list[Measured]:
    """The packaged bundle in each other runtime that works here: another bundle may need it."""
    names = [one.name for one in RUNTIMES.values() if one.name != packaged.runtime and is_installed(one)]
    return [found for name in names if not (found := in_runtime(packaged, name)).encoder_error]


def board_of(found: Measured, others: Sequence[Measured] = (), *, name: str = "", on: str = "") -> BoardFile:
    """A board file of this machine: what was measured of the packaged bundle, in one runtime and others."""
    board = read_board()
    source = (
        f"edge-cl estimate --measure, {on or date.today().isoformat()}, Python {platform.python_version()}"
    )
    values = {
        "predict_ms": found.predict_ms,
        "learn_ms": found.learn_ms,
        "sleep_s": found.sleep_s,
        "base_mb": found.base_mb,
        "mqtt_mb": found.mqtt_mb,
    }
    for one in (found, *others):
        if one.encode_ms is not None:
            values |= {f"{one.runtime}_encode_ms": one.encode_ms, f"{one.runtime}_mb": one.encoder_mb}
    return BoardFile(
        format="edge-cl-board",
        format_version=1,
        name=name or board.model or platform.node(),
        hardware=Hardware(
            cpu=f"{board.n_cores} × {board.machine or platform.machine()}",
            cores=max(board.n_cores, 1),
            ram_mb=board.ram_bytes // MB,
            rtc=Path("/dev/rtc0").exists(),
            source="read on the board",
        ),
        figures={k: Figure(value=v, kind="measured", source=source) for k, v in values.items() if v > 0},
    )


def lines(found: Estimate) -> list[str]:
    """The estimate in words."""
    parts = ", ".join(f"{mb:g} {what}" for what, mb in found.memory.items())
    shown = [
        f"{found.bundle} on {found.board} ({found.cpu}, {found.ram_mb:,} MB)",
        f"  memory    {found.memory_mb:.0f} MB: {parts}",
        f"            {found.memory_source}",
        f"  window    {_sum_line(found)}",
        f"  label     {_time_line(found.learn)}",
        f"  sleep     {_time_line(found.sleep)}, with a full memory",
        f"  disk      {_disk_line(found)}",
        f"  room      {_room_line(found)}",
    ]
    times = [time for time in (found.encode, found.predict, found.learn, found.sleep) if time is not None]
    scale = found.scaled_by
    if scale is not None and any(time.kind != "measured" for time in times):
        shown += [
            f"  nobody has measured such a board: its times are the reference's × {scale.value:g}, from",
            f"  {scale.source}; to know them run there: edge-cl estimate --measure my.toml",
        ]
    return shown + [f"  ! {said}" for said in found.verdicts]


def _sum_line(found: Estimate) -> str:
    if found.encode is None or found.predict is None or found.windows_possible is None:
        return "unknown: the encoder could not be measured, or the board's file has no time of its runtime"
    both = Time(
        ms=found.encode.ms + found.predict.ms,
        least_ms=found.encode.least_ms + found.predict.least_ms,
        most_ms=found.encode.most_ms + found.predict.most_ms,
        kind=found.encode.kind,
        source="",
    )
    return (
        f"{_time_line(both)}: encoder {found.encode.ms:.3g}, head {found.predict.ms:.3g}; "
        f"{found.windows_possible:,.0f} a second, {found.windows_needed:g} needed"
    )


def _time_line(time: Time | None) -> str:
    if time is None:
        return "unknown"
    unit, by = ("s", 1000.0) if time.ms >= 1000 else ("ms", 1.0)
    spread = (
        "" if time.least_ms == time.most_ms else f" ({time.least_ms / by:.3g} to {time.most_ms / by:.3g})"
    )
    return f"{time.ms / by:.3g} {unit}{spread}, {time.kind}"


def _disk_line(found: Estimate) -> str:
    state = f"state {found.state_needs_mb:g} to {found.state_budget_mb:g} MB (budget.disk_mb)"
    installed = f"; {found.installed_mb:g} MB installed" if found.installed_mb else ""
    return f"{state}{installed}; labels of {found.days_of_history:g} days can be taken back, at trust.per_day"


def _room_line(found: Estimate) -> str:
    most = f"{found.most_classes:,}" + (" or more" if found.most_classes >= MOST_CLASSES else "")
    return (
        f"{found.n_classes} classes, {most} fit; {found.n_exemplars:,} exemplars; head {found.head} of "
        f"{found.ledger['head'] / MB:.1f} MB, a sleep {found.ledger['sleep'] / MB:.1f} MB (in the budget)"
    )
