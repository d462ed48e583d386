"""The measurement of heads, at a size that only shows that it measures."""

import msgspec
import pytest

from bench import heads as bench_heads
from edge_cl import heads


@pytest.fixture(scope="module")
def figures():
    return bench_heads.measure(features=(16, 300), classes=(3,), n_chunks=3, n_steps=64)


def test_every_head_has_every_figure(figures):
    for name in heads.STANDALONE:
        for column in bench_heads.COLUMNS:
            assert isinstance(figures[f"{name}_d300_c3_{column}"], float)
        learn, unavoidable = (figures[f"{name}_d300_c3_{key}_us"] for key in ("learn", "unavoidable"))
        assert 0.1 < unavoidable < 1e5 and 1 < learn < 1e6
        assert figures[f"{name}_d300_c3_ratio"] == pytest.approx(learn / unavoidable, rel=0.2)
        assert figures[f"{name}_d300_c3_above_us"] == pytest.approx(learn - unavoidable, abs=0.2)


def test_costs_and_rates_are_plausible(figures):
    assert figures["sgemm_gflop_per_s"] > 0.1
    assert figures["kalman_many_of_sgemm"] == pytest.approx(
        figures["kalman_many_gflop_per_s"] / figures["sgemm_gflop_per_s"], abs=0.01
    )
    for name in bench_heads.COST_TARGETS:
        assert figures[f"{name}_step_median_us"] <= figures[f"{name}_step_p99_us"]
        assert figures[f"{name}_nbytes_without_memory"] < figures[f"{name}_nbytes"]
    assert figures["lean_nbytes_without_memory"] < figures["dual_nbytes_without_memory"]


def test_the_table_marks_what_is_missed(figures, capsys):
    bench_heads.show(
        figures | {"kalman_d300_c3_learn_us": 1e6, "slda_d300_c3_learn_us": 1.0, "lean_step_median_us": 1e6}
    )
    lines = capsys.readouterr().out.splitlines()
    missed = [line.split()[0] for line in lines if "MISSED" in line]
    assert "kalman_d300_c3" in missed and "slda_d300_c3" not in missed
    assert "target ≤ 120 µs, p99 ≤ 3 medians, ≤ 3 MB  MISSED" in "\n".join(lines)


def test_figures_are_flat_and_fit_a_file(figures):
    assert all(isinstance(value, float | int) for value in figures.values())
    assert msgspec.json.decode(msgspec.json.encode(figures)) == figures
