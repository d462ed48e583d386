"""Typed settings from one TOML file; secrets come from the environment, never from the file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from edge_cl.budget import MIB, Budget
from edge_cl.commands import Ask
from edge_cl.errors import ConfigError

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_PUBLIC_KEY = re.compile(r"[0-9a-f]{64}")
_NEEDS_CLIP = "only together with a clip_norm above 0"
_TOPIC_PREFIX = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_NIGHT = re.compile(r"(([01]\d|2[0-3]):[0-5]\d)-(?!\1)([01]\d|2[0-3]):[0-5]\d")
SAMPLER_NAMES = ("balanced", "recent", "hard-first", "easy-first", "spaced")


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the settings file; unknown keys are refused."""


class DeviceSettings(Section, frozen=True, kw_only=True):
    """Who this device is. Both names become MQTT topic parts: lower-case letters, digits, dashes."""

    name: str = "edge-cl"
    site: str = "home"


class BudgetSettings(Section, frozen=True, kw_only=True):
    """Hard limits; see :class:`edge_cl.Budget`."""

    ram_mb: float = 16.0
    disk_mb: float = 64.0


class EncoderSettings(Section, frozen=True, kw_only=True):
    """Which of a bundle's encoders runs, and how.

    Attributes
    ----------
    runtime
        ``onnx`` (onnxruntime), ``litert`` (ai-edge-litert) or ``tflite`` (tflite-runtime); ``auto``: what
        ``edge-cl verify --bench`` found to be the fastest here, else the first that is installed.
    precision
        ``float32`` or ``int8``; ``auto``: int8 only where that was measured to be right and faster here.
    provider
        Of onnxruntime; ``auto`` is the CPU unless ``edge-cl verify --bench`` found another faster.
    threads
        Processor cores that the runtime may use for one window.
    """

    runtime: Literal["auto", "onnx", "litert", "tflite"] = "auto"
    precision: Literal["auto", "float32", "int8"] = "auto"
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    threads: int = 1


class DriverSettings(Section, frozen=True, kw_only=True):
    """A driver by its registered name, and its options; each driver's file says which it has.

    Sensors are found by the entry point group ``edge_cl.sensors``, what gives labels by
    ``edge_cl.label_sources``::

        [sensor]
        name = "mpu6050"
        options = { bus = 1, address = 0x68 }

        [[labels]]
        name = "button"
        options = { confirm = 17, classes = { walking = 22, running = 23 } }
    """

    name: str = ""
    options: dict[str, Any] = {}


class HeadSettings(Section, frozen=True, kw_only=True):
    """Which head learns, and its options; "" is the bundle's own choice.

    Options are the parameters of the head's class in :mod:`edge_cl.heads`. What is not named keeps its
    default, or, without a name, the bundle's value; a device keeps no `memory_bytes` for `dual`::

        [head]
        name = "dual"
        options = { lift = 512, window = 128, anchors = 0 }
    """

    name: str = ""
    options: dict[str, Any] = {}


class MemorySettings(Section, frozen=True, kw_only=True):
    """What is kept of the labels that were learned.

    Attributes
    ----------
    codec
        How a feature is stored: ``float32``, ``float16``, ``int8``, or ``pq`` (a sixteenth of float32 by
        default) where the bundle has a codebook.
    evict
        Which exemplar of the fullest class goes: a ``random`` one, or the most ``redundant`` of some.
    max_mb
        At most so much for exemplars: of RAM, or with `file` of disk.
    file
        Keep exemplars in a file of the state folder, when disk is the budget and not RAM; not with ``int8``.
    """

    codec: Literal["float32", "float16", "int8", "pq"] = "float16"
    evict: Literal["random", "redundant"] = "random"
    max_mb: float = 8.0
    file: bool = False


class TrustSettings(Section, frozen=True, kw_only=True):
    """When to believe a prediction, and whom to believe.

    Attributes
    ----------
    min_confidence
        An answer less sure than this is marked `abstained`.
    sources
        Trust in who gives labels, 0 to 1, by name; ``mqtt/anna`` goes before ``mqtt``, which stands for all
        names below it. At 1 labels are learned as they come, and the others are checked by them; below, they
        are checked; at 0 held for review. Not listed, ``mqtt`` has 0.5 and everything else 1. A name over
        MQTT is what the sender says: trust one only where the broker lets nobody else send as it.
    per_day, per_minute
        A checked source may teach its trust times so many labels.
    """

    min_confidence: float = 0.5
    sources: dict[str, float] = {}
    per_day: float = 1000.0
    per_minute: float = 60.0


