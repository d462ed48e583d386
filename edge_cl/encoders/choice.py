"""What ``edge-cl verify --bench`` chose: the fastest encoder that is right here, as long as that holds."""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path
from typing import Literal

import msgspec

from edge_cl.bundle import Bundle
from edge_cl.config import EncoderSettings
from edge_cl.encoders.forms import Form, Precision, RuntimeName, forms, installed_versions
from edge_cl.errors import StateUnwritable

log = logging.getLogger(__name__)

FILE = "encoder.json"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One runtime with one form of the encoder, measured in a process of its own.

    `parity` is the largest difference to the features that the exporter had with this form, relative to their
    scale; `resident_mb` that of a process with numpy, the runtime and the encoder; `failed` says in words
    why it is out of the question, "" when it is not.
    """

    runtime: RuntimeName
    precision: Precision
    provider: str = ""
    running_on: str = ""
    parity: float | None = None
    p50_us: float = 0.0
    p99_us: float = 0.0
    resident_mb: float = 0.0
    failed: str = ""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The encoder that a device was told to use, and for what that was found.

    It goes on to hold for another bundle that carries the same encoder in the same form: a merged one, say.
    """

    format: Literal["edge-cl-encoder-choice"] = "edge-cl-encoder-choice"
    format_version: Literal[1] = 1
    bundle_id: str
    encoder_sha256: str
    member_sha256: str
    runtime: RuntimeName
    precision: Precision
    provider: str
    threads: int
    versions: dict[str, str]
    machine: dict[str, str]
    measured: list[Measured] = []


def machine() -> dict[str, str]:
    """What a measured speed depends on besides the runtime: another card or board is another machine."""
    return {"arch": platform.machine(), "cpu": _cpu(), "cores": str(os.cpu_count())}


def read_choice(state: Path) -> Choice | None:
    """The choice written in a state folder; None when there is none, or none that can be read."""
    path = state / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Choice)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("%s cannot be read (%s); run `edge-cl verify --bench` again", path, error)
        return None


def require_writable(state: Path) -> None:
    """Raise StateUnwritable unless this user may write a choice there, before minutes are spent on it."""
    try:
        there = _there(state)
        refused = "" if os.access(there, os.W_OK | os.X_OK) else "Permission denied"
    except OSError as error:
        there, refused = state, str(error.strerror)
    if refused:
        raise StateUnwritable(
            f"{there}: nothing can be written here ({refused}); be the user that the device runs as "
            "(sudo -u edge-cl), or give --state another folder"
        )


def write_choice(state: Path, choice: Choice) -> Path:
    """Write it durably; the file is replaced as a whole. Raises StateUnwritable."""
    path = state / FILE
    part = path.with_name(FILE + ".part")
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        part.unlink(missing_ok=True)
        with part.open("xb") as file:  # never through a link that somebody put there
            file.write(msgspec.json.format(msgspec.json.encode(choice), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise StateUnwritable(
            f"{path}: cannot be written ({error.strerror}); free some room, or give --state another folder"
        ) from error
    return path


def _there(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def misfit(choice: Choice, bundle: Bundle, threads: int) -> str:
    """Why a choice says nothing of this bundle here and now, "" when it does."""
    versions = installed_versions()
    chosen = {name: choice.versions.get(name) for name in (choice.runtime, "numpy")}
    now = {name: versions.get(name) for name in chosen}
    if form_of(choice, bundle) is None:
        return "it was made for another encoder"
    if chosen != now:
        return f"it was made with {_listed(chosen)}, here is {_listed(now)}"
    if choice.machine != machine():
        return f"it was made on {_listed(choice.machine)}, this is {_listed(machine())}"
    return "" if choice.threads == threads else f"it was made for {choice.threads} threads, not {threads}"


def obeys(one: Measured | Choice, settings: EncoderSettings) -> bool:
    """Whether it is what the settings name; what they leave open may be anything."""
    wanted = (settings.runtime, settings.precision, settings.provider)
    found = (one.runtime, one.precision, one.provider or "cpu")
    return all(asked in ("auto", is_) for asked, is_ in zip(wanted, found, strict=True))


def is_current(choice: Choice, bundle: Bundle, threads: int) -> bool:
    """Whether measuring again would be of the same bundle, runtimes and machine."""
    same = (choice.bundle_id, choice.versions) == (bundle.bundle_id, installed_versions())
    return same and not misfit(choice, bundle, threads)


def form_of(choice: Choice, bundle: Bundle) -> Form | None:
    """The form of a bundle's encoder that was chosen, byte for byte; None when it has no such one."""
    members = bundle.manifest.members
    found = forms(bundle)
    if not found or members[found[0].member].sha256 != choice.encoder_sha256:
        return None
    fitting = (form for form in found if members[form.member].sha256 == choice.member_sha256)
    return next(fitting, None)


def _listed(facts: dict[str, str] | dict[str, str | None]) -> str:
    return ", ".join(f"{name} {value or 'none'}" for name, value in facts.items())


def _cpu() -> str:
    """The processor's name; an Arm kernel gives none, but its part number."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {name.strip(): value.strip() for name, value in fields.items()}
    arm = [facts[name] for name in ("CPU implementer", "CPU part", "CPU revision") if name in facts]
    return facts.get("model name") or " ".join(arm) or "unknown"
