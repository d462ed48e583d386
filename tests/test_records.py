"""What the records come with."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_cl.records import distinct


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int64])
@given(st.data())
def test_distinct_is_numpys_unique_for_integers(dtype, data):
    limits = np.iinfo(dtype)
    near = st.integers(max(limits.min, -3), 5)
    y = np.array(data.draw(st.lists(near | st.integers(int(limits.min), int(limits.max)))), dtype)
    found = distinct(y)
    np.testing.assert_array_equal(found, np.unique(y), strict=True)


@example([])
@example([-1])
@example([0, -1, 0])
@given(st.lists(st.integers(-2, 2)))
def test_a_class_that_is_none_is_one_of_them(y):
    assert distinct(np.array(y, np.int64)).tolist() == sorted(set(y))
