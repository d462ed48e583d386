"""``edge-cl doctor``: run all checks, say what was found."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from edge_cl.bundle import Bundle
from edge_cl.config import Settings, load_settings
from edge_cl.errors import BundleError, ConfigError
from edge_cl_device.doctor import (
    broker,
    buses,
    clock,
    interpreter,
    memory,
    power,
    service,
    storage,
    system,
)
from edge_cl_device.doctor.findings import LEVELS, Finding, note, ok, problem
from edge_cl_device.doctor.scene import Scene

CONFIG = Path("/etc/edge-cl/config.toml")
STATE = Path("/var/lib/edge-cl/state")
BUNDLE = Path("/var/lib/edge-cl/bundles/current.ecl")
CHECKS = (
    system.check,
    interpreter.check,
    memory.check,
    power.check,
    clock.check,
    storage.check,
    buses.check,
    broker.check,
    service.check,
)
_MARKS = {"ok": "ok", "note": "note", "warning": "warning", "problem": "PROBLEM"}


@click.command()
@click.option(
    "--config", type=click.Path(path_type=Path), envvar="EDGE_CL_CONFIG",
    help=f"Settings of the device.  [default: {CONFIG}, where it is]",
)  # fmt: skip
@click.option("--bundle", type=click.Path(path_type=Path), help="What the device runs.")
@click.option(
    "--state", type=click.Path(path_type=Path), envvar="EDGE_CL_STATE", default=STATE, show_default=True,
    help="The device's state folder.",
)  # fmt: skip
@click.option("--offline", is_flag=True, help="Leave the broker alone.")
@click.option("--all", "show_all", is_flag=True, help="Show what is well, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--root", type=click.Path(path_type=Path), default=Path("/"), hidden=True)
def doctor(
    config: Path | None, bundle: Path | None, state: Path, offline: bool, show_all: bool, as_json: bool,
    root: Path,
) -> None:  # fmt: skip
    """Look for what is wrong with this board and this installation.

    Checks the system, Python and its runtimes, memory, supply, clock, storage, sensor buses, broker and
    service. Changes nothing. Exits with 1 when there is a problem, which means that the device does not work
    or will lose what it learned; warnings and notes alone give 0.
    """
    found = list(examine(config, bundle, state, root=root, online=not offline))
    counts = {level: sum(f.level == level for f in found) for level in LEVELS}
    if as_json:
        click.echo(msgspec.json.encode({"findings": found, "counts": counts}))
    else:
        for finding in found:
            if finding.level != "ok" or show_all or finding.id == "board":
                click.echo(_shown(finding))
        click.echo(", ".join(f"{n} {level}" for level, n in counts.items()))
    sys.exit(1 if counts["problem"] else 0)


def examine(
    config: Path | None, bundle: Path | None, state: Path, *, root: Path = Path("/"), online: bool = True
) -> Iterator[Finding]:
    """Everything that is found; a file that cannot be read is a finding and stops nothing else."""
    scene = Scene(root=root, state=state, online=online)
    path = config or (CONFIG if scene.exists(CONFIG) else None)
    if path is None:
        yield note("settings", f"no {CONFIG}", "all settings have their defaults")
    else:
        scene.config = path
        try:
            scene.settings = load_settings(path if config else scene.path(path))
        except ConfigError as error:
            scene.settings = Settings()
            yield problem("settings", str(error), "the device cannot start", f"edit {path}")
        else:
            yield ok("settings", str(path))
    yield from _load_bundle(scene, bundle)
    yield from diagnose(scene)


def diagnose(scene: Scene) -> Iterator[Finding]:
    """All checks on one scene."""
    for check in CHECKS:
        try:
            yield from check(scene)
        except OSError as error:
            theme = check.__module__.rpartition(".")[2]
            yield note(
                theme, f"cannot look: {error}", "run doctor as root to see more", "sudo edge-cl doctor"
            )


def _load_bundle(scene: Scene, path: Path | None) -> Iterator[Finding]:
    place = path or scene.path(BUNDLE)
    if path is None and not scene.exists(BUNDLE):
        if scene.exists(BUNDLE.parents[1]) and not os.access(scene.path(BUNDLE.parents[1]), os.X_OK):
            yield note("bundle", f"{BUNDLE} cannot be read", "only root sees it", "sudo edge-cl doctor")
            return
        mend = f"sudo install -m 644 my.ecl {BUNDLE}"
        yield note("bundle", f"no {BUNDLE}", "the service waits for one", mend)
        return
    try:
        scene.bundle = Bundle.load(place)
    except BundleError as error:
        yield problem("bundle", str(error), "the device cannot start", "copy or fetch the bundle again")
        return
    yield ok("bundle", f"{scene.bundle.manifest.name}, {place}")


def _shown(finding: Finding) -> str:
    lines = [f"{_MARKS[finding.level]:8s}{finding.id}: {finding.found}"]
    if finding.means:
        lines.append(f"{'':8s}{finding.means}")
    if finding.mend:
        lines.append(f"{'':8s}→ {finding.mend}")
    return "\n".join(lines)
