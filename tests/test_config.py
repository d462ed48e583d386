"""Settings: what is taken, what is refused, and what the refusal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_cl.config import Settings, load_settings, settings_from
from edge_cl.errors import ConfigError

PUBLIC = "0123456789abcdef" * 4


def test_an_empty_file_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("")
    assert load_settings(file) == Settings()


def test_keys_and_the_broker_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        f"""
        [mqtt]
        url = "mqtts://broker:8883"
        cert_file = "device.pem"
        key_file = "device.key"
        confirm = "broker"
        discovery = "homeassistant"
        [commands]
        unsigned = []
        [commands.keys.fleet]
        public = "{PUBLIC}"
        allow = ["label", "install", "release"]
        """
    )
    settings = load_settings(file)
    assert settings.mqtt.confirm == "broker" and settings.mqtt.discovery == "homeassistant"
    assert settings.mqtt.cert_file == "device.pem"
    assert settings.commands.unsigned == ()
    assert settings.commands.keys["fleet"].allow == ["label", "install", "release"]


def test_what_is_asked_without_a_signature_is_harmless_by_default() -> None:
    assert settings_from({}).commands.unsigned == ("label", "sleep", "undo")
    assert settings_from({}).commands.keys == {}


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"commands": {"key": {}}}, r"unknown key commands.key; did you mean commands.keys"),
        ({"commands": {"unsigned": ["install"]}}, r"Invalid enum value 'install'.*commands.unsigned"),
        ({"commands": {"keys": {"a": {}}}}, r"missing required field `public`.*commands.keys"),
        ({"commands": {"keys": {"a": {"public": PUBLIC, "alow": []}}}}, r"unknown field `alow`"),
        ({"commands": {"keys": {"a": {"public": PUBLIC, "allow": ["all"]}}}}, r"Invalid enum value 'all'"),
        ({"commands": {"keys": {"a": {"public": PUBLIC[1:]}}}}, r"commands.keys.a.public is.*64 hexadecimal"),
        ({"commands": {"keys": {"a": {"public": PUBLIC.upper()}}}}, r"a-f in lower case"),
        ({"commands": {"keys": {"a b": {"public": PUBLIC}}}}, r"commands.keys is 'a b'; allowed: 1 to 63"),
        ({"mqtt": {"confirm": "nobody"}}, r"Invalid enum value 'nobody'"),
        ({"mqtt": {"key_file": "k"}}, r"mqtt.key_file is 'k'; allowed: only together with cert_file"),
        ({"mqtt": {"url": "mqtt://b", "cert_file": "c"}}, r"mqtt.cert_file.*mqtts://"),
        ({"mqtt": {"discovery": "home/#"}}, r"mqtt.discovery is 'home/#'"),
        ({"mqtt": {"summary_s": 0}}, r"mqtt.summary_s is 0.*above 0"),
        ({"mqtt": {"health_s": -1}}, r"mqtt.health_s is -1.*above 0"),
    ],
)
def test_a_refusal_names_the_key_and_what_is_allowed(raw: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings_from(raw)
