"""What a board will have to bear with a bundle: pure arithmetic on board files and on what was measured here.

Memory and room are measured on this machine, with the device's own ledger: they are alike on all 64-bit
ones. Times are those of the board's file, which are of the packaged bundle, times what the bundle at hand
takes here in proportion to the packaged one.
"""

from __future__ import annotations

import msgspec

from edge_cl.budget import MIB
from edge_cl.config import Settings
from edge_cl.manifest import Manifest
from edge_cl_device.board_files import BoardFile, Figure
from edge_cl_device.measurements import Measured

BUSY = 0.5
"""A device that is busy for more than this share of the time is too slow: labels and sleeps come besides."""
SYSTEM_MB = 150.0
"""What a headless 64-bit system takes for itself: an assumption, on the safe side of what is published."""


class Time(msgspec.Struct, frozen=True, kw_only=True):
    """How long something takes, between which bounds the truth is expected, and where that is from."""

    ms: float
    least_ms: float
    most_ms: float
    kind: str
    source: str


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``edge-cl estimate``.

    Attributes
    ----------
    memory
        MB by what holds them; `memory_mb` is their sum, `ram_mb` what the board has.
    encode, predict, learn, sleep
        None where nothing is known.
    windows_needed, windows_possible
        Per second.
    disk_mb
        Most that the state folder takes (its budget), and what is installed, if known.
    most_classes
        With the budget; more than are counted when `classes_are_more`.
    scaled_by
        What times were multiplied with that nobody measured, None when all were.
    verdicts
        What does not fit, in words; none: it fits.
    """

    bundle: str
    board: str
    cpu: str
    ram_mb: int
    memory: dict[str, float]
    memory_mb: float
    memory_source: str
    encode: Time | None
    predict: Time | None
    learn: Time | None
    sleep: Time | None
    windows_needed: float
    windows_possible: float | None
    state_needs_mb: float
    state_budget_mb: float
    installed_mb: float | None
    days_of_history: float | None
    head: str
    n_classes: int
    most_classes: int
    n_exemplars: int
    ledger: dict[str, int]
    scaled_by: Figure | None
    verdicts: list[str]


def estimate(
    manifest: Manifest,
    settings: Settings,
    board: BoardFile,
    reference: BoardFile,
    here: Measured,
    packaged_here: Measured,
) -> Estimate:
    """Of a bundle on a board.

    Parameters
    ----------
    manifest, settings
        The bundle's and the device's.
    board, reference
        Where it is to run, and what figures without a file of their own are scaled from.
    here, packaged_here
        The bundle and the packaged one, both measured on this machine.
    """
    encode = _encode_time(board, reference, here, packaged_here)
    predict = _time("predict_ms", 1, board, reference, here.predict_ms, packaged_here.predict_ms)
    learn = _time("learn_ms", 1, board, reference, here.learn_ms, packaged_here.learn_ms)
    sleep = _time("sleep_s", 1000, board, reference, here.sleep_s, packaged_here.sleep_s)
    memory = _memory(settings, board, reference, here, packaged_here)
    needed = manifest.rate_hz / manifest.hop_samples
    found = Estimate(
        bundle=manifest.name,
        board=board.name,
        cpu=board.hardware.cpu,
        ram_mb=board.hardware.ram_mb,
        memory=memory,
        memory_mb=round(sum(memory.values()), 1),
        memory_source=_memory_source(board),
        encode=encode,
        predict=predict,
        learn=learn,
        sleep=sleep,
        windows_needed=round(needed, 3),
        windows_possible=round(1000 / (encode.ms + predict.ms), 1) if encode and predict else None,
        state_needs_mb=round(here.disk_bytes / MIB, 1),
        state_budget_mb=settings.budget.disk_mb,
        installed_mb=_value(board.figure("installed_mb", reference)),
        days_of_history=_days_of_history(settings, here),
        head=here.head,
        n_classes=here.n_classes,
        most_classes=here.most_classes,
        n_exemplars=here.n_exemplars,
        ledger=here.ledger,
        scaled_by=board.figures.get("times_slower"),
        verdicts=[],
    )
    return msgspec.structs.replace(found, verdicts=_verdicts(found, settings, here))


def _encode_time(board: BoardFile, reference: BoardFile, here: Measured, packaged: Measured) -> Time | None:
    if here.encode_ms is None or here.runtime == "identity":
        return None if here.encode_ms is None else _exactly(here.encode_ms, "copying a window, measured here")
    name = f"{here.runtime}_encode_ms"
    return _time(name, 1, board, reference, here.encode_ms, packaged.encode_ms or 0.0)


def _time(
    name: str, ms_per_unit: float, board: BoardFile, reference: BoardFile, here: float, packaged: float
) -> Time | None:
    figure = board.figure(name, reference)
    if figure is None or not packaged:
        return None
    ms = figure.value * ms_per_unit * here / packaged
    low, high = figure.spread
    return Time(
        ms=round(ms, 3),
        least_ms=round(ms * low, 3),
        most_ms=round(ms * high, 3),
        kind=figure.kind,
        source=figure.source,
    )


def _exactly(ms: float, source: str) -> Time:
    return Time(ms=ms, least_ms=ms, most_ms=ms, kind="measured", source=source)


def _memory(
    settings: Settings, board: BoardFile, reference: BoardFile, here: Measured, packaged: Measured
) -> dict[str, float]:
    """A board's own figures go first; those of the encoder are this bundle's, measured here."""
    base = board.figures.get("base_mb")
    mqtt = board.figures.get("mqtt_mb")
    found = {"interpreter and libraries": base.value if base else packaged.base_mb}
    if here.encode_ms is not None:
        found[f"encoder ({here.runtime})"] = here.encoder_mb
    elif other := board.figure("onnx_mb", reference):
        found["encoder (onnx, the packaged bundle's)"] = other.value
    if settings.mqtt.url:
        found["MQTT"] = mqtt.value if mqtt else here.mqtt_mb
    found["budget of what is learned"] = settings.budget.ram_mb
    return {name: round(mb, 1) for name, mb in found.items()}


def _memory_source(board: BoardFile) -> str:
    if "base_mb" in board.figures:
        return f"measured: {board.figures['base_mb'].source}"
    return "measured on this machine; another Python or another processor may differ by 15 %"


def _value(figure: Figure | None) -> float | None:
    return None if figure is None else figure.value


def _days_of_history(settings: Settings, here: Measured) -> float | None:
    """How long labels can be taken back one by one, at `trust.per_day` labels a day."""
    if not here.label_bytes:
        return None
    return round(settings.state.history_mb * MIB / here.label_bytes / settings.trust.per_day, 1)


def _verdicts(found: Estimate, settings: Settings, here: Measured) -> list[str]:
    said = []
    if here.encoder_error:
        said.append(f"the encoder could not be measured: {here.encoder_error}")
    if found.memory_mb + SYSTEM_MB > found.ram_mb:
        said.append(
            f"{found.memory_mb:.0f} MB and about {SYSTEM_MB:.0f} MB of the system do not fit into "
            f"{found.ram_mb} MB: lower budget.ram_mb ({settings.budget.ram_mb:g}), or take a board with more"
        )
    if found.encode and found.predict:
        busy = found.windows_needed * (found.encode.most_ms + found.predict.most_ms) / 1000
        if busy > BUSY:
            said.append(
                f"answering may take up to {100 * busy:.0f} % of one core's time: export with a larger hop, "
                "a smaller encoder or a smaller head (`edge-cl heads`)"
            )
    limit = settings.sleep.cpu_s
    if found.sleep and limit and found.sleep.most_ms / 1000 > limit:
        said.append(
            f"a sleep with a full memory may take {found.sleep.most_ms / 1000:.0f} s, sleep.cpu_s allows "
            f"{limit:g}: it then ends early; raise it, or lower memory.max_mb"
        )
    if found.state_needs_mb > found.state_budget_mb:
        said.append(
            f"the state folder needs {found.state_needs_mb:.0f} MB, budget.disk_mb is "
            f"{found.state_budget_mb:g}: raise it"
        )
    return said
