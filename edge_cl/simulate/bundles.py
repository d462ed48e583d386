"""Which bundle a simulation starts from: a named one, the default one, or one exported for the data."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path

from edge_cl.bundle import Bundle
from edge_cl.errors import BundleError

DEFAULT = "wrist.ecl"


def default_bundle() -> Bundle:
    """The bundle that comes with the package, trained on the simulator's source people."""
    with as_file(files("edge_cl") / "assets" / DEFAULT) as path:
        if not path.exists():
            raise BundleError(f"this installation has no assets/{DEFAULT}; name a bundle with --bundle")
        return Bundle.load(path)


def bundle_for(data: Path, scenario: str) -> Bundle:
    """The bundle exported for a scenario: from the cache, or trained now (minutes).

    Raises
    ------
    BundleError
        When none is cached and the exporter is missing or fails.
    """
    cached = cache_dir() / f"{data.stem}-{scenario}-{data.stat().st_size if data.exists() else 0}.ecl"
    if not cached.exists():
        _export(data, scenario, cached)
    return Bundle.load(cached)


def cache_dir() -> Path:
    """Where exported bundles are kept: ``$XDG_CACHE_HOME/edge-cl`` or ``~/.cache/edge-cl``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edge-cl"


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