class SleepSettings(Section, frozen=True, kw_only=True):
    """When to rest, what must hold for it, and how much.

    Causes, any of them; 0 turns one off:

    - `after_labels` labels, and an eighth of all, were learned since the last sleep;
    - `idle_s` seconds passed without a reading;
    - `memory_turnover` of the memory (a share, 0 to 1) came new since the last sleep;
    - `drift_points`: recent accuracy fell so many points below its best since the last sleep.

    All but the first also need `min_labels` labels since the last sleep. Conditions, all of them, else sleep
    waits: the local time is in the window `night` ("22:00-06:00", "" for any time); `on_mains`: not on
    battery; cooler than `max_celsius` (0 for any), once above it than `max_celsius - hysteresis_celsius`.
    What the board cannot tell does not keep it awake.

    Amounts: at most `steps` optimisation steps and `cpu_s` seconds of processor time (0: no limit), in
    slices of about `slice_ms`. `sampler` orders what is rehearsed; see :mod:`edge_cl.sleep.samplers`. The new
    head is refused when a class would lose more than `class_margin`, or twice that while all gain as much.
    """

    after_labels: int = 256
    idle_s: float = 5.0
    min_labels: int = 32
    memory_turnover: float = 0.0
    drift_points: float = 0.0
    night: str = ""
    on_mains: bool = False
    max_celsius: float = 0.0
    hysteresis_celsius: float = 5.0
    steps: int = 1000
    cpu_s: float = 60.0
    slice_ms: float = 20.0
    sampler: str = "balanced"
    class_margin: float = 0.2


class StateSettings(Section, frozen=True, kw_only=True):
    """How often learned state is made durable, and how much of the past is kept.

    `history_mb` bounds the journal: labels in it can be taken back exactly, and the device can return to any
    moment in it. What is older stays learned, but as a whole. `daily_write_mb` spares the card: when many
    labels come for hours, commits come up to 10 s apart (and receipts with them) and snapshots are rarer, so
    that a day's writes stay below it; 0 for no limit.
    """

    commit_ms: float = 50.0
    snapshot_labels: int = 1000
    history_mb: float = 24.0
    daily_write_mb: float = 1000.0


class PrivacySettings(Section, frozen=True, kw_only=True):
    """What of the labels may leave the device when a server asks what they taught (``fleet merge``).

    Only ever sums over all labels leave it, no feature and no sample. `share`: whether they do. `clip_norm`
    cuts features that are longer to this length (0: none are cut), and `noise` adds Gaussian noise, with this
    many times what one label can change in the sums as its standard deviation (0: none); it needs a
    `clip_norm`. The report says which ε that makes, over all reports so far.
    """

    share: bool = True
    clip_norm: float = 0.0
    noise: float = 0.0


class MqttSettings(Section, frozen=True, kw_only=True):
    """The broker, and what it is told. `url` is ``mqtt://host[:port]`` or ``mqtts://…``; "" means no MQTT.

    The password is read from the environment variable ``EDGE_CL_MQTT_PASSWORD``. A client certificate's
    private key is a file of its own, readable for the device's user only.

    Attributes
    ----------
    ca_file
        Certificates that the broker's must descend from (PEM); "" for those of the system.
    cert_file, key_file
        The device's own certificate and its private key (PEM), for a broker that asks for one.
    confirm
        Whose word lets a message leave the outbox: the fleet ``server``'s, once it is in its store, or the
        ``broker``'s, where no server runs; what a broker loses is then lost.
    status_s, summary_s, health_s
        How often the state, a summary of the decisions and a health report are sent.
    discovery
        Home Assistant's discovery prefix, usually "homeassistant"; "" for none.
    """

    url: str = ""
    username: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    confirm: Literal["server", "broker"] = "server"
    status_s: float = 5.0
    summary_s: float = 60.0
    health_s: float = 300.0
    discovery: str = ""


Permission: TypeAlias = Literal[Ask, "release"]
"""What a key may be allowed: to ask for something, or to sign the bundles that may be installed."""


