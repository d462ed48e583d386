"""What the tests of encoders share."""

from __future__ import annotations

import pytest

from tests import tflite


@pytest.fixture(scope="session")
def tflite_python() -> str:
    """An interpreter with tflite-runtime."""
    if missing := tflite.made():
        pytest.skip(missing)
    return str(tflite.PYTHON)
