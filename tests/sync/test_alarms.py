"""When an alarm begins, and when what it says is over."""

from __future__ import annotations

from edge_cl.sync.alarms import FORBIDDEN_S, UNHEARD_S, UNSEEN_S, Alarms

ROOT = "edgecl/1/lab/pi"


def test_rights_that_are_never_told_are_no_alarm_while_a_server_confirms() -> None:
    alarms = Alarms("mqtt://b", ROOT, by_server=True)
    alarms.connected(0.0, reasons=False)
    alarms.confirmed()
    alarms.look(UNSEEN_S + 1, waits_since_s=None, n_waiting=0)
    assert alarms.text == ""
    alarms.connected(100.0, reasons=False)
    alarms.look(100.0 + UNSEEN_S + 1, waits_since_s=None, n_waiting=0)
    assert "3.1.1" in alarms.text


def test_alarms_end_when_what_they_say_is_over() -> None:
    alarms = Alarms("mqtt://b", ROOT, by_server=True)
    alarms.connected(0.0, reasons=True)
    alarms.saw_birth()
    alarms.refused_write("Not authorized", 1.0)
    for now_s, found in ((2.0, True), (FORBIDDEN_S, True), (FORBIDDEN_S + 2, False)):
        alarms.look(now_s, waits_since_s=None, n_waiting=0)
        assert ("Not authorized" in alarms.text) == found
    alarms.look(1000.0, waits_since_s=1000.0 - UNHEARD_S, n_waiting=1_234)
    assert "1,234 messages wait" in alarms.text and f"read {ROOT}/cmd/#" in alarms.text
    alarms.confirmed()
    assert alarms.text == ""
    alarms.refused_read(f"{ROOT}/cmd/do (Not authorized)")
    assert f"read {ROOT}/cmd/do (Not authorized)" in alarms.text
    alarms.connected(2000.0, reasons=True)
    assert alarms.text == ""