class KeySettings(Section, frozen=True, kw_only=True):
    """Whose signature counts, and for what. `public` is what ``edge-cl fleet keygen`` prints."""

    public: str
    allow: list[Permission] = []


class CommandSettings(Section, frozen=True, kw_only=True):
    """Which orders are obeyed that come over MQTT.

    Attributes
    ----------
    unsigned
        What whoever may write the topics ``cmd/label``, ``cmd/sleep``, ``cmd/undo`` may ask for without a
        signature; none: nothing.
    keys
        Who may sign orders, by name, and which; needs ``pip install 'edge-cl[signed]'``::

            [commands.keys.fleet]
            public = "…64 hexadecimal digits…"
            allow = ["label", "sleep", "set", "report", "install"]
    """

    unsigned: tuple[Literal["label", "sleep", "undo"], ...] = ("label", "sleep", "undo")
    keys: dict[str, KeySettings] = {}


class Settings(Section, frozen=True, kw_only=True):
    """All settings; every key has a default, so an empty file is valid."""

    device: DeviceSettings = DeviceSettings()
    budget: BudgetSettings = BudgetSettings()
    sensor: DriverSettings = DriverSettings()
    labels: tuple[DriverSettings, ...] = ()
    encoder: EncoderSettings = EncoderSettings()
    head: HeadSettings = HeadSettings()
    memory: MemorySettings = MemorySettings()
    trust: TrustSettings = TrustSettings()
    sleep: SleepSettings = SleepSettings()
    state: StateSettings = StateSettings()
    privacy: PrivacySettings = PrivacySettings()
    mqtt: MqttSettings = MqttSettings()
    commands: CommandSettings = CommandSettings()

    def to_budget(self) -> Budget:
        """The byte budget that the settings describe."""
        return Budget(ram_bytes=int(self.budget.ram_mb * MIB), disk_bytes=int(self.budget.disk_mb * MIB))


def load_settings(path: str | Path) -> Settings:
    """Read and check a settings file.

    Raises
    ------
    ConfigError
        Names the key, what was found, and what is allowed; an unknown key suggests the nearest.
    """
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read settings ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return settings_from(raw, str(path))


def settings_from(raw: dict[str, Any], where: str = "settings") -> Settings:
    """Check a nested dictionary of settings; `where` names its origin in messages.

    >>> settings_from({"sleep": {"idel_s": 3}})
    Traceback (most recent call last):
    ...
    edge_cl.errors.ConfigError: settings: unknown key sleep.idel_s; did you mean sleep.idle_s?
    """
    _refuse_unknown(raw, where)
    try:
        settings = msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {str(error).replace('`$.', '`')}") from error
    for key, value, valid, allowed in _bounds(settings):
        if not valid:
            raise ConfigError(f"{where}: {key} is {value!r}; allowed: {allowed}")
    return settings


def _bounds(s: Settings) -> list[tuple[str, object, bool, str]]:
    names = [("device.name", s.device.name), ("device.site", s.device.site)]
    positive = [
        ("budget.ram_mb", s.budget.ram_mb),
        ("budget.disk_mb", s.budget.disk_mb),
        ("memory.max_mb", s.memory.max_mb),
        ("encoder.threads", s.encoder.threads),
        ("sleep.slice_ms", s.sleep.slice_ms),
        ("sleep.steps", s.sleep.steps),
        ("trust.per_day", s.trust.per_day),
        ("trust.per_minute", s.trust.per_minute),
        ("state.snapshot_labels", s.state.snapshot_labels),
        ("state.history_mb", s.state.history_mb),
        ("mqtt.status_s", s.mqtt.status_s),
        ("mqtt.summary_s", s.mqtt.summary_s),
        ("mqtt.health_s", s.mqtt.health_s),
    ]
    not_negative = [
        ("sleep.after_labels", s.sleep.after_labels),
        ("sleep.idle_s", s.sleep.idle_s),
        ("sleep.min_labels", s.sleep.min_labels),
        ("sleep.cpu_s", s.sleep.cpu_s),
        ("sleep.hysteresis_celsius", s.sleep.hysteresis_celsius),
        ("state.commit_ms", s.state.commit_ms),
        ("state.daily_write_mb", s.state.daily_write_mb),
        ("privacy.clip_norm", s.privacy.clip_norm),
        ("privacy.noise", s.privacy.noise),
    ]
    allowed_name = "1 to 63 of a-z, 0-9 and -, beginning with a letter or digit"
    return [
        *[(key, v, bool(_NAME.fullmatch(v)), allowed_name) for key, v in names],
        *[(key, v, v > 0, "above 0") for key, v in positive],
        *[(key, v, v >= 0, "0 or more") for key, v in not_negative],
        ("memory.file", s.memory.file, not (s.memory.file and s.memory.codec == "int8"), "false with int8"),
        ("trust.min_confidence", s.trust.min_confidence, 0 <= s.trust.min_confidence <= 1, "0 to 1"),
        *[
            (f"trust.sources.{who}", trust, 0 <= trust <= 1, "0 to 1")
            for who, trust in s.trust.sources.items()
        ],
        ("privacy.noise", s.privacy.noise, not s.privacy.noise or s.privacy.clip_norm > 0, _NEEDS_CLIP),
        *_mqtt_bounds(s.mqtt),
        *_command_bounds(s.commands),
        *_sleep_bounds(s.sleep),
    ]


