"""``edge-cl fleet merge``: one bundle whose prior holds what many devices were taught."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import click
from sqlalchemy import select

from edge_cl.bundle import Bundle
from edge_cl.errors import FleetError, SyncError
from edge_cl.statistics import Account, Statistics, from_bytes, to_bytes
from edge_cl_fleet import merged, tables
from edge_cl_fleet.database import guarded
from edge_cl_fleet.queries import Device, find_device, list_devices
from edge_cl_fleet.reports import Shared, ask_all, wait_for
from edge_cl_fleet.showing import printable, table
from edge_cl_fleet.store import FleetStore

ANSWER_S = 3600.0
"""How long a device may answer, also when nobody waits any more: its report is in the store then."""
EXACTNESS = [
    ["slda", "exact: the head that learned all these labels itself"],
    ["prototype", "class means and variances exact; forms and fast means begin at the class means"],
    ["kalman", "approximate: the same least squares, in another scale of the features"],
    ["dual, knn", "approximate: begin from samples drawn from the classes, 10 labels a class"],
    ["others", "approximate: take means or scales alone"],
]
"""What heads make of merged sums."""
_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("device", nargs=-1)
@click.option("--out", type=_FILE, required=True, help="The bundle to write (.ecl).")
@click.option("--base", type=_FILE, help="Add to its prior.  [default: the one that all devices run]")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(0), default=60.0, show_default=True, metavar="SECONDS"
)
@click.option("--from", "files", type=_FILE, multiple=True, help="What a device sent earlier, by --save.")
@click.option("--save", type=_FOLDER, help="Keep what each device sends there: asking again costs privacy.")
@click.option(
    "--weight",
    type=click.FloatRange(0, min_open=True),
    help="Labels a class that slda, prototype and kalman count it for.  [default: all]",
)
@click.option(
    "--store", "store_url", envvar="EDGE_CL_STORE", default="", metavar="URL", help="As of fleet serve."
)
def merge(
    device: tuple[str, ...], out: Path, base: Path | None, wait_s: float, files: tuple[Path, ...],
    save: Path | None, weight: float | None, store_url: str,
) -> None:  # fmt: skip
    """Ask each DEVICE for the sums over its labels, add them, and write a bundle with them as its prior.

    No reading and no feature leaves a device, only sums. A worker with a key that the devices allow `report`
    must run: `edge-cl fleet serve --key FILE`. `edge-cl fleet add` then takes the bundle as any other.
    """
    if not device and not files:
        raise click.UsageError("name a device, or give --from FILE")
    if not store_url and (device or base is None):
        raise click.UsageError("give --store (or, with --from alone, --base)")
    shared = [_read(file) for file in files]
    store = FleetStore(store_url, create=False) if store_url else None
    running: dict[str, str] = {}
    try:
        if store is not None:
            running = {known.name: known.bundle_id for known in list_devices(store)}
            shared += _ask(store, [find_device(store, name) for name in device], wait_s, save)
        bundle = Bundle.load(base) if base else _common(store, shared)
    finally:
        if store is not None:
            store.close()
    made, found = merged.write(out, bundle, shared, weight=weight, running=running)
    _say(made, bundle, shared, found, out)


def _read(file: Path) -> Shared:
    try:
        return Shared(*from_bytes(file.read_bytes()))
    except OSError as error:
        raise FleetError(f"{file}: cannot be read ({error.strerror}); --save writes such files") from error
    except SyncError as error:
        raise FleetError(f"{file}: {error}") from error


def _ask(store: FleetStore, devices: list[Device], wait_s: float, save: Path | None) -> list[Shared]:
    if not devices:
        return []
    asked = ask_all(store, devices, valid_s=max(wait_s, ANSWER_S))
    heard: list[str] = []

    def note(device: Device) -> None:
        heard.append(device.name)
        click.echo(f"{device.name} answered ({len(heard)} of {len(devices)})", err=True)

    found, missing = wait_for(store, asked, wait_s=wait_s, heard=note)
    for name, shared in found.items() if save else ():
        assert save is not None
        save.mkdir(parents=True, exist_ok=True)
        (save / f"{name.replace('/', '.')}.sums").write_bytes(to_bytes(*shared))
    if missing:
        reasons = "; ".join(printable(f"{name}: {why}") for name, why in sorted(missing.items()))
        raise FleetError(
            f"nothing was merged, {len(missing)} of {len(devices)} devices are missing: {reasons}"
        )
    return [found[name] for name in sorted(found)]


def _common(store: FleetStore | None, shared: Iterable[Shared]) -> Bundle:
    """The bundle that all these devices run, from the store."""
    ids = sorted({one.account.bundle_id for one in shared})
    if len(ids) > 1:
        raise FleetError(
            f"the devices run {len(ids)} bundles ({', '.join(i[:12] for i in ids)}); name one with --base"
        )
    body = None
    if store is not None:
        bundles = tables.bundles
        with guarded(store.engine), store.reading.connect() as connection:
            body = connection.execute(select(bundles.c.body).where(bundles.c.bundle_id == ids[0])).scalar()
    if body is None:
        raise FleetError(f"bundle {ids[0][:12]}, which the devices run, is not in the store; give --base")
    handle, name = tempfile.mkstemp(suffix=".ecl")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body)
        return Bundle.load(name)
    finally:
        Path(name).unlink()


def _say(made: Bundle, base: Bundle, shared: list[Shared], found: Statistics, out: Path) -> None:
    n_base, known = merged.of_base(base).counts.sum(), base.manifest.class_names
    lines = [
        [printable(name), f"{count:,.1f}".removesuffix(".0"), "" if name in known else "new"]
        for name, count in zip(found.class_names, found.counts, strict=True)
    ]
    click.echo(
        f"{out}: bundle {made.bundle_id[:12]}; {max(found.counts.sum() - n_base, 0):,.0f} labels of "
        f"{len(shared)} devices beside the {n_base:,.0f} that the prior of {base.bundle_id[:12]} counts for"
    )
    click.echo("\n".join(table(["class", "labels", ""], lines)))
    for account in (one.account for one in shared):
        if account.noise:
            click.echo(f"{account.device}: {_privacy(account)}")
        if account.first > 1:
            click.echo(f"{account.device}: without labels before its entry {account.first:,}; it kept none")
    if any(one.account.noise or one.account.clip_norm for one in shared):
        click.echo("no head is exact: features were cut, or noise was added")
        return
    click.echo("\n".join(table(["head", "made from it"], EXACTNESS)))
    if made.manifest.merged is not None and made.manifest.merged.weight is None:
        click.echo(
            "slda, prototype and kalman count all these labels, so new ones move them little; for people "
            "or places that differ: --weight 10"
        )


def _privacy(account: Account) -> str:
    epsilon = "unlimited: it has also reported without noise"
    if account.epsilon is not None:
        epsilon = f"{account.epsilon:.2f} (δ = {account.delta:g})"
    return (
        f"noise {account.noise:g}, features cut to {account.clip_norm:g}; {account.n_reports} reports make "
        f"ε {epsilon}"
    )
