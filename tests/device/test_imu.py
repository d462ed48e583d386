"""MPU-6050 and LSM6DSOX on a bus that behaves as their data sheets say."""

import errno
import math
import sys

import numpy as np
import pytest
from edge_cl_device import imu, lsm6dsox, mpu6050

from edge_cl.errors import ConfigError, SensorUnavailable
from edge_cl.sensing.live import LiveStream, Waits
from tests.device import fake_i2c
from tests.mosquitto import wait_until
from tests.sensing.sensors import manifest_of

G = 9.80665
MOTION = tuple(f"{kind}_{axis}" for kind in ("acc", "gyro") for axis in "xyz")


def motion(*names, acc="m/s²", gyro="rad/s", rate_hz=50.0):
    manifest = manifest_of(names=names or MOTION, rate_hz=rate_hz)
    channels = tuple(type(c)(c.name, acc if "acc" in c.name else gyro) for c in manifest.channels)
    return type(manifest)(
        **{f: getattr(manifest, f) for f in manifest.__struct_fields__} | {"channels": channels}
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(mpu6050, "RESET_S", 0)
    monkeypatch.setattr(lsm6dsox, "RESET_S", 0)
    monkeypatch.setattr(imu, "READ_EVERY_S", 0.001)


KINDS = {
    "mpu6050": (mpu6050.Mpu6050, fake_i2c.Mpu6050, "at_68"),
    "lsm6dsox": (lsm6dsox.Lsm6dsox, fake_i2c.Lsm6dsox, "at_6a"),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def plugged(kind, monkeypatch):
    """The driver's class, the chip, the bus."""
    driver, chip_class, at = KINDS[kind]
    chip = chip_class()
    return driver, chip, fake_i2c.plug(monkeypatch, **{at: chip})


def values_of(sensor, chip, raw):
    for row in raw:
        chip.sample(row)
    items = sensor.read()
    return np.concatenate([item.values for item in items]), np.concatenate([item.t_s for item in items])


def test_samples_in_physical_units(kind, plugged):
    driver, chip, bus = plugged
    sensor = driver(motion(), {"range_g": 8, "range_dps": 1000})
    step = 4096 if kind == "mpu6050" else 1 / 0.000244
    turn = 32.768 if kind == "mpu6050" else 1 / 0.035
    raw = [[round(step), -round(step), 0, round(90 * turn), 0, -32768]] * 8
    values, t_s = values_of(sensor, chip, raw)
    expected = [G, -G, 0, math.radians(90), 0, -math.radians(32768 / turn)]
    np.testing.assert_allclose(values[-1], expected, rtol=1e-3)
    assert len(values) == (8 if kind == "mpu6050" else 5), (
        "the LSM6DSOX's gyroscope begins three samples late"
    )
    assert np.diff(t_s) == pytest.approx(1 / sensor.rate_hz)
    assert sensor.full_scale == pytest.approx([32768 / step * G] * 3 + [math.radians(32768 / turn)] * 3)
    sensor.close()
    assert bus.n_open == 0


def test_both_parts_of_a_row_are_of_the_same_moment(kind, plugged):
    driver, chip, _ = plugged
    sensor = driver(motion("acc_x", "gyro_x"), {})
    values, _ = values_of(sensor, chip, [[k, 0, 0, k, 0, 0] for k in range(100, 140)])
    ratios = values[:, 0] / values[:, 1]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)
    assert len(values) >= 37


def test_registers_are_set_as_the_data_sheets_say(monkeypatch):
    mpu, lsm = fake_i2c.Mpu6050(), fake_i2c.Lsm6dsox()
    fake_i2c.plug(monkeypatch, at_69=mpu, at_6a=lsm)
    sensor = mpu6050.Mpu6050(motion(), {"address": 0x69, "range_g": 16, "range_dps": 2000})
    found = {
        register: mpu.registers[register] for register in (0x19, 0x1A, 0x1B, 0x1C, 0x23, 0x38, 0x6A, 0x6B)
    }
    assert found == {
        0x19: 19,
        0x1A: 4,
        0x1B: 0x18,
        0x1C: 0x18,
        0x23: 0x78,
        0x38: 0x10,
        0x6A: 0x40,
        0x6B: 0x01,
    }
    assert sensor.rate_hz == 50
    sensor = lsm6dsox.Lsm6dsox(motion(), {"range_g": 16, "range_dps": 125})
    found = {register: lsm.registers[register] for register in (0x09, 0x0A, 0x10, 0x11, 0x12, 0x18)}
    assert found == {0x09: 0x33, 0x0A: 0x06, 0x10: 0x34, 0x11: 0x32, 0x12: 0x44, 0x18: 0xE2}
    assert sensor.rate_hz == 52


@pytest.mark.parametrize(("asked", "mpu", "lsm"), [(12.5, 12.5, 12.5), (100, 100, 104), (300, 1000 / 3, 417)])
def test_the_rate_is_the_next_that_the_chip_knows(monkeypatch, asked, mpu, lsm):
    fake_i2c.plug(monkeypatch, at_68=fake_i2c.Mpu6050(), at_6a=fake_i2c.Lsm6dsox())
    assert mpu6050.Mpu6050(motion(rate_hz=asked), {}).rate_hz == pytest.approx(mpu)
    assert lsm6dsox.Lsm6dsox(motion(), {"rate_hz": asked}).rate_hz == lsm


def test_channels_in_any_order_other_units_other_names(plugged):
    driver, chip, _ = plugged
    manifest = motion("gyro_z", "acc_up", acc="g", gyro="°/s")
    sensor = driver(manifest, {"channels": {"acc_up": "-acc_x"}})
    raw = [[16384, 0, 0, 0, 0, 16384]] * 8
    values, _ = values_of(sensor, chip, raw)
    assert values[-1].tolist() == pytest.approx([250, -2], rel=0.15)
    assert sensor.full_scale[1] == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(
    ("names", "units", "options", "said"),
    [
        (("acc_x", "emg_1"), {}, {}, "the bundle wants emg_1 .* say which one that is"),
        (("acc_x",), {"acc": "m/s"}, {}, "the bundle wants acc_x in 'm/s'; allowed: m/s², m/s.2, m/s2, g"),
        ((), {}, {"channels": {"ax": "acc_x"}}, "names ax; the bundle's channels are acc_x, acc_y"),
        ((), {}, {"range_g": 3}, r"option range_g is 3; allowed: .*"),
        ((), {}, {"adress": 0x69}, "unknown option adress; did you mean address\\?; known: .*bus, address"),
        ((), {}, {"bus": "one"}, "option bus is 'one'; allowed: int"),
        ((), {}, {"address": 300}, "option address is 300; allowed: int <= 119"),
    ],
)
def test_a_wrong_bundle_or_option_is_explained(plugged, names, units, options, said):
    driver, _, bus = plugged
    with pytest.raises(ConfigError, match=said):
        driver(motion(*names, **units), options)
    assert bus.n_open == 0


@pytest.mark.parametrize(
    ("bus", "options", "said"),
    [
        ({"fails_open": errno.EACCES}, {}, "no permission for /dev/i2c-1: sudo usermod -aG i2c anna"),
        ({"fails_open": errno.ENOENT}, {}, "no /dev/i2c-1: I²C is off .sudo raspi-config nonint do_i2c 0"),
        ({}, {"bus": 7}, "there is no /dev/i2c-7: .*i2cdetect -l"),
        (
            {},
            {"address": 0x20},
            "nobody answers at address 0x20 on bus 1 .Remote I/O error.: .*i2cdetect -y 1",
        ),
        ({"fails": errno.EBUSY}, {}, "in use by a driver of the kernel"),
        ({"fails": errno.ETIMEDOUT}, {}, "bus 1 is held down"),
    ],
)
def test_what_is_wrong_with_the_bus_is_said_with_what_mends_it(plugged, monkeypatch, bus, options, said):
    monkeypatch.setattr("edge_cl_device.permission.current_user", lambda: "anna")
    driver, _, fake = plugged
    for name, number in bus.items():
        setattr(fake, name, number)
    with pytest.raises(SensorUnavailable, match=said):
        driver(motion(), options)
    assert fake.n_open == 0


def test_another_chip_is_named(monkeypatch):
    chip = fake_i2c.Mpu6050()
    chip.registers[0x75] = 0x70
    bus = fake_i2c.plug(monkeypatch, at_68=chip)
    with pytest.raises(
        SensorUnavailable, match="address 0x68 on bus 1 calls itself 0x70, which is a MPU-6500; a MPU"
    ):
        mpu6050.Mpu6050(motion(), {})
    assert bus.n_open == 0


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "smbus2", None)
    with pytest.raises(ConfigError, match=r"pip install 'edge-cl\[i2c\]'"):
        mpu6050.Mpu6050(motion(), {})


