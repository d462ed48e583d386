"""Bundles that devices may fetch: described, signed once for all of them, and kept whole."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import msgspec
from sqlalchemy import Engine, insert, select

from edge_cl.commands import Install, Release
from edge_cl.errors import FleetError
from edge_cl.release import release_of
from edge_cl.sync import signing
from edge_cl.sync.messages import CHUNK_BYTES
from edge_cl_fleet import tables
from edge_cl_fleet.database import guarded

LEAST_DIGITS = 4
"""Of a hash, to tell a bundle by."""


class Kept(NamedTuple):
    """A bundle in the store, without its bytes."""

    sha256: str
    name: str
    bundle_id: str
    signed_by: str
    added_s: float
    size: int
    url: str


def make_release(bundle: Path, *, url: str = "", includes: dict[str, int] | None = None) -> Release:
    """What the file of a bundle is, once it was verified.

    `url` is where devices fetch it instead of over MQTT; `includes`, by ``site/device``, up to which journal
    entry a device's labels are in the bundle's prior already. Raises BundleError.
    """
    return release_of(bundle, chunk_bytes=CHUNK_BYTES, url=url, includes=includes)


def sign_release(release: Release, private_hex: str, signed_by: str) -> Install:
    """What asks a device to install it, signed by the key that devices know as `signed_by`."""
    text = msgspec.json.encode(release).decode()
    signature = signing.sign(private_hex, signing.RELEASE, text)
    return Install(release=text, signed_by=signed_by, signature=signature)


def add(engine: Engine, release: Release, install: Install, body: bytes) -> None:
    """Keep a bundle, so that the workers can send it; of a known one, what is said changes."""
    known = tables.bundles
    row = {
        "sha256": release.sha256,
        "name": release.name,
        "bundle_id": release.bundle_id,
        "release": install.release,
        "signed_by": install.signed_by,
        "signature": install.signature,
        "added_s": time.time(),
    }
    with guarded(engine), engine.begin() as connection:
        there = known.c.sha256 == release.sha256
        if connection.execute(select(known.c.sha256).where(there)).first():
            connection.execute(known.update().where(there).values(row))
        else:
            connection.execute(insert(known).values(row | {"body": body}))


def kept(engine: Engine) -> list[Kept]:
    """The bundles in the store, newest first."""
    columns = [tables.bundles.c[name] for name in ("sha256", "name", "bundle_id", "signed_by", "added_s")]
    query = select(*columns, tables.bundles.c.release).order_by(tables.bundles.c.added_s.desc())
    with guarded(engine), engine.connect() as connection:
        rows = connection.execute(query).all()
    found = []
    for *fields, text in rows:
        release = msgspec.json.decode(text, type=Release)
        sha256, name, bundle_id, signed_by, added_s = fields
        found.append(Kept(sha256, name, bundle_id, signed_by, added_s, release.size, release.url))
    return found


def find(engine: Engine, name: str) -> Install:
    """What installs a bundle: by the beginning of its SHA-256 or id, or, the newest so called, by its name.

    Raises FleetError when there is none, or several.
    """
    bundles = kept(engine)
    by_hash = [b for b in bundles if len(name) >= LEAST_DIGITS and _begins(b, name)]
    matching = by_hash or [b for b in bundles if b.name == name][:1]
    if len(matching) != 1:
        found = ", ".join(b.sha256[:12] for b in matching) or "none"
        raise FleetError(
            f"bundle {name!r}: found {found}; `edge-cl fleet bundles` lists all, `edge-cl fleet add` adds one"
        )
    table = tables.bundles
    query = select(table.c.release, table.c.signed_by, table.c.signature).where(
        table.c.sha256 == matching[0].sha256
    )
    with guarded(engine), engine.connect() as connection:
        release, signed_by, signature = connection.execute(query).one()
    return Install(release=release, signed_by=signed_by, signature=signature)


def _begins(bundle: Kept, digits: str) -> bool:
    return bundle.sha256.startswith(digits) or bundle.bundle_id.startswith(digits)
