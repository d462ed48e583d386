"""Samples over MQTT, through a real broker."""

import json

import numpy as np
import paho.mqtt.client as paho
import pytest
from edge_cl_device.mqtt_sensor import MqttSensor
from paho.mqtt.enums import CallbackAPIVersion

from edge_cl.errors import ConfigError, SensorUnavailable
from edge_cl.records import Label, Reading
from edge_cl.sensing.live import LiveStream, Waits
from tests.mosquitto import free_port, wait_until
from tests.sensing.sensors import manifest_of

pytestmark = pytest.mark.broker


@pytest.fixture
def live(stopped_broker):
    broker = stopped_broker
    broker.start()
    options = {"url": broker.url, "topics": ["sensors/+/imu", "other"]}
    manifest = manifest_of(rate_hz=100.0)
    stream = LiveStream(
        lambda: MqttSensor(manifest, options),
        manifest,
        name="mqtt",
        prefix="p",
        waits=Waits(0.0, 0.01),
    )
    yield stream
    stream.close()


def publish(broker, *payloads, topic="sensors/wrist/imu"):
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    for payload in payloads:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        client.publish(topic, data, qos=1).wait_for_publish(5)
    client.disconnect()
    client.loop_stop()


def gather(events, n):
    found = []
    wait_until(lambda: [found.append(e) for e in [next(events)] if e] and len(found) >= n, f"{n} events")
    return found


def block(first, n=10):
    return {
        "t": [(first + k) / 100 for k in range(n)],
        "x": [[first + k, 1.0] for k in range(n)],
        "label": ["walk"] * n,
    }


def test_blocks_become_windows_through_a_broker_that_comes_and_goes(live, stopped_broker):
    events = iter(live)
    next(events)
    wait_until(lambda: live.stuck_s() and not live.alarm, "connected")
    named = {"label": "run", "reading_id": "p-0", "source": "local"}
    publish(stopped_broker, block(0, 12), b"nonsense\n" + json.dumps(named).encode(), block(12, 30))
    found = gather(events, 3)
    np.testing.assert_allclose(found[0].window, [[k, 1] for k in range(10)], atol=1e-3)
    assert found[1] == Label(label="run", reading_id="p-0", source="mqtt/local"), "nobody poses as local"
    assert isinstance(found[2], Reading), "and a class beside samples is no label"
    assert live.n_bad == 1
    stopped_broker.stop(kill=True)
    wait_until(lambda: live.alarm.startswith("mqtt is not there: mqtt://127.0.0.1"), "it is lost")
    stopped_broker.start()
    wait_until(lambda: not live.alarm, "it is back")
    publish(stopped_broker, block(0, 12), topic="other")
    assert isinstance(gather(events, 1)[0], Reading)


def test_a_range_that_is_named_is_known(broker):
    options = {"url": broker.url, "topics": ["a"], "full_scale": 40}
    sensor = MqttSensor(manifest_of(), options)
    assert sensor.full_scale.tolist() == [40, 40]
    sensor.close()


def test_nobody_listens(live):
    url = f"mqtt://127.0.0.1:{free_port()}"
    with pytest.raises(SensorUnavailable, match=f"{url} cannot be reached"):
        MqttSensor(manifest_of(), {"url": url, "topics": ["a"]})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "mqtt://127.0.0.1"}, "the option topics is missing"),
        ({"url": "mqtt://127.0.0.1", "topics": []}, "option topics is \\[\\]; allowed"),
        ({"url": "http://127.0.0.1", "topics": ["a"]}, "allowed|write mqtt://"),
        (
            {"url": "mqtt://a", "topics": ["a"], "full_scale": [1, 2, 3]},
            "full_scale is .*; allowed: .* 2 of them",
        ),
        ({"url": "mqtt://a", "topic": ["a"]}, "unknown option topic; did you mean topics"),
    ],
)
def test_wrong_options(options, said):
    with pytest.raises(ConfigError, match=said):
        MqttSensor(manifest_of(), options)
