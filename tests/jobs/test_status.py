"""Where runs stand, read from files as trainings leave them, whole and broken."""

import contextlib
import json
import os
import socket
import time

import pytest

from jobs import records, status
from jobs.records import Start
from jobs.status import decide_state, find_runs, format_table, main, read_run
from lgd.ranks.interruption import Interrupted
from lgd.run.output import History, set_earlier_run_aside
from tests.forked import Forked
from tests.training import small_settings

NOW = 1_800_000_000.0
HERE = {"host": socket.gethostname(), "pid": os.getpid()}
ELSEWHERE = {"host": "another", "pid": 1}


def training_line(step, **changes):
    numbers = {"total_loss": 1.0, "phase": "distill", "time": 0.25, "eta_seconds": 90.0}
    return json.dumps({"iteration": step, **numbers, **changes}) + "\n"


def write_run(folder, *, metrics="", history=(), max_step=100, results=None, age=5.0):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"SOLVER:\n  MAX_ITER: {max_step}\nLOG_PERIOD: 20\n")
    (folder / "metrics.jsonl").write_text(metrics)
    (folder / "history.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    for path in folder.iterdir():
        os.utime(path, (NOW - age, NOW - age))
    return folder


def started(step=0, **where):
    return {"event": "start", "time": NOW, "step": step, **(where or ELSEWHERE)}


def ended(outcome, message=""):
    return {"event": "end", "time": NOW, "outcome": outcome, "message": message}


RESULTS = {"val": {"student": {"bbox": {"AP": 40.125}}, "teacher": {"bbox": {"AP": 44.0}}}, "other": {}}


def test_a_run_in_full(tmp_path):
    folder = write_run(
        tmp_path / "run",
        metrics=training_line(20) + training_line(40) + '{"iteration": 40, "eval": {"val": {}}}\n',
        history=[started(), ended("saved", "saved at step 20"), started(20)],
        results=RESULTS,
    )
    assert read_run(folder, NOW) == status.RunStatus(
        run=str(folder), state="running", step=40, max_step=100, phase="distill", eta_seconds=90.0,
        student_ap=40.125, teacher_ap=44.0, seconds_per_step=0.25, age_seconds=5.0, restarts=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "age", "state"),
    [
        ({}, None, "not started"),
        ({}, 5.0, "running"),
        ({}, 1000.0, "stalled"),
        (started(), 599.0, "running"),
        (started(), 601.0, "stalled"),
        (started(**HERE), 5.0, "running"),
        (started(host=socket.gethostname(), pid=2**22 + 1), 5.0, "failed"),
        (started(host=socket.gethostname(), pid="?"), 5.0, "failed"),
        (ended("finished"), 1e6, "finished"),
        (ended("saved"), 5.0, "saved-75"),
        (ended("failed"), 5.0, "failed"),
        ({"event": "end"}, 5.0, "failed"),
        (started(), None, "not started"),
        (started(**HERE), None, "running"),
        (started(**HERE, began="1"), 5.0, "failed"),  # another process has its number now
        (started(host=socket.gethostname(), pid=10**30), 5.0, "failed"),
        (started(host=socket.gethostname(), pid=0), 5.0, "failed"),
        (started(host=socket.gethostname(), pid=-1), 5.0, "failed"),
    ],
)
def test_states(entry, age, state):
    start = Start.read(entry) if entry.get("event") == "start" else None
    assert decide_state(entry, age, 600.0, start=start) == state


def test_a_run_that_was_killed_on_this_host(tmp_path):
    history = [started(host=socket.gethostname(), pid=2**22 + 1)]
    found = read_run(write_run(tmp_path / "run", history=history), NOW)
    assert found.state == "failed"
    assert found.message == "process 4194305 ended without a word: killed?"


def test_a_run_without_a_history_is_finished_by_its_files(tmp_path):
    folder = write_run(tmp_path / "run", metrics=training_line(100), age=1e5)
    assert read_run(folder, NOW).state == "stalled"
    (folder / "model_final.pth").touch()
    assert read_run(folder, NOW).state == "finished"
    assert read_run(folder, NOW).restarts is None
    assert read_run(folder, NOW).eta_seconds is None


def test_long_steps_are_no_silence(tmp_path):
    folder = write_run(tmp_path / "run", metrics=training_line(20, time=10.0), history=[started()], age=900.0)
    assert read_run(folder, NOW).state == "running"  # 5 periods of 20 steps of 10 s
    assert read_run(folder, NOW + 200.0).state == "stalled"


@pytest.mark.parametrize(
    "tail", ['{"iteration": 60, "total', "\x00\x00\x00", "[1, 2]\n", "null\n", '{"iteration": 60}\n', "\n\n"]
)
def test_broken_lines_are_passed_over(tmp_path, tail):
    folder = write_run(tmp_path / "run", metrics=training_line(40) + tail, history=[started()])
    assert read_run(folder, NOW).step == 40


