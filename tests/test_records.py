"""What the records come with."""

import numpy as np
import pytest

from edge_cl.records import distinct


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64])
def test_distinct_is_numpys_unique_for_integers_from_0(dtype):
    y = np.random.default_rng(0).integers(0, 50, size=30).astype(dtype)
    assert distinct(y).tolist() == np.unique(y).tolist()
    assert distinct(np.empty(0, dtype)).tolist() == []
    with pytest.raises(ValueError, match="negative"):
        distinct(np.array([0, -1]))
