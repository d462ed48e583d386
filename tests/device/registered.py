"""The drivers of pyproject.toml as installed ones, whichever version of the package is."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from edge_cl.sensing.drivers import LABEL_SOURCES, SENSORS

ROOT = Path(__file__).parents[2]


def entry_points() -> dict[str, dict[str, str]]:
    """By group and name, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {group: project["entry-points"][group] for group in (SENSORS, LABEL_SOURCES)}


def install(folder: Path, **more_sensors: str) -> str:
    """Make them an installed distribution in `folder`; what PYTHONPATH must begin with."""
    info = folder / "drivers_under_test-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: drivers-under-test\nVersion: 1\n")
    found = entry_points()
    found[SENSORS] = {**found[SENSORS], **more_sensors}
    lines = []
    for group, named in found.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in named.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