def test_every_file_broken(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("metrics.jsonl", "history.jsonl", "config.yaml", "results.json", "log.txt"):
        (folder / name).write_bytes(b"\xff{[: }\n\x00")
        os.utime(folder / name, (NOW, NOW))
    assert read_run(folder, NOW) == status.RunStatus(str(folder), "running", age_seconds=0.0)


def test_values_of_other_kinds(tmp_path):
    folder = write_run(
        tmp_path / "run",
        metrics=training_line("x", time=None, eta_seconds="soon"),
        max_step="many",
        results={"val": {"student": {"bbox": None}, "teacher": {"bbox": {"AP": None}}}},
    )
    found = read_run(folder, NOW)
    assert (found.step, found.max_step, found.student_ap, found.teacher_ap) == (None, None, None, None)
    (folder / "results.json").write_text("[]")
    assert read_run(folder, NOW).student_ap is None


def test_the_step_of_a_run_that_has_not_logged_yet_is_that_of_its_start(tmp_path):
    assert read_run(write_run(tmp_path / "run", history=[started(20)]), NOW).step == 20


def test_the_last_training_line_before_long_evaluations(tmp_path):
    evaluation = json.dumps({"iteration": 40, "eval": {"val": ["x" * 1000] * 300}}) + "\n"
    folder = write_run(tmp_path / "run", metrics=training_line(20) * 5 + training_line(40) + evaluation * 3)
    assert read_run(folder, NOW).step == 40


def test_only_the_end_of_a_long_file_is_read(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("r+b") as file:
        file.seek(100 * 2**20)  # a sparse file of 100 MB
        file.write(b"\n" + training_line(40).encode())
    read = []
    read_lines = records.read_lines
    monkeypatch.setattr(records, "read_lines", lambda *a: read.append(a[1:]) or read_lines(*a))
    assert read_run(folder, NOW).step == 40
    assert read == [(), (records.TAIL_BYTES,)]  # history, metrics


DAMAGES = {
    "pipe": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "link in a ring": lambda path: path.symlink_to(path.name),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "deep JSON": lambda path: path.write_text("[" * 100_000 + "\n"),
    "deep YAML": lambda path: path.write_text("{a: " * 3_000),
    "growing YAML": lambda path: path.write_text(
        "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))
    ),
    "no date": lambda path: path.write_text("SOLVER: {MAX_ITER: 2001-99-99}\n"),
    "long number": lambda path: path.write_text('{"event": "start", "pid": ' + "9" * 5_000 + "}\n"),
    "large numbers": lambda path: path.write_text(
        '{"event": "start", "pid": 1e400, "step": 1e300, "iteration": 123456789012345678901234567890, '
        '"total_loss": 1, "eta_seconds": 1e308, "time": -1e308, "phase": {"a": 1}, "job": 3}\n'
    ),
    "other kinds": lambda path: path.write_text(
        '{"event": "start", "host": [1], "pid": {"a": 1}, "began": 7, "step": "x", "job": ["slurm", 1]}\n'
        '{"event": ["end"], "outcome": {}, "message": 1}\n{"event": "end", "message": ["\\n\\u001b[2J"]}\n'
    ),
    "no text": lambda path: path.write_bytes(bytes(range(256)) * 50),
}


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "history.jsonl", "config.yaml", "results.json", "launch.json"]
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_hides_no_other(tmp_path, capsys, name, damage):
    write_run(tmp_path / "whole", history=[started(), ended("failed", "no space")])
    broken = write_run(tmp_path / "broken", metrics=training_line(20), history=[started()], results=RESULTS)
    (broken / name).unlink(missing_ok=True)
    DAMAGES[damage](broken / name)
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines[1:3]) == 2
    assert any("whole" in line and "failed" in line for line in lines[1:3])
    assert all(line.isprintable() and len(line) < 1000 for line in lines)


def test_whatever_one_run_raises_hides_no_other(tmp_path, monkeypatch):
    def raise_it(path):
        raise MemoryError("a lot")

    monkeypatch.setattr(status, "read_settings", raise_it)
    found = read_run(write_run(tmp_path / "run"), NOW)
    assert (found.state, found.message) == ("unreadable", "cannot be read: MemoryError: a lot")


def test_names_that_are_no_text(tmp_path, capsys):
    write_run(tmp_path / "line\nbreak\x1b[2J")
    write_run(tmp_path / os.fsdecode(b"\xff"))
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5  # two rows, and below them that their dates are in the future
    assert all(line.isprintable() for line in lines)
    assert any(r"line\nbreak\x1b[2J" in line for line in lines)


def test_a_ring_of_links_is_walked_once(tmp_path):
    run = write_run(tmp_path / "deep" / "run")
    for number in range(20):
        (tmp_path / "deep" / f"ring{number}").symlink_to(tmp_path)
        (tmp_path / f"self{number}").symlink_to(f"self{number}")
    assert [path.resolve() for path in find_runs([str(tmp_path)])] == [run]


