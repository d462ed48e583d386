"""``sudo edge-cl …`` beside a service: what root makes in its state folder becomes the service's user's."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import click


def kept_by_its_owner(context: click.Context, option: click.Parameter, state: Path) -> Path:
    """Callback of the option of a state folder; without it the service could not open root's files."""
    if os.geteuid() == 0:
        nearest = next(folder for folder in (state.absolute(), *state.absolute().parents) if folder.exists())
        owner = nearest.stat()
        if owner.st_uid:
            context.call_on_close(lambda: give_back(state, owner.st_uid, owner.st_gid))
    return state


def give_back(state: Path, uid: int, gid: int) -> None:
    """Make root's files and folders below (and with) `state` another user's; links are not followed."""
    if not state.is_dir():
        return
    for _, _, names, at in os.fwalk(state):
        if os.fstat(at).st_uid == 0:
            os.fchown(at, uid, gid)
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a running device removes files meanwhile
                _give(name, uid, gid, at)


def _give(name: str, uid: int, gid: int, at: int) -> None:
    found = os.stat(name, dir_fd=at, follow_symlinks=False)
    if found.st_uid == 0 and found.st_nlink == 1:  # under another name it may be a file of the system
        os.chown(name, uid, gid, dir_fd=at, follow_symlinks=False)
