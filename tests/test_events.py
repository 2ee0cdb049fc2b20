"""`--json`: objects on stdout, one a line, and words on stderr, whatever the command."""

import argparse
import json
import logging

import pytest

from lgd import cli, events, notices
from lgd.config.recipes import recipe_names
from lgd.events import add_json_option, event, json_file, send_events, wants_events
from tests.training import REPOSITORY, small_settings

DEMO = str(REPOSITORY / "configs/demo.yaml")


def run(capsys, *words):
    """The exit code, the objects and the words of a command."""
    code = cli.main([*map(str, words)])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_train(small_data, tmp_path, capsys):
    settings = small_settings(
        small_data, tmp_path / "run", SOLVER__MAX_ITER=4, TEST__EVAL_PERIOD=2, TEST__LOSSES=True
    )
    code, told, words = run(capsys, "train", "--config-file", DEMO, "--json", *settings)
    assert code == 0
    steps = [each for each in told if each["event"] == "step"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [{"event": "step", "max_iter": 4, **line} for line in lines if "total_loss" in line]
    evaluated = [each for each in told if each["event"] == "evaluation"]
    assert [(each["iteration"], each["model"], each["kind"]) for each in evaluated] == [
        (2, "student", "bbox"), (2, "teacher", "bbox"), (4, "student", "bbox"), (4, "teacher", "bbox"),
    ]  # fmt: skip
    assert {each["model"] for each in told if each["event"] == "losses"} == {"student", "teacher"}
    assert told[-1]["event"] == "results"
    assert told[-1]["results"] == json.loads((tmp_path / "run" / "results.json").read_text())
    assert "[4/4] 100.0%" in words
    assert "AP per class" in words


def test_recipes(capsys):
    code, told, words = run(capsys, "recipes", "--json")
    assert (code, words) == (0, "")
    assert [each["name"] for each in told] == recipe_names()
    code, (one,), _ = run(capsys, "recipes", "demo", "--json")
    assert (one["event"], one["settings"]["LOG.TRACKERS"]) == ("settings", ["tensorboard"])


def test_convert(tiny_weights, tmp_path, capsys):
    target = tmp_path / "other.safetensors"
    code, told, words = run(capsys, "convert", tiny_weights, target, "--to", "student", "--json")
    assert (code, told) == (0, [{"event": "written", "file": str(target), "weights": "student"}])
    assert "written as student" in words


def test_export(tiny_weights, tmp_path, capsys, monkeypatch):
    from lgd.export import command

    monkeypatch.setattr(command, "write", lambda student, about, target, **_: target.write_bytes(b"12345"))
    target = tmp_path / "student.pt2"
    code, told, words = run(capsys, "export", tiny_weights, target, "--json")
    assert (code, told) == (0, [{"event": "written", "file": str(target), "bytes": 5}])
    assert "written" in words


def test_preflight(capsys):
    code, (told,), words = run(capsys, "preflight", "--json")
    assert told["event"] == "result"
    assert len(told["cards"]) == 1
    assert bool(told["findings"]) == (code == 1)
    assert "data and disks not looked at" in words


def test_errors_are_words(capsys):
    code, told, words = run(capsys, "bench", "--config-file", "nowhere.yaml", "--json")
    assert (code, told) == (2, [])
    assert words.startswith("error: ")


def test_the_option_with_a_file_and_without(capsys, tmp_path):
    parser = argparse.ArgumentParser()
    add_json_option(parser)
    parser.add_argument("opts", nargs="*")
    lines, file, neither = (parser.parse_args(words) for words in (["--json"], ["--json", "a.json"], []))
    assert [wants_events(each) for each in (lines, file, neither)] == [True, False, False]
    assert [json_file(each) and json_file(each).name for each in (lines, file, neither)] == [
        None,
        "a.json",
        None,
    ]
    with pytest.raises(SystemExit):
        parser.parse_args(["--json", "SOLVER.MAX_ITER", "3"])
    assert "SOLVER.MAX_ITER looks like a setting: give --json behind the settings" in capsys.readouterr().err


def test_numbers_that_json_has_not(capsys):
    send_events()
    facts = event(
        "step", loss=float("nan"), best=[float("inf"), 1.5], names=("a",), place=REPOSITORY, at={1: 2}
    )
    logging.getLogger("lgd.engine").info("words", extra=facts)
    logging.getLogger("lgd.engine").info("more words")
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "event": "step", "loss": None, "best": [None, 1.5], "names": ["a"], "place": str(REPOSITORY),
        "at": {"1": 2},
    }  # fmt: skip


def test_long_work_tells_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(notices, "_SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    send_events()
    for _ in notices.follow(range(3), "reading", 3):
        pass
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told == [
        {"event": "progress", "what": "reading", "done": done, "total": 3, "unit": "images"}
        for done in (1, 2)
    ]
    assert events.sends_events()