def test_the_future_is_not_believed(tmp_path):
    folder = write_run(tmp_path / "run", metrics=training_line(20), history=[started()], age=-86_400.0)
    found = read_run(folder, NOW)
    assert (found.state, found.age_seconds, found.eta_seconds) == ("stalled", None, None)
    assert found.message.startswith("its files are dated in the future")
    os.utime(folder / "history.jsonl", (NOW - 7.0, NOW - 7.0))
    assert read_run(folder, NOW).age_seconds == 7.0
    os.utime(folder / "metrics.jsonl", (NOW + 60.0, NOW + 60.0))  # a file server's clock
    assert read_run(folder, NOW).age_seconds == 0.0


def test_the_job_is_that_of_the_last_start(tmp_path):
    history = [{**started(), "job": "slurm 1"}, ended("saved"), {**started(20), "job": "slurm 2"}]
    assert read_run(write_run(tmp_path / "run", history=history), NOW).job == "slurm 2"


def test_finding_runs(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("a/r1", "a/r2", "b/deep/er")]
    write_run(tmp_path / "a/r1/earlier-20260101-000000")
    (tmp_path / "empty").mkdir()
    assert find_runs([str(tmp_path)]) == runs
    assert find_runs([str(tmp_path / "a"), str(runs[0])]) == runs[:2]
    assert find_runs([str(tmp_path / "*" / "r*")]) == runs[:2]
    assert find_runs([str(tmp_path / "empty"), str(tmp_path / "none")]) == [
        tmp_path / "empty", tmp_path / "none",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no folder fits the pattern"):
        find_runs([str(tmp_path / "x*")])


def test_table():
    statuses = [
        status.RunStatus("a", "running", 40, 100, "distill", 90.0, 40.125, 44.0, 0.25, 5.0, 1, "slurm 4711"),
        status.RunStatus(
            "long/name", "failed", 4, None, age_seconds=90000.0, restarts=0, message="disk full"
        ),
        status.RunStatus("c", "not started"),
    ]
    assert format_table(statuses).splitlines() == [
        "run        state          step  phase        ETA     AP  teacher  s/step   last line  restarts  job",
        "a          running      40/100  distill  0:01:30  40.12    44.00   0.250     0:00:05         1  "
        "slurm 4711",
        "long/name  failed          4/?  -              -      -        -       -  1d 1:00:00         0  -",
        "c          not started       -  -              -      -        -       -           -         -  -",
        "long/name: disk full",
    ]


def test_command(tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "run", history=[started(), ended("failed", "no space")])
    assert main([str(tmp_path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["state"], found["message"]) == ("failed", "no space")
    assert main([str(tmp_path / "x*")]) == 2
    assert "error:" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--watch", "0"])
    capsys.readouterr()
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", wait)
    assert main([str(tmp_path), "--watch", "3"]) == 0
    assert waits == [3, 3]
    assert capsys.readouterr().out.count("restarts") == 2


def test_history(tmp_path):
    path = tmp_path / "history.jsonl"
    with History(path):
        pass
    assert not path.exists()  # nothing began
    with History(path) as history:
        history.begin(0, 2)
    for step, num_ranks, error in (
        (5, 2, Interrupted("saved at step 7")),
        (7, 1, OSError("the disk\nis full")),
    ):
        with contextlib.suppress(Interrupted, OSError), History(path) as history:
            history.begin(step, num_ranks)
            raise error
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry.get("outcome") for entry in entries] == [None, "finished", None, "saved", None, "failed"]
    assert [entry.get("message") for entry in entries[1::2]] == ["", "saved at step 7", "the disk is full"]
    assert [(entry["step"], entry["ranks"]) for entry in entries[::2]] == [(0, 2), (5, 2), (7, 1)]
    assert entries[0]["pid"] == os.getpid()
    assert Start.read(entries[0]).runs()
    assert not Start.read({**entries[0], "began": "1"}).runs()
    set_earlier_run_aside(tmp_path)
    assert not path.exists()


def test_a_real_run(small_data, tmp_path):
    settings = small_settings(small_data, tmp_path, SOLVER__MAX_ITER=4, SOLVER__STEPS="[2]")
    assert Forked(settings, log=tmp_path / "out").wait() == 0
    found = read_run(tmp_path, time.time())
    assert (found.state, found.step, found.max_step, found.restarts) == ("finished", 4, 4, 0)
    assert found.student_ap is not None
    assert found.teacher_ap is not None
    assert found.seconds_per_step > 0


def test_numbers_larger_than_any(tmp_path):
    huge = json.loads("1" + "0" * 400)
    folder = write_run(
        tmp_path / "run",
        metrics=training_line(huge, time=huge),
        history=[started(huge, host="another", pid=huge)],
    )
    found = read_run(folder, NOW)
    assert (found.state, found.step, found.seconds_per_step) == ("running", None, None)