def _mqtt_bounds(s: MqttSettings) -> list[tuple[str, object, bool, str]]:
    tls = not s.cert_file or s.url == "" or s.url.startswith("mqtts://")
    prefix = not s.discovery or bool(_TOPIC_PREFIX.fullmatch(s.discovery))
    return [
        ("mqtt.url", s.url, not s.url or "://" in s.url, "mqtt://host:port or mqtts://host:port"),
        ("mqtt.cert_file", s.cert_file, tls, "only with a url that begins with mqtts://"),
        ("mqtt.key_file", s.key_file, not (s.key_file and not s.cert_file), "only together with cert_file"),
        ("mqtt.discovery", s.discovery, prefix, 'a topic of a-z, A-Z, 0-9, - and _, or "" for none'),
    ]


def _command_bounds(s: CommandSettings) -> list[tuple[str, object, bool, str]]:
    name = "1 to 63 of a-z, 0-9 and -, beginning with a letter or digit, as a key's name"
    return [
        *[("commands.keys", who, bool(_NAME.fullmatch(who)), name) for who in s.keys],
        *[
            (
                f"commands.keys.{who}.public",
                key.public,
                bool(_PUBLIC_KEY.fullmatch(key.public)),
                "64 hexadecimal digits, a-f in lower case, as `edge-cl fleet keygen` prints them",
            )
            for who, key in s.keys.items()
        ],
    ]


def _sleep_bounds(s: SleepSettings) -> list[tuple[str, object, bool, str]]:
    window = 'two different times as in "22:00-06:00", or "" for any time'
    celsius = f"0 for any, or above 20 and above hysteresis_celsius ({s.hysteresis_celsius:g}), to 150"
    warm = s.max_celsius == 0 or max(20.0, s.hysteresis_celsius) < s.max_celsius <= 150
    return [
        ("sleep.memory_turnover", s.memory_turnover, 0 <= s.memory_turnover <= 1, "a share, 0 to 1"),
        ("sleep.drift_points", s.drift_points, 0 <= s.drift_points <= 100, "0 to 100"),
        ("sleep.night", s.night, not s.night or bool(_NIGHT.fullmatch(s.night)), window),
        ("sleep.max_celsius", s.max_celsius, warm, celsius),
        ("sleep.sampler", s.sampler, s.sampler in SAMPLER_NAMES, ", ".join(SAMPLER_NAMES)),
        ("sleep.class_margin", s.class_margin, 0 <= s.class_margin <= 1, "a share, 0 to 1"),
    ]


def _refuse_unknown(raw: dict[str, Any], where: str) -> None:
    sections = {f.name: f.type for f in msgspec.structs.fields(Settings)}
    for section, table in raw.items():
        if section not in sections:
            raise ConfigError(f"{where}: unknown section [{section}]{_nearest(section, list(sections))}")
        if not isinstance(table, dict) or not isinstance(sections[section], type):
            continue
        known = [f.name for f in msgspec.structs.fields(sections[section])]
        for key in table:
            if key not in known:
                options = [f"{section}.{name}" for name in known]
                raise ConfigError(
                    f"{where}: unknown key {section}.{key}{_nearest(f'{section}.{key}', options)}"
                )


def _nearest(found: str, known: list[str]) -> str:
    import difflib  # only for a message

    close = difflib.get_close_matches(found, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
