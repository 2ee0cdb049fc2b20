"""Ranks that differ in code, settings or data are named before they work together."""

import os
import shutil
from pathlib import Path

import pytest

from lgd.ranks import agreement
from lgd.ranks.agreement import _find_differences, code_facts, require_equal, source_hash
from tests.forked import start_ranks
from tests.training import small_settings


def test_nothing_to_say_about_equal_ranks():
    facts = {"torch": "2.15.0", "SOLVER.BASE_LR": "0.01"}
    assert _find_differences([("a", facts), ("b", dict(facts))]) == []
    require_equal(facts)  # one process alone agrees with itself


def test_the_odd_rank_its_host_and_both_values_are_named():
    ranks = [("a", {"torch": "2.15.0"}), ("a", {"torch": "2.15.0"}), ("b", {"torch": "2.14.0"})]
    assert _find_differences(ranks) == ["rank 2 on b has torch 2.14.0, the others 2.15.0"]
    assert _find_differences(ranks[1:]) == ["rank 1 on b has torch 2.14.0, rank 0 2.15.0"]
    assert _find_differences([*ranks[1:], ("c", {})]) == [
        "rank 1 on b has torch 2.14.0, rank 0 2.15.0",
        "rank 2 on c has torch nothing, rank 0 2.15.0",
    ]


def test_the_code_is_known_by_version_and_source():
    facts = code_facts()
    assert facts["lgd"].endswith(f"(source {source_hash()[:12]})")
    assert len(source_hash()) == 64


def have_another_torch():
    if os.environ["RANK"] == "1":
        agreement.torch.__version__ = "2.11.0"


def have_another_lgd():
    if os.environ["RANK"] == "1":
        agreement.source_hash = lambda: "0123456789abcdef"


def errors_of(ranks):
    """The one line of rank 0's error, after all ranks have left with 2."""
    assert [rank.wait() for rank in ranks] == [2] * len(ranks), ranks[0].log.read_text()
    assert "error" not in ranks[1].log.read_text()
    (line,) = (line for line in ranks[0].log.read_text().splitlines() if line.startswith("error"))
    assert line.startswith(f"error: the ranks do not agree: rank 1 on {os.uname().nodename} has ")
    assert line.endswith("Start the same code with the same settings and data everywhere")
    return line


@pytest.mark.parametrize(
    ("before", "expected"),
    [(have_another_torch, "torch 2.11.0, rank 0 2."), (have_another_lgd, "(source 0123456789ab), rank 0 ")],
)
def test_another_version(small_data, tmp_path, before, expected):
    ranks = start_ranks(small_settings(small_data, tmp_path / "out"), folder=tmp_path, before=before)
    assert expected in errors_of(ranks)


def test_another_setting(small_data, tmp_path):
    settings = small_settings(small_data, tmp_path / "out")
    ranks = start_ranks(settings, folder=tmp_path, rank1=["SOLVER.BASE_LR", "0.5"])
    assert "has SOLVER.BASE_LR 0.5, rank 0 0." in errors_of(ranks)


def test_other_data(small_data, tmp_path):
    """The same path holds other data on the second machine."""
    for number, machine in enumerate(("first", "second")):
        shutil.copytree(small_data, tmp_path / machine / "data")
        file = tmp_path / machine / "data" / "annotations" / "instances_val.json"
        file.write_text(file.read_text() + " " * number)
    settings = small_settings("data", tmp_path / "out")
    ranks = start_ranks(settings, folder=tmp_path, before=go_to_own_machine)
    line = errors_of(ranks)
    assert "has data set coco:data:val content " in line
    assert "train" not in line


def go_to_own_machine():
    folder = Path("/proc/self/fd/1").readlink().parent  # where the log is
    os.chdir(folder / ("second" if os.environ["RANK"] == "1" else "first"))
