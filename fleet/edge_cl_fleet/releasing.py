"""``edge-cl fleet add`` and ``bundles``: what devices may be asked to install."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click
import msgspec

from edge_cl.commands import Install, Release
from edge_cl.sync import signing
from edge_cl_fleet.releases import add, kept, make_release, sign_release
from edge_cl_fleet.showing import json_option, printable, store_option, table
from edge_cl_fleet.store import FleetStore


@click.command("add")
@click.argument("bundle", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--key",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Private key that devices allow `release`.",
)
@click.option("--key-name", default="release", show_default=True, help="What devices call --key.")
@click.option("--url", default="", help="Devices fetch it there (https://…), not over MQTT.")
@store_option
def add_(bundle: Path, key: Path, key_name: str, url: str, store_url: str) -> None:
    """Check BUNDLE, sign it, and keep it for the devices to fetch."""
    store = FleetStore(store_url)
    try:
        release, install = add_file(store, bundle, key, key_name, url)
    finally:
        store.close()
    click.echo(
        f"{release.name}  {release.sha256[:12]}  {release.size:,} bytes, {len(release.chunks):,} chunks, "
        f"signed by {install.signed_by}"
    )


def add_file(
    store: FleetStore, bundle: Path, key: Path, key_name: str, url: str = ""
) -> tuple[Release, Install]:
    """Check a bundle file, sign it with the key in a file, keep it."""
    release = make_release(bundle, url=url)
    install = sign_release(release, signing.read_key(key), key_name)
    add(store.engine, release, install, bundle.read_bytes())
    return release, install


@click.command()
@store_option
@json_option
def bundles(store_url: str, as_json: bool) -> None:
    """List the bundles that devices may fetch."""
    store = FleetStore(store_url)
    try:
        found = kept(store.engine)
    finally:
        store.close()
    if as_json:
        click.echo(msgspec.json.encode([bundle._asdict() for bundle in found]))
        return
    if not found:
        click.echo("no bundle is kept; `edge-cl fleet add BUNDLE --key FILE` adds one")
        return
    heads = ["sha256", "name", "bundle", "bytes", "added", "signed by", "from"]
    lines = [
        [
            bundle.sha256[:12],
            printable(bundle.name),
            bundle.bundle_id[:12],
            f"{bundle.size:,}",
            datetime.fromtimestamp(bundle.added_s).strftime("%Y-%m-%d %H:%M"),
            printable(bundle.signed_by),
            printable(bundle.url) or "MQTT",
        ]
        for bundle in found
    ]
    click.echo("\n".join(table(heads, lines)))
