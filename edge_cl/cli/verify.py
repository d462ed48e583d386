"""``edge-cl verify``: is this bundle whole, and does it compute here what it computed there?"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from edge_cl import encoders
from edge_cl.bundle import Bundle
from edge_cl.errors import BundleError


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(bundle: Path, as_json: bool) -> None:
    """Check BUNDLE: sizes, hashes, manifest, and the encoder against the exporter's golden features."""
    loaded = Bundle.load(bundle)
    manifest = loaded.manifest
    loaded.prior()
    error = encoders.golden_error(encoders.create(loaded), loaded)
    if as_json:
        facts = {
            "bundle_id": loaded.bundle_id,
            "golden_error": error,
            "manifest": msgspec.to_builtins(manifest),
        }
        sys.stdout.write(msgspec.json.encode(facts).decode() + "\n")
    else:
        channels = ", ".join(f"{c.name} {c.unit}".strip() for c in manifest.channels)
        window_s, hop_s = manifest.window_samples / manifest.rate_hz, manifest.hop_samples / manifest.rate_hz
        click.echo(f"{manifest.name}  {loaded.bundle_id[:12]}  {bundle.stat().st_size:,} bytes")
        click.echo(f"  channels  {channels}")
        click.echo(f"  windows   {window_s:g} s, every {hop_s:g} s at {manifest.rate_hz:g} Hz")
        click.echo(f"  classes   {', '.join(manifest.class_names)}")
        click.echo(f"  encoder   {manifest.encoder.kind}, {manifest.feature_size} features")
        click.echo(f"  head      {manifest.head.name}")
        click.echo(f"  members   {len(manifest.members)}, all sizes and SHA-256 as in the manifest")
    if error is None:
        click.echo("  self-test none: the bundle carries no golden pair", err=as_json)
        return
    if not error <= encoders.GOLDEN_TOLERANCE:
        raise BundleError(
            f"{bundle}: features differ from the exporter's by {error:.1e} "
            f"(allowed {encoders.GOLDEN_TOLERANCE:g}); do not deploy it here: update onnxruntime, "
            "or export for this machine"
        )
    click.echo(f"  self-test features equal the exporter's to {error:.1e}", err=as_json)
