"""`edge-cl heads` says what fits."""

import pytest
from click.testing import CliRunner

from edge_cl import heads as all_heads
from edge_cl.cli.heads import ABOUT, heads
from edge_cl.heads import HEADS, STANDALONE
from edge_cl.heads.program import StepProgram
from edge_cl.shares import head_share
from tests.worlds import make_bundle


def table(*arguments):
    done = CliRunner().invoke(heads, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def test_every_head_is_listed_with_its_bytes_and_abilities():
    lines = table("--features", 40, "--classes", 3)
    assert lines[0] == "40 features, 3 classes" and set(ABOUT) == set(HEADS)
    assert len(lines[2:]) == len(STANDALONE) + 1
    for row, options in (("dual ", {}), ("dual, lean", all_heads.LEAN)):
        dual = all_heads.create("dual", n_features=40, n_classes=3, **{**options, "memory_bytes": 0})
        assert any(line.lstrip().startswith(row) and f" {dual.nbytes:,} " in line for line in lines)
    slda = next(line for line in lines if line.split()[0] == "slda")
    assert "merge forget -------- -------" in slda and "Hayes" in slda
    assert f" {all_heads.create('slda', n_features=40, n_classes=3).nbytes:,} " in slda


def test_a_bundle_says_features_and_classes(tmp_path):
    make_bundle(tmp_path / "b.ecl")
    assert table("--bundle", tmp_path / "b.ecl")[0] == "6 features, 3 classes"
    both = CliRunner().invoke(heads, ["--bundle", str(tmp_path / "b.ecl"), "--features", "3"])
    assert both.exit_code == 2 and "--bundle says features and classes" in both.output


@pytest.mark.parametrize("megabytes", [0, 0.2, 3, 12, 1000])
def test_what_fits_a_budget_is_marked(megabytes):
    share = head_share(int(megabytes * 2**20), 128)
    for line in table("--budget-mb", megabytes)[2:]:
        size = next(int(word.replace(",", "")) for word in line.split() if word[0].isdigit())
        assert line.split()[0] == ("yes" if size <= share else "no")


def test_step_is_listed_where_the_bundle_has_a_network(tmp_path):
    bundle = make_bundle(tmp_path / "b.ecl", "step")
    program = StepProgram.load(bundle)
    size = all_heads.create("step", n_features=6, n_classes=3, program=program).nbytes
    row = table("--bundle", tmp_path / "b.ecl")[-1]
    assert row.split()[:2] == ["step", f"{size:,}"] and "rehearse" in row
    assert not any("step" in line for line in table("--features", 6))
