"""Who trains the encoder, who checks it, and whose stream the device then sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_cl.datasets.recordings import Dataset, Recording
from edge_cl.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A fixed split of a data set by people and devices, and how it is windowed.

    `train_device` and `stream_device` name the ``device`` tag, "" means any. Validation uses
    the training device. `train_hop_samples` is smaller than `hop_samples` where training
    gains from overlapping windows; streams always use `hop_samples`.
    """

    name: str
    data: str
    rate_hz: float
    window_samples: int
    hop_samples: int
    train_hop_samples: int
    train_people: frozenset[int]
    validation_people: frozenset[int]
    stream_people: frozenset[int]
    train_device: str = ""
    stream_device: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """Recordings by role, each in the file's order."""

    train: tuple[Recording, ...]
    validation: tuple[Recording, ...]
    stream: tuple[Recording, ...]


# Half-overlapping windows: two decisions a second.
_PHONE_TO_WATCH = Scenario(
    name="phone-to-watch",
    data="spsw_har",
    rate_hz=50.0,
    window_samples=50,
    hop_samples=25,
    train_hop_samples=12,
    train_people=frozenset(range(1, 13)),
    validation_people=frozenset(range(13, 16)),
    stream_people=frozenset(range(16, 24)),
    train_device="smartphone",
    stream_device="smartwatch",
)

# Every fourth of the 40 people is new to the device; of the other 30, five check the training.
_NEW_PERSON = Scenario(
    name="new-person",
    data="myo_emg",
    rate_hz=200.0,
    window_samples=52,
    hop_samples=52,
    train_hop_samples=52,
    train_people=frozenset(p for p in range(40) if p % 4 != 3 and p % 8 != 2),
    validation_people=frozenset(range(2, 40, 8)),
    stream_people=frozenset(range(3, 40, 4)),
)

SCENARIOS = {scenario.name: scenario for scenario in (_PHONE_TO_WATCH, _NEW_PERSON)}


def get(name: str) -> Scenario:
    """The scenario of that name; a `DataError` lists the known ones."""
    if name not in SCENARIOS:
        raise DataError(f"unknown scenario {name!r}; known: {', '.join(SCENARIOS)}")
    return SCENARIOS[name]


def split(dataset: Dataset, scenario: Scenario) -> Split:
    """Deal the recordings out by role.

    Raises
    ------
    DataError
        When a role gets no recording: most likely the file is of another data set.
    """
    parts = Split(
        train=select(dataset, scenario.train_people, scenario.train_device),
        validation=select(dataset, scenario.validation_people, scenario.train_device),
        stream=select(dataset, scenario.stream_people, scenario.stream_device),
    )
    for role in ("train", "validation", "stream"):
        if not getattr(parts, role):
            raise DataError(
                f"scenario {scenario.name!r} finds no recording to {role} on in {dataset.name!r}; "
                f"it is made for {scenario.data}.npz"
            )
    return parts


def select(
    dataset: Dataset, people: Sequence[int] | frozenset[int], device: str = ""
) -> tuple[Recording, ...]:
    """Recordings of these people (and this device), in the file's order."""
    return tuple(
        recording
        for recording in dataset.recordings
        if recording.person in people and (not device or recording.tags.get("device") == device)
    )
