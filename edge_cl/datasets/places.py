"""Where data sets are looked for on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Known:
    """A data set this project has a scenario for."""

    name: str
    file: str
    scenario: str
    what: str
    how_to_get: str


KNOWN = (
    Known(
        "spsw-har",
        "spsw_har.npz",
        "phone-to-watch",
        "phone and watch motion of 23 people, 5 activities (CC BY 4.0)",
        "`edge-cl data get spsw-har` downloads 73 MB",
    ),
    Known(
        "myo-emg",
        "myo_emg.npz",
        "new-person",
        "forearm muscle activity of 40 people, 7 gestures (Côté-Allard et al., 2019)",
        "put myo_emg.npz into a folder named by EDGE_CL_DATA",
    ),
)


def cache_folder() -> Path:
    """Where downloads go: ``$XDG_CACHE_HOME/edge-cl`` or ``~/.cache/edge-cl``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-cl"


def folders() -> list[Path]:
    """``$EDGE_CL_DATA``, then the cache folder."""
    named = os.environ.get("EDGE_CL_DATA")
    return [*([Path(named)] if named else []), cache_folder()]


def find(file: str | Path) -> Path | None:
    """The file itself, else the first folder's file of that name, or None."""
    if Path(file).is_file():
        return Path(file)
    return next((folder / file for folder in folders() if (folder / file).is_file()), None)
