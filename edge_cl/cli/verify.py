"""``edge-cl verify``: is this bundle whole, is it right here, and which of its encoders is the fastest?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from edge_cl import encoders
from edge_cl.bundle import Bundle
from edge_cl.cli.owner import kept_by_its_owner
from edge_cl.config import EncoderSettings, load_settings
from edge_cl.encoders.choice import (
    Choice,
    Measured,
    is_current,
    obeys,
    read_choice,
    require_writable,
    write_choice,
)
from edge_cl.encoders.forms import forms
from edge_cl.errors import BundleError


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--bench", is_flag=True, help="Measure every form of the encoder here; a device uses the best.")
@click.option(
    "--state", type=click.Path(path_type=Path), default="edge-cl-state", show_default=True,
    envvar="EDGE_CL_STATE", callback=kept_by_its_owner,
    help="Folder for the choice that --bench makes; that of `edge-cl run`.",
)  # fmt: skip
@click.option("--config", type=click.Path(path_type=Path), envvar="EDGE_CL_CONFIG", help="Settings (TOML).")
@click.option(
    "--if-changed",
    is_flag=True,
    help="With --bench: do nothing when bundle, runtimes and machine are as before, else take 200 s at most.",
)
@click.option(
    "--windows", default=300, show_default=True, type=click.IntRange(10), help="To time with --bench."
)
def verify(
    bundle: Path, as_json: bool, bench: bool, state: Path, config: Path | None, if_changed: bool, windows: int
) -> None:
    """Check BUNDLE: sizes, hashes, manifest, and the encoder against the exporter's golden features.

    With --bench, check and time all of its encoders in all runtimes that are installed, and write down the
    fastest that is right. `edge-cl run` then uses that one. A bundle that was installed over BUNDLE since is
    the one that is looked at.
    """
    settings = load_settings(config).encoder if config else EncoderSettings()
    if not bench:
        _check(bundle, settings, as_json=as_json)
        return
    from edge_cl.upgrade.slots import active_place

    require_writable(state)
    active = active_place(state, bundle).bundle if state.is_dir() else bundle
    loaded = Bundle.load(active)
    before = read_choice(state)
    same = before is not None and is_current(before, loaded, settings.threads) and obeys(before, settings)
    if if_changed and before is not None and same:
        _tell(before, state, as_json=as_json, what="nothing changed since")
        return
    if not forms(loaded):
        click.echo(f"{loaded.manifest.name} needs no runtime: there is nothing to choose", err=as_json)
        if as_json:
            sys.stdout.write("{}\n")
        return
    from edge_cl.encoders import measuring

    patience = measuring.AT_START if if_changed else measuring.ASKED
    measured = measuring.measure(active, threads=settings.threads, n_windows=windows, patience=patience)
    choice = measuring.choose(active, measured, settings)
    if choice is None:
        raise BundleError(
            f"{active}: no encoder of it works here: {_reasons(measured) or 'no runtime is installed'}"
        )
    write_choice(state, choice)
    _tell(choice, state, as_json=as_json, what="chosen")


def _reasons(measured: list[Measured]) -> str:
    return "; ".join(
        f"{one.runtime} {one.precision}: {one.failed or 'not what [encoder] in the settings names'}"
        for one in measured
    )


def _tell(choice: Choice, state: Path, *, as_json: bool, what: str) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.encode(choice).decode() + "\n")
        return
    rows = [("runtime", "precision", "on", "parity", "p50 µs", "p99 µs", "MB", "")]
    for one in choice.measured:
        parity = "-" if one.parity is None else f"{one.parity:.1e}"
        figures = (parity, f"{one.p50_us:.0f}", f"{one.p99_us:.0f}", f"{one.resident_mb:.0f}")
        is_chosen = (one.runtime, one.precision, one.provider) == (
            choice.runtime,
            choice.precision,
            choice.provider,
        )
        word = one.failed or ("← chosen" if is_chosen else "")
        rows.append((one.runtime, one.precision, one.provider or one.running_on, *figures, word))
    widths = [max(len(row[k]) for row in rows) for k in range(7)]
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(row[3:7], widths[3:], strict=False)]
        click.echo("  ".join([*left, *right, row[7]]).rstrip())
    click.echo(f"{what}: {choice.runtime}, {choice.precision}; in {state / 'encoder.json'}")


def _check(path: Path, settings: EncoderSettings, *, as_json: bool) -> None:
    loaded = Bundle.load(path)
    manifest = loaded.manifest
    loaded.prior()
    encoder = encoders.create(loaded, settings)
    error = encoders.golden_error(encoder, loaded)
    if as_json:
        facts = {
            "bundle_id": loaded.bundle_id,
            "golden_error": error,
            "manifest": msgspec.to_builtins(manifest),
        }
        sys.stdout.write(msgspec.json.encode(facts).decode() + "\n")
    else:
        _describe(path, loaded)
    if error is None:
        click.echo("  self-test none: the bundle carries no golden pair", err=as_json)
        return
    if differs := encoders.self_test(encoder, loaded):
        raise BundleError(
            f"{path}: {differs}; do not deploy it here: update the runtime, or export for this machine"
        )
    click.echo(f"  self-test features equal the exporter's to {error:.1e}", err=as_json)


def _describe(path: Path, loaded: Bundle) -> None:
    manifest = loaded.manifest
    channels = ", ".join(f"{c.name} {c.unit}".strip() for c in manifest.channels)
    window_s, hop_s = manifest.window_samples / manifest.rate_hz, manifest.hop_samples / manifest.rate_hz
    has = ", ".join(map(str, forms(loaded))) or manifest.encoder.kind
    lines: dict[str, Any] = {
        "channels": channels,
        "windows": f"{window_s:g} s, every {hop_s:g} s at {manifest.rate_hz:g} Hz",
        "classes": ", ".join(manifest.class_names),
        "encoder": f"{has}; {manifest.feature_size} features",
        "head": manifest.head.name,
        "members": f"{len(manifest.members)}, all sizes and SHA-256 as in the manifest",
    }
    click.echo(f"{manifest.name}  {loaded.bundle_id[:12]}  {path.stat().st_size:,} bytes")
    for name, value in lines.items():
        click.echo(f"  {name:<9} {value}")
