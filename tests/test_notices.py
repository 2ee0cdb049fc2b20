"""Notices of long work: bars on terminals, lines in logs."""

import json
import logging
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
import time
from types import SimpleNamespace

import pytest

from lgd import notices

PROGRAM = """
import logging, time
from lgd import notices
from lgd.run.log import start_logging
import sys
start_logging(0)
notices._DELAY = 0.0
for step in notices.follow(range(8), "counting", 8, "beans"):
    time.sleep(0.15)
    if step == 5:
        logging.getLogger("lgd.test").info("half of it")
with notices.waiting("thinking", 4):
    time.sleep(1.5)
"""


def on_terminal(program, *arguments, stdout=None, size=(24, 120)):
    """What a terminal shows of a program's stderr, and of its stdout unless that goes elsewhere."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, size)
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=stdout or theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # the end of a terminal
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    assert process.wait(60) == 0, shown.decode()
    return shown.decode()


def test_a_terminal_has_bars_with_the_time_left_and_whole_lines_above():
    shown = on_terminal(PROGRAM)
    assert re.search(r"\rcounting:  \d\d%\|.+\| \d/8, +\d\.\d\d beans/s, ETA 00:0\d", shown)
    assert re.search(r"\rthinking:  25%\|.+\| 00:01, ETA 00:03", shown)
    line = re.search(r"\r([^\r]*half of it)\r?\n", shown)
    assert re.fullmatch(r"\[\d\d:\d\d:\d\d\] half of it", line[1])
    assert shown.endswith("\r")  # the bar is taken away


def test_a_long_name_leaves_room_for_the_time_left():
    name = "evaluating on coco:/a/path/that/is/long/and/longer/and/longer/to/the/end:val"
    program = f"from lgd import notices; notices._DELAY = 0.0; list(notices.follow('abc', '{name}', 2000))"
    bar = on_terminal(program, size=(24, 80)).split("\r")[1]
    assert bar.startswith("evaluating on ...the/end:val:   0%|")
    assert bar.endswith("ETA ?")
    assert len(bar) <= 80


def test_a_terminal_that_does_not_say_its_size_has_bars_too():
    program = "from lgd import notices; notices._DELAY = 0.0; list(notices.follow('abc', 'counting', 3))"
    assert "\rcounting:   0%|" in on_terminal(program, size=(0, 0))


def test_without_a_terminal_there_are_lines_now_and_then(caplog, monkeypatch):
    clock = iter(range(100, 200, 4))
    monkeypatch.setattr("lgd.notices.time.monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "lgd"):
        assert list(notices.follow("abcdefg", "counting", 20, "beans", count=lambda item: 3)) == [*"abcdefg"]
    assert caplog.messages == [
        "counting: 9 of 20 beans, 0.75 beans/s, ETA 0:00:15",
        "counting: 18 of 20 beans, 0.75 beans/s, ETA 0:00:03",
    ]


def test_without_a_total_there_is_no_time_left(caplog, monkeypatch):
    monkeypatch.setattr(notices, "_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "lgd"), notices.long_work("counting", unit="beans") as advance:
        advance(5)
    assert re.fullmatch(r"counting: 5 beans, \S+ beans/s", caplog.messages[0])


def test_what_has_no_steps_says_how_long_it_takes(caplog, monkeypatch):
    monkeypatch.setattr(notices, "_SECONDS", 0.5)
    with caplog.at_level(logging.INFO, "lgd"), notices.waiting("thinking", 60):
        time.sleep(1.3)
    # Counted by one clock and timed by another: a second's part decides between the two.
    assert caplog.messages in (["thinking: 0:00:01, ETA 0:00:59"], ["thinking: 0:00:01, ETA 0:01:00"])


@pytest.mark.parametrize("is_terminal", [False, True])
def test_what_is_not_shown_says_nothing(caplog, capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(notices, "_SECONDS", 0.0)
    monkeypatch.setattr(notices, "_DELAY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with caplog.at_level(logging.INFO, "lgd"), notices.waiting("thinking", shown=False):
        assert list(notices.follow([1, 2], "counting", 2, shown=False)) == [1, 2]
    assert not caplog.messages
    assert capsys.readouterr() == ("", "")


def test_an_evaluation_gives_notice_of_all_ranks_together(caplog, monkeypatch):
    from lgd.inference.test_sets import follow_batches

    monkeypatch.setattr(notices, "_SECONDS", 0.0)
    monkeypatch.setattr("lgd.ranks.process_group.get_world_size", lambda: 2)
    batches = [
        SimpleNamespace(image_ids=[1, 2, 3], skipped=[]),
        SimpleNamespace(image_ids=[5], skipped=["x"]),
    ]
    with caplog.at_level(logging.INFO, "lgd"):
        assert list(follow_batches(batches, Index("val", 11))) == batches
    assert [message.partition(" images,")[0] for message in caplog.messages] == [
        "evaluating on val: 6 of 11",
        "evaluating on val: 10 of 11",
    ]


class Index(SimpleNamespace):
    def __init__(self, name, length):
        super().__init__(name=name, length=length)

    def __len__(self):
        return self.length


DATA = """
import sys
from lgd import cli, notices
notices._DELAY = 0.0
sys.exit(cli.main(["data", *sys.argv[1:]]))
"""


def test_lgd_data_has_bars_on_a_terminal_and_json_alone_on_stdout(sample_data, tmp_path):
    spec = f"coco:{shutil.copytree(sample_data, tmp_path / 'set')}:train"
    with (tmp_path / "lines").open("w") as file:
        shown = on_terminal(DATA, spec, "--json", stdout=file)
    assert re.search(r"\rlooking at the pictures: .*\d/\d+, .*ETA", shown)
    assert [json.loads(line)["name"] for line in (tmp_path / "lines").read_text().splitlines()] == [spec]


def test_a_pipe_never_sees_a_carriage_return():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    assert b"\r" not in done.stdout + done.stderr
    assert done.stderr == b""
    assert len(done.stdout.splitlines()) == 1