def test_a_buffer_that_overflowed_begins_anew(plugged):
    driver, chip, _ = plugged
    sensor = driver(motion(), {})
    for k in range(600):
        chip.sample([k] * 6)
    with pytest.raises(SensorUnavailable, match="overflowed"):
        sensor.read()


def test_power_that_was_lost_for_a_moment_is_noticed(plugged, monkeypatch):
    monkeypatch.setattr(imu, "SILENT_S", 0.02)
    driver, chip, _ = plugged
    sensor = driver(motion(), {})
    assert len(values_of(sensor, chip, [[1] * 6] * 8)[0]) > 0
    chip.reset()
    with pytest.raises(SensorUnavailable, match="gave no sample"):
        for _ in range(1000):
            chip.sample([2] * 6)
            sensor.read()


def test_unplugged_and_plugged_in_again_fifty_times(plugged):
    driver, chip, bus = plugged
    manifest = manifest_of(names=("acc_x", "acc_y"), window_samples=2, hop_samples=1, rate_hz=50.0)
    stream = LiveStream(lambda: driver(manifest, {}), manifest, name="imu", waits=Waits(0.0, 0.0))
    events = iter(stream)
    next(events)
    n = 0
    for k in range(50):
        wait_until(lambda: not stream.alarm and bus.n_open, "it is there")
        seen = None
        while seen is None:
            with bus.lock:
                for _ in range(8):
                    n += 1
                    chip.sample([n, -n, 0, 0, 0, 0])
            seen = next(events)
        bus.fails = errno.EREMOTEIO
        wait_until(lambda lost=k + 1: stream.n_unplugged >= lost and stream.alarm, "it is lost")
        with bus.lock:
            chip.reset()
        bus.fails = None
    stream.close()
    assert stream.n_unplugged == 50 and bus.n_open == 0 and stream.n_bad == 0
