"""Entries reach a library once, in turn, through failures and full disks; and what trackers are asked for."""

import json
import sys

import pytest

from lgd.trackers import serve
from lgd.trackers.journal import Journal
from lgd.trackers.mlflow import _IN_IMAGES, _IN_METRICS, _flatten, _plain
from lgd.trackers.open import find_missing
from lgd.trackers.serve import Delivery
from lgd.trackers.tracker import About, Entry, LostError


class Library:
    """Takes entries, but raises first what it is told to."""

    taken: list
    errors: list

    def __init__(self, about, run):
        self.run, self.place = run or "r1", "here"

    def add(self, entry):
        if Library.errors:
            raise Library.errors.pop(0)
        Library.taken.append((entry.step, entry.tag))

    def close(self, *, finished):
        Library.taken.append(finished)


@pytest.fixture
def delivery(tmp_path, monkeypatch):
    """Makes deliveries of one run, without waiting between two tries; `said` is what they say."""
    Library.taken, Library.errors = [], []
    monkeypatch.setitem(serve.LIBRARIES, "wandb", (__name__, "Library"))
    monkeypatch.setattr(serve, "_SECONDS_BETWEEN", 0.0)
    said = []

    def make():
        return Delivery(
            "wandb",
            About("run", "lgd", tmp_path / "trackers" / "wandb", {}),
            lambda *words: said.append(words),
        )

    make.said = said
    make.file = tmp_path / "trackers" / "wandb.jsonl"
    return make


def entry(step, tag="loss"):
    return Entry(step, tag, 0.0, scalars={tag: 1.0})


def test_it_tries_again_until_it_is_taken(delivery):
    Library.errors = [RuntimeError("gone\nfor now"), OSError("still gone")]
    first = delivery()
    for step in (2, 4):
        first.deliver(entry(step))
    first.close(finished=True)
    assert Library.taken == [(2, "loss"), (4, "loss"), True]
    assert delivery.said[1:] == [
        ("WARNING", "gone for now; the training goes on, tried again every 0 s"),
        ("INFO", "takes what it is told again"),
    ]


def test_what_is_lost_is_said_and_not_told_again(delivery):
    Library.errors = [LostError("an entry that nobody understands")]
    first = delivery()
    for step in (2, 4):
        first.deliver(entry(step))
    assert Library.taken == [(4, "loss")]
    assert delivery.said[1][1] == "an entry that nobody understands; the training goes on, some of it is lost"


def test_a_full_disk_is_waited_for(delivery, monkeypatch):
    write, errors = Journal._write, [OSError(28, "No space left on device")] * 2

    def refuse(self, line):
        if errors:
            raise errors.pop()
        write(self, line)

    monkeypatch.setattr(Journal, "_write", refuse)
    delivery().deliver(entry(2))
    assert Library.taken == [(2, "loss")]
    assert [level for level, _ in delivery.said].count("WARNING") == 1


def test_an_entry_is_told_once_over_all_starts(delivery):
    def start(*entries):
        one = delivery()
        for each in entries:
            one.deliver(each)
        one._journal._file.close()

    start(entry(2), entry(2, "AP"), entry(4))
    with delivery.file.open("a") as file:
        file.write('{"step": 6, "ta')  # the power went
    start(entry(4), entry(4, "AP"), entry(6))
    start(entry(6), entry(8))
    assert Library.taken == [(2, "loss"), (2, "AP"), (4, "loss"), (4, "AP"), (6, "loss"), (8, "loss")]
    assert json.loads(delivery.file.read_text().splitlines()[0]) == {"run": "r1"}


def test_names_that_mlflow_takes():
    assert _plain("AP_bbox/coco:x:val/größer 猫", _IN_METRICS) == "AP_bbox/coco:x:val/größer 猫"
    assert _plain("a(b)", _IN_METRICS) == "a-28-b-29-"
    assert _plain("images/coco:ö", _IN_IMAGES) == "images/coco-3a--f6-"
    assert dict(_flatten({"A": {"B": 1, "C": {}}, "D": [2]})) == {"A.B": 1, "A.C": {}, "D": [2]}


@pytest.mark.parametrize(
    ("names", "package", "line"),
    [
        (["tensorboard", "trackio"], "trackio", "trackio is not installed; pip install 'lgd[trackio]'"),
        (["mlflow"], "mlflow", "mlflow is not installed; pip install 'lgd[mlflow]'"),
        (["tensorboard"], "tensorboard", "tensorboard is not installed; pip install tensorboard"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, names, package, line):
    monkeypatch.setitem(sys.modules, package, None)
    assert find_missing(names) == f"LOG.TRACKERS {names[-1]}: {line}"
    assert find_missing([]) is None
