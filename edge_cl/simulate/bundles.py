"""Which bundle a simulation starts from: a named one, the default one, or one exported for the data."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path

from edge_cl.bundle import Bundle
from edge_cl.datasets.places import cache_folder
from edge_cl.errors import BundleError

DEFAULT = "wrist.ecl"


def default_bundle() -> Bundle:
    """The bundle that comes with the package, trained on the simulator's source people."""
    with as_file(files("edge_cl") / "assets" / DEFAULT) as path:
        if not path.exists():
            raise BundleError(
                f"this installation has no assets/{DEFAULT}; build it with `make assets` or use --bundle"
            )
        return Bundle.load(path)


def bundle_for(data: Path, scenario: str) -> Bundle:
    """The bundle exported for a scenario: from the cache, or trained now (minutes).

    Raises
    ------
    BundleError
        When none is cached and the exporter is missing or fails.
    """
    return Bundle.load(bundle_file_for(data, scenario))


def bundle_file_for(data: Path, scenario: str) -> Path:
    """The file of `bundle_for`."""
    version = importlib.metadata.version("edge-cl")
    cached = cache_folder() / f"{data.stem}-{scenario}-{data.stat().st_size}-{version}.ecl"
    if not cached.exists():
        _export(data, scenario, cached)
    return cached


def _export(data: Path, scenario: str, out: Path) -> None:
    missing = [name for name in ("edge_cl_export", "torch") if importlib.util.find_spec(name) is None]
    if missing:
        raise BundleError(
            f"no bundle for scenario {scenario} yet, and {' and '.join(missing)} is not installed to make "
            "one; `pip install 'edge-cl[export]'`, or export elsewhere and name the file with --bundle"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "edge_cl_export",
        "--data",
        str(data),
        "--scenario",
        scenario,
        "-o",
        str(out),
    ]
    done = subprocess.run(command, check=False)
    if done.returncode or not out.exists():
        raise BundleError(f"the export failed ({' '.join(command[1:])}); its messages are above")
